"""Short runs of a tiny model and of the embedded one, and what two runs must share to be the same run."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from simpo_cli.recipe import compose
from simpo_cli.run.events import Observer, RunOutcome
from simpo_cli.train.session import train
from tests.train.conftest import Memory


def train_tiny(
    folder: Path,
    model: Path,
    prefs: Path,
    *more: str,
    run: str = "run",
    observer: Observer | None = None,
    **options: Any,
) -> RunOutcome | None:
    """Train a model of `save_tiny_model` for an epoch in steps of 8 pairs, with 10 pairs held out."""
    recipe = folder / "run.yaml"
    recipe.write_text("name: tiny\n", encoding="utf-8")
    overrides = [
        *(f"model.path={model}", f"data.train={prefs}", f"output_dir={folder / run}"),
        *("data.max_length=64", "data.max_prompt_length=40", "data.holdout=10"),
        *("train.pairs_per_step=8", "train.learning_rate=1e-3"),
        "train.precision=fp32",  # whatever the machine multiplies faster in
    ]
    return train(compose(str(recipe), [*overrides, *more]), observer=observer or Memory(), **options)


class Guide:
    """A folder in which the embedded model trains: 20 pairs, 5 steps of 4, a checkpoint after each, 4 held out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "guide.yaml"
        self.recipe.write_text(
            "name: guide\nmodel: {path: builtin:guide, attention: padded}\n"
            "data:\n  train: [{path: builtin:guide, max_pairs: 24}]\n"
            "  holdout: 4\n  max_length: 128\n  max_prompt_length: 64\n"
            "train: {pairs_per_step: 4, learning_rate: 7e-4, precision: fp32, tokens_per_microbatch: 256}\n"
            "eval: {every: 2}\ncheckpoint: {every: 1, keep: 9}\n",
            encoding="utf-8",
        )

    def train(self, run: str, *more: str, observer: Memory | None = None, **options: Any) -> RunOutcome | None:
        composed = compose(str(self.recipe), [f"output_dir={self.folder / run}", *more])
        return train(composed, observer=observer or Memory(), **options)

    def receipt(self, run: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / run / "run.json").read_text(encoding="utf-8"))
        return document

    def require_all_finite(self, run: str) -> list[int]:
        """Look through every file of numbers that a run has written; return the steps of its checkpoints."""
        folder = self.folder / run
        for file in folder.rglob("*.safetensors"):
            assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values()), file
        for name in ("metrics.jsonl", "evals.jsonl", "run.json"):
            text = (folder / name).read_text(encoding="utf-8")
            assert "NaN" not in text
            assert "Infinity" not in text
        return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())


TIMING = {"seconds", "pairs_per_second", "tokens_per_second", "memory_gb"}


def rows(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; each must be whole."""
    text = file.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def timeless(file: Path) -> list[dict[str, Any]]:
    """The lines of a log without what a clock or the memory says; none where there is no log."""
    if not file.is_file():
        return []
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows(file)]


def final_state(run: Path) -> dict[str, str]:
    """sha256 of weights and moments in the last checkpoint, and of the weights of the model."""
    checkpoint = max((run / "checkpoints").glob("step-*"))
    files = [checkpoint / "weights.safetensors", checkpoint / "optimizer.safetensors"]
    files += sorted((run / "model").glob("*.safetensors"))
    assert len(files) == 3
    return {"/".join(file.parts[-2:]): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
