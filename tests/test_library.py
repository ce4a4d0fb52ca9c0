"""The library's door, with the snippet that users of the method already have."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli import PreferenceDataset, SimPOConfig, SimPOTrainer
from simpo_cli.errors import UserError
from simpo_cli.model import device
from tests.model.reference import simpo_loss
from tests.tiny import save_tiny_model

ROWS = [
    {"prompt": "How do I invite a teammate?", "chosen": "Open Settings, press Invite.", "rejected": "I cannot say."},
    {"prompt": "Where is my invoice?", "chosen": "Under Billing.", "rejected": "Somewhere in the application, look."},
    {"prompt": "Undo?", "chosen": "Press Undo at the top.", "rejected": "No."},
]


@pytest.fixture(autouse=True)
def _no_accelerator_of_another_test() -> None:
    """accelerate has one precision in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def prefs(tmp_path: Path) -> Path:
    path = tmp_path / "prefs.json"
    path.write_text(json.dumps(ROWS), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


def test_the_dataset(prefs: Path) -> None:
    dataset = PreferenceDataset(str(prefs))
    assert len(dataset) == 3
    assert dataset[0]["prompt"] == ROWS[0]["prompt"]
    assert dataset[2] == ROWS[2]
    assert dataset.stats() == {"count": 3, "avg_chosen_len": (4 + 2 + 5) // 3, "avg_rejected_len": (3 + 5 + 1) // 3}


def test_compute_loss_takes_sums_and_lengths(folder: Path) -> None:
    trainer = SimPOTrainer(AutoModelForCausalLM.from_pretrained(folder), SimPOConfig(beta=2.0, gamma=1.0))
    loss = trainer.compute_loss(
        torch.tensor([-31.5, -10.0]), torch.tensor([-68.0, -30.0]), torch.tensor([21, 10]), torch.tensor([34, 10])
    )
    margins = (2 * (-1.5 - -2.0) - 1.0, 2 * (-1.0 - -3.0) - 1.0)
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-d)) for d in margins) / 2)
    with pytest.raises(ValueError, match="rejected_len"):
        trainer.compute_loss(*(torch.tensor([-1.0]),) * 2, torch.tensor([1]), torch.tensor([0]))


@pytest.mark.parametrize("form", ["records", "columns"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_train_step_is_one_step_of_adam_on_the_papers_loss(folder: Path, form: str, batch_size: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    limits = {"max_length": 64, "max_prompt_length": 48}
    config = SimPOConfig(beta=2.0, gamma=1.0, lr=1e-3, batch_size=batch_size, precision="fp32", **limits)
    trainer = SimPOTrainer(model, config)
    expected = simpo_loss(model, trainer._encode(_pairs()), 2.0, 1.0).item()
    batch: Any = ROWS if form == "records" else {key: [row[key] for row in ROWS] for key in ROWS[0]}
    first = trainer.train_step(batch)
    assert first == pytest.approx(expected, rel=1e-5)
    assert trainer.train_step(batch) < first
    assert trainer.model is model


def _pairs() -> Any:
    from simpo_cli.library import _pairs_of

    return _pairs_of(ROWS)


def test_a_tokenizer_of_transformers_gives_the_same_tokens(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    by_folder = SimPOTrainer(model, SimPOConfig())._encode(_pairs())
    by_object = SimPOTrainer(model, SimPOConfig(), AutoTokenizer.from_pretrained(folder))._encode(_pairs())
    for a, b in zip(by_folder, by_object, strict=True):
        assert a.prompt.tolist() == b.prompt.tolist()
        assert a.chosen.tolist() == b.chosen.tolist()
        assert a.rejected.tolist() == b.rejected.tolist()


@pytest.mark.parametrize(
    "batch", [[], [{"prompt": "a", "chosen": "b"}], [{"prompt": "a", "chosen": "b", "rejected": "b"}]]
)
def test_a_batch_that_cannot_teach_is_refused(folder: Path, batch: Any) -> None:
    trainer = SimPOTrainer(AutoModelForCausalLM.from_pretrained(folder), SimPOConfig())
    with pytest.raises(UserError):
        trainer.train_step(batch)


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"gamma": -1.0}, {"lr": 0.0}, {"batch_size": 0}, {"precision": "fp16"}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}|learning_rate"):
        SimPOConfig(**wrong)


@pytest.mark.parametrize("precision", ["bf16", "fp32", "auto"])
def test_the_layers_multiply_in_the_precision_that_was_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setattr(device, "multiplies_in_bf16", lambda **_: True)  # as on a card with tensor cores
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = SimPOTrainer(model, SimPOConfig(lr=1e-3, precision=precision))
    trainer.train_step(ROWS)  # the self-check is always in float32
    seen = set()
    layer = model.model.layers[-1].self_attn.q_proj
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: seen.add(output.dtype))
    first, second = trainer.train_step(ROWS), trainer.train_step(ROWS)
    handle.remove()
    computed = torch.float32 if precision == "fp32" else torch.bfloat16
    assert seen == {computed}
    assert trainer.precision == ("fp32" if precision == "fp32" else "bf16")
    assert second < first
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_launcher_of_several_processes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="trains in one process, and a launcher started several"):
        SimPOTrainer(model, SimPOConfig())


def test_gamma_is_half_of_beta_when_it_is_not_given() -> None:
    assert SimPOConfig(beta=2.5).loss.margin == 1.25
