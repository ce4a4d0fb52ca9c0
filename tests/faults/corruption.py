"""Files of a run harmed in every way that came to mind: `python -m tests.faults.corruption` counts what is noticed.

A finished run is harmed in one place, `simpo report --verify` looks at it, and the place is put right again. Every file
that the run has written is harmed, the page aside, which is made anew from the others.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from simpo_cli.run.verify import verify_run
from tests.faults.children import Children, make_place
from tests.faults.table import table

_NOT_VOUCHED_FOR = {".lock", ".owner", "report.html"}
_DOCUMENTS = ("run.json", "manifest.json", "progress.json", "identity.json")

KINDS = (
    "one bit",
    "a page of zeros",
    "cut short",
    "longer",
    "swapped with another of its size",
    "missing",
    "a link in its place",
    "a file too many",
    "a value of a document edited",
    "a key of a document removed",
)


@dataclass
class Harmed:
    """How often each kind of harm was done, and how often it was noticed and the right file named."""

    done: Counter[str] = field(default_factory=Counter)
    noticed: Counter[str] = field(default_factory=Counter)
    files: set[str] = field(default_factory=set)  # that were harmed
    missed: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Rows of Markdown."""
        rows = [(kind, f"{self.done[kind]:,}", f"{self.noticed[kind]:,}") for kind in KINDS]
        rows.append((f"all, in {len(self.files)} files", f"{self.done.total():,}", f"{self.noticed.total():,}"))
        return table(("harm to the files of a run", "done", "noticed"), rows)


Harm = tuple[str, str, Callable[[], Any]]  # kind, what the verification must name, the doing


def harm_everything(run: Path, draw: random.Random, bits: int, one_in: int = 1) -> Harmed:
    """Harm a finished run in one place after the other, and put each right again; of so many harms do one.

    In each file so many `bits` are turned, one at a time.
    """
    harmed = Harmed()
    assert not verify_run(run).damaged
    untouched = run.with_name("untouched")
    shutil.copytree(run, untouched)
    for kind, name, do in islice(_harms(run, untouched, draw, bits), 0, None, one_in):
        do()
        harmed.done[kind] += 1
        harmed.files.add(name)
        if any(_names(found, name) for found in verify_run(run).damaged):
            harmed.noticed[kind] += 1
        else:
            harmed.missed.append(f"{kind}: {name}")
        _put_right(run, untouched, name)
    assert not verify_run(run).damaged
    shutil.rmtree(untouched)
    return harmed


def _harms(run: Path, untouched: Path, draw: random.Random, bits: int) -> Iterator[Harm]:
    files = [
        file.relative_to(run) for file in sorted(run.rglob("*")) if file.is_file() and file.name not in _NOT_VOUCHED_FOR
    ]
    for name in files:
        data = (run / name).read_bytes()
        for at in (0, 8 * len(data) - 1, *(draw.randrange(8 * len(data)) for _ in range(bits))):
            yield _bytes(run, "one bit", name, _turned(data, at))
        start = draw.randrange(len(data)) // 4096 * 4096
        zeroed = data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :]
        if zeroed != data:
            yield _bytes(run, "a page of zeros", name, zeroed)
        for size in {0, len(data) // 2, len(data) - 1}:
            yield _bytes(run, "cut short", name, data[:size])
        for more in (b"\n", b"\0" * 4096, data):
            yield _bytes(run, "longer", name, data + more)
        other = bytes(draw.randrange(256) for _ in range(min(len(data), 64))) + data[64:]
        yield _bytes(run, "swapped with another of its size", name, other)
        yield "missing", str(name), (run / name).unlink
        if name.parts[0] != name.name:
            yield "a link in its place", str(name), lambda name=name: _link(run / name, untouched / name)
        if name.name in _DOCUMENTS:
            yield from _edits(run, name, json.loads(data))
    for file in (run / "checkpoints").glob("*/optimizer.safetensors"):  # two of a kind, from two checkpoints
        other = next(f for f in (run / "checkpoints").glob("*/optimizer.safetensors") if f != file)
        yield _bytes(run, "swapped with another of its size", file.relative_to(run), other.read_bytes())
    for folder in sorted({name.parent for name in files if name.parent != Path()}):
        for extra in ("extra.bin", ".hidden", "pytorch_model.bin"):
            at = folder / extra
            yield "a file too many", str(at), lambda at=at: (run / at).write_bytes(b"x")


def _edits(run: Path, name: Path, content: dict[str, Any]) -> Iterator[Harm]:
    """Every value of a document changed, and every key removed, by somebody who keeps the layout."""
    for path, value in _values(content):
        for kind, edit in (
            ("a value of a document edited", lambda holder, key, value=value: holder.__setitem__(key, _other(value))),
            ("a key of a document removed", lambda holder, key: holder.__delitem__(key)),
        ):
            changed = json.loads(json.dumps(content))
            holder: Any = changed
            for key in path[:-1]:
                holder = holder[key]
            edit(holder, path[-1])
            yield _bytes(run, kind, name, (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode())


def _values(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a document with the way to it, containers too."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*path, key), value
        yield from _values(value, (*path, key))


def _other(value: Any) -> Any:
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value[:-1] + ("0" if value[-1:] != "0" else "1")
        case None:
            return 0
        case _:
            return None


def _turned(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def _bytes(run: Path, kind: str, name: Path, data: bytes) -> Harm:
    return kind, str(name), lambda: (run / name).write_bytes(data)


def _link(file: Path, target: Path) -> None:
    """The same bytes, in another folder."""
    file.unlink()
    file.symlink_to(target)


def _names(found: str, name: str) -> bool:
    """Whether a damaged thing is the file, or the checkpoint that it belongs to; run.json's lines have more to say."""
    return found == name or name.startswith(f"{found}/") or (name == "run.json" and found.startswith("run.json"))


def _put_right(run: Path, untouched: Path, name: str) -> None:
    (run / name).unlink(missing_ok=True)
    if (untouched / name).exists():
        shutil.copyfile(untouched / name, run / name)


def main() -> int:
    """Harm a run of its own and print the table."""
    parser = argparse.ArgumentParser(description="Harm the files of a run and count what is noticed.")
    parser.add_argument("--bits", type=int, default=30, help="bits turned in each file, one at a time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Children(make_place(Path(folder))) as children:
        assert children.run("train", "run.yaml", "train.max_steps=3") == 0, children.said()
        harmed = harm_everything(Path(folder) / "runs" / "run", random.Random(0), options.bits)
    print(harmed.table())
    for missed in harmed.missed:
        print(f"missed  {missed}", file=sys.stderr)
    return int(bool(harmed.missed))


if __name__ == "__main__":
    sys.exit(main())
