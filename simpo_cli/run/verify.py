"""Every file of a run compared with what the run says that it wrote: `simpo report RUN --verify`. Changes nothing.

A checkpoint is vouched for by its manifest, run.json by a hash of itself, and the other files of a finished run by
run.json, unless it says that the run is being resumed. Before the end the newest checkpoint vouches for the logs
up to its step; what follows there a kill may have cut in the middle of a line, and resuming the run removes it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo_cli.data.file_bytes import sha256_of
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import MalformedError, disk_faults, parse
from simpo_cli.names import not_a_run
from simpo_cli.run.documents import LaterVersionError, of_shape, receipt_of
from simpo_cli.run.folder import (
    ANSWERS,
    BASE,
    CHECKPOINTS,
    EVAL_PAIRS,
    EVAL_SAMPLES,
    EVALS,
    LOGS,
    MODEL,
    NOTES,
    PROGRESS,
    RECIPE,
    REJECTED,
    REOPENED,
    RUN,
    SEAL,
    holds_a_run,
    is_as_sealed,
    is_in_use,
)
from simpo_cli.run.manifest import Checkpoint, DamagedCheckpointError, find_checkpoints, folder_name
from simpo_cli.stages import stage

_LINES = (*LOGS, EVAL_PAIRS, EVAL_SAMPLES, NOTES, REJECTED)
_SEVERAL_A_STEP = (EVALS, ANSWERS)
"""The final evaluation may repeat its step, with the saved model; there is a line an answer."""


@dataclass(frozen=True, slots=True)
class FileSeen:
    """One file or checkpoint of a run."""

    name: str  # below the run's folder
    is_whole: bool  # it is what was written, so far as the run says what that was
    detail: str  # what it holds, or what is wrong with it


@dataclass(frozen=True, slots=True)
class Verification:
    """What became of the files of a run."""

    run: Path
    seen: Sequence[FileSeen]
    resumes_from: int | None  # step of the newest checkpoint that is whole

    @property
    def damaged(self) -> list[str]:
        """Names of the files that are not what was written."""
        return [file.name for file in self.seen if not file.is_whole]

    def as_json(self) -> dict[str, Any]:
        """The document of --json."""
        files = [{"name": file.name, "whole": file.is_whole, "detail": file.detail} for file in self.seen]
        return {
            "schema_version": 1,
            "run": str(self.run),
            "whole": not self.damaged,
            "resumes_from": self.resumes_from,
            "files": files,
        }

    def require_whole(self) -> None:
        """Name what is damaged.

        Raises:
            UserError: something is (exit code 4).
        """
        if not self.damaged:
            return
        fix = "No checkpoint can be used: put back copies of the files."
        if self.resumes_from is not None:
            fix = f"Put back copies; or --resume resumes from step {self.resumes_from}, which is whole."
        raise UserError(f"{self.run} is damaged: {', '.join(self.damaged)}.", fix, exit_code=ExitCode.ENVIRONMENT)


def verify_run(path: Path) -> Verification:
    """Look at every file of a run, also while it trains.

    Raises:
        UserError: it is not a run, or it cannot be read.
    """
    if not holds_a_run(path):
        raise not_a_run(str(path))
    with disk_faults(f"{path} cannot be read"):
        whole, checkpoints = _checkpoints(path)
        receipt, of_receipt = _receipt(path, has_saved=bool(checkpoints))
        latest = whole[0] if whole else None
        step = int(receipt.get("step", 0))
        of_step = f"{CHECKPOINTS}/{folder_name(step)}"
        if step > (latest.step if latest else 0) and all(file.name != of_step for file in checkpoints):
            checkpoints.append(FileSeen(of_step, False, "is missing"))
        is_done = receipt.get("status") == "done" and REOPENED not in receipt
        files = receipt.get("files") if is_done else None
        listed = files if isinstance(files, dict) else {}
        progress = _progress(latest) if latest else {}
        seen = [of_receipt, _recipe(path, receipt), *_ledgers(receipt)]
        seen += [found for name in _LINES if (found := _log(path, name, listed, progress)) is not None]
        seen += [*checkpoints, *_model(path, listed, is_done=files is not None)]
    return Verification(path, seen, latest.step if latest else None)


def _progress(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """What a checkpoint says of the logs; nothing where it says that in another form."""
    try:
        return of_shape(PROGRESS, checkpoint.read_json(PROGRESS))
    except ValueError:
        return {}


@stage("hashing the files of the run")
def written_files(path: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file that a finished run leaves, checkpoints and run.json aside, for run.json."""
    with disk_faults(f"{path} cannot be read"):
        names = [name for name in (RECIPE, *_LINES) if (path / name).is_file()]
        for folder in (path / MODEL, path / BASE):
            names += [_name(file, path) for file in sorted(folder.rglob("*")) if file.is_file()]
        return {name: {"size": (path / name).stat().st_size, "sha256": sha256_of(path / name)} for name in names}


def _receipt(path: Path, *, has_saved: bool) -> tuple[Mapping[str, Any], FileSeen]:
    """run.json and what to report of it; empty where it cannot be believed."""
    try:
        data = (path / RUN).read_bytes()
        content = receipt_of(data)
        old = content["schema_version"] == 1 and SEAL not in content  # which had no hash of itself
        status, step = content["status"], content["step"]
    except FileNotFoundError:
        return {}, FileSeen(RUN, not has_saved, "is missing" if has_saved else "is not written yet")
    except LaterVersionError as error:
        return {}, FileSeen(RUN, False, str(error))
    except (MalformedError, KeyError):
        return {}, FileSeen(RUN, False, "is not what was written")
    if not old and not is_as_sealed(data):
        return {}, FileSeen(RUN, False, "was changed after it was written")
    left = ", left by a process that was about to resume it" if REOPENED in content else ""
    remark = ", by a version that kept no hash of it" if old else ", being trained now" if is_in_use(path) else left
    return content, FileSeen(RUN, True, f"{status}, step {step:,}{remark}")


def _recipe(path: Path, receipt: Mapping[str, Any]) -> FileSeen:
    if not (path / RECIPE).is_file():
        return FileSeen(RECIPE, False, "is missing")
    if receipt and sha256_of(path / RECIPE) not in (receipt["recipe_sha256"], *receipt.get(REOPENED, ())):
        return FileSeen(RECIPE, False, "is not the recipe that run.json names")
    return FileSeen(RECIPE, True, "as run.json says" if receipt else "nothing vouches for it")


def _ledgers(receipt: Mapping[str, Any]) -> Iterator[FileSeen]:
    """Whether every record that was read is somewhere."""
    for side in ("train", "eval"):
        if receipt and receipt["data"][side] is not None:
            records = receipt["data"][side]["records"]
            read = records["read"] + records["repeated"]
            named = ("trained", "held_out", "not_reached", "refused")
            found = sum(records[name] for name in named) + sum(records["dropped"].values())
            detail = f"of {read:,} records {found:,} are accounted for"
            yield FileSeen(f"{RUN}: records of data.{side}", read == found, detail)


def _log(path: Path, name: str, listed: Mapping[str, Any], progress: Mapping[str, Any]) -> FileSeen | None:
    """A file of JSON lines, against run.json or else against the newest checkpoint; None where none is expected."""
    file = path / name
    saved = progress.get("lines", {}).get(name, 0)
    if not file.is_file():
        return FileSeen(name, False, "is missing") if name in listed or saved > 0 else None
    *lines, rest = file.read_bytes().split(b"\n")
    rows, reason = _rows(lines, by_step=name in LOGS, may_repeat=name in _SEVERAL_A_STEP)
    if listed:
        differs = _what_differs(file, listed[name]) if name in listed else "is none of the files that run.json names"
        reason = differs or reason
    elif not reason and len(lines) >= saved:
        digest = progress.get("digests", {}).get(name)
        if digest not in (None, hashlib.sha256(b"".join(line + b"\n" for line in lines[:saved])).hexdigest()):
            reason = "holds other lines than when the checkpoint was taken"
    if not reason and len(lines) < saved:
        reason = f"has {len(lines):,} lines, and had {saved:,} when the checkpoint was taken"
    if reason:
        return FileSeen(name, False, reason)
    detail = f"{len(lines):,} lines"
    if name in LOGS and rows:
        detail += f", steps {rows[0]['step']:,} to {rows[-1]['step']:,}"
    if rest:
        detail += "; half a line behind them, which --resume cuts away"
    return FileSeen(name, not (rest and listed), detail)


def _rows(lines: Sequence[bytes], *, by_step: bool, may_repeat: bool) -> tuple[list[dict[str, Any]], str]:
    """The rows of a log, and what is wrong with it."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = parse(line)
            step = int(row["step"]) if by_step else 0
        except (ValueError, TypeError, KeyError):
            return rows, f"line {number:,} is damaged"
        if by_step and rows and not (step > rows[-1]["step"] or (may_repeat and step == rows[-1]["step"])):
            return rows, f"step {step:,} comes behind step {rows[-1]['step']:,}, in line {number:,}"
        rows.append(row)
    return rows, ""


def _checkpoints(path: Path) -> tuple[list[Checkpoint], list[FileSeen]]:
    """The checkpoints that are whole, the one saved last first, and a line for every one."""
    found, damaged = find_checkpoints(path / CHECKPOINTS)
    whole = []
    for checkpoint in found:
        try:
            checkpoint.verify()
        except DamagedCheckpointError as error:
            damaged.append(error)
        else:
            whole.append(checkpoint)
    seen = []
    for one in reversed(whole):
        sizes = [facts.size for facts in one.manifest.files.values()]
        seen.append(FileSeen(_name(one.folder, path), True, f"{len(sizes) + 1} files, {sum(sizes):,} bytes"))
    # one that is gone was removed by the run meanwhile, because newer ones are there
    seen += [FileSeen(_name(one.folder, path), False, one.reason) for one in damaged if one.folder.exists()]
    left = [] if is_in_use(path) else sorted((path / CHECKPOINTS).glob(".tmp-*"))
    seen += [FileSeen(_name(one, path), True, "left by a process that died; --resume removes it") for one in left]
    return whole, seen


def _model(path: Path, listed: Mapping[str, Any], *, is_done: bool) -> Iterator[FileSeen]:
    """Every file of model/ against run.json."""
    if (path / MODEL).is_symlink():
        yield FileSeen(MODEL, False, "is a link, and what it leads to is not of this run")
        return
    present = {_name(file, path) for file in (path / MODEL).rglob("*") if not file.is_dir() or file.is_symlink()}
    if not is_done:
        if present:
            yield FileSeen(MODEL, True, "no finished run vouches for it")
        return
    for name in sorted(present | {name for name in listed if name.startswith(f"{MODEL}/")}):
        if name not in listed:
            yield FileSeen(name, False, "does not belong to it")
        elif name not in present or (path / name).is_symlink():
            yield FileSeen(name, False, "is missing")
        else:
            reason = _what_differs(path / name, listed[name])
            yield FileSeen(name, not reason, reason or f"{listed[name]['size']:,} bytes")


def _what_differs(file: Path, written: Mapping[str, Any]) -> str:
    """How a file differs from what was written; empty if it does not."""
    size = file.stat().st_size
    if size != written["size"]:
        return "is cut short" if size < written["size"] else "is longer than it was"
    return "" if sha256_of(file) == written["sha256"] else "holds other bytes than were written"


def _name(file: Path, run: Path) -> str:
    return file.relative_to(run).as_posix()
