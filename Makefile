# Everything starts here, on a machine with nothing but Python 3.11 or later.
#   make demo    sets up, trains the built-in model on its own pairs, shows what changed (no GPU, no network after set-up)
#   make test    sets up and runs the tests
#   make check   formatting, lint, types, import rules
#   make bench   speed of the parts of a training step
#   make guide   rebuilds the model and the pairs of builtin:guide from their script

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow check bench guide clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(READY)

# torch first and by its exact pin: pip then never weighs another build of it against this one
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("simpo needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/simpo train demo --fresh

test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow"

# SIMPO_TEST_MODEL names a folder with a real model, such as SmolLM2-135M-Instruct
test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m tests.benchmarks.step

guide: $(READY)
	$(BIN)/python -m simpo_cli.builtin.build simpo_cli/builtin/guide

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
