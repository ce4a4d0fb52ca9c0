"""Findings on the screen, the story of each code, and findings as GitHub's workflow commands, which show as annotations
beside the files of a pull request.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.formatting import thousands
from simpo_cli.report.console import Console, print_wrapped, printable

if TYPE_CHECKING:
    from simpo_cli.data.pair import BadRecord  # with numpy, which `simpo stats --explain` does without

SHOWN_PLACES = 3
STYLES = {"error": "red", "warning": "yellow"}
STORY_WIDTH = 15


def print_findings(console: Console, document: Mapping[str, Any], refused: Sequence["BadRecord"]) -> None:
    """Print the findings, worst first, and what passed; the document does not hold why records were `refused`."""
    findings, files = document["findings"], [str(file["path"]) for file in document["input"]["files"]]
    console.print(Text("Findings", "bold"), soft_wrap=True)
    number_width = max((len(thousands(f["count"])) for f in findings), default=0)
    for finding in findings:
        lead = Text.assemble(
            "  ",
            (finding["severity"].ljust(7), STYLES[finding["severity"]]),
            f"  {finding['code']}  ",
            thousands(finding["count"]).rjust(number_width),
            "  ",
        )
        print_wrapped(console, lead, CATALOGUE[finding["code"]].title)
        indent = Text(" " * (11 if console.width < 80 else lead.cell_len))
        if finding["code"] == "FMT001":
            for bad in refused[:SHOWN_PLACES]:
                print_wrapped(console, indent, f"{short_place(bad.where, files)}: {bad.problem}", style="dim")
        elif finding["rows"]:
            places = ", ".join(short_place(str(row), files) for row in finding["rows"][:SHOWN_PLACES])
            more = ", ..." if finding["count"] > SHOWN_PLACES else ""
            print_wrapped(console, indent, f"{places}{more}", style="dim")
        print_wrapped(console, indent, finding["hint"], style="dim")
    if document["passed"]:
        passed = ", ".join(CATALOGUE[code].short for code in document["passed"])
        print_wrapped(console, Text("  passed: ", "green"), passed)
    if findings:
        print_wrapped(console, Text("  "), f"more: simpo stats --explain {findings[0]['code']}", style="dim")


def shared_folder(files: Sequence[str]) -> str:
    """The folder that all files are in, with its slash; it is said once, in the heading."""
    folders = {file[: file.rfind("/") + 1] for file in files}
    return folders.pop() if len(folders) == 1 else ""


def short_place(row: str, files: Sequence[str]) -> str:
    """A pair's place, shortened: of one file `prefs.jsonl:17` is line 17, of several the folder is left out."""
    if len(files) == 1 and row.startswith(files[0]):
        row = row[len(files[0]) :].removeprefix(", ")
        return f"line {row[1:]}" if row.startswith(":") else row
    return row.removeprefix(shared_folder(files))


def print_story(console: Console, code: str) -> None:
    """What a finding is, why it ruins runs, and what to do."""
    entry = CATALOGUE[code]
    print_wrapped(console, Text(f"{code}  ", "bold"), entry.title, style="bold")
    looked_for = {
        "text": "in every audit",
        "tokens": "with --recipe or --tokenizer",
        "evaluation": "with --eval, or with --recipe and its data.eval",
        "near": "by the search for near-duplicates",
        "model": "with --model",
    }
    cleaned = "leaves such pairs out" if entry.drops else "mends such pairs" if entry.mends else "keeps such pairs"
    sentences = {
        "severity": entry.severity,
        "what it is": entry.meaning,
        "why it hurts": entry.harm,
        "what to do": entry.remedy,
        "looked for": looked_for[entry.needs],
        "--write-clean": cleaned,
    }
    for label, text in sentences.items():
        style = STYLES[entry.severity] if label == "severity" else ""
        print_wrapped(console, Text(label.ljust(STORY_WIDTH), "dim"), text, style=style)


def print_codes(console: Console) -> None:
    """Every code with its severity and title."""
    for code, entry in CATALOGUE.items():
        lead = Text.assemble(f"{code}  ", (entry.severity.ljust(7), STYLES[entry.severity]), "  ")
        print_wrapped(console, lead, entry.title)


# JSON arrays and tables have records, which GitHub does not know
_PLACE = re.compile(r"(?P<file>.+)(:(?P<line>[1-9]\d*)|, record \d+)", re.DOTALL)


def annotations(document: Mapping[str, Any], refused: Sequence["BadRecord"]) -> Iterator[str]:
    """One command a finding, at its first place: GitHub shows ten errors and ten warnings of a step and no more."""
    for finding in document["findings"]:
        title = CATALOGUE[finding["code"]].title
        rows = [str(row) for row in finding["rows"]]
        place = _PLACE.fullmatch(rows[0]) if rows else None
        properties = {} if place is None else {name: value for name, value in place.groupdict().items() if value}
        properties["title"] = f"{finding['code']} {title}" if rows else finding["code"]
        message = f"{thousands(finding['count'])}: {title}. {finding['hint']}"
        if finding["code"] == "FMT001":
            message += f" The first: {refused[0].problem}."
        if rows:
            more = ", ..." if finding["count"] > SHOWN_PLACES else ""
            message += f" At {', '.join(rows[:SHOWN_PLACES])}{more}"
        escaped = {name: _escaped(value).replace(":", "%3A").replace(",", "%2C") for name, value in properties.items()}
        listed = ",".join(f"{name}={value}" for name, value in escaped.items())
        yield f"::{finding['severity']} {listed}::{_escaped(message)}"


def _escaped(text: str) -> str:
    """Text of a command: what would end it or begin another is written as GitHub wants it.

    A file's name may hold anything; other control characters are shown as they are in the terminal.
    """
    shown = "".join(letter if letter in "\r\n" else printable(letter) for letter in text)
    return shown.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
