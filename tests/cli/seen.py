"""What a command line leaves for the one who typed it, and a small run to type commands about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from simpo_cli.cli.main import run
from tests.data.pair_files import write_pairs


class Seen(NamedTuple):
    code: int
    out: str
    err: str


Simpo = Callable[..., Seen]


def typed(streams: pytest.CaptureFixture[str]) -> Simpo:
    """Runs a command line in this process."""

    def type_in(*words: str) -> Seen:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["simpo", *words])
            code = run(words)
        return Seen(code, *streams.readouterr())

    return type_in


def stats_of(simpo: Simpo, *args: str) -> Any:
    """The document of `simpo stats`."""
    seen = simpo("stats", *args, "--json")
    assert seen.code == 0, seen.err
    return json.loads(seen.out)


def write_run_recipe(folder: Path, name: str, model: object, more: str = "") -> None:
    """Thirty pairs, prefs.jsonl, and run.yaml, which trains a tiny model on 24 of them in steps of 8."""
    pairs = [
        {"prompt": f"Question {i}?", "chosen": f"Yes, please do {i}.", "rejected": f"No, never {i} at all."}
        for i in range(30)
    ]
    write_pairs(folder, "prefs.jsonl", pairs)
    recipe = (
        f"name: {name}\nmodel:\n  path: {model}\ndata:\n  train: prefs.jsonl\n  holdout: 6\n  max_length: 64\n"
        "  max_prompt_length: 40\ntrain:\n  pairs_per_step: 8\n  learning_rate: 1e-3\n  precision: fp32\n"
    )
    (folder / "run.yaml").write_text(recipe + more, encoding="utf-8")
