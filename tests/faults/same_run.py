"""What two runs of one recipe must share, file by file and bit by bit, and what of a run must be whole at any instant.

Times, and what the memory was, are no part of it; nor is what a resumed run says about its being resumed.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpo_cli.run.folder import LOGS
from simpo_cli.run.manifest import DamagedCheckpointError, find_checkpoints
from tests.train.runs import rows, timeless

_OF_THE_PROCESS = (".lock", ".owner")
_OF_THE_MOMENT = ("tokens", "memory")  # lines of the first screen: cached or made, and what was free
_ABOUT_RESUMING = "resumes from step "
_OF_TIME_IN_PAGE = re.compile(
    r"<dt>(started|resumed|tokens|memory)</dt>.*|<li>resumes from step .*| · took [^<·]*|\d{4}-\d\d-\d\d \d\d:\d\d UTC"
    r'|(?s:<svg role="img" aria-label="[^"]*(?: second|memory|GB)[^"]*".*?</svg>)'
)
_LINES = ("metrics.jsonl", "evals.jsonl", "evals-pairs.jsonl", "evals-samples.jsonl", "notes.jsonl")
_FILES_OF_EVERY_RUN = {*_LINES, "run.json", "report.html", "model/model.safetensors"}

Content = Mapping[str, bytes]


def content_of(run: Path) -> Content:
    """Every file of a run that has come to its end, by its name in the folder, without what may differ."""
    files = {str(file.relative_to(run)): file for file in sorted(run.rglob("*")) if file.is_file()}
    content = {name: _comparable(file) for name, file in files.items() if name not in _OF_THE_PROCESS}
    assert content.keys() >= _FILES_OF_EVERY_RUN, sorted(content)
    steps = [row["step"] for row in rows(run / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)), steps
    return content


def differing_bits(ours: Content, theirs: Content) -> dict[str, int]:
    """How many bits differ, by file, where any do; what one file has more counts, and so does a file more."""
    found = {}
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name, b""), theirs.get(name, b"")
        length = min(len(one), len(other))
        xor = int.from_bytes(one[:length], "little") ^ int.from_bytes(other[:length], "little")
        bits = xor.bit_count() + 8 * (max(len(one), len(other)) - length)
        if bits or (name in ours) != (name in theirs):
            found[name] = max(bits, 1)
    return found


def newest_whole_step(run: Path) -> int:
    """The step of the checkpoint saved last; -1 where there is none."""
    whole, _ = find_checkpoints(run / "checkpoints")
    return whole[0].step if whole else -1


def damage_in(run: Path, unbroken: Content) -> list[str]:
    """What is not whole in the folder of a run that was interrupted, read to the last byte; there may be no folder.

    model/ has to be as in the run that nobody touched, or not there.
    """
    whole, damaged = find_checkpoints(run / "checkpoints")
    found = [str(one) for one in damaged]
    for checkpoint in whole:
        try:
            checkpoint.verify()
        except DamagedCheckpointError as error:
            found.append(str(error))
    model = {f"model/{file.name}": file.read_bytes() for file in (run / "model").glob("*")}
    card = {"model/README.md": model.get("model/README.md")}  # says nothing of the result until that is there
    if model and {**model, **card} != {**{n: data for n, data in unbroken.items() if n.startswith("model/")}, **card}:
        found.append(f"model/ holds {', '.join(sorted(model))}")
    for name in (*_LINES, "answers.jsonl", "run.json", "report.html"):
        file = run / name
        if file.exists() and not _is_whole(file):
            found.append(f"{name} ends in {file.read_bytes()[-40:]!r}")
    return found


def _is_whole(file: Path) -> bool:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".html":
        return text.rstrip().endswith("</html>")
    try:
        if file.suffix == ".json":
            json.loads(text)
        else:
            steps = [row["step"] for row in map(json.loads, text.splitlines()) if "step" in row]
            return (not text or text.endswith("\n")) and steps == sorted(steps)
    except ValueError:
        return False
    return True


def _comparable(file: Path) -> bytes:
    match file.name:
        case name if name in LOGS:
            return _lines(timeless(file))
        case "notes.jsonl":
            said = [row for row in rows(file) if row["label"] not in _OF_THE_MOMENT]
            said = [row for row in said if not row["text"].startswith(_ABOUT_RESUMING)]
            return _lines([row for number, row in enumerate(said) if row not in said[:number]])  # said again
        case "run.json" | "progress.json" | "manifest.json":
            return _lines([_without_times(json.loads(file.read_text(encoding="utf-8")))])
        case "report.html":
            text = _OF_TIME_IN_PAGE.sub("", file.read_text(encoding="utf-8"))
            return "\n".join(line for line in text.splitlines() if line.strip()).encode()
        case _:
            return file.read_bytes()


def _without_times(content: Any) -> Any:
    """A document without times and free memory, without what is said of resuming, and hashes of files with times."""
    if not isinstance(content, dict):
        return content
    dropped = {"seconds", "started", "resumed", "tokens", "sha256", "digests", "progress.json", "notes.jsonl"}
    dropped |= {"available_bytes"}
    if "status" in content:
        dropped |= {"files"}  # hashes of the logs and of the page
    return {name: _without_times(value) for name, value in content.items() if name not in dropped}


def _lines(content: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in content).encode()
