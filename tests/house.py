"""The house in numbers: lines, files, floors, the longest files, and how many files two routes go through.

usage: python -m tests.house
"""

import ast
import graphlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.routes import follow

ROOT = Path(__file__).parents[1]
NUM_LONGEST, LONG, SHORT = 12, 450, 100


def report(package: Path) -> Iterator[str]:
    """Lines and files of a package and of each package right below it, and its longest files."""
    files = {file.relative_to(package): len(file.read_text().splitlines()) for file in sorted(package.rglob("*.py"))}
    num_short = sum(lines < SHORT for lines in files.values())
    total = sum(files.values())
    share = f"{num_short / len(files):.0%} of them under {SHORT} lines"
    yield f"{package.name}: {total:,} lines, {len(files)} files, {share}"
    lines_of, files_of = Counter[str](), Counter[str]()
    for file, lines in files.items():
        room = file.parts[0] if len(file.parts) > 1 else "(top)"
        lines_of[room] += lines
        files_of[room] += 1
    yield from (f"  {room:<12} {lines_of[room]:>6,} lines {files_of[room]:>4} files" for room in sorted(lines_of))
    yield "longest files"
    for file, lines in sorted(files.items(), key=lambda item: (-item[1], item[0]))[:NUM_LONGEST]:
        yield f"  {lines:>5} {file}{f'   over {LONG}' if lines > LONG else ''}"


def floors(package: Path) -> Iterator[str]:
    """The packages and modules right below, from the top: each imports only from floors below its own."""
    imports: dict[str, set[str]] = {}
    for file in package.rglob("*.py"):
        room = file.relative_to(package).with_suffix("").parts[0]
        if room != "__init__":  # the package's own names are lazy
            names = (name.split(".") for name in _imported(file))
            found = {parts[1] for parts in names if parts[0] == package.name and len(parts) > 1}
            imports.setdefault(room, set()).update(found - {room})
    sorter, levels = graphlib.TopologicalSorter(imports), list[list[str]]()
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        yield f"an arrow upwards: {' -> '.join(reversed(error.args[1]))}"
        return
    while sorter.is_active():
        levels.append(sorted(sorter.get_ready()))
        sorter.done(*levels[-1])
    yield f"{len(levels)} floors, no arrow upwards; from the top:"
    yield from (f"  {number:>2}  {', '.join(levels[number - 1])}" for number in range(len(levels), 0, -1))


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def routes(package: Path) -> Iterator[str]:
    """The files of both routes by folder."""
    found = follow(package)
    for name, files in (("beta, from YAML to the loss", found.beta), ("a pair, from file to gradient", found.pair)):
        yield f"{name}: {len(files)} files"
        for folder in sorted(set(map(os.path.dirname, files))):
            names = sorted(Path(file).stem for file in files if os.path.dirname(file) == folder)
            yield f"  {folder or '(top)'}: {', '.join(names)}"


def main() -> None:
    house = ROOT / "simpo_cli"
    for line in (*report(house), *floors(house), *routes(house), *report(ROOT / "tests")):
        print(line)


if __name__ == "__main__":
    main()
