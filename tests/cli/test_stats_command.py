"""`simpo stats`: what a person types and sees, and what a script reads."""

import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.cells import cell_len

from simpo_cli import PreferenceDataset
from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.audit.document import stats_document
from simpo_cli.audit.examine import examine
from simpo_cli.audit.surface import FEATURES
from simpo_cli.data.load import PairReader
from simpo_cli.report.console import blocks, make_console
from simpo_cli.report.stats_view import print_stats
from tests.cli.seen import Simpo, stats_of, typed
from tests.data.pair_files import write_pairs
from tests.tiny import chatml_tokenizer

DOCS = Path(__file__).parents[2] / "docs"
PAIRS = [
    {"prompt": f"Question {n % 40}?", "chosen": "word " * (n % 7 + 1), "rejected": "other " * (n % 5 + 2)}
    for n in range(60)
]
CONTRARY = [
    {"prompt": "Who is asked?", "chosen": "a", "rejected": "b"},
    {"prompt": "Who is asked?", "chosen": "b", "rejected": "a"},
]
TWICE = [CONTRARY[0]] * 2
BAD = [PAIRS[0], {**PAIRS[0], "chosen": 3}]
HOSTILE = "[bold red]x[/]\x1b[31m\x07\u202e:smile:\r\n"


@pytest.fixture
def simpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Simpo:
    """Run a command line in a folder with a file of pairs."""
    monkeypatch.chdir(tmp_path)
    write("prefs.json", PAIRS)
    return typed(capsys)


def write(name: str, records: list[Any]) -> None:
    write_pairs(Path(), name, records)


def schema() -> Any:
    return json.loads((DOCS / "stats.schema.json").read_text(encoding="utf-8"))


# JSON


def test_json_is_one_document_and_nothing_else(simpo: Simpo) -> None:
    seen = simpo("stats", "prefs.json", "--json")
    assert (seen.code, seen.err) == (0, "")
    document = json.loads(seen.out)
    assert " ".join(document) == (
        "schema_version tool input unit count avg_chosen_len avg_rejected_len columns bias sources groups findings "
        "passed model"
    )
    assert (document["tool"]["name"], document["unit"]) == ("simpo", "words")
    assert list(document["columns"]) == ["chosen_len", "rejected_len", "prompt_len", "difference"]
    for column in document["columns"].values():
        assert {"min", "max", "mean", "median", "std", "p95", "histogram"} <= set(column)
        assert set(column["histogram"]) == {"hist", "bin_edges"}
    assert set(document["bias"]) == {"value", "ci", "n", "ties", "surface"}
    for finding in document["findings"]:
        assert set(finding) == {"code", "severity", "count", "rows", "hint"}
    assert simpo("stats", "prefs.json", "--json").out == seen.out


def test_the_command_and_the_library_say_the_same(simpo: Simpo) -> None:
    document = stats_of(simpo, "prefs.json")
    chosen, rejected = (sum(len(pair[side].split()) for pair in PAIRS) // 60 for side in ("chosen", "rejected"))
    wanted = {"count": 60, "avg_chosen_len": chosen, "avg_rejected_len": rejected}
    assert {key: document[key] for key in wanted} == wanted == PreferenceDataset("prefs.json").stats()


def test_several_files_are_one_set_with_the_numbers_of_each(simpo: Simpo) -> None:
    write("more.jsonl", [{"prompt": "p", "chosen": "a b c", "rejected": side} for side in "xxy"])
    document, alone = stats_of(simpo, "prefs.json", "more.jsonl"), stats_of(simpo, "prefs.json")
    assert document["count"] == 63
    assert [file["path"] for file in document["input"]["files"]] == ["prefs.json", "more.jsonl"]
    assert [finding["rows"] for finding in document["findings"] if finding["code"] == "DUP001"] == [["more.jsonl:2"]]
    first, second = document["sources"]
    assert (first["count"], first["mean_chosen_len"]) == (60, alone["columns"]["chosen_len"]["mean"])
    assert first["longer_wins"] == {key: alone["bias"][key] for key in ("value", "ci", "n")}
    assert second == {
        "path": "more.jsonl",
        "count": 3,
        "prompts": 1,
        "mean_chosen_len": 3.0,
        "mean_rejected_len": 1.0,
        "longer_wins": {"value": 1.0, "ci": [0.0, 1.0], "n": 3},
        "findings": {"DUP001": 1},
    }
    lines = simpo("stats", "prefs.json", "more.jsonl").out.splitlines()
    assert any(line.split()[:5] == ["more.jsonl", "3", "3.0", "1.0", "100.0"] for line in lines)
    assert "By file" not in simpo("stats", "prefs.json").out


def test_output_replaces_only_reports(simpo: Simpo) -> None:
    for _ in range(2):
        assert simpo("stats", "prefs.json", "--output", "report.json").code == 0
        assert json.loads(Path("report.json").read_text()) == stats_of(simpo, "prefs.json")
    before = Path("prefs.json").read_bytes()
    seen = simpo("stats", "prefs.json", "--output", "prefs.json")
    assert (seen.code, seen.out) == (2, "")
    assert "not a report of simpo" in seen.err
    assert Path("prefs.json").read_bytes() == before
    assert simpo("stats", "prefs.json", "--json", "--output", "both.json").out == Path("both.json").read_text()


def test_by_a_field(simpo: Simpo) -> None:
    made_by = zip(PAIRS, ("flan", "<b>wiki", "flan", None, 7), strict=False)
    records = [{**record, "made": {"by": source}} for record, source in made_by]
    records += [{"prompt": prompt, "chosen": "a b c", "rejected": "x"} for prompt in "pq"]
    write("by.jsonl", records)
    by = ("by.jsonl", "--by", "made.by")
    document = stats_of(simpo, *by)
    jsonschema.validate(document, schema())
    groups = document["groups"]
    assert groups["field"] == "made.by"
    counts = [(value["value"], value["count"]) for value in groups["values"]]
    assert counts == [("(none)", 3), ("flan", 2), ("7", 1), ("<b>wiki", 1)]
    mean = sum(len(records[number]["chosen"].split()) for number in (0, 2)) / 2
    assert groups["values"][1]["mean_chosen_len"] == mean
    assert stats_of(simpo, "by.jsonl")["groups"] is None
    assert "By made.by" in simpo("stats", *by, "--html", "by.html").out
    assert "&lt;b&gt;wiki" in Path("by.html").read_text(encoding="utf-8")
    simpo("stats", *by, "--html", "by.html", "--redact")
    assert "wiki" not in Path("by.html").read_text(encoding="utf-8")
    write("other.jsonl", [{**CONTRARY[0], "Source": {"x": 1}}])
    seen = simpo("stats", "other.jsonl", "--by", "source")
    assert (seen.code, seen.out) == (2, "")
    assert "--by source: no record has that field" in seen.err
    assert "Did you mean Source?" in seen.err
    assert "expected text or a number, got object" in simpo("stats", "other.jsonl", "--by", "Source").err


def test_the_docs_know_every_code_and_key_and_the_document_keeps_to_its_schema(simpo: Simpo, tmp_path: Path) -> None:
    text = (DOCS / "stats.md").read_text(encoding="utf-8")
    for code, entry in CATALOGUE.items():
        star, drops = "*" if entry.needs == "tokens" else "", "drops" if entry.drops else "mends" if entry.mends else ""
        assert f"| {code}{star} | {entry.severity} | {entry.title} | {drops} |" in text
    document = stats_of(simpo, "prefs.json")
    assert [key for key in document if f"`{key}" not in text] == []
    assert [key for key in document["input"] if f"`input.{key}`" not in text] == []
    assert [feature for feature in FEATURES if feature not in text.replace("\n", " ")] == []
    jsonschema.Draft202012Validator.check_schema(schema())
    chatml_tokenizer(tmp_path / "model")
    bad = [PAIRS[0], {**PAIRS[1], "chosen": ""}, {"prompt": "p"}, {**PAIRS[2], "chosen": "a <|im_end|>"}]
    write("more.jsonl", [*PAIRS, *bad])
    write("one.json", PAIRS[:1])
    for args in (
        ["prefs.json"],
        ["one.json"],
        ["prefs.json", "more.jsonl", "--on-bad-record", "skip"],
        ["more.jsonl", "--on-bad-record", "skip", "--tokenizer", "model", "--max-length", "20"],
        ["prefs.json", "--tokenizer", "model"],
    ):
        jsonschema.validate(stats_of(simpo, *args), schema())


# Gates, annotations and errors


def test_fail_on(simpo: Simpo) -> None:
    write(
        "fair.json", [{"prompt": f"p{n}", "chosen": "a b"[n % 2 :], "rejected": "c d"[1 - n % 2 :]} for n in range(60)]
    )
    assert simpo("stats", "fair.json", "--fail-on", "warning").code == 0
    write("twice.json", TWICE)
    assert simpo("stats", "twice.json", "--fail-on", "error").code == 0
    seen = simpo("stats", "twice.json", "--fail-on", "warning", "--json")
    assert seen.code == 3
    assert json.loads(seen.out)["count"] == 2
    assert seen.err.startswith("Error: --fail-on warning: DUP001")


def test_github(simpo: Simpo) -> None:
    write("both.jsonl", [*CONTRARY, *PAIRS])
    seen = simpo("stats", "both.jsonl", "--format", "github", "--fail-on", "error")
    assert seen.code == 3
    assert seen.out.startswith(
        "::error file=both.jsonl,line=1,title=LBL002 contradictory labels (A over B and B over A)::2: "
    )
    assert all(line.startswith(("::error ", "::warning ")) for line in seen.out.splitlines())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "no data is named"),
        (["nothing.json"], "nothing.json: does not exist."),
        (["pref.json"], "Did you mean prefs.json?"),
        (["prefs.json", "--max-length", "100"], "Give --tokenizer or --model as well."),
        (["prefs.json", "--tokenizer", "t", "--recipe", "r"], "Give one of them."),
        (["prefs.json", "--tokenizer", "./nothing"], "nothing does not exist"),
        (["prefs.json", "--recipe", "nothing.yaml"], "nothing.yaml"),
        (["prefs.json", "--eval", "evil.jsonl"], "evil.jsonl: does not exist."),
        (["prefs.json", "--fail-on", "info"], "--fail-on"),
        (["prefs.json", "bad.jsonl"], "bad.jsonl:2: chosen: expected text or messages, got number."),
        (["prefs.json", "--format", "github", "--json"], "Give one of them."),
        (["prefs.json", "--html", "prefs.json"], "is not a page of simpo"),
        (["prefs.json", "--redact"], "Give --html FILE as well"),
        (["prefs.json", "--write-clean", "prefs.json"], "one of the files that are read"),
        (["prefs.json", "--write-clean", "bad.jsonl"], "is not what an earlier"),
        (["prefs.json", "--drop", "SCR002"], "Give --write-clean FILE as well."),
        (["prefs.json", "--drop", "SCR999", "--write-clean", "c.jsonl"], "SCR999 is not the code of a finding."),
        (["prefs.json", "--drop", "LEN001", "--write-clean", "c.jsonl"], "LEN001 says something of all pairs at once."),
        (
            ["--explain", "DUP01"],
            "Error: DUP01 is not the code of a finding.\n  Did you mean DUP001? Codes are FMT001, ",
        ),
    ],
)
def test_mistakes(simpo: Simpo, args: list[str], said: str) -> None:
    write("bad.jsonl", BAD)
    before = {file.name: file.read_bytes() for file in Path().iterdir()}
    seen = simpo("stats", *args)
    assert (seen.code, seen.out) == (2, "")
    assert said in seen.err
    assert "Traceback" not in seen.err
    assert {file.name: file.read_bytes() for file in Path().iterdir()} == before


def test_malformed_records_can_be_counted(simpo: Simpo) -> None:
    write("bad.jsonl", BAD)
    document = stats_of(simpo, "bad.jsonl", "--on-bad-record", "skip")
    assert (document["count"], document["input"]["malformed"]) == (1, 1)
    assert document["findings"][0]["code"] == "FMT001"


# What a person sees


def test_the_screen(simpo: Simpo) -> None:
    seen = simpo("stats", "prefs.json")
    assert (seen.code, seen.err) == (0, "")
    lines = seen.out.splitlines()
    assert lines[:4] == [
        "prefs.json",
        "plain text, explicit prompt, 60 pairs, response = the whole answer",
        "60 records · 60 pairs · 40 prompts",
        "avg_chosen_len 3 · avg_rejected_len 4 · words",
    ]
    assert lines[5].split() == ["min", "p5", "median", "p95", "max", "mean"]
    assert [line.split("  ")[0] for line in lines[6:10]] == ["prompt", "chosen", "rejected", "chosen - rejected"]
    assert lines[7].split()[1:] == ["1", "1", "4", "7", "7", "3.9"]
    assert "Could a model win by length alone?" in seen.out
    lengths = ([len(pair[side].split()) for side in ("chosen", "rejected")] for pair in PAIRS)
    wins = sum((chosen > rejected) + (chosen == rejected) / 2 for chosen, rejected in lengths) / 60
    assert re.search(rf"the longer response wins +{100 * wins:.1f} % +\S+ to \S+ +60 +\d+\n", seen.out)
    assert "Findings" in seen.out
    assert any(block in seen.out for block in "▂▃▄▅▆▇█")


def test_blocks() -> None:
    assert [blocks(counts) for counts in ([0, 1, 4, 8], [1, 1000], [5])] == [" ▁▄█", "▁█", "█"]


@pytest.mark.parametrize("width", [30, 60, 100, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_every_width_and_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, encoding: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    bad = [{**PAIRS[0], "chosen": ""}, {**PAIRS[1], "rejected": PAIRS[1]["chosen"]}, {"prompt": HOSTILE}]
    bad += [{**PAIRS[0], "prompt": [{"role": HOSTILE, "content": HOSTILE}]}]
    write(f"d/{HOSTILE.replace('/', '|')}äöü 你.jsonl", PAIRS + bad)
    examination = examine(PairReader("d", role="train", on_no_signal="keep", on_bad_record="skip"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    print_stats(make_console(stream, width=width), stats_document(examination, version="0"), examination)
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert not any(letter in shown for letter in "\x1b\x07\u202e\r")
    if width >= 60:
        assert "[bold red]x[|]" in shown
        assert ":smile:" in shown
        assert all(cell_len(line) <= width for line in shown.splitlines())


def test_a_hostile_file_name_steers_no_terminal(simpo: Simpo) -> None:
    name = "\x9b31m\u202eevil\udcff.jsonl"
    write(name, [*PAIRS, PAIRS[0]])
    for args in ([], ["--json"], ["--format", "github"]):
        seen = simpo("stats", name, *args)
        assert seen.code == 0, seen.err
        assert not any(letter in seen.out for letter in "\x9b\u202e\udcff")
    assert stats_of(simpo, name)["input"]["files"][0]["path"] == name


def test_explain_tells_the_story_of_a_code(simpo: Simpo) -> None:
    seen = simpo("stats", "--explain", "lbl002")
    assert (seen.code, seen.err) == (0, "")
    text, entry = " ".join(seen.out.split()), CATALOGUE["LBL002"]
    assert text.startswith(f"LBL002 {entry.title}")
    for said in (entry.meaning, entry.harm, entry.remedy, "--write-clean leaves such pairs out"):
        assert said in text
    assert [line.split()[0] for line in simpo("stats", "--explain", "all").out.splitlines()] == list(CATALOGUE)
    assert "Did you mean" not in simpo("stats", "--explain", "\x1b[31mX").err


# A page and a clean file


def test_html(simpo: Simpo) -> None:
    write("both.jsonl", [*CONTRARY, *PAIRS])
    seen = simpo("stats", "both.jsonl", "--html", "audit.html")
    assert (seen.code, seen.err) == (0, "page: audit.html\n")
    assert seen.out.startswith("both.jsonl\n")
    page = Path("audit.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Who is asked?" in page
    assert simpo("stats", "both.jsonl", "--html", "audit.html", "--redact").code == 0
    assert "Who is asked?" not in Path("audit.html").read_text(encoding="utf-8")


def test_write_clean(simpo: Simpo) -> None:
    write("twice.jsonl", [*PAIRS[:5], PAIRS[0]])
    seen = simpo("stats", "twice.jsonl", "--write-clean", "clean.jsonl", "--json")
    assert (seen.code, json.loads(seen.out)["count"]) == (0, 6)
    assert seen.err == "clean.jsonl: 5 pairs kept, 1 dropped (DUP001 1), listed in clean.jsonl.dropped.jsonl\n"
    assert [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()] == PAIRS[:5]
    assert simpo("stats", "clean.jsonl", "--fail-on", "error").code == 0
    seen = simpo("stats", "clean.jsonl", "--write-clean", "again.jsonl")
    assert seen.err == "again.jsonl: 5 pairs kept, none dropped\n"


def test_more_is_dropped_where_it_is_asked_for(simpo: Simpo) -> None:
    scores = [(3, 2), (2, 2), (1, 4), (2, 2)]
    records = [
        {**record, "score_chosen": chosen, "score_rejected": rejected}
        for record, (chosen, rejected) in zip(PAIRS, scores, strict=False)
    ]
    write("scored.jsonl", records)
    assert simpo("stats", "scored.jsonl", "--write-clean", "all.jsonl").code == 0
    assert len(Path("all.jsonl").read_text().splitlines()) == 4
    seen = simpo("stats", "scored.jsonl", "--write-clean", "clean.jsonl", "--drop", "scr002", "--drop", "LEK001")
    assert "2 pairs kept, 2 dropped (SCR002 2)" in seen.err
    kept = [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()]
    assert [(record["score_chosen"], record["score_rejected"]) for record in kept] == [(3, 2), (1, 4)]
