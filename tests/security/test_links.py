"""Names and links: what a run writes and removes lies in its own folder, whatever somebody put there."""

import os
from pathlib import Path

import pytest

from simpo_cli.errors import UserError
from simpo_cli.publish.export import written_whole
from simpo_cli.recipe import compose
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


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_one_part_of_a_path(name: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {path: builtin:guide}\ndata: {train: builtin:guide}\n")
    with pytest.raises(UserError) as caught:
        compose(str(recipe), [f"name={name}"])
    assert "name is " in caught.value.problem
    assert str(caught.value).replace("\n", "").isprintable()


@pytest.mark.parametrize("path", ["a\0b", "a\nb", "a\x1bb", "a\x7f", "", "  "])
def test_a_path_holds_no_control_characters(path: str, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: a\nmodel: {path: builtin:guide}\ndata: {train: builtin:guide}\n")
    for key in ("output_dir", "model.path", "data.train", "data.eval"):
        with pytest.raises(UserError, match=f"{key} is "):
            compose(str(recipe), [f"{key}={path}"])


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
