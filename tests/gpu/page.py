"""docs/gpu.md from the newest run of the check on a card: python -m tests.gpu.page docs"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_HEAD = """\
# On a card

`make gpu-check` shows in six minutes what this project does on a CUDA card: that its kernels and its steps are right,
what memory they take beside what is predicted, how fast they are beside padded rows and whole logits, that a run
survives memory running out, that a run repeated, or killed and resumed, has the same bits, and what FSDP2 costs with
one rank. It needs torch 2.11 and transformers 5.5 or later and no network; data and models are made by the script. A
part that lacks a package reads SKIP. One that breaks, hangs or ends its process reads FAIL, and the others run all the
same.

    make gpu-check                          # in this project's environment, with a CUDA build of torch
    make gpu-check ARGS=--tiny              # all of it small, on a CPU: that the script works
    make gpu-check ARGS="--only kernels"    # some parts again
    make gpu-page                           # this page from the files under docs/gpu/

For a machine without network or environment, `make gpu-bundle PYTHON_VERSION=3.12` collects the packages that such a
machine lacks beside torch and transformers as wheels, and prints the two commands to use them there. The script writes
`gpu_check.json` after every part, so a time-out loses nothing; put the file under `docs/gpu/` to have it shown here.
"""

_NONE = """\

## Results

There is none yet: nothing on this page, and no line of the CUDA paths, has been run on a card. What the documentation
says of CUDA is by arithmetic and by tests with emulated kernels, and says so where it stands.
"""


def page(folder: Path) -> str:
    """The page, from the results in `folder`, of which it may hold none."""
    documents = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]
    real = sorted((d for d in documents if not d["tiny"]), key=lambda d: str(d["started"]), reverse=True)
    return _HEAD + ("".join(_result(real)) if real else _NONE)


def _result(newest_first: list[dict[str, Any]]) -> Iterator[str]:
    """The newest run; parts that it left out are shown as of the run before it on a card of the same name."""
    document = newest_first[0]
    machine = document["machine"]
    parts: dict[str, dict[str, Any]] = {}
    bars: dict[str, dict[str, Any]] = {}
    for run in newest_first:
        if run["machine"]["device"] == machine["device"]:
            for part in run["parts"]:
                known = parts.get(part["part"])
                if known is None or (known["status"] == "SKIP" and part["status"] != "SKIP"):
                    parts[part["part"]] = {**part, "date": run["started"][:10]}
            for bar in run["bars"]:
                bars.setdefault(bar["name"], bar)
    versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items() if v)
    runs = len(newest_first)
    earlier = "" if runs == 1 else f" The newest of {runs} runs; the others are beside it."
    yield (
        f"\n## Results of {document['started'][:10]}\n\n"
        f"{machine['device']} ({machine.get('memory_gb', '?')} GB), {machine['cores']} cores, Python "
        f"{machine['python']}, CUDA {machine['cuda']}; {versions}. {document['seconds']:.0f} s, one run.{earlier}\n\n"
        "| | part | date | seconds | |\n|---|---|---|---|---|\n"
    )
    for part in parts.values():
        cells = (part["status"], part["part"], part["date"], f"{part['seconds']:.0f}", _cell(part["summary"]))
        yield f"| {' | '.join(cells)} |\n"
    if bars:
        yield "\n| aim | measured | wanted | |\n|---|---|---|---|\n"
        for bar in bars.values():
            wanted = f"at least {bar['least']:g}" if bar["least"] is not None else f"at most {bar['most']:g}"
            yield f"| {bar['name']} | {bar['value']:.3g} | {wanted} | {'met' if bar['met'] else 'missed'} |\n"
    for name, part in parts.items():
        if "ways" in part["facts"]:
            yield from _speed(name, part["facts"])
    if (memory := parts.get("memory")) and "rows" in memory["facts"]:
        yield "\n### Memory\n\n| setting | predicted GB | measured GB |\n|---|---|---|\n"
        for row in memory["facts"]["rows"]:
            yield f"| {row['setting']} | {row['predicted_gb']:.1f} | {row['measured_gb']:.1f} |\n"


def _speed(name: str, facts: dict[str, Any]) -> Iterator[str]:
    yield (
        f"\n### {name}\n\n{facts['pairs']} pairs with {facts['tokens']:,} tokens a step, each prompt counted once; "
        "medians of steps\ntaken in turn, lowest and highest in brackets. The share is of the measured speed of bf16 "
        "products, by the\noperations that the method needs.\n\n"
        "| | seconds a step | pairs/s | tokens/s | share | peak GB |\n|---|---|---|---|---|---|\n"
    )
    for way, row in facts["ways"].items():
        seconds = row["seconds"]
        share = "" if row["share_of_products"] is None else f"{100 * row['share_of_products']:.0f} %"
        peak = "" if row["peak_gb"] is None else f"{row['peak_gb']:.1f}"
        yield (
            f"| {way} | {seconds['median']:.3g} ({seconds['low']:.3g} to {seconds['high']:.3g}, n = {seconds['n']}) "
            f"| {row['pairs_per_second']:.3g} | {row['tokens_per_second']:,.0f} | {share} | {peak} |\n"
        )
    for way, why in {**facts["missing"], **facts["broken"]}.items():
        yield f"| {way} | {_cell(why)} | | | | |\n"
    for way, kernels in facts.get("kernels", {}).items():
        yield f"\nThe kernels that take most time of a step, {way}:\n\n"
        yield "| share | milliseconds | calls | |\n|---|---|---|---|\n"
        for row in kernels:
            name, part = _cell(row["name"]), 100 * row["share"]
            yield f"| {part:.1f} % | {row['milliseconds']:.1f} | {row['calls']} | `{name}` |\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    docs = Path(sys.argv[1])
    (docs / "gpu.md").write_text(page(docs / "gpu"), encoding="utf-8")


if __name__ == "__main__":
    main()
