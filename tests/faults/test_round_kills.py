"""`simpo pairs round` killed by SIGKILL in each part of a round: resumed, all that it leaves has the same bytes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.builtin import corpus
from tests.faults.children import Children
from tests.faults.rounds import KILLS

COMMAND = (
    *("pairs", "round", "demo-round", "--rounds", "2", "--rule", "builtin:guide", "--resume"),
    *("name=round", "data.eval=held.jsonl", "train.pairs_per_step=4", "train.max_steps=2", "train.learning_rate=1e-4"),
    *("health.num_answers=0", "pairs.prompts_per_round=24", "pairs.answers_per_prompt=4", "pairs.temperature=0.5"),
    *("pairs.max_new_tokens=40", "pairs.held_out_prompts=10"),
)
# with times and memory
_OF_THE_RUN = ("run.json", "metrics.jsonl", "evals.jsonl", "notes.jsonl", "report.html", "README.md", ".owner", ".lock")


@pytest.fixture(scope="module")
def place(children: Children) -> Path:
    """The children's folder, with a few held-out pairs."""
    pairs = corpus.preference_pairs("eval", corpus.SEED)[:12]
    (children.place / "held.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs), encoding="utf-8")
    return children.place


def _content(folder: Path) -> dict[str, str]:
    """The hash of every file, those with times aside."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and "checkpoints" not in file.parts]
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if not ("run" in file.parts[-3:] and file.name in _OF_THE_RUN)
    }


@pytest.fixture(scope="module")
def unbroken(children: Children, place: Path) -> dict[str, str]:
    """The rounds that nobody killed."""
    children.start(COMMAND, arranged="tests.faults.rounds:in_this_process")
    assert children.wait() == [0], children.said()
    document: Any = json.loads((place / "runs/round/rounds.json").read_text("utf-8"))
    assert [one["round"] for one in document["rounds"]] == [0, 1, 2]
    assert all(one["pairs"]["pairs"] > 1 for one in document["rounds"][1:])
    content = _content(place / "runs/round")
    assert {"round-2/run/model/model.safetensors", "round-1/answers/answers.jsonl", "round-2/pairs.jsonl"} <= set(
        content
    )
    shutil.move(place / "runs/round", place / "unbroken")
    return content


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.__name__)
def test_killed_in_each_part_and_resumed_it_leaves_the_same_bytes(
    children: Children, place: Path, unbroken: dict[str, str], kill: Callable[[], None]
) -> None:
    shutil.rmtree(place / "runs/round", ignore_errors=True)
    children.start(COMMAND, arranged=f"tests.faults.rounds:{kill.__name__}")
    assert children.wait() == [-9], children.said()
    left = _content(place / "runs/round")
    assert set(unbroken) - set(left), "something was left to do"
    children.start(COMMAND, arranged="tests.faults.rounds:in_this_process")
    assert children.wait() == [0], children.said()
    assert _content(place / "runs/round") == unbroken
