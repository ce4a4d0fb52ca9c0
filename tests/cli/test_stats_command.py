"""`simpo stats`: what a person types and sees, what a script reads, and what is never imported."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow as pa
import pyarrow.parquet as pq
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
from tests.cli.seen import Simpo, typed
from tests.tiny import byte_level_tokenizer, chatml_tokenizer, save_tokenizer

DOCS = Path(__file__).parents[2] / "docs"
PAIRS = [
    {"prompt": f"Question {n % 40}?", "chosen": "word " * (n % 7 + 1), "rejected": "other " * (n % 5 + 2)}
    for n in range(60)
]

CONTRARY = [
    {"prompt": "Who is asked?", "chosen": "a", "rejected": "b"},
    {"prompt": "Who is asked?", "chosen": "b", "rejected": "a"},
]


@pytest.fixture
def simpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Simpo:
    """Run a command line in a folder with a file of pairs."""
    monkeypatch.chdir(tmp_path)
    Path("prefs.json").write_text(json.dumps(PAIRS))
    return typed(capsys)


def document_of(path: str) -> tuple[dict[str, Any], Any]:
    examination = examine(PairReader(path, role="train", on_no_signal="keep", on_bad_record="skip"))
    return stats_document(examination, version="0"), examination


# JSON


def test_json_is_one_document_and_nothing_else(simpo: Simpo) -> None:
    seen = simpo("stats", "prefs.json", "--json")
    assert (seen.code, seen.err) == (0, "")
    document = json.loads(seen.out)
    assert list(document) == [
        "schema_version",
        "tool",
        "input",
        "unit",
        "count",
        "avg_chosen_len",
        "avg_rejected_len",
        "columns",
        "bias",
        "sources",
        "groups",
        "findings",
        "passed",
        "model",
    ]
    assert document["tool"]["name"] == "simpo"
    assert document["unit"] == "words"
    assert list(document["columns"]) == ["chosen_len", "rejected_len", "prompt_len", "difference"]
    for column in document["columns"].values():
        assert {"min", "max", "mean", "median", "std", "p95", "histogram"} <= set(column)
        assert set(column["histogram"]) == {"hist", "bin_edges"}
    assert set(document["bias"]) == {"value", "ci", "n", "ties", "surface"}
    for finding in document["findings"]:
        assert set(finding) == {"code", "severity", "count", "rows", "hint"}
    assert simpo("stats", "prefs.json", "--json").out == seen.out


def test_the_command_and_the_library_say_the_same(simpo: Simpo) -> None:
    document = json.loads(simpo("stats", "prefs.json", "--json").out)
    chosen = sum(len(pair["chosen"].split()) for pair in PAIRS) // 60
    rejected = sum(len(pair["rejected"].split()) for pair in PAIRS) // 60
    assert (document["count"], document["avg_chosen_len"], document["avg_rejected_len"]) == (60, chosen, rejected)
    assert {key: document[key] for key in ("count", "avg_chosen_len", "avg_rejected_len")} == PreferenceDataset(
        "prefs.json"
    ).stats()


def test_several_files_are_one_set(simpo: Simpo) -> None:
    Path("more.jsonl").write_text(json.dumps(PAIRS[0]) + "\n")
    document = json.loads(simpo("stats", "prefs.json", "more.jsonl", "--json").out)
    assert document["count"] == 61
    assert [file["path"] for file in document["input"]["files"]] == ["prefs.json", "more.jsonl"]
    assert [finding["rows"] for finding in document["findings"] if finding["code"] == "DUP001"] == [["more.jsonl:1"]]


def test_output_replaces_only_reports(simpo: Simpo) -> None:
    assert simpo("stats", "prefs.json", "--output", "report.json").code == 0
    assert json.loads(Path("report.json").read_text()) == json.loads(simpo("stats", "prefs.json", "--json").out)
    assert simpo("stats", "prefs.json", "--output", "report.json").code == 0
    before = Path("prefs.json").read_bytes()
    seen = simpo("stats", "prefs.json", "--output", "prefs.json")
    assert (seen.code, seen.out) == (2, "")
    assert "not a report of simpo" in seen.err
    assert Path("prefs.json").read_bytes() == before
    seen = simpo("stats", "prefs.json", "--json", "--output", "both.json")
    assert seen.out == Path("both.json").read_text()


# Gates and errors


def test_fail_on(simpo: Simpo) -> None:
    Path("fair.json").write_text(
        json.dumps([{"prompt": f"p{n}", "chosen": "a b"[n % 2 :], "rejected": "c d"[(n + 1) % 2 :]} for n in range(60)])
    )
    assert simpo("stats", "fair.json", "--fail-on", "warning").code == 0
    twice = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 2
    Path("twice.json").write_text(json.dumps(twice))
    assert simpo("stats", "twice.json", "--fail-on", "error").code == 0
    seen = simpo("stats", "twice.json", "--fail-on", "warning", "--json")
    assert seen.code == 3
    assert json.loads(seen.out)["count"] == 2
    assert seen.err.startswith("Error: --fail-on warning: DUP001")
    Path("both.json").write_text(json.dumps([twice[0], {"prompt": "p", "chosen": "b", "rejected": "a"}]))
    assert simpo("stats", "both.json", "--fail-on", "error").code == 3


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
        (["prefs.json", "--fail-on", "info"], "--fail-on"),
        (["prefs.json", "bad.jsonl"], "bad.jsonl:2: chosen: expected text or messages, got number."),
    ],
)
def test_mistakes(simpo: Simpo, args: list[str], said: str) -> None:
    Path("bad.jsonl").write_text("\n".join(json.dumps(r) for r in [PAIRS[0], {**PAIRS[0], "chosen": 3}]))
    seen = simpo("stats", *args)
    assert (seen.code, seen.out) == (2, "")
    assert said in seen.err
    assert "Traceback" not in seen.err


def test_malformed_records_can_be_counted(simpo: Simpo) -> None:
    Path("bad.jsonl").write_text("\n".join(json.dumps(r) for r in [PAIRS[0], {**PAIRS[0], "chosen": 3}]))
    document = json.loads(simpo("stats", "bad.jsonl", "--json", "--on-bad-record", "skip").out)
    assert (document["count"], document["input"]["malformed"]) == (1, 1)
    assert [finding["code"] for finding in document["findings"]][:1] == ["FMT001"]


# Tokens


def test_tokens_of_a_tokenizer_and_of_a_recipe(simpo: Simpo, tmp_path: Path) -> None:
    chatml_tokenizer(tmp_path / "model")
    by_flag = simpo("stats", "prefs.json", "--tokenizer", "model", "--max-length", "40", "--json")
    assert by_flag.code == 0, by_flag.err
    document = json.loads(by_flag.out)
    assert document["unit"] == "tokens"
    assert document["columns"]["chosen_len"]["max"] <= 40
    columns = "{prompt: question, chosen: a, rejected: b, label: better}"
    records = [{"question": f"q{n}", "a": "one", "b": "two", "better": n % 2 + 1} for n in range(40)]
    Path("choice.json").write_text(json.dumps(records))
    Path("r.yaml").write_text(
        f"name: r\nmodel: {{path: model}}\ndata:\n  train: [{{path: choice.json, columns: {columns}}}]\n"
        "  max_length: 40\n  max_prompt_length: 35\n"
    )
    for args in (["--recipe", "r.yaml"], ["choice.json", "--recipe", "r.yaml"]):
        seen = simpo("stats", *args, "--json")
        assert seen.code == 0, seen.err
        document = json.loads(seen.out)
        assert document["count"] == 40
        assert document["input"]["tokens"] == {"tokenizer": "model", "max_length": 40, "max_prompt_length": 35}
    assert simpo("stats", "choice.json").code == 2  # without the recipe nothing says which is better
    words = simpo("stats", "--recipe", "r.yaml").out.split()
    assert "tokens of model, cut at 40 (prompts at 35)" in " ".join(words)


# How files are read


JUDGED = [
    {"question": f"q{n}?", "context": "c", "one": "the first", "two": "the second", "vote": ("l", "r")[n % 2]}
    for n in range(4)
]
JUDGED_AS = ("--columns", "prompt: question, answers: [one, two], label: vote")


def test_columns_labels_and_direction(simpo: Simpo) -> None:
    Path("judged.json").write_text(json.dumps(JUDGED))
    assert simpo("stats", "judged.json").code == 2
    seen = simpo("stats", "judged.json", *JUDGED_AS, "--labels", "{first: [l], second: [r]}")
    assert seen.code == 0, seen.err
    screen = " ".join(seen.out.split())
    assert "vote says which of one and two is preferred" in screen
    assert "vote: l means one, r means two" in screen
    assert "not used: context" in screen
    assert "judged.json, record 1: chosen by vote = l: 'the first' over 'the second'" in screen
    document = json.loads(
        simpo("stats", "judged.json", *JUDGED_AS, "--labels", "first: [l], second: [r]", "--json").out
    )
    assert document["input"]["remarks"] == ["vote: l means one, r means two", "not used: context"]
    assert "the first" not in json.dumps(document)
    as_said = ("--columns", "prompt: question, chosen: one, rejected: two")
    assert "vote (l (2 x), r (2 x)) may say" in simpo("stats", "judged.json", *as_said).err
    assert simpo("stats", "judged.json", *as_said, "--direction", "first").code == 0


def test_the_command_line_is_over_the_recipe(simpo: Simpo) -> None:
    Path("judged.json").write_text(json.dumps(JUDGED))
    Path("r.yaml").write_text(
        "name: r\nmodel: {path: builtin:guide}\ndata:\n  train: [{path: judged.json, columns: {prompt: context}}]\n"
        "  columns: {answers: [one, two], label: vote}\n  labels: {first: [l], second: [r]}\n"
    )
    by_recipe = json.loads(simpo("stats", "--recipe", "r.yaml", "--json").out)
    assert by_recipe["input"]["prompts"] == 1
    over = ("--columns", "prompt: question", "--labels", "first: [r], second: [l]")
    for named in ((), ("judged.json",)):
        document = json.loads(simpo("stats", *named, "--recipe", "r.yaml", *over, "--json").out)
        assert document["input"]["prompts"] == 4
        assert document["input"]["remarks"][0] == "vote: r means one, l means two"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--columns", "promt: question"), "--columns: data.columns has no part promt.\n  Did you mean prompt?"),
        (("--columns", "question"), "--columns: "),
        (("--labels", "first: [a], second: [a]"), "--labels: data.labels.second has the value 'a'"),
        (("--direction", "second"), "--direction: data.direction is 'second'"),
    ],
)
def test_a_wrong_mapping_on_the_command_line(simpo: Simpo, args: tuple[str, ...], said: str) -> None:
    seen = simpo("stats", "prefs.json", *args)
    assert seen.code == 2
    assert f"Error: {said}" in seen.err


# What a person sees


def test_the_screen(simpo: Simpo) -> None:
    seen = simpo("stats", "prefs.json")
    assert (seen.code, seen.err) == (0, "")
    lines = seen.out.splitlines()
    assert lines[0] == "prefs.json"
    assert lines[1] == "plain text, explicit prompt, 60 pairs, response = the whole answer"
    assert lines[2] == "60 records · 60 pairs · 40 prompts"
    assert lines[3] == "avg_chosen_len 3 · avg_rejected_len 4 · words"
    assert lines[5].split() == ["min", "p5", "median", "p95", "max", "mean"]
    assert [line.split("  ")[0] for line in lines[6:10]] == ["prompt", "chosen", "rejected", "chosen - rejected"]
    assert lines[7].split()[1:] == ["1", "1", "4", "7", "7", "3.9"]
    text = seen.out
    assert "Could a model win by length alone?" in text
    wins = sum((c > r) + (c == r) / 2 for c, r in zip(*_lengths(), strict=True)) / 60
    assert re.search(rf"the longer response wins +{100 * wins:.1f} % +\S+ to \S+ +60 +\d+\n", text)
    assert "Findings" in text
    assert any(block in text for block in "▂▃▄▅▆▇█")


def _lengths() -> list[list[int]]:
    return [[len(pair[side].split()) for pair in PAIRS] for side in ("chosen", "rejected")]


HOSTILE = "[bold red]x[/]\x1b[31m\x07\u202e:smile:\r\n"


@pytest.mark.parametrize("width", [30, 60, 100, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_every_width_and_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, encoding: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    folder = Path("d")
    folder.mkdir()
    bad = [{**PAIRS[0], "chosen": ""}, {**PAIRS[1], "rejected": PAIRS[1]["chosen"]}, {"prompt": HOSTILE}]
    bad += [{**PAIRS[0], "prompt": [{"role": HOSTILE, "content": HOSTILE}]}]
    file = folder / (HOSTILE.replace("/", "|") + "äöü 你.jsonl")
    file.write_text("\n".join(json.dumps(r) for r in PAIRS + bad))
    document, examination = document_of("d")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    print_stats(make_console(stream, width=width), document, examination)
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert "\x1b" not in shown
    assert "\x07" not in shown
    assert "\u202e" not in shown
    assert "\r" not in shown
    if width >= 60:
        assert "[bold red]x[/]".replace("/", "|") in shown
        assert ":smile:" in shown
        assert all(cell_len(line) <= width for line in shown.splitlines())


def test_a_hostile_file_name_steers_no_terminal(simpo: Simpo) -> None:
    name = "\x9b31m\u202eevil\udcff.jsonl"
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in [*PAIRS, PAIRS[0]]), encoding="utf-8")
    for args in ([], ["--json"], ["--format", "github"]):
        seen = simpo("stats", name, *args)
        assert seen.code == 0, seen.err
        assert not any(letter in seen.out for letter in "\x9b\u202e\udcff")
    assert json.loads(simpo("stats", name, "--json").out)["input"]["files"][0]["path"] == name


def test_blocks() -> None:
    assert blocks([0, 1, 4, 8]) == " ▁▄█"
    assert blocks([1, 1000]) == "▁█"
    assert blocks([5]) == "█"


# Explanations


def test_explain_tells_the_story_of_a_code(simpo: Simpo) -> None:
    seen = simpo("stats", "--explain", "lbl002")
    assert (seen.code, seen.err) == (0, "")
    text = " ".join(seen.out.split())
    entry = CATALOGUE["LBL002"]
    assert text.startswith(f"LBL002 {entry.title}")
    for said in (entry.meaning, entry.harm, entry.remedy, "--write-clean leaves such pairs out"):
        assert said in text


def test_explain_all_lists_every_code(simpo: Simpo) -> None:
    lines = simpo("stats", "--explain", "all").out.splitlines()
    assert [line.split()[0] for line in lines] == list(CATALOGUE)


def test_explain_of_an_unknown_code_suggests(simpo: Simpo) -> None:
    seen = simpo("stats", "--explain", "DUP01")
    assert (seen.code, seen.out) == (2, "")
    assert seen.err.startswith("Error: DUP01 is not the code of a finding.\n  Did you mean DUP001? Codes are FMT001, ")
    assert "Did you mean" not in simpo("stats", "--explain", "\x1b[31mX").err


def test_the_docs_know_every_code_and_key(simpo: Simpo) -> None:
    text = (DOCS / "stats.md").read_text(encoding="utf-8")
    for code, entry in CATALOGUE.items():
        star, drops = "*" if entry.needs == "tokens" else "", "drops" if entry.drops else "mends" if entry.mends else ""
        assert f"| {code}{star} | {entry.severity} | {entry.title} | {drops} |" in text
    document = json.loads(simpo("stats", "prefs.json", "--json").out)
    for key in document:
        assert f"`{key}" in text
    for key in document["input"]:
        assert f"`input.{key}`" in text
    for feature in FEATURES:
        assert feature in text.replace("\n", " ")


def test_the_document_keeps_to_its_schema(simpo: Simpo, tmp_path: Path) -> None:
    schema = json.loads((DOCS / "stats.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    chatml_tokenizer(tmp_path / "model")
    records = [*PAIRS, PAIRS[0], {**PAIRS[1], "chosen": ""}, {"prompt": "p"}, {**PAIRS[2], "chosen": "a <|im_end|>"}]
    Path("more.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    Path("one.json").write_text(json.dumps(PAIRS[:1]))
    for args in (
        ["prefs.json"],
        ["one.json"],
        ["prefs.json", "more.jsonl", "--on-bad-record", "skip"],
        ["more.jsonl", "--on-bad-record", "skip", "--tokenizer", "model", "--max-length", "20"],
        ["prefs.json", "--tokenizer", "model"],
    ):
        seen = simpo("stats", *args, "--json")
        assert seen.code == 0, seen.err
        jsonschema.validate(json.loads(seen.out), schema)


# By file, page, clean file, annotations


def test_each_file_has_its_own_numbers(simpo: Simpo) -> None:
    Path("more.jsonl").write_text(
        "".join(json.dumps({"prompt": "p", "chosen": "a b c", "rejected": side}) + "\n" for side in "xxy")
    )
    first, second = json.loads(simpo("stats", "prefs.json", "more.jsonl", "--json").out)["sources"]
    alone = json.loads(simpo("stats", "prefs.json", "--json").out)
    assert first["count"] == 60
    assert first["mean_chosen_len"] == alone["columns"]["chosen_len"]["mean"]
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
    assert not any("By file" in line for line in simpo("stats", "prefs.json").out.splitlines())


def test_html(simpo: Simpo) -> None:
    Path("both.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*CONTRARY, *PAIRS]))
    seen = simpo("stats", "both.jsonl", "--html", "audit.html")
    assert (seen.code, seen.err) == (0, "page: audit.html\n")
    assert seen.out.startswith("both.jsonl\n")
    page = Path("audit.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "Who is asked?" in page
    assert simpo("stats", "both.jsonl", "--html", "audit.html", "--redact").code == 0
    assert "Who is asked?" not in Path("audit.html").read_text(encoding="utf-8")
    seen = simpo("stats", "prefs.json", "--html", "prefs.json")
    assert (seen.code, seen.out) == (2, "")
    assert "is not a page of simpo" in seen.err
    assert "Give --html FILE as well" in simpo("stats", "prefs.json", "--redact").err


def test_write_clean(simpo: Simpo) -> None:
    Path("twice.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*PAIRS[:5], PAIRS[0]]))
    seen = simpo("stats", "twice.jsonl", "--write-clean", "clean.jsonl", "--json")
    assert seen.code == 0
    assert json.loads(seen.out)["count"] == 6
    wanted = "clean.jsonl: 5 pairs kept, 1 dropped (DUP001 1), listed in clean.jsonl.dropped.jsonl\n"
    assert seen.err == wanted
    assert [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()] == PAIRS[:5]
    assert simpo("stats", "clean.jsonl", "--fail-on", "error").code == 0
    assert (
        simpo("stats", "clean.jsonl", "--write-clean", "again.jsonl").err == "again.jsonl: 5 pairs kept, none dropped\n"
    )
    before = Path("prefs.json").read_bytes()
    for target, said in (("twice.jsonl", "one of the files that are read"), ("prefs.json", "is not what an earlier")):
        seen = simpo("stats", "twice.jsonl", "--write-clean", target)
        assert (seen.code, seen.out) == (2, "")
        assert said in seen.err
    assert Path("prefs.json").read_bytes() == before


def test_github(simpo: Simpo) -> None:
    Path("both.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*CONTRARY, *PAIRS]))
    seen = simpo("stats", "both.jsonl", "--format", "github", "--fail-on", "error")
    assert seen.code == 3
    assert seen.out.startswith(
        "::error file=both.jsonl,line=1,title=LBL002 contradictory labels (A over B and B over A)::2: "
    )
    assert all(line.startswith(("::error ", "::warning ")) for line in seen.out.splitlines())
    assert "Give one of them." in simpo("stats", "both.jsonl", "--format", "github", "--json").err


# What is not imported


HEAVY = ("torch", "transformers", "datasets", "pyarrow", "tokenizers", "matplotlib", "jinja2")


def imported_by(*args: str, cwd: Path) -> set[str]:
    program = (
        "import sys\nfrom simpo_cli.cli.main import run\n"
        f"code = run({list(args)!r})\nassert code == 0, code\n"
        f"print('\\nIMPORTED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_torch_is_never_imported(tmp_path: Path) -> None:
    (tmp_path / "prefs.json").write_text(json.dumps(PAIRS))
    pq.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "prefs.parquet")
    chatml_tokenizer(tmp_path / "model")
    assert imported_by("stats", "prefs.json", cwd=tmp_path) == set()
    assert imported_by("stats", "prefs.parquet", "--json", cwd=tmp_path) == {"pyarrow"}
    assert imported_by("stats", "prefs.json", "--tokenizer", "model", cwd=tmp_path) == {"tokenizers", "jinja2"}
    assert imported_by("stats", "prefs.json", "--html", "a.html", cwd=tmp_path) == {"matplotlib", "jinja2"}


def test_by_a_field(simpo: Simpo) -> None:
    schema = json.loads((DOCS / "stats.schema.json").read_text(encoding="utf-8"))
    records = [
        {**record, "made": {"by": source}}
        for record, source in zip(PAIRS, ("flan", "<b>wiki", "flan", None, 7), strict=False)
    ]
    records += [
        {"prompt": "p", "chosen": "a b c", "rejected": "x"},
        {"prompt": "q", "chosen": "a b c", "rejected": "x"},
    ]
    Path("by.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    document = json.loads(simpo("stats", "by.jsonl", "--by", "made.by", "--json").out)
    jsonschema.validate(document, schema)
    groups = document["groups"]
    assert groups["field"] == "made.by"
    assert [(value["value"], value["count"]) for value in groups["values"]] == [
        ("(none)", 3),
        ("flan", 2),
        ("7", 1),
        ("<b>wiki", 1),
    ]
    flan = [records[0], records[2]]
    mean = sum(len(record["chosen"].split()) for record in flan) / 2
    assert groups["values"][1]["mean_chosen_len"] == mean
    assert json.loads(simpo("stats", "by.jsonl", "--json").out)["groups"] is None
    assert "By made.by" in simpo("stats", "by.jsonl", "--by", "made.by", "--html", "by.html").out
    assert "&lt;b&gt;wiki" in Path("by.html").read_text(encoding="utf-8")
    simpo("stats", "by.jsonl", "--by", "made.by", "--html", "by.html", "--redact")
    assert "wiki" not in Path("by.html").read_text(encoding="utf-8")


def test_by_a_field_that_is_not_there(simpo: Simpo) -> None:
    Path("by.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b", "Source": {"x": 1}}) + "\n")
    seen = simpo("stats", "by.jsonl", "--by", "source")
    assert (seen.code, seen.out) == (2, "")
    assert "--by source: no record has that field" in seen.err
    assert "Did you mean Source?" in seen.err
    assert "expected text or a number, got object" in simpo("stats", "by.jsonl", "--by", "Source").err


def test_more_is_dropped_where_it_is_asked_for(simpo: Simpo) -> None:
    scores = [(3, 2), (2, 2), (1, 4), (2, 2)]
    records = [
        {**record, "score_chosen": chosen, "score_rejected": rejected}
        for record, (chosen, rejected) in zip(PAIRS, scores, strict=False)
    ]
    Path("scored.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert simpo("stats", "scored.jsonl", "--write-clean", "all.jsonl").code == 0
    assert len(Path("all.jsonl").read_text().splitlines()) == 4
    seen = simpo("stats", "scored.jsonl", "--write-clean", "clean.jsonl", "--drop", "scr002", "--drop", "LEK001")
    assert "2 pairs kept, 2 dropped (SCR002 2)" in seen.err
    kept = [json.loads(line) for line in Path("clean.jsonl").read_text().splitlines()]
    assert [(record["score_chosen"], record["score_rejected"]) for record in kept] == [(3, 2), (1, 4)]
    for args, said in (
        (["--drop", "SCR002"], "Give --write-clean FILE as well."),
        (["--drop", "SCR999", "--write-clean", "c.jsonl"], "SCR999 is not the code of a finding."),
        (["--drop", "LEN001", "--write-clean", "c.jsonl"], "LEN001 says something of all pairs at once."),
    ):
        seen = simpo("stats", "scored.jsonl", *args)
        assert (seen.code, seen.out) == (2, "")
        assert said in seen.err
    assert not Path("c.jsonl").exists()


def test_a_tokenizer_without_an_end_is_refused_as_training_refuses_it(simpo: Simpo, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(("<|im_start|>",))
    save_tokenizer(tmp_path / "endless", tokenizer, bos=None, eos=None, pad=None, template=None)
    seen = simpo("stats", "prefs.json", "--tokenizer", "endless")
    assert (seen.code, seen.out) == (2, "")
    assert "endless: has no end-of-text token" in seen.err
