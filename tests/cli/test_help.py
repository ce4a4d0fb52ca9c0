"""The command itself: help, version, how errors and crashes end, and what is never imported on the way."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

import simpo_cli
from simpo_cli.cli import main as cli
from simpo_cli.errors import ExitCode, UserError
from tests.data.pair_files import write_pairs
from tests.report.made_run import eval_row, outcome, write_run
from tests.tiny import chatml_tokenizer

HEAVY = ("torch", "transformers", "datasets", "accelerate", "peft", "scipy", "pandas", "pyarrow")
LATE = ("tokenizers", "jinja2", "matplotlib")  # lighter, and imported by the commands that need them


_EACH_IN_A_FORK = """
import json, os, sys
from simpo_cli.cli.main import run
for args in json.loads(sys.argv[1]):
    sys.stdout.flush()
    told, tell = os.pipe()
    if os.fork() == 0:
        result = [1, []]
        try:
            code = run(args)
            result = [code, [name for name in json.loads(sys.argv[2]) if name in sys.modules]]
        finally:
            os.write(tell, json.dumps(result).encode())
            os._exit(0)
    os.close(tell)
    os.wait()
    print("\\nIMPORTED", os.read(told, 10_000).decode())
"""


def imported_by_each(commands: Sequence[Sequence[str]], cwd: Path) -> list[tuple[int, set[str]]]:
    """The exit code of each command line, and which heavy modules it imported.

    Each is run in a fork of a fresh interpreter that has imported the command itself, and nothing else.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [json.dumps(list(map(list, commands))), json.dumps(HEAVY + LATE)]
    done = subprocess.run(
        [sys.executable, "-c", _EACH_IN_A_FORK, *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    results = [json.loads(line[9:]) for line in done.stdout.splitlines() if line.startswith("IMPORTED ")]
    return [(code, set(names)) for code, names in results]


def imported_by(*args: str, cwd: Path) -> tuple[int, set[str]]:
    """The same of one command line."""
    [result] = imported_by_each([args], cwd)
    return result


DONE, USAGE = (0, set[str]()), (2, set[str]())
TOKENS, FIGURES = {"tokenizers", "jinja2"}, {"matplotlib", "jinja2"}
LIGHT: dict[str, tuple[int, set[str]]] = {
    "--help": DONE,
    "--version": DONE,
    "train --help": DONE,
    "eval --help": DONE,
    "plan --help": DONE,
    "stats --help": DONE,
    "stats --explain all": DONE,
    "stats prefs.jsonl": (0, {"scipy"}),
    "stats prefs.parquet --json": (0, {"pyarrow", "scipy"}),
    "stats prefs.jsonl --tokenizer model": (0, {*TOKENS, "scipy"}),
    "stats prefs.jsonl --html a.html": (0, {*FIGURES, "scipy"}),
    "report --help": DONE,
    "export --help": DONE,
    "chat --help": DONE,
    "chat missing": USAGE,
    "chat demo --pairs pairs.csv": USAGE,
    "report run": (0, {*TOKENS, *FIGURES, "scipy"}),
    "inspect --help": DONE,
    "recipe list": DONE,
    "recipe show paper/llama3-8b-instruct --origin": DONE,
    "recipe schema": DONE,
    "recipe show --help": DONE,
    "recipe copy --help": DONE,
    "recipe check bad.yaml": USAGE,
    "inspect demo --no-model": (0, TOKENS),
    "inspect bad.yaml": USAGE,
    "inspect demo --pair no.jsonl:1": (2, TOKENS),
    "inspect demo data.train=missing.jsonl": (2, TOKENS),
    "plan bad.yaml": USAGE,
    "plan demo data.train=missing.jsonl": (2, TOKENS),
    "train bad.yaml": USAGE,
    "train demo train.learning_rate=0": USAGE,
    "train lora": USAGE,
    "train demo data.train=missing.jsonl": (2, TOKENS),
    "train demo model.path=missing": (2, TOKENS),
    "train demo data.chat_template=missing.jinja": (2, TOKENS),
    "train demo output_dir=taken": (2, TOKENS),
    "export missing --merge": USAGE,
    "init --help": DONE,
    "init": USAGE,
    "init bad.yaml": USAGE,
    "init --model missing --pairs prefs.jsonl --for try --minutes 1": (2, TOKENS),
    "init --model builtin:guide --pairs missing.jsonl --for try --minutes 1": (2, TOKENS),
}
"""Command lines, their exit codes, and which of the modules above they import: never torch."""


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, set[str]]]:
    """What they all did."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "taken").mkdir()
    (folder / "taken" / "run.json").touch()
    (folder / "bad.yaml").write_text("name: a\noutput_dir: ${nmae}\n")
    pairs = [{"prompt": f"p{n}", "chosen": "a b" if n % 3 else "a", "rejected": "c"} for n in range(60)]
    write_pairs(folder, "prefs.jsonl", pairs)
    pq.write_table(pa.Table.from_pylist(pairs), folder / "prefs.parquet")
    chatml_tokenizer(folder / "model")
    write_run(folder / "run", outcome=outcome((0.3, 0.2, 0.4), 0.001), evals=[eval_row(0, 0.5)], pairs=30)
    return dict(zip(LIGHT, imported_by_each([command.split() for command in LIGHT], folder), strict=True))


@pytest.mark.parametrize("command", LIGHT)
def test_no_heavy_import(command: str, light: dict[str, tuple[int, set[str]]]) -> None:
    assert light[command] == LIGHT[command]


def test_help_lists_the_commands() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"])
    assert shown.exit_code == 0
    for command in ("init", "train", "plan", "eval", "chat", "stats", "inspect", "report", "export", "recipe"):
        assert f"\n  {command} " in shown.output
    assert "simpo train demo" in shown.output
    assert "simpo init" in shown.output
    assert CliRunner().invoke(cli.app, ["--version"]).output == f"simpo {simpo_cli.__version__}\n"


def test_the_options_of_eval_stand_in_groups_on_two_screens() -> None:
    shown = CliRunner().invoke(cli.app, ["eval", "--help"], env={"COLUMNS": "80"}).output
    assert len(shown.splitlines()) <= 48
    groups = {
        group.split(":\n")[0]: re.findall(r"^  (?:-h, )?(--[a-z-]+)", group, re.MULTILINE)
        for group in shown.split("\n\n")
    }
    options = groups.pop("Options")
    answers, judge = (named for title, named in groups.items() if title.startswith("Answers "))
    asked = ["--data", "--baseline", "--by", "--json", "--output", "--html", "--pairs", "--trust-remote-code", "--help"]
    assert options == asked
    assert answers[0] == "--generate"
    assert judge == ["--judge", "--judge-model", "--judge-key"]
    command = typer.main.get_command(cli.app).get_command(None, "eval")
    every = {name for parameter in command.params for name in parameter.opts if name.startswith("--")}
    assert every | {"--help"} == {*options, *answers, *judge}


def test_nothing_typed_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("Usage: simpo [OPTIONS] COMMAND")
    assert cli.run(["recipe"]) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith("Usage: simpo recipe [OPTIONS] COMMAND")


@pytest.mark.parametrize(
    ("args", "first"),
    [
        (["trian", "demo"], "Error: No such command 'trian'. Did you mean 'train'?"),
        (["train"], "Error: Missing argument 'RECIPE'."),
        (["train", "demo", "--frehs"], "Error: No such option: --frehs"),
        (["recipe", "shwo"], "Error: No such command 'shwo'. Did you mean 'show'?"),
    ],
)
def test_a_slip_on_the_command_line(args: list[str], first: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(args) == ExitCode.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[0].startswith(first)
    assert "Usage: simpo" in shown.err.splitlines()[1]


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command that raises."""
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    return cli.run([])


def test_a_users_mistake_has_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = UserError("chosen is \x1b[31mempty.", "Mend it.", where="p.json:3", exit_code=ExitCode.ENVIRONMENT)
    assert failing(error, monkeypatch) == 4
    assert capsys.readouterr().err == "Error: p.json:3: chosen is \\x1b[31mempty.\n  Mend it.\n"
    monkeypatch.setenv("SIMPO_DEBUG", "1")
    assert failing(error, monkeypatch) == 4
    assert "Traceback" in capsys.readouterr().err


def test_a_crash_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(RuntimeError("ours"), monkeypatch) == 1
    shown = capsys.readouterr().err
    assert "RuntimeError: ours" in shown
    assert "This is a bug in simpo." in shown
    assert failing(OSError("ours too"), monkeypatch) == 1
    assert failing(FileNotFoundError(2, "No such file or directory", "x"), monkeypatch) == 1


def test_other_ways_to_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(KeyboardInterrupt(), monkeypatch) == 130
    assert failing(OSError(28, "No space left on device", "runs/x"), monkeypatch) == 4
    assert "Error: runs/x: No space left on device.\n  Free some space.\n" in capsys.readouterr().err
    assert failing(OSError(5, "Input/output error"), monkeypatch) == 4
    assert "Error: Input/output error.\n  Mend the disk, or the connection to it.\n" in capsys.readouterr().err


def test_the_library_is_imported_when_it_is_used(tmp_path: Path) -> None:
    program = "import sys, simpo_cli; assert 'SimPOTrainer' in dir(simpo_cli); print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        simpo_cli.Nope  # noqa: B018


def test_errors_break_between_words_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "40")
    name = str(tmp_path / ("a-long-name-" * 6))  # wider than the terminal
    for args in (["stats", "x.jsonl", "--max-length", "20"], ["stats", name]):
        narrow, whole = Terminal(), io.StringIO()
        for stream in (narrow, whole):
            monkeypatch.setattr(sys, "stderr", stream)
            assert cli.run(args) == ExitCode.USAGE
        assert narrow.getvalue().split() == whole.getvalue().split()
        assert len(whole.getvalue().splitlines()) == 2
        lines = narrow.getvalue().splitlines()
        assert all(len(line) <= 40 or name in line for line in lines)
        assert lines[-1].startswith("  ")  # the remedy stays indented
