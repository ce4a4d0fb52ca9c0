"""Who may read and write what is saved: files follow the umask, and a cache that others can write is not used."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.seen import Simpo


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("mask", [0o027, 0o002, 0o077])
def test_every_file_of_a_run_and_every_report_follows_the_umask(mask: int, simpo: Simpo, place: Path) -> None:
    (place / "prefs.jsonl").open("a").write('{"prompt": 3}\n')  # for rejected.jsonl
    words = ["train", "run.yaml", "checkpoint.every=1", "eval.every=1", "data.on_bad_record=skip"]
    reports = ("a.html", "a.json", "a.jsonl", "a.jsonl.dropped.jsonl", "b.yaml", "simpo-recipe.schema.json")
    with _umask(mask):
        assert simpo(*words, *(["model.lora={rank: 2}"] if mask == 0o027 else [])).code == 0
        assert mask != 0o027 or simpo("export", "runs/tried", "--merge").code == 0
        audit = ("stats", "prefs.jsonl", "--on-bad-record", "skip", "--html", "a.html", "--output", "a.json")
        assert simpo(*audit, "--write-clean", "a.jsonl").code == 0
        assert simpo("recipe", "copy", "demo", "b.yaml").code == 0
    modes = _modes(place / "runs")
    assert {"tried/model/README.md", "tried/report.html", "tried/rejected.jsonl", "tried/.lock"} <= modes.keys()
    for name, mode in modes.items():
        assert mode == (0o777 if (place / "runs" / name).is_dir() else 0o666) & ~mask, name
    for name in reports:
        assert (place / name).stat().st_mode & 0o777 == 0o666 & ~mask, name


def test_the_cache_is_private_whatever_the_umask(simpo: Simpo, place: Path) -> None:
    with _umask(0o000):
        assert simpo("train", "run.yaml", "--dry-run").code == 0
    [entry] = [path.parent for path in (place / "cache" / "tokens").glob("*/manifest.json")]
    assert (place / "cache" / "tokens").stat().st_mode & 0o777 == 0o700
    assert entry.stat().st_mode & 0o777 == 0o700
    kinds = {path.suffix for path in entry.iterdir() if path.suffix}
    assert kinds == {".bin", ".json"}  # arrays of numbers and JSON: nothing that is run when it is read


@pytest.mark.parametrize("why", ["written by others", "of another user"])
def test_a_cache_that_others_can_write_is_not_used(why: str, simpo: Simpo, place: Path) -> None:
    assert "made in" in simpo("train", "run.yaml", "--dry-run").err
    assert "from the cache" in simpo("train", "run.yaml", "--dry-run").err
    tokens = place / "cache" / "tokens"
    if why == "written by others":
        tokens.chmod(0o770)
    elif os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    else:
        os.chown(tokens, 12345, -1)
    before = sorted(tokens.rglob("*"))
    seen = simpo("train", "run.yaml")
    assert seen.code == 0
    assert "from the cache" not in seen.err
    assert sorted(tokens.rglob("*")) == before
    receipt = json.loads((place / "runs/tried/run.json").read_text())
    assert receipt["data"]["train"]["tokens"]["cache"] == "off"
    said = "can be written by other users" if why == "written by others" else "belongs to another user"
    assert said in receipt["data"]["train"]["tokens"]["remark"]
