"""The audit's page: well-formed, self-contained, and no text of the data is ever markup."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from simpo_cli.audit.document import stats_document
from simpo_cli.audit.examine import Examination, collect_examples, examine
from simpo_cli.data.load import PairReader
from simpo_cli.report.page import SHOWN_CHARACTERS
from simpo_cli.report.stats_page import stats_page
from tests.report.parsed_page import Page, require_stands_alone

HOSTILE = "<script>alert('x')</script><img src=x onerror=y>\"&amp;{{ 7*7 }}{% raw %}\x1b[31m\u202e"


class Made(NamedTuple):
    page: str
    document: dict[str, Any]
    examination: Examination


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    monkeypatch.chdir(tmp_path)

    def of(records: list[dict[str, Any]], *, redact: bool = False, name: str = "prefs.jsonl") -> Made:
        Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))

        def read() -> PairReader:
            return PairReader(name, role="train", on_bad_record="skip", on_no_signal="keep")

        examination = examine(read())
        document = stats_document(examination, version="0")
        examples = None if redact else collect_examples(examination, read)
        return Made(stats_page(document, examination, examples), document, examination)

    return of


PAIRS = [{"prompt": f"p{n}", "chosen": "a " * (n % 5 + 2), "rejected": "b " * (n % 3 + 1)} for n in range(40)]
TWICE = {"prompt": HOSTILE, "chosen": f"chosen {HOSTILE}", "rejected": "rejected one"}
BAD = {"prompt": "p", "chosen": 7, "rejected": HOSTILE}


def test_text_of_the_data_is_never_markup(make: Callable[..., Made]) -> None:
    made = make([*PAIRS, TWICE, TWICE, BAD], name="<b>x<b>&.jsonl")
    page = Page(made.page)
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "img", "b>x<b", "iframe", "object"})
    shown = "".join(page.text)
    visible = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert f"chosen {visible}" in shown
    assert "<b>x<b>&.jsonl" in shown
    assert "expected text or messages, got number" in shown
    assert not any(letter in made.page for letter in "\x1b\u202e")


def test_the_page_stands_alone(make: Callable[..., Made]) -> None:
    made = make([*PAIRS, TWICE, TWICE])
    page = require_stands_alone(made.page)
    assert [tag for tag, _ in page.tags].count("svg") == 3
    assert made.page == make([*PAIRS, TWICE, TWICE]).page


def test_redacted(make: Callable[..., Made]) -> None:
    secret = "TOPSECRET"
    records = [{"prompt": secret, "chosen": f"{secret} a", "rejected": f"{secret} b"}] * 2
    records += [{"prompt": secret, "chosen": [{"role": secret, "content": secret}], "rejected": secret}]
    assert secret in make([*PAIRS, *records]).page
    made = make([*PAIRS, *records], redact=True)
    assert secret not in made.page
    assert "DUP001" in made.page
    assert "FMT001" in made.page


def test_findings_and_their_examples(make: Callable[..., Made]) -> None:
    pairs = [{"prompt": "same", "chosen": "one", "rejected": "two"}] * 6
    made = make([*PAIRS, *pairs])
    page = Page(made.page)
    codes = [a["id"] for tag, a in page.tags if tag == "details"]
    assert codes == [finding["code"] for finding in made.document["findings"]]
    assert "".join(page.text).count("line 42") == 2  # in the list of places and above its example
    assert [a["class"] for tag, a in page.tags if tag == "pre"][:3] == ["prompt", "chosen", "rejected"]


def test_size_stays_in_bounds(make: Callable[..., Made]) -> None:
    long = {"prompt": '"' * 300_000, "chosen": "\x07" * 300_000, "rejected": "</s>" * 100_000}
    made = make([*PAIRS, *[long] * 5])
    assert len(made.page.encode()) < 2_000_000
    assert f"… {300_000 - SHOWN_CHARACTERS:,} more characters" in made.page


def test_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in PAIRS))
    (tmp_path / "data" / "b.jsonl").write_text(json.dumps({**PAIRS[0], "chosen": "x"}) + "\n")
    examination = examine(PairReader("data", role="train", on_no_signal="keep"))
    document = stats_document(examination, version="0")
    shown = "".join(Page(stats_page(document, examination, {})).text)
    assert "By file" in shown
    assert "data/b.jsonl" in shown
