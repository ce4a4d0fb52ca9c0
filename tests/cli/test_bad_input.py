"""Every kind of bad input through `simpo stats` and `simpo train --dry-run`: one message, one exit code, no traceback.

The kinds stand in tests/data/bad_records.py, tests/data/bad_files.py and tests/cli/bad_runs.py; what each does in every
place of a file, plain and gz, is in tests/data/test_bad_files.py.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.data.file_bytes import ByteSource
from tests.cli.bad_runs import RUNS, make_place
from tests.cli.seen import Seen, Simpo, typed
from tests.data.bad_files import FILES
from tests.data.bad_records import RECORDS
from tests.data.pair_files import GOOD, write_pairs

PLACES = ["first", "middle", "last"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    make_place(folder)
    return folder


@pytest.fixture
def simpo(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Simpo:
    """Run a command line in a folder with models; a traceback or an exit code of a crash fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    for thing in made.iterdir():
        Path(thing.name).symlink_to(thing)

    def type_in(*args: str) -> Seen:
        seen = typed(capsys)(*args)
        assert seen.code in (0, 2), seen.err
        assert "Traceback" not in seen.err
        assert seen.code == 0 or seen.out == ""
        return seen

    return type_in


def write_recipe(train: str, changes: dict[str, Any], evaluated: str | None = None) -> str:
    """A recipe in the current folder, without a hold-out; JSON is YAML too."""
    data = {"train": train, "holdout": 0, "max_length": 64, "max_prompt_length": 40, "eval": evaluated}
    recipe: dict[str, Any] = {"name": "bad", "model": {"path": "tiny"}, "data": data, "train": {"precision": "fp32"}}
    for key, value in changes.items():
        section, name = key.split(".")
        recipe[section][name] = value
    Path("run.yaml").write_text(json.dumps(recipe))
    return "run.yaml"


def trained(simpo: Simpo, file: str, **data: Any) -> Seen:
    """A dry run over a file."""
    changes = {f"data.{key}": value for key, value in data.items()}
    return simpo("train", write_recipe(file, changes), "--dry-run")


def record_file(name: str) -> str:
    """A file of three with the record in it; kinds take turns in place and compression."""
    number = list(RECORDS).index(name)
    container = "a.jsonl.gz" if number % 2 else "a.jsonl"
    write_pairs(Path(), container, RECORDS[name].placed(PLACES[number % 3]))
    return container


@pytest.mark.parametrize("name", [name for name, kind in RECORDS.items() if kind.outcome == "R"])
def test_a_record_that_is_refused(simpo: Simpo, name: str) -> None:
    file = record_file(name)
    stats, train = simpo("stats", file), trained(simpo, file)
    assert (stats.code, train.code) == (2, 2)
    assert stats.err == train.err
    place = 1 + list(RECORDS).index(name) % 3
    assert stats.err.startswith(f"Error: {file}:{place}: ")
    assert RECORDS[name].said in stats.err.splitlines()[0]
    assert stats.err.splitlines()[1].startswith("  ")


def test_all_refused_records_at_once_are_skipped_and_counted(simpo: Simpo) -> None:
    kinds = [kind for name, kind in RECORDS.items() if kind.outcome == "R" and not name.startswith("Messages")]
    write_pairs(Path(), "a.jsonl", [GOOD, *(kind.record for kind in kinds if kind.neighbour is None)])
    count = sum(kind.neighbour is None for kind in kinds)
    document = json.loads(simpo("stats", "a.jsonl", "--json", "--on-bad-record", "skip").out)
    assert (document["count"], document["input"]["malformed"]) == (1, count)
    seen = trained(simpo, "a.jsonl", on_bad_record="skip")
    assert seen.code == 0
    assert f"{count} malformed, see rejected.jsonl" in seen.err


@pytest.mark.parametrize("name", [name for name, kind in RECORDS.items() if kind.outcome != "R"])
def test_a_record_that_is_read(simpo: Simpo, name: str) -> None:
    kind, file = RECORDS[name], record_file(name)
    stats, train = simpo("stats", file, "--json"), trained(simpo, file)
    assert (stats.code, train.code) == (0, 0), stats.err + train.err
    source = json.loads(stats.out)["input"]
    assert source["warnings"] == ({kind.said: 1} if kind.outcome == "W" else {})
    assert source["no_signal"] == ({kind.said: 1} if kind.outcome == "D" else {})
    assert f"{3 - (kind.outcome == 'D')} pairs to train" in train.err
    assert kind.outcome != "W" or f" · 1 {kind.said}" in train.err
    assert kind.outcome != "D" or f"1 dropped (1 {kind.said})" in train.err


@pytest.mark.parametrize("name", FILES)
def test_a_file(simpo: Simpo, tmp_path: Path, name: str) -> None:
    kind = FILES[name]
    file = Path(kind.at(tmp_path)).name
    stats, train = simpo("stats", file), trained(simpo, file)
    refused = kind.outcome in "FR"
    assert stats.code == train.code == (2 if refused else 0), stats.err + train.err
    if refused:
        assert file in stats.err
        assert file in train.err
        assert kind.said in stats.err
        assert kind.said in train.err
    if kind.outcome == "W":
        assert kind.said in stats.out
        assert kind.said in " ".join(train.err.split())


@pytest.mark.parametrize("name", RUNS)
def test_a_run(simpo: Simpo, name: str) -> None:
    kind = RUNS[name]
    write_pairs(Path(), "a.jsonl", kind.records)
    if kind.evaluated is not None:
        write_pairs(Path(), "e.jsonl", kind.evaluated)
    recipe = write_recipe("a.jsonl", kind.recipe, None if kind.evaluated is None else "e.jsonl")
    train = simpo("train", recipe, "--dry-run")
    refused = kind.outcome in "FR"
    assert train.code == (2 if refused else 0), train.err
    assert kind.said in " ".join(train.err.split())
    if kind.outcome == "R":
        assert train.err.startswith(f"Error: a.jsonl:{len(kind.records)}: ")
    if not kind.in_stats:
        return
    stats = simpo("stats", "--recipe", recipe, "--json")
    assert stats.code == train.code, stats.err
    if refused:
        assert stats.err == train.err
    elif kind.outcome == "D":
        assert json.loads(stats.out)["input"]["no_signal"] == {kind.said: 1}
    if kind.finding is not None:
        assert kind.finding in [finding["code"] for finding in json.loads(stats.out)["findings"]]


def test_a_file_that_is_replaced_while_it_is_read(simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = ByteSource.finish

    def replace_and_finish(self: ByteSource) -> None:
        write_pairs(Path(), "b.jsonl", [GOOD] * 4)
        os.replace("b.jsonl", "a.jsonl")
        finish(self)

    monkeypatch.setattr(ByteSource, "finish", replace_and_finish)
    for command in (lambda: simpo("stats", "a.jsonl"), lambda: trained(simpo, "a.jsonl")):
        write_pairs(Path(), "a.jsonl", [GOOD] * 3)
        assert command().err.startswith("Error: a.jsonl: was changed while it was read.")


def test_a_file_without_permission(simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for open: root may read everything."""
    write_pairs(Path(), "a.jsonl", [GOOD] * 3)
    usual = os.open

    def denied(path: Any, *more: Any, **options: Any) -> int:
        if path == "a.jsonl":
            raise PermissionError(13, "Permission denied")
        return usual(path, *more, **options)

    monkeypatch.setattr(os, "open", denied)
    assert "a.jsonl: may not be read: permission denied." in simpo("stats", "a.jsonl").err
    assert "a.jsonl: may not be read: permission denied." in trained(simpo, "a.jsonl").err
