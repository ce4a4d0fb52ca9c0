"""What is around a command: streams that are closed or full, a working directory that is gone, little address space."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simpo_cli.errors import ExitCode
from tests.report.made_run import write_run

ROOT = Path(__file__).parents[2]
ANSWERS = ["--version", "--help", "stats p.jsonl", "stats p.jsonl --json", "recipe schema", "report run --verify"]
COMMANDS = [
    "stats p.jsonl",
    "stats p.jsonl --model m",
    "recipe list",
    "report run",
    "train r.yaml",
    "eval run",
    "inspect r.yaml",
    "export run --merge",
]
NOT_SAID = ("Traceback", "Exception ignored", "Aborted", "bug in simpo")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    pairs = [{"prompt": f"p {i}", "chosen": "yes", "rejected": "no thanks"} for i in range(3)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    write_run(tmp_path / "run")
    return tmp_path


def shell(line: str, cwd: Path) -> tuple[int, str]:
    """Exit code and stderr of a line of bash in which $simpo is the command."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "simpo": f"{sys.executable} -m simpo_cli", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["bash", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert not [said for said in NOT_SAID if said in done.stderr], done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ANSWERS)
@pytest.mark.parametrize(
    ("where", "why"),
    [(">&-", "Bad file descriptor"), (">/dev/full", "No space left on device")],
    ids=["closed", "full"],
)
def test_an_answer_that_cannot_be_written_is_an_error(command: str, where: str, why: str, place: Path) -> None:
    code, said = shell(f"$simpo {command} {where}", place)
    assert code == ExitCode.ENVIRONMENT
    assert f"Error: the output cannot be written: {why}." in said
    assert said.count("Error") == 1


@pytest.mark.parametrize("command", ANSWERS[:-1])
def test_a_reader_that_has_gone_is_no_error_of_ours(command: str, place: Path) -> None:
    code, said = shell(f"set -o pipefail; $simpo {command} | true", place)
    assert code == (0 if command == "stats p.jsonl" else 141)  # as if SIGPIPE had ended it; a screen is no answer
    assert said == ""


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "<&-"])
def test_where_nobody_can_be_told_work_goes_on(where: str, place: Path) -> None:
    assert shell(f"$simpo recipe list {where}", place)[0] == ExitCode.DONE
    assert shell(f"$simpo stats nowhere.jsonl {where}", place)[0] == ExitCode.USAGE


def test_what_is_printed_to_a_closed_stream_never_ends_up_in_a_file(place: Path) -> None:
    code, _ = shell("$simpo recipe copy demo >&- 2>&- <&-", place)
    assert code in (ExitCode.DONE, ExitCode.ENVIRONMENT)
    [copied] = place.glob("*.yaml")
    assert copied.read_text(encoding="utf-8").startswith(("#", "name", "defaults"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_working_directory_that_is_gone_is_said(command: str, place: Path) -> None:
    code, said = shell(f"mkdir gone; cd gone; rmdir ../gone; $simpo {command}", place)
    assert code == ExitCode.ENVIRONMENT
    assert said.splitlines()[0] == "Error: the working directory cannot be used: No such file or directory."


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kilobytes", [30_000, 70_000, 400_000])
def test_too_little_address_space_is_said_before_a_library_aborts(command: str, kilobytes: int, place: Path) -> None:
    code, said = shell(f"ulimit -v {kilobytes}; $simpo {command}", place)
    assert code == ExitCode.ENVIRONMENT
    assert said.startswith(f"Error: the address space is limited to {kilobytes * 1024 / 1e6:,.0f} MB (ulimit -v)")


def test_help_is_given_anywhere(place: Path) -> None:
    assert shell("mkdir gone; cd gone; rmdir ../gone; ulimit -v 400000; $simpo train --help", place)[0] == 0
