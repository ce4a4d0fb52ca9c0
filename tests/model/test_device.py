"""The device of a command and of a program that uses the library; what a card answers is played."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized

from simpo_cli.errors import UserError
from simpo_cli.model import device
from simpo_cli.model.backend import multiplies_in_bf16
from simpo_cli.model.device import choose_precision, join_accelerator, open_accelerator
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import Recipe

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither accelerate's state, nor torch's, nor the allocator's, nor the environment outlives a test."""
    monkeypatch.setenv(CUBLAS, "")
    monkeypatch.delenv(CUBLAS)
    monkeypatch.setattr(device, "keep_freed_memory", lambda: True)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.use_deterministic_algorithms(False)


def _recipe(tmp_path: Path, *overrides: str) -> Recipe:
    file = tmp_path / "run.yaml"
    file.write_text("name: x\n", encoding="utf-8")
    return compose(
        str(file), ["model.path=m", "data.train=d.json", f"output_dir={tmp_path / 'run'}", *overrides]
    ).recipe


def _card(patch: pytest.MonkeyPatch, *, multiplies: bool, emulates: bool = True) -> None:
    """A card that multiplies in bf16, or one whose kernels emulate it, or one that has none."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: multiplies or (emulates and including_emulation),
    )


@pytest.mark.parametrize("multiplies", [True, False])
def test_auto_is_bf16_on_a_card_that_multiplies_in_it_and_not_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, multiplies: bool
) -> None:
    _card(monkeypatch, multiplies=multiplies)
    assert choose_precision("auto", "x") == ("bf16" if multiplies else "fp32")
    assert choose_precision("bf16", "x") == "bf16"
    assert choose_precision("fp32", "x") == "fp32"


def test_bf16_on_a_card_without_it_is_refused_by_the_name_that_the_user_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _card(monkeypatch, multiplies=False, emulates=False)
    assert choose_precision("auto", "x") == "fp32"
    with pytest.raises(UserError, match=r"^train\.precision is bf16, which this card") as caught:
        open_accelerator(_recipe(tmp_path, "train.precision=bf16"))
    assert caught.value.fix == "Set train.precision to fp32 or auto."
    with pytest.raises(UserError, match=r"^precision is bf16, which this card"):
        join_accelerator("bf16")
    assert not is_initialized()


def test_several_processes_are_refused_before_any_of_them_joins_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")  # accelerate would wait for the other one
    monkeypatch.setenv("RANK", "0")
    problems = set()
    for start in (lambda: open_accelerator(_recipe(tmp_path)), lambda: join_accelerator("auto")):
        with pytest.raises(UserError, match="one process, and a launcher started several") as caught:
            start()
        problems.add(str(caught.value))
    assert len(problems) == 1
    assert not is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_accelerator("fp32")[1] == "fp32"


def test_a_program_keeps_its_generators_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "keep_freed_memory", lambda: pytest.fail("the program's allocator was set"))
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    join_accelerator("auto")
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
    assert CUBLAS not in os.environ
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("theirs", "precision"), [("bf16", "bf16"), ("no", "fp32")])
def test_auto_takes_the_precision_of_a_programs_own_accelerator(
    monkeypatch: pytest.MonkeyPatch, theirs: str, precision: Any
) -> None:
    own = Accelerator(mixed_precision=theirs, cpu=True)
    other = "fp32" if precision == "bf16" else "bf16"
    monkeypatch.setattr(device, "multiplies_in_bf16", lambda _: precision == "fp32")  # the device alone says otherwise
    for wanted in ("auto", precision):
        accelerator, found = join_accelerator(wanted)
        assert found == precision
        with accelerator.autocast():
            assert torch.is_autocast_enabled("cpu") == (precision == "bf16")
    with pytest.raises(UserError, match=f"precision is {other}, and this program has .* mixed_precision={theirs}"):
        join_accelerator(other)  # type: ignore[arg-type]
    assert own.mixed_precision == theirs


def test_an_accelerator_in_float16_is_refused_because_it_scales_losses() -> None:
    Accelerator(cpu=True)
    AcceleratorState().__dict__["_mixed_precision"] = "fp16"  # accelerate gives it on a card only
    for wanted in ("auto", "bf16", "fp32"):
        with pytest.raises(UserError, match="mixed_precision=fp16"):
            join_accelerator(wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("theirs", [None, ":16:8"])
def test_deterministic_names_a_workspace_for_cublas_unless_the_user_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, theirs: str | None
) -> None:
    open_accelerator(_recipe(tmp_path))
    assert CUBLAS not in os.environ
    if theirs is not None:
        monkeypatch.setenv(CUBLAS, theirs)
    open_accelerator(_recipe(tmp_path, "train.deterministic=true"))
    assert os.environ[CUBLAS] == (theirs or ":4096:8")
    assert torch.are_deterministic_algorithms_enabled()
    read = subprocess.run(["printenv", CUBLAS], capture_output=True, text=True, check=True)  # as the C library has it
    assert read.stdout.strip() == (theirs or ":4096:8")


def test_no_product_on_a_card_comes_before_the_workspace_is_named() -> None:
    """cuBLAS reads the variable when it is first used; what is imported before must use no device."""
    program = """
import torch
torch.cuda._lazy_init = lambda: (_ for _ in ()).throw(SystemExit("a card was used on import"))
import simpo_cli.model.device, simpo_cli.train.session, simpo_cli.library
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2], timeout=120)


def test_processors_with_tiles_multiply_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda tiles=tiles: tiles)
        assert multiplies_in_bf16("cpu") is tiles
