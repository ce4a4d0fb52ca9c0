"""Names, links and rights: a run writes and removes only in its own folder, and files follow the umask."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from simpo_cli.errors import UserError
from simpo_cli.publish.export import written_whole
from simpo_cli.recipe.composition import compose
from simpo_cli.report.page import PAGE_MARK, write_page, write_report
from simpo_cli.run import checkpoint
from simpo_cli.run.checkpoint import CheckpointWriter
from simpo_cli.run.folder import RunFolder, require_usable
from simpo_cli.run.manifest import DamagedCheckpointError, find_checkpoints, open_checkpoint
from tests.cli.seen import Simpo

NAMES = [
    "..", ".", "../x", "a/../../x", "/etc/x", "a/b", "a\\b", "~", "~root", "-rf", ".hidden", "a..b", "", " ", " a",
    "a ", "a\0b", "a\nb", "a\x1b[31mb", "a\x7fb", "a\x9b2Jb", "a\u202eb", "a\u2066b", "a\ufeffb", "a\u200bb", "a\rb",
    "a\tb", "x" * 201, "é" * 101, "a\U000e0041b",
]  # fmt: skip


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of somebody's, which no test may change."""
    folder = tmp_path / "precious"
    (folder / "deep").mkdir(parents=True)
    (folder / "file").write_text("kept")
    (folder / "deep" / "file").write_text("kept too")
    return folder


def _content(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *(("name", name) for name in NAMES),
        *product(
            ("output_dir", "model.path", "data.train", "data.eval"), ("a\0b", "a\nb", "a\x1bb", "a\x7f", "", "  ")
        ),
    ],
)
def test_a_name_is_one_part_of_a_path_and_a_path_holds_no_control_characters(key: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        compose("demo", [f"{key}={text}"])
    assert f"{key} is " in caught.value.problem
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "name",
    ["metrics.jsonl", "evals.jsonl", "notes.jsonl", "run.json", "checkpoints", "model", ".model.tmp", ".lock", "more"],
)
@pytest.mark.parametrize("leads_to", ["file", "deep", "nothing"])
def test_a_run_folder_with_a_link_in_it_is_refused(name: str, leads_to: str, tmp_path: Path, precious: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if name != "run.json":
        (run / "run.json").write_text("{}")
    (run / name).symlink_to(precious / leads_to)
    before = _content(precious)
    for options in ({}, {"resume": True}, {"fresh": True}):
        with pytest.raises(UserError, match="is a link; all files of a run are in its own folder"):
            RunFolder.create(run, **options)
    assert _content(precious) == before
    assert run.is_dir()


def test_the_run_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "large-disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "large-disk")
    folder = RunFolder.create(tmp_path / "run")
    folder.write_json("run.json", {})
    folder.close()
    RunFolder.create(tmp_path / "run", fresh=True).close()
    assert (tmp_path / "large-disk" / "run.json").is_file()  # the link was renamed, not what it leads to
    assert not (tmp_path / "run").is_symlink()


def test_what_is_written_whole_replaces_a_link_and_leaves_what_it_leads_to(tmp_path: Path, precious: Path) -> None:
    before, run = _content(precious), tmp_path / "run"
    folder = RunFolder.create(run)
    for name in ("run.json", f".run.json.{os.getpid()}", "recipe.yaml"):  # put there while it trains
        (run / name).symlink_to(precious / "file")
    folder.write_json("run.json", {"a": 1})
    folder.write_text("recipe.yaml", "a: 1\n")
    folder.close()
    assert (run / "run.json").read_text() == '{\n  "a": 1\n}\n'
    for name in ("page.html", f".page.html.{os.getpid()}", "out.json", f".out.json.{os.getpid()}"):
        (tmp_path / name).symlink_to(precious / ("missing" if name[0] != "." else "file"))
    write_page(tmp_path / "page.html", PAGE_MARK)
    write_report(tmp_path / "out.json", {"schema_version": 1})
    assert not (tmp_path / "page.html").is_symlink()
    for link in ("model", ".model.tmp"):
        (run / link).symlink_to(precious / "deep")
    with written_whole(run / "model", replace=True) as temporary:
        (temporary / "a").write_text("new")
    assert (run / "model" / "a").read_text() == "new"
    assert _content(precious) == before


def _write(files: CheckpointWriter) -> None:
    with files.open("a.json") as file:
        file.write(b"{}")


def test_rotation_never_deletes_through_a_link(tmp_path: Path, precious: Path) -> None:
    elsewhere, parent = tmp_path / "elsewhere", tmp_path / "run" / "checkpoints"
    for step in (1, 2, 3):
        checkpoint.commit(elsewhere, step, _write, {})
    parent.mkdir(parents=True)
    for step in (1, 2):
        (parent / f"step-{step:08d}").symlink_to(elsewhere / f"step-{step:08d}")
    (parent / "step-00000009").symlink_to(precious)
    (parent / ".tmp-4-17").symlink_to(precious)
    before = _content(elsewhere), _content(precious)
    with pytest.raises(DamagedCheckpointError, match="it is a link"):
        open_checkpoint(parent / "step-00000001")
    checkpoint.reap(parent)
    for step in (2, 3, 4, 9):
        checkpoint.commit(parent, step, _write, {})
        checkpoint.rotate(parent, 1)
    saved, damaged = find_checkpoints(parent)
    assert [one.step for one in saved] == [9]
    assert [error.folder.name for error in damaged] == ["step-00000001"]
    assert not (parent / "step-00000009").is_symlink()
    assert (_content(elsewhere), _content(precious)) == before


def test_commands_that_write_do_not_follow_links(simpo: Simpo, place: Path, precious: Path) -> None:
    before = _content(precious)
    for name in ("clean.jsonl", "page.html", "out.json", "simpo-recipe.schema.json", "mine.yaml"):
        (place / name).symlink_to(precious / "file")
    for words in (
        ("stats", "prefs.jsonl", "--write-clean", "clean.jsonl"),
        ("stats", "prefs.jsonl", "--html", "page.html"),
        ("stats", "prefs.jsonl", "--output", "out.json"),
        ("recipe", "copy", "demo", "mine.yaml"),
    ):
        assert simpo(*words).code == 2, words
    assert simpo("recipe", "copy", "demo", "other.yaml").code == 0
    for name in ("clean.jsonl", "page.html", "out.json", "simpo-recipe.schema.json"):
        (place / name).unlink()
        (place / name).symlink_to(precious / "missing")
    assert simpo("stats", "prefs.jsonl", "--write-clean", "clean.jsonl", "--html", "page.html").code == 0
    assert simpo("recipe", "copy", "demo", "third.yaml").code == 0
    assert _content(precious) == before
    (place / "merged").symlink_to(precious / "missing")
    require_usable(place / "new")
    assert simpo("export", str(place), "--merge", "--output", "merged").code == 2


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
