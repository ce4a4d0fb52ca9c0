"""A run folder that somebody else has written, or that was damaged, is refused in a sentence: never a traceback."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.cli import main as cli
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.targets import find_targets
from simpo_cli.report import run_page
from simpo_cli.report.run_files import read_run
from simpo_cli.run.folder import document_text, sealed
from simpo_cli.run.verify import verify_run
from tests.report.made_run import eval_row, outcome, write_run

LOGS = ["metrics.jsonl", "evals.jsonl", "evals-pairs.jsonl", "evals-samples.jsonl", "notes.jsonl"]
WRONG: list[Any] = [None, True, -1, 10**30, 1e308, "\x1b[31mx", [], [[1]], {}, {"a": 1}, float("nan")]
DROPPED = object()
NESTED = "[" * 100_000
COMMANDS = [["report"], ["report", "--verify"], ["eval"], ["export", "--merge"]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    samples = [{"line": 1, "why": "drawn", "prompt": "p", "chosen": "c", "rejected": "r"}]
    made = outcome((0.3, 0.2, 0.4), 0.001, balanced=(0.1, 0.0, 0.2), export={"kept_share": 1, "rounded_back_share": 0})
    folder = write_run(
        tmp_path / "run",
        outcome=made,
        evals=[eval_row(0, 0.5), eval_row(4, 0.8)],
        pairs=12,
        samples=samples,
        notes=[{"label": "note", "text": "said"}],
    )
    (folder / "model").mkdir()
    return folder


@pytest.fixture
def everything(run: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Reads the run in every way that does not load a model; returns how many of them refused it."""
    for drawing in ("training_figures", "drift_figures", "length_figures"):  # what takes its time
        monkeypatch.setattr(run_page, drawing, lambda _: [])
    monkeypatch.setattr(run_page, "margin_figure", lambda _: None)

    def read() -> int:
        refused = 0
        for way in (
            lambda: run_page.run_page(read_run(run)),
            lambda: verify_run(run).require_whole(),
            lambda: find_targets([str(run)], []),
        ):
            try:
                way()
            except UserError:
                refused += 1
        return refused

    return read


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a document are; of a list its first item stands for all."""
    yield at
    for key in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value there, or without it."""
    if not at:
        return new
    copied = copy.deepcopy(value)
    inside = copied
    for key in at[:-1]:
        inside = inside[key]
    if new is DROPPED:
        del inside[at[-1]]
    else:
        inside[at[-1]] = new
    return copied


def changes(value: Any) -> Iterator[Any]:
    """The document with each of its values, in turn, of another type, or missing."""
    for number, at in enumerate(places(value)):
        # a third of the wrong values for each place, another third for the next
        for new in [*WRONG[number % 3 :: 3], *([DROPPED] if at else [])]:
            yield changed(value, at, new)


def test_the_run_itself_is_read(everything: Callable[[], int]) -> None:
    assert everything() == 1  # model/ is empty: nothing vouches for what was there


def test_each_value_of_run_json_of_another_type(run: Path, everything: Callable[[], int]) -> None:
    file, refused, tried = run / "run.json", 0, 0
    for document in changes(json.loads(file.read_text())):
        try:  # as one who wants to be believed would write it
            text = document_text(sealed(document))
        except (ValueError, TypeError):
            text = json.dumps(document)
        file.write_text(text)
        refused, tried = refused + everything(), tried + 1
    assert tried > 500
    assert refused > tried


@pytest.mark.parametrize("name", LOGS)
def test_each_value_of_a_log_of_another_type(name: str, run: Path, everything: Callable[[], int]) -> None:
    file = run / name
    first, *others = file.read_text().splitlines(keepends=True)
    for row in changes(json.loads(first)):
        file.write_text(json.dumps(row) + "\n" + "".join(others))
        everything()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("text", "code"),
    [
        (NESTED, ExitCode.USAGE),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, ExitCode.USAGE),
        ("", ExitCode.USAGE),
        ("[]", ExitCode.USAGE),
        ('{"step": 1e999}', ExitCode.USAGE),
        ('{"step": ' + "9" * 5000 + "}", ExitCode.USAGE),
        ('{"schema_version": 99}', ExitCode.USAGE),
    ],
    ids=["deep list", "deep object", "empty", "list", "infinite", "long number", "future"],
)
def test_a_damaged_run_json_is_one_sentence(
    command: list[str], text: str, code: ExitCode, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.json").write_text(text)
    found = cli.run([command[0], str(run), *command[1:]])
    said = capsys.readouterr()
    assert found == (ExitCode.ENVIRONMENT if command[-1] == "--verify" else code)
    assert said.err.startswith("Error: ")
    assert len(said.err.splitlines()) == 2
    if "schema_version" in text:
        assert "was written by a later version of simpo (schema_version 99)" in said.err + said.out


@pytest.mark.parametrize("name", LOGS)
@pytest.mark.parametrize("line", [NESTED, '{"a": NaN}', "[]", "{}", '{"step": -1}', "\xff"], ids=lambda line: line[:9])
def test_a_damaged_line_is_named(name: str, line: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).write_text(f"{line}\n{line}\n", encoding="latin-1")
    assert cli.run(["report", str(run)]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert f"{run / name}:1: is no line of this file" in said
    assert len(said.splitlines()) == 2


@pytest.mark.parametrize("command", [["report", "--verify"], ["eval"], ["export", "--merge"]], ids=" ".join)
def test_a_model_that_is_a_link_is_not_the_run_s(
    command: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "model").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "adapter_config.json").write_text("{}")
    (run / "model").symlink_to(tmp_path / "elsewhere")
    for named in [run, *([run / "model"] if command == ["eval"] else [])]:
        code = cli.run([command[0], str(named), *command[1:]])
        said = capsys.readouterr()
        assert code == (ExitCode.ENVIRONMENT if command[-1] == "--verify" else ExitCode.USAGE)
        assert "is a link, and what it leads to is not of this run" in said.out + said.err
