"""Text of others in HTML: 200 payloads in every place of four pages, in a real browser, with our policy and without."""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from simpo_cli.report.eval_page import eval_page
from simpo_cli.report.run_page import write_run_report
from simpo_cli.report.two_runs import write_comparison
from tests.browser import CHROMIUM, look
from tests.cli.seen import Simpo
from tests.data.pair_files import write_pairs
from tests.report.made_run import RECIPE, eval_row, outcome, write_run
from tests.report.test_eval_view import SLICES, together

POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

# what runs says so to the page above it, and asks the server for a page of its own; `N` is the payload's number
RUNS = "top.hits.push(N)"
ELEMENTS = [
    f"<script>{RUNS}</script>", f"<ScRiPt >{RUNS}</sCrIpT>", "<script src=/hit-N></script>", "<img src=/hit-N>",
    f"<img src=x onerror={RUNS}>", f"<svg onload={RUNS}>", f"<svg><script>{RUNS}</script></svg>",
    "<svg><image href=/hit-N /></svg>", "<svg><use href=/hit-N#a /></svg>",
    f"<svg><foreignObject><body onload={RUNS}></foreignObject></svg>", f"<svg><animate onbegin={RUNS} attributeName=x>",
    "<svg><style>@import url(/hit-N);</style></svg>", f"<math><mtext><img src=x onerror={RUNS}></math>",
    f"<iframe src=javascript:{RUNS}>", "<iframe src=/hit-N>", f"<iframe srcdoc='<script>parent.{RUNS}</script>'>",
    "<object data=/hit-N></object>", "<embed src=/hit-N>", "<link rel=stylesheet href=/hit-N>",
    "<link rel=prefetch href=/hit-N>", "<style>@import '/hit-N';</style>",
    "<style>body{background:url(/hit-N)}</style>",
    "<div style=background:url(/hit-N)>", "<meta http-equiv=refresh content='0;url=/hit-N'>", "<base href=/hit-N/>",
    f"<body onload={RUNS}>", f"<details open ontoggle={RUNS}>", f"<input autofocus onfocus={RUNS}>",
    f"<video><source onerror={RUNS}></video>", "<video src=/hit-N poster=/hit-N></video>", "<audio src=/hit-N>",
    f"<marquee onstart={RUNS}>", f"<a href=javascript:{RUNS} autofocus>x</a>", "<form action=/hit-N><button>x</form>",
    f"<template><script>{RUNS}</script></template>", f"<noscript><p title='</noscript><img src=x onerror={RUNS}>'>",
    f"&lt;script&gt;{RUNS}&lt;/script&gt;", f"&#60;script&#62;{RUNS}&#60;/script&#62;",
    f"<![CDATA[<script>{RUNS}</script>]]>",
    f"{{{{ 7 * 7 }}}}{{% raw %}}<script>{RUNS}</script>",
]  # fmt: skip
BEFORE = [
    "",
    "\"'>",
    "</title></style></script></pre></svg></textarea>",
    "-->]]>\x00<!--><",
    f'" onmouseover={RUNS} x="',
]
PAYLOADS = [
    f"{before}{element}".replace("(N)", f"({number})").replace("hit-N", f"hit-{number}")
    for number, (before, element) in enumerate((before, element) for before in BEFORE for element in ELEMENTS)
]

HARNESS = """<!doctype html><body><script>var hits = [];</script>{frames}<pre id="found"></pre><script>
addEventListener("load", () => setTimeout(() => {{
  const seen = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, all = [...page.querySelectorAll("*")];
    return {{
      elements: [...new Set(all.map(one => one.localName))].sort(),
      attributes: [...new Set(all.flatMap(one => one.getAttributeNames()))].sort(),
      shown: page.body.innerText.length,
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify({{hits, seen}});
}}, 300));
</script></body>"""


class Visit(NamedTuple):
    hits: list[int]
    seen: list[dict[str, Any]]
    asked: list[str]
    complaints: list[str]


def visit(folder: Path, pages: Sequence[str]) -> Visit:
    """Open pages of a folder in the browser, which finds no other host than the server that counts what it asks for."""
    frames = "".join(f'<iframe src="{page}" style="width:900px;height:900px"></iframe>' for page in pages)
    found, asked, complaints = look(folder, HARNESS.format(frames=frames), "--virtual-time-budget=20000")
    told = json.loads(found)
    return Visit(told["hits"], told["seen"], asked, complaints)


def _everywhere(value: Any, texts: Sequence[str], kept: Sequence[str] = ()) -> Any:
    """The document with each of its texts replaced by all the payloads."""
    match value:
        case str():
            return "\n".join(texts)
        case dict():
            return {key: item if key in kept else _everywhere(item, texts, kept) for key, item in value.items()}
        case list():
            return [_everywhere(item, texts, kept) for item in value]
        case _:
            return value


def _run_page(folder: Path, texts: Sequence[str]) -> str:
    """report.html of a run all of whose texts are these; each is in an answer of its own, where texts are cut."""
    result = outcome((0.3, 0.2, 0.4), 0.001)
    result["answers"] = [{"question": text, "before": text, "after": text} for text in texts]
    run = write_run(
        folder,
        outcome=result,
        evals=[eval_row(0, 0.5), eval_row(4, 0.8)],
        pairs=40,
        notes=[{"label": label, "text": f"LEN001 {text}"} for text in texts for label in ("note", text)],
        recipe=RECIPE.replace("made-up", json.dumps("\n".join(texts))),
        command="\n".join(texts),
    )
    receipt = json.loads((run / "run.json").read_text())
    answers = receipt["outcome"].pop("answers")
    kept = ("status", "side", "packing", "test", "started", "at")
    receipt = {key: value if key in kept else _everywhere(value, texts, kept) for key, value in receipt.items()}
    receipt["outcome"]["answers"] = answers
    receipt["self_check"] = {
        "packing": "\n".join(texts), "why_padded": "\n".join(texts),
        "difference": {"tokens": 3, "highest": 1e-6, "gradient": None},
    }  # fmt: skip
    receipt["resumed"] = [{"at": "\n".join(texts), "from_step": 1, "not_bit_exact": list(texts)}]
    (run / "run.json").write_text(json.dumps(receipt))
    return write_run_report(run).read_text(encoding="utf-8")


def _eval_page(texts: Sequence[str]) -> str:
    """The page of `simpo eval` of several models, all of whose texts are these."""
    document = together()
    one, other = document["evaluations"]
    one["slices"] = other["slices"] = SLICES
    one["not_compared"] = document["failed"][0]
    document["comparisons"][0]["swapped"] = 3
    return eval_page(_everywhere(document, texts, ("test", "margin_test")))


def _comparison(folder: Path, second: str) -> str:
    """The page of the tame run and another one of the folder."""
    written, _ = write_comparison(folder / "tame-run", folder / second, folder / "written.html")
    return written.read_text(encoding="utf-8")


def _stats_page(place: Path, simpo: Simpo, texts: Sequence[str]) -> str:
    """The page of `simpo stats` on pairs, malformed records and a file whose texts and names are these."""
    hostile_name = "".join(texts[1:4]).replace("/", "_")[:200] + ".jsonl"
    rows: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        rows += [{"prompt": text, "chosen": f"{text} a{number % 3}", "rejected": f"{text} b"}] * 2
    rows += [{"prompt": "p", "chosen": 7, text: text} for text in texts[:3]]
    rows += [{"prompt": "\n".join(texts[n : n + 10]), "chosen": "same", "rejected": "same"} for n in range(0, 200, 10)]
    write_pairs(place, hostile_name, rows)
    (place / "page.html").unlink(missing_ok=True)
    seen = simpo("stats", hostile_name, "prefs.jsonl", "--on-bad-record", "skip", "--html", "page.html")
    assert seen.code == 0, seen
    return (place / "page.html").read_text(encoding="utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_no_payload_runs_or_asks_for_anything(place: Path, simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(set(PAYLOADS)) == 200
    folder = place / "served"
    folder.mkdir()
    monkeypatch.setattr("simpo_cli.report.run_page.SHOWN_NOTES", 1000)
    tame, other = ([f"{word} {number}" for number in range(200)] for word in ("word", "term"))
    _run_page(folder / "other-run", other)
    pages = {
        "run": _run_page(folder / "hostile-run", PAYLOADS),
        "tame-run": _run_page(folder / "tame-run", tame),
        "stats": _stats_page(place, simpo, PAYLOADS),
        "tame-stats": _stats_page(place, simpo, tame),
        "eval": _eval_page(PAYLOADS),
        "tame-eval": _eval_page(tame),
        "comparison": _comparison(folder, "hostile-run"),
        "tame-comparison": _comparison(folder, "other-run"),
    }
    names = [name for kind in ("run", "stats", "eval", "comparison") for name in (f"tame-{kind}", kind, f"{kind}-bare")]
    for name, page in pages.items():
        assert len(POLICY.findall(page)) == 1
        (folder / f"{name}.html").write_text(page)
        (folder / f"{name}-bare.html").write_text(POLICY.sub("", page))
    told = visit(folder, [f"{name}.html" for name in names])
    assert told.hits == []
    assert told.asked == sorted(f"/{name}.html" for name in names)
    assert told.complaints == []  # the policy had nothing to forbid
    for at in range(0, len(names), 3):
        plain, *hostile = told.seen[at : at + 3]
        for seen in hostile:
            assert set(seen["elements"]) <= set(plain["elements"])
            assert set(seen["attributes"]) <= set(plain["attributes"]) | {"open"}
            assert seen["shown"] > 1000
    for kind in ("run", "eval"):
        shown = html.unescape(pages[kind])
        assert all(payload.replace("\x00", "\\x00") in shown for payload in PAYLOADS)  # they are there, as text


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_payloads_are_live_where_nothing_is_escaped(tmp_path: Path) -> None:
    policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    for number, payload in enumerate(ELEMENTS):
        body = (
            f'<!doctype html><meta charset="utf-8">{payload.replace("(N)", f"({number})").replace("-N", f"-{number}")}'
        )
        (tmp_path / f"bare-{number}.html").write_text(body)
        (tmp_path / f"guarded-{number}.html").write_text(body.replace("<meta", f"{policy}<meta", 1))
    bare = visit(tmp_path, [f"bare-{number}.html" for number in range(len(ELEMENTS))])
    ran = set(bare.hits) | {int(path.split("-")[1]) for path in bare.asked if re.fullmatch(r"/hit-\d+", path)}
    assert len(ran) >= 25  # the others wait for a click, for sound, or for a form that is sent
    # and the policy alone would hold, but for what it cannot forbid: a page that goes to another
    kept = [number for number, payload in enumerate(ELEMENTS) if "refresh" not in payload]
    guarded = visit(tmp_path, [f"guarded-{number}.html" for number in kept])
    assert guarded.hits == []
    assert [path for path in guarded.asked if path.startswith("/hit-")] == []
    assert len(guarded.complaints) >= 20
