"""Pages in a real browser: each renders, asks for nothing, complains of nothing, and never scrolls sideways."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.report.run_page import write_run_report
from simpo_cli.report.two_runs import write_comparison
from tests.browser import CHROMIUM, look
from tests.report.made_answers import write_answers
from tests.report.made_run import eval_row, outcome, write_run

WIDTHS = (375, 1280)

# the page itself runs no script, so another page looks at it from outside
HARNESS = """<!doctype html><body>{frames}<pre id="found"></pre><script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    return {{
      width: root.clientWidth,
      needed: root.scrollWidth,
      verdict: (page.querySelector(".verdict") || page.body).innerText,
      figures: [...page.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().height > 80).length,
    }};
  }});
  document.getElementById("found").textContent = JSON.stringify(found).replaceAll("<", " ");
}});
</script></body>"""


def _look(folder: Path, pages: list[tuple[str, int]]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """What each page is like at its width, what the browser's console says of all, and every path that was asked for.

    Args:
        folder: served on a port of this machine; the browser can find no other host.
        pages: (file name in the folder, width in pixels).
    """
    frames = "".join(
        f'<iframe src="{name}?{width}" style="width:{width}px;height:800px;border:0"></iframe>' for name, width in pages
    )
    found, asked, complaints = look(folder, HARNESS.format(frames=frames))
    looked: list[dict[str, Any]] = json.loads(found)
    return looked, complaints, asked


def _long_names(word: str) -> dict[str, dict[str, str]]:
    return {side: {"name": side, "path": word} for side in ("base", "trained")}


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_pages_in_a_browser(tmp_path: Path) -> None:
    long_word = "x" * 400
    result = outcome((0.3, 0.2, 0.4), 0.001)
    result["answers"] = [{"question": long_word, "before": long_word, "after": f"<b>{long_word}"}]
    more: dict[str, Any] = {"outcome": result, "evals": [eval_row(0, 0.5), eval_row(4, 0.8)], "pairs": 40}
    notes = [{"label": "note", "text": long_word}, {"label": "data", "text": f"LEN001 {long_word}"}]
    first = write_run(tmp_path / "a", notes=notes, command=f"simpo train {long_word}", **more)
    second = write_run(tmp_path / "b", recipe=f"name: {long_word}\nseed: 7\n", **more)
    write_answers(first / "answers", said=f"<b>{long_word}{{side}}", models=_long_names(long_word))
    write_run_report(first, tmp_path / "run.html")
    write_comparison(first, second, tmp_path / "two.html")
    pages = [(name, width) for name in ("run.html", "two.html") for width in WIDTHS]
    looked, complaints, asked = _look(tmp_path, pages)
    assert complaints == []
    assert asked == sorted(f"/{name}?{width}" for name, width in pages)
    for page, (name, width) in zip(looked, pages, strict=True):
        assert page["width"] in range(width - 20, width + 1)  # less a scroll bar
        assert page["needed"] <= page["width"]
        is_run = name == "run.html"
        assert page["figures"] == (11 if is_run else 9)
        said = "Held-out accuracy rose 30.0 points" if is_run else "On the same held-out pairs B is right in"
        assert page["verdict"].startswith(said)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_look_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(
        '<body><img src="there.png"><div style="width:2000px">wide</div><script>oops()</script></body>'
    )
    [looked], complaints, asked = _look(tmp_path, [("bad.html", 375)])
    assert looked["needed"] > looked["width"]
    assert "/there.png" in asked
    assert any("oops" in line for line in complaints)
