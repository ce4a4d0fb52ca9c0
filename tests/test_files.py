"""Files are whole or as they were, whatever call fails, and a person is told why and what to do."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import append_line, disk_faults, exit_code_of, replacing
from simpo_cli.report.page import PAGE_MARK, write_page, write_report

NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG)


def _failing(monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, name, fail)


def _write(path: Path) -> None:
    with replacing(path) as file:
        file.write("new\n")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    _write(tmp_path / "x")
    _write(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", NUMBERS)
def test_when_a_call_fails_the_old_file_stays_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    (tmp_path / "x").write_text("old")
    with monkeypatch.context() as patch:
        _failing(patch, call, number)
        with (
            pytest.raises(UserError, match=os.strerror(number)) as caught,
            disk_faults("x cannot be written", ", and go on"),
        ):
            _write(tmp_path / "x")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert caught.value.problem == f"x cannot be written: {os.strerror(number)}."
    assert caught.value.fix.endswith(", and go on.")
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_what_fails_in_the_middle_of_the_writing_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with replacing(tmp_path / "x") as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "write", [lambda path: write_report(path, {"schema_version": 1}), lambda path: write_page(path, PAGE_MARK)]
)
def test_a_report_that_the_disk_does_not_take_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    write(tmp_path / "report")
    before = (tmp_path / "report").read_bytes()
    _failing(monkeypatch, "fsync", errno.ENOSPC)
    with pytest.raises(UserError, match="cannot be written: No space left on device") as caught:
        write(tmp_path / "report")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert (tmp_path / "report").read_bytes() == before
    assert os.listdir(tmp_path) == ["report"]


def test_lines_are_appended_behind_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "x"
    append_line(file, "é")
    append_line(file, "b")
    assert file.read_bytes() == "é\nb\n".encode()
    file.write_bytes(b"somebody's last line")
    append_line(file, "c")
    assert file.read_bytes() == b"somebody's last line\nc\n"


@pytest.mark.parametrize("size", [0, 5])
def test_a_line_that_the_disk_takes_half_of_is_taken_back(tmp_path: Path, size: int) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"1234\n"[:size])
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_line(file, "abcdefgh")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert file.stat().st_size == size
    append_line(file, "abcdefgh")
    assert file.read_bytes() == b"1234\n"[:size] + b"abcdefgh\n"


def test_an_error_of_ours_is_not_laid_on_the_disk() -> None:
    with pytest.raises(OSError, match="no number"), disk_faults("x"):
        raise OSError("no number")
    assert exit_code_of(ValueError("x")) == exit_code_of(FileNotFoundError(2, "x")) == ExitCode.USAGE
    assert exit_code_of(OSError(errno.EIO, "x")) == ExitCode.ENVIRONMENT
