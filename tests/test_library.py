"""The library's door, with the snippet that users of the method already have."""

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli import PreferenceDataset, SimPOConfig, SimPOTrainer, library, stages
from simpo_cli.errors import UserError
from simpo_cli.model import device, quantised
from tests.data.pair_files import write_pairs
from tests.model.reference import simpo_loss

ROWS = [
    {"prompt": "How do I invite a teammate?", "chosen": "Open Settings, press Invite.", "rejected": "I cannot say."},
    {"prompt": "Where is my invoice?", "chosen": "Under Billing.", "rejected": "Somewhere in the application, look."},
    {"prompt": "Undo?", "chosen": "Press Undo at the top.", "rejected": "No."},
]


PAIRS = library._pairs_of(ROWS)
LIMITS = {"max_length": 64, "max_prompt_length": 48}


@pytest.fixture
def model(tiny_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)


def test_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "prefs.json").write_text(json.dumps(ROWS), encoding="utf-8")
    dataset = PreferenceDataset(str(tmp_path / "prefs.json"))
    assert len(dataset) == 3
    assert dataset[0]["prompt"] == ROWS[0]["prompt"]
    assert dataset[2] == ROWS[2]
    assert dataset.stats() == {"count": 3, "avg_chosen_len": (4 + 2 + 5) // 3, "avg_rejected_len": (3 + 5 + 1) // 3}


def test_compute_loss_takes_sums_and_lengths(model: Any) -> None:
    trainer = SimPOTrainer(model, SimPOConfig(beta=2.0, gamma=1.0))
    loss = trainer.compute_loss(
        torch.tensor([-31.5, -10.0]), torch.tensor([-68.0, -30.0]), torch.tensor([21, 10]), torch.tensor([34, 10])
    )
    margins = (2 * (-1.5 - -2.0) - 1.0, 2 * (-1.0 - -3.0) - 1.0)
    assert loss.item() == pytest.approx(sum(math.log1p(math.exp(-d)) for d in margins) / 2)
    with pytest.raises(ValueError, match="rejected_len"):
        trainer.compute_loss(*(torch.tensor([-1.0]),) * 2, torch.tensor([1]), torch.tensor([0]))


@pytest.mark.parametrize("form", ["records", "columns"])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_train_step_is_one_step_of_adam_on_the_papers_loss(model: Any, form: str, batch_size: int) -> None:
    config = SimPOConfig(beta=2.0, gamma=1.0, lr=1e-3, batch_size=batch_size, precision="fp32", **LIMITS)
    trainer = SimPOTrainer(model, config)
    expected = simpo_loss(model, trainer._encode(PAIRS), 2.0, 1.0).item()
    batch: Any = ROWS if form == "records" else {key: [row[key] for row in ROWS] for key in ROWS[0]}
    first = trainer.train_step(batch)
    assert first == pytest.approx(expected, rel=1e-5)
    assert trainer.train_step(batch) < first
    assert trainer.model is model


def test_a_tokenizer_of_transformers_gives_the_same_tokens(model: Any, tiny_folder: Path) -> None:
    by_folder = SimPOTrainer(model, SimPOConfig())._encode(PAIRS)
    by_object = SimPOTrainer(model, SimPOConfig(), AutoTokenizer.from_pretrained(tiny_folder))._encode(PAIRS)
    for a, b in zip(by_folder, by_object, strict=True):
        for part in ("prompt", "chosen", "rejected"):
            assert getattr(a, part).tolist() == getattr(b, part).tolist()


@pytest.mark.parametrize(
    "batch", [[], [{"prompt": "a", "chosen": "b"}], [{"prompt": "a", "chosen": "b", "rejected": "b"}]]
)
def test_a_batch_that_cannot_teach_is_refused(model: Any, batch: Any) -> None:
    with pytest.raises(UserError):
        SimPOTrainer(model, SimPOConfig()).train_step(batch)


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", 0.0), ("gamma", -1.0), ("lr", 0.0), ("batch_size", 0), ("precision", "fp16"), ("loss_type", "ipo")],
)
def test_values_out_of_range_are_refused_by_the_names_that_were_given(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} is"):
        SimPOConfig(**{name: value})


@pytest.mark.parametrize("precision", ["bf16", "fp32", "auto"])
def test_the_layers_multiply_in_the_precision_that_was_asked_for(
    model: Any, monkeypatch: pytest.MonkeyPatch, precision: Any
) -> None:
    monkeypatch.setattr(device, "multiplies_in_bf16", lambda _: True)  # as on a card with tensor cores
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


def test_a_launcher_of_several_processes_is_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="runs in one process, and a launcher started several"):
        SimPOTrainer(model, SimPOConfig())


def test_gamma_is_half_of_beta_when_it_is_not_given() -> None:
    assert SimPOConfig(beta=2.5).loss.margin == 1.25


class Scorer(torch.nn.Module):
    """A module that is no language model: the log-probs of four pairs are its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.logps = torch.nn.Parameter(torch.tensor([[-10.0, -20.0], [-12.0, -15.0]]))
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logps[0], self.logps[1]


LENGTHS = (torch.tensor([5, 10]), torch.tensor([4, 10]))


def test_the_snippet_of_the_method_with_any_module() -> None:
    model = Scorer()
    config = SimPOConfig(beta=2.0, gamma=1.0, lr=1e-2, batch_size=4)
    trainer = SimPOTrainer(model, config)
    assert trainer.model is model
    assert model.dropout.p == 0.5  # what is not ours stays as it is
    margins = (2 * (-2.0 - -3.0) - 1, 2 * (-2.0 - -1.5) - 1)
    expected = sum(math.log1p(math.exp(-margin)) for margin in margins) / 2
    assert trainer.compute_loss(*model(), *LENGTHS).item() == pytest.approx(expected)
    before = model.logps.detach().clone()
    assert trainer.train_step((*model(), *LENGTHS)) == pytest.approx(expected)
    # the first step of AdamW moves every weight by the learning rate, against the sign of its gradient
    moved = (model.logps - before).sign()
    assert torch.equal(moved, torch.tensor([[1.0, 1.0], [-1.0, -1.0]]))
    named = dict(zip(("chosen_logps", "rejected_logps"), model(), strict=True))
    second = trainer.train_step({**named, "chosen_len": LENGTHS[0], "rejected_len": LENGTHS[1]})
    assert isinstance(second, float)
    assert second < expected
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_four_tensors_of_a_language_model(model: Any) -> None:
    """The tensor batch takes the same step as the batch of texts."""
    config = SimPOConfig(beta=2.0, gamma=1.0, lr=1e-3, precision="fp32", **LIMITS)
    by_texts, by_tensors = (SimPOTrainer(copy.deepcopy(model), config) for _ in range(2))
    sides: dict[str, list[torch.Tensor]] = {"chosen": [], "rejected": []}
    for pair in by_tensors._encode(PAIRS):
        for side, summed in sides.items():
            response = torch.from_numpy(getattr(pair, side)).long()
            ids = torch.cat([torch.from_numpy(pair.prompt).long(), response])
            logps = by_tensors.model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
            summed.append(logps[-len(response) :].gather(1, response[:, None]).sum())
    lengths = [torch.tensor([len(getattr(pair, side)) for pair in by_tensors._encode(PAIRS)]) for side in sides]
    loss = by_tensors.train_step((torch.stack(sides["chosen"]), torch.stack(sides["rejected"]), *lengths))
    assert loss == pytest.approx(by_texts.train_step(ROWS), rel=1e-5)
    for ours, theirs in zip(by_tensors.model.parameters(), by_texts.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize(
    ("batch", "kind", "said"),
    [
        (lambda logps: logps, ValueError, "holds 2 tensors, and four are wanted: chosen_logps, rejected_logps"),
        (lambda logps: {"chosen_logps": logps[0]}, ValueError, "lacks rejected_logps, chosen_len, rejected_len"),
        (lambda logps: (logps[0].detach(), logps[1].detach(), *LENGTHS), ValueError, "hold no gradient"),
        (lambda logps: (logps[0] * math.nan, logps[1], *LENGTHS), UserError, "the loss is nan"),
        (lambda _: ROWS, TypeError, "Scorer is no causal language model of transformers"),
    ],
)
def test_batches_that_a_module_cannot_learn_from(batch: Any, kind: type[Exception], said: str) -> None:
    model = Scorer()
    trainer, before = SimPOTrainer(model, SimPOConfig()), model.logps.detach().clone()
    with pytest.raises(kind, match=said):
        trainer.train_step(batch(model()))
    assert torch.equal(model.logps, before)
    assert model.logps.grad is None


@pytest.mark.parametrize(
    "row", [{"prompt": 1, "chosen": "b", "rejected": "c"}, {"prompt": "p", "chosen": 7, "rejected": "c"}]
)
def test_errors_speak_to_somebody_who_writes_python(model: Any, tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(UserError) as of_batch:
        SimPOTrainer(model, SimPOConfig()).train_step([ROWS[0], row])
    with pytest.raises(UserError) as of_file:
        PreferenceDataset(write_pairs(tmp_path, "prefs.jsonl", [ROWS[0], row]))
    for error in (of_batch.value, of_file.value):
        assert "Mend the record, or leave it out." in error.fix
        assert not re.search(r"recipe|data\.|loss\.|train\.", str(error).replace("prefs.jsonl", ""))


def test_a_long_self_check_says_so(
    model: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Beating(stages.Pulse):
        def start(self) -> None:
            self._heard_at -= 100
            with stages.stage("self-check"):
                self.beat()

    monkeypatch.setattr(library, "Pulse", Beating)
    SimPOTrainer(model, SimPOConfig(**LIMITS)).train_step(ROWS)
    assert capsys.readouterr().err.endswith("simpo: self-check, 0:00 so far\n")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_model_that_its_owner_has_quantised_trains_its_adapters(tiny_folder: Path, kind: Any) -> None:
    """Its layers, those of bitsandbytes, would give wrong gradients after a forward pass without any on some CPUs."""
    from peft import LoraConfig, get_peft_model

    plain = AutoModelForCausalLM.from_pretrained(
        tiny_folder, dtype=torch.float32, quantization_config=quantised.settings_of(kind), device_map={"": "cpu"}
    )
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    trainer = SimPOTrainer(model, SimPOConfig(lr=1e-2, precision="fp32", **LIMITS), tokenizer)
    layers = [layer for layer in trainer.model.modules() if quantised.is_quantised(layer)]
    assert len(layers) == 14
    assert {type(layer).__module__ for layer in layers} == {quantised.__name__}
    first = trainer.train_step(ROWS)
    losses = [trainer.train_step(ROWS) for _ in range(8)]
    assert losses[-1] < first
