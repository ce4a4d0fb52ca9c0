# You need nothing but Python 3.11 or later.
#   make demo    set up, train the built-in model on its own pairs, show what changed (no GPU, no network after set-up)
#   make demo-round    the same model trained by its own answers, round after round (four minutes)
#   make test    set up and run the tests
#   make test-elsewhere  run the tests from an empty folder, so that nothing around them decides one
#   make test-oldest   run the tests of what the libraries decide with the oldest supported versions
#   make test-faults   inject kills, signals, disk faults and damaged files; resume and compare (KILLS=300, RANK_KILLS=300)
#   make test-slow     run the tests that need a real model in SIMPO_TEST_MODEL
#   make fuzz    feed broken records and messages to the readers for a minute
#   make formats list the data layouts that are read, and what says which response is chosen
#   make check   check formatting, lint, types and import rules
#   make house   count lines, files, floors, longest files, and the files that beta and a pair go through
#   make bench   compare our training step with TRL's on real pairs; write docs/benchmarks.md (at most 40 minutes)
#   make bench-full    the same with 16 pairs a step, all lengths and bf16; takes hours
#   make bench-page    write its tables and plot again from docs/benchmarks.json
#   make bench-step    measure the parts of a training step
#   make bench-audit   measure speed and memory of simpo stats
#   make bench-loading measure speed and memory of reading and tokenizing pairs
#   make bench-saving  measure the cost of checkpoints beside the steps of a run
#   make bench-resume  measure the time to resume a run
#   make bench-memory  measure the memory of steps beside what is predicted, alone and on two ranks
#   make bench-savings measure what each saving of memory takes and costs (an hour on two cores)
#   make bench-scale   measure several processes against one, and 100 M pairs (10 GB of disk; an hour on two cores)
#   make gpu-check   check correctness, memory and speed on a CUDA card in six minutes (ARGS=--tiny: small, on a CPU)
#   make gpu-bundle  collect the wheels that a card without network lacks for it (PYTHON_VERSION=3.12)
#   make gpu-page    write docs/gpu.md from the results under docs/gpu/
#   make guide   rebuild the model and the pairs of builtin:guide from their script

PYTHON ?= python3
VENV ?= .venv
PEER_VENV ?= .venv-peer
OLDEST_VENV ?= .venv-oldest
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEER_READY := $(PEER_VENV)/.ready
OLDEST_READY := $(OLDEST_VENV)/.ready
BENCH_MODEL ?= models/smollm2-135m-instruct
BENCH_DATA ?= ../shared/data
WORKERS ?= 2
KILLS ?= 300
RANK_KILLS ?= 300
FAULT_OPTIONS ?= --quick
PYTHON_VERSION ?= 3.12

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-round test test-elsewhere test-oldest test-slow test-faults fuzz formats check house bench bench-full bench-page bench-step bench-audit bench-loading bench-saving bench-resume bench-memory bench-savings bench-scale gpu-check gpu-bundle gpu-page guide clean

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

demo-round: $(READY)
	$(BIN)/simpo pairs round demo-round --rule builtin:guide --fresh

test: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow"

test-elsewhere: $(READY)
	elsewhere=$$(mktemp -d) && trap 'rm -rf "$$elsewhere"' EXIT && cd "$$elsewhere" && \
		$(abspath $(BIN))/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" $(CURDIR)/tests

# everything by its exact pin, in an environment of its own; torch first, as above
$(OLDEST_READY): pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints-oldest.txt)
	$(OLDEST_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement constraints-oldest.txt --editable .
	@touch $(OLDEST_READY)

# what torch and the libraries around it decide, and of the rest a file or two for each library
OLDEST_TESTS := tests/model tests/train tests/publish tests/evaluate \
	tests/pairs/test_reward_model.py tests/pairs/test_sample.py \
	$(patsubst %,tests/data/test_%.py,encode_conversation encode_rendering hub load prepare records store table_records \
		template_shapes text_tokenizer tokenized_view tokenizer) \
	tests/cli/test_help.py tests/cli/test_train_command.py tests/report/test_console.py tests/report/test_run_page.py \
	tests/run/test_receipt.py tests/statistics/test_ranks.py tests/test_library.py tests/test_versions.py \
	tests/tune/test_study.py

test-oldest: $(OLDEST_READY)
	$(OLDEST_VENV)/bin/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow" $(OLDEST_TESTS)

test-faults: $(READY)
	$(BIN)/python -m tests.faults.storm --kills $(KILLS)
	$(BIN)/python -m tests.faults.rank_storm --kills $(RANK_KILLS)
	$(BIN)/python -m tests.faults.disk $(FAULT_OPTIONS)
	$(BIN)/python -m tests.faults.corruption

fuzz: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.fuzz_records -max_total_time=60

# SIMPO_TEST_MODEL names a folder with a real model, such as SmolLM2-135M-Instruct
test-slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

formats: $(READY)
	$(BIN)/python -m tests.data.layouts

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

house: $(READY)
	$(BIN)/python -m tests.house

# the peer of the benchmark in an environment of its own, with our torch and transformers; torch first, as above
$(PEER_READY): constraints.txt tests/benchmarks/peer.txt
	$(PYTHON) -m venv $(PEER_VENV)
	$(PEER_VENV)/bin/pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(PEER_VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--requirement tests/benchmarks/peer.txt
	@touch $(PEER_READY)

# BENCH_MODEL names the model's folder, BENCH_DATA that of the data sets, BENCH_OPTIONS more (see versus.py --help)
BENCH = $(BIN)/python -m tests.benchmarks.versus --model $(BENCH_MODEL) --data $(BENCH_DATA) \
	--peer $(PEER_VENV)/bin/python $(BENCH_OPTIONS)

bench: $(READY) $(PEER_READY)
	$(BENCH)

bench-full: $(READY) $(PEER_READY)
	$(BENCH) --full --rounds 7

# tables and plot again from docs/benchmarks.json, without measuring
bench-page: $(READY)
	$(BIN)/python -m tests.benchmarks.page docs

bench-step: $(READY)
	$(BIN)/python -m tests.benchmarks.step

bench-audit: $(READY)
	$(BIN)/python -m tests.benchmarks.audit $(BENCH_OPTIONS)

bench-loading: $(READY)
	$(BIN)/python -m tests.benchmarks.loading $(BENCH_OPTIONS)

bench-saving: $(READY)
	$(BIN)/python -m tests.benchmarks.saving --model $(BENCH_MODEL) --data $(BENCH_DATA)/llamafactory_dpo_en_demo.json

bench-resume: $(READY)
	$(BIN)/python -m tests.benchmarks.resume

bench-memory: $(READY)
	$(BIN)/python -m tests.benchmarks.memory

bench-savings: $(READY)
	$(BIN)/python -m tests.benchmarks.savings --model $(BENCH_MODEL) --data $(BENCH_DATA)/llamafactory_dpo_en_demo.json
	$(BIN)/python -m tests.benchmarks.savings --accuracy --at-once 2

bench-scale: $(READY)
	$(BIN)/python -m tests.benchmarks.scale --model $(BENCH_MODEL) --data $(BENCH_DATA)/llamafactory_dpo_en_demo.json
	$(BIN)/python -m tests.benchmarks.scaling
	$(BIN)/python -m tests.benchmarks.many_pairs $(BENCH_OPTIONS)

gpu-check: $(READY)
	$(BIN)/python -m tests.gpu.check $(ARGS)

gpu-bundle: $(READY)
	$(BIN)/python -m tests.gpu.bundle --python-version $(PYTHON_VERSION)

gpu-page: $(READY)
	$(BIN)/python -m tests.gpu.page docs

guide: $(READY)
	$(BIN)/python -m simpo_cli.builtin.build simpo_cli/builtin/guide

clean:
	rm -rf $(VENV) $(PEER_VENV) $(OLDEST_VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
