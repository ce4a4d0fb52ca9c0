"""One recipe on 1, 2 and 4 processes, replicated and sharded: the same curve, the same weights, the same evaluation."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.children import Children
from tests.train.runs import TIMING, rows

_COMPARED = ("loss", "rewards/chosen", "rewards/rejected", "grad_norm")
_COUNTED = TIMING | {"step", "epoch", "pairs", "tokens", "learning_rate"}


def train(children: Children, run: str, ranks: int, *more: str) -> Path:
    """Train on so many ranks, and return the folder of the run."""
    codes = children.run_ranks(ranks, "train", "run.yaml", f"output_dir={run}", *more)
    assert codes == [0] * ranks, "\n".join(children.said(number) for number in range(ranks))
    return children.place / run


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Those of the last checkpoint, whichever rank wrote them."""
    files = max((run / "checkpoints").glob("step-*")).glob("weights*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def differing_weights(one: Path, other: Path) -> list[str]:
    """Names of the tensors of which two runs do not have the same bits."""
    others = weights(other)
    return [name for name, tensor in weights(one).items() if not torch.equal(tensor, others[name])]


def largest_difference(one: Path, other: Path) -> float:
    """Of two runs' curves: relative, of margins absolute; what is counted has to be the same."""
    ours, theirs = rows(one / "metrics.jsonl"), rows(other / "metrics.jsonl")
    worst = 0.0
    for row, same in zip(ours, theirs, strict=True):
        assert {name: row[name] for name in _COUNTED - TIMING} == {name: same[name] for name in _COUNTED - TIMING}
        apart = [abs(same[name] - row[name]) / abs(row[name]) for name in _COMPARED]
        worst = max(worst, *apart, abs(same["rewards/margins"] - row["rewards/margins"]))
    return worst


def _outcome(run: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))["outcome"]
    return outcome


def require_alike(one: Path, other: Path, steps: int = 20) -> None:
    """Curve, weights and evaluation of two runs agree as far as the order of sums lets them."""
    assert len(rows(one / "metrics.jsonl")) == steps
    assert largest_difference(one, other) < 1e-5
    trained, others = weights(one), weights(other)
    assert trained.keys() == others.keys()
    for name, tensor in trained.items():
        assert tensor.dtype == others[name].dtype
        assert float((tensor - others[name]).norm() / tensor.norm().clamp(min=1e-12)) < 1e-4, name
    for before, after in zip(rows(one / "evals.jsonl"), rows(other / "evals.jsonl"), strict=True):
        assert [before[f"accuracy{x}"] for x in ("", "_low", "_high")] == [
            after[f"accuracy{x}"] for x in ("", "_low", "_high")
        ]
    for summary in ("before", "after"):
        assert _outcome(one)[summary]["accuracy"] == _outcome(other)[summary]["accuracy"]
    saved, same_saved = (load_file(run / "model" / file) for run, file in ((one, _saved(one)), (other, _saved(other))))
    assert {n: (t.shape, t.dtype) for n, t in saved.items()} == {n: (t.shape, t.dtype) for n, t in same_saved.items()}


def _saved(run: Path) -> str:
    return next(file.name for file in (run / "model").glob("*.safetensors"))


_MODELS = {
    "untied": (),
    "tied": ("model.path=tied",),
    "lora": ("model.lora={rank: 4}", "train.learning_rate=0.003"),
}
_ALL = [(model, strategy, ranks) for model in _MODELS for strategy in ("none", "ddp", "fsdp2") for ranks in (1, 2, 4)]
_RUNS = [one for one in _ALL if (one[1] == "none") == (one[2] == 1)]
_QUICK = {("untied", "ddp", 2), ("untied", "fsdp2", 4), ("tied", "fsdp2", 2), ("lora", "ddp", 4), ("lora", "fsdp2", 2)}


@pytest.fixture(scope="module")
def alone(children: Children) -> Callable[[str], Path]:
    """The run of a model on one process."""
    return cache(lambda model: train(children, f"{model}-alone", 1, *_MODELS[model]))


@pytest.mark.parametrize(
    ("model", "strategy", "ranks"),
    [pytest.param(*one, marks=() if one in _QUICK else pytest.mark.slow) for one in _RUNS],
)
def test_ranks_and_their_strategy_change_nothing_but_the_order_of_sums(
    children: Children, alone: Callable[[str], Path], model: str, strategy: str, ranks: int
) -> None:
    budget = 150 if strategy == "fsdp2" else 105  # one process with other micro-batches differs as much
    more = (*_MODELS[model], f"distributed.strategy={strategy}", f"train.tokens_per_microbatch={budget}")
    require_alike(alone(model), train(children, f"{model}-{strategy}-{ranks}", ranks, *more))
