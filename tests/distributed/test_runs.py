"""One recipe on 1, 2 and 4 processes, replicated and sharded: the same curve, the same weights, the same evaluation."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.children import Children
from tests.train.runs import TIMING, rows, write_prefs

_COUNTED = TIMING | {"step", "epoch", "pairs", "tokens", "learning_rate"}


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """A place with a model whose head is tied, one whose head is not, and a recipe of 20 steps."""
    from tests.tiny import save_tiny_model

    place = tmp_path_factory.mktemp("ranks")
    save_tiny_model(place / "tied", tie_word_embeddings=True)
    save_tiny_model(place / "untied")
    write_prefs(place / "prefs.jsonl", pairs=40, prompts=30)
    (place / "run.yaml").write_text(
        "name: ranks\nmodel: {path: untied}\n"
        "data: {train: prefs.jsonl, holdout: 10, max_length: 64, max_prompt_length: 40}\n"
        "train: {pairs_per_step: 7, learning_rate: 1e-3, precision: fp32, num_epochs: 4, tokens_per_microbatch: 150}\n"
        "eval: {every: 10}\nhealth: {num_answers: 0}\n",
        encoding="utf-8",
    )
    with Children(place) as started:
        yield started


def _train(children: Children, run: str, ranks: int, *more: str) -> Path:
    """Train on so many ranks, and return the folder of the run."""
    codes = children.run_ranks(ranks, "train", "run.yaml", f"output_dir={run}", *more)
    assert codes == [0] * ranks, "\n".join(children.said(number) for number in range(ranks))
    return children.place / run


def _weights(run: Path) -> dict[str, torch.Tensor]:
    """Those of the last checkpoint, whichever rank wrote them."""
    files = max((run / "checkpoints").glob("step-*")).glob("weights*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _outcome(run: Path) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))["outcome"]
    return outcome


def _require_alike(one: Path, other: Path) -> None:
    """Curve, weights and evaluation of two runs agree as far as the order of sums lets them."""
    ours, theirs = rows(one / "metrics.jsonl"), rows(other / "metrics.jsonl")
    assert len(ours) == len(theirs) == 20
    for row, same in zip(ours, theirs, strict=True):
        assert {name: row[name] for name in _COUNTED - TIMING} == {name: same[name] for name in _COUNTED - TIMING}
        for name in ("loss", "rewards/chosen", "rewards/rejected", "grad_norm"):
            assert same[name] == pytest.approx(row[name], rel=1e-5), (row["step"], name)
        assert same["rewards/margins"] == pytest.approx(row["rewards/margins"], abs=1e-5)
    weights, others = _weights(one), _weights(other)
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
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


@pytest.mark.parametrize("model", _MODELS)
def test_ranks_and_their_strategy_change_nothing_but_the_order_of_sums(children: Children, model: str) -> None:
    how = _MODELS[model]
    alone = _train(children, f"{model}-1", 1, *how)
    _require_alike(alone, _train(children, f"{model}-1-cut", 1, *how, "train.tokens_per_microbatch=105"))
    for strategy, ranks, budget in (("ddp", 2, 105), ("fsdp2", 2, 150), ("ddp", 4, 150), ("fsdp2", 4, 105)):
        more = (*how, f"distributed.strategy={strategy}", f"train.tokens_per_microbatch={budget}")
        _require_alike(alone, _train(children, f"{model}-{strategy}-{ranks}", ranks, *more))
