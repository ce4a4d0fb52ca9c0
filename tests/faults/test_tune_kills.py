"""`simpo tune` killed by SIGKILL at chosen moments: resumed, it finds the same, and no trial counts twice."""

import contextlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from simpo_cli.evaluate.generate.folder import write_json
from tests.faults.children import Children
from tests.faults.studies import KILLS
from tests.train.runs import write_prefs

COMMAND = (
    *("tune", "run.yaml", "name=study", "data.holdout=0", "data.eval=held-out.jsonl", "data.max_prompt_length=40"),
    *("eval.every=null", "checkpoint.best=false", "checkpoint.every=null", "train.max_steps=10", "tune.seeds=2"),
    *(
        "tune.space.train.learning_rate=[3e-3,3e-2]",
        "tune.space.loss.beta=[4]",
        "tune.answers=30",
        "train.num_epochs=9",
    ),
)
QUICKLY = "tests.faults.studies:quickly"


@pytest.fixture(scope="module")
def place(children: Children) -> Path:
    write_prefs(children.place / "held-out.jsonl", pairs=90, prompts=90)
    return children.place


def document_of(place: Path) -> dict[str, Any]:
    """study.json without what a clock says, and the trials of the journal by how they ended."""
    folder = place / "runs/study-tune"
    document: dict[str, Any] = json.loads((folder / "study.json").read_text("utf-8"))
    for trial in document["trials"]:
        trial.pop("seconds")
    for name in ("seconds_per_step", "seconds_to_measure"):
        document["range"].pop(name)
    if document["confirmed"]:
        document["confirmed"].pop("looks")
    return document


def require_counted_once(place: Path) -> None:
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(place / "runs/study-tune/journal.jsonl")))
    trials = optuna.load_study(study_name=None, storage=storage).get_trials()
    complete = [one.user_attrs["id"] for one in trials if one.state == optuna.trial.TrialState.COMPLETE]
    files = {file.stem for file in (place / "runs/study-tune/trials").iterdir()}
    assert sorted(complete) == sorted(files)
    assert {one.state.name for one in trials} <= {"COMPLETE", "FAIL"}


@pytest.fixture(scope="module")
def unbroken(children: Children, place: Path) -> dict[str, Any]:
    """The study that nobody killed."""
    children.start(COMMAND, arranged=QUICKLY)
    assert children.wait() == [0], children.said()
    document = document_of(place)
    assert len(document["trials"]) == 8, "the recipe, two rates, one beta, two seeds of both"
    assert document["confirmed"] is not None
    require_counted_once(place)
    shutil.rmtree(place / "runs/study-tune")
    return document


@pytest.mark.parametrize("kill", KILLS, ids=lambda kill: kill.__name__)
def test_killed_at_any_moment_and_resumed_it_finds_the_same(
    children: Children, place: Path, unbroken: dict[str, Any], kill: Callable[[], None]
) -> None:
    shutil.rmtree(place / "runs/study-tune", ignore_errors=True)
    children.start([*COMMAND, "--resume"], arranged=f"tests.faults.studies:{kill.__name__}")
    assert children.wait() == [-9], children.said()
    children.start([*COMMAND, "--resume"], arranged=QUICKLY)
    assert children.wait() == [0], children.said()
    assert document_of(place) == unbroken
    require_counted_once(place)


def test_two_processes_share_the_trials(children: Children, place: Path, unbroken: dict[str, Any]) -> None:
    """Which of them runs a trial changes nothing here, where both compute alike."""
    folder = place / "runs/study-tune"
    shutil.rmtree(folder, ignore_errors=True)
    begun = {key: unbroken[key] for key in ("schema_version", "kind", "recipe_sha256", "scorer")}
    folder.mkdir(parents=True)
    write_json(folder / "study.json", begun)
    children.start([*COMMAND, "--resume"], [*COMMAND, "--join"], arranged=QUICKLY)
    assert children.wait() == [0, 0], children.said(0) + children.said(1)
    assert document_of(place) == unbroken
    require_counted_once(place)
    lines = [line for number in (0, 1) for line in children.said(number).splitlines() if "· utility" in line]
    assert len(lines) == len(unbroken["trials"]), "each trial was run once"


REFUSED: Sequence[tuple[str, str]] = (
    ("--fresh --join", "--resume, --fresh and --join exclude one another."),
    ("--join", "there is no study in runs/study-tune to join."),
)


@pytest.mark.parametrize(("words", "problem"), REFUSED)
def test_what_makes_no_sense_is_refused(children: Children, place: Path, words: str, problem: str) -> None:
    shutil.rmtree(place / "runs/study-tune", ignore_errors=True)
    assert children.run(*COMMAND, *words.split()) == 2
    assert problem in children.said()


@pytest.mark.slow
def test_thirty_kills_at_random_moments(children: Children, place: Path, unbroken: dict[str, Any]) -> None:
    shutil.rmtree(place / "runs/study-tune", ignore_errors=True)
    draw, kills = random.Random(17), 0
    while kills < 30:
        [pid] = children.start([*COMMAND, "--resume"], arranged=QUICKLY)
        codes = children.wait(draw.uniform(0.2, 4.0))
        if codes is None:
            with contextlib.suppress(ProcessLookupError):  # it can end by itself before the signal comes
                os.kill(pid, signal.SIGKILL)
            codes = children.wait()
        if codes == [-signal.SIGKILL]:
            kills += 1
        else:  # it was done: from the beginning, until so many kills have hit
            assert codes == [0], children.said()
            assert document_of(place) == unbroken
            shutil.rmtree(place / "runs/study-tune")
    children.start([*COMMAND, "--resume"], arranged=QUICKLY)
    assert children.wait() == [0], children.said()
    assert document_of(place) == unbroken
    require_counted_once(place)
