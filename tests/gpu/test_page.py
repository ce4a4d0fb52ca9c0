"""The page says what the results say."""

import json
from pathlib import Path
from typing import Any

from tests.gpu.page import page

_DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_in_the_documentation_is_that_of_the_results() -> None:
    assert (_DOCS / "gpu.md").read_text(encoding="utf-8") == page(_DOCS / "gpu")


def _document(**changes: Any) -> dict[str, Any]:
    way = {
        "seconds": {"median": 2.0, "low": 1.9, "high": 2.2, "n": 3},
        "pairs_per_second": 16.0,
        "tokens_per_second": 12800.0,
        "share_of_products": 0.47,
        "peak_gb": 41.26,
    }
    speed = {
        "pairs": 32,
        "tokens": 25600,
        "ways": {"ours": way},
        "missing": {"liger": "liger_kernel is not installed"},
        "broken": {"compiled": "InductorError: by design"},
        "kernels": {"ours": [{"name": "gemm|x", "calls": 7, "milliseconds": 30.25, "share": 0.5}]},
    }
    return {
        "started": "2026-01-02T03:04:05+00:00",
        "seconds": 301.4,
        "tiny": False,
        "machine": {
            "device": "A card",
            "memory_gb": 80.0,
            "cores": 8,
            "python": "3.12.3",
            "cuda": "13.0",
            "versions": {"torch": "2.11.0", "liger-kernel": None},
        },
        "parts": [
            {"part": "speed-8b-lora", "status": "PASS", "seconds": 90.2, "summary": "fast", "facts": speed},
            {"part": "kernels", "status": "FAIL", "seconds": 3.0, "summary": "a|b", "facts": {}},
        ],
        "bars": [{"name": "share", "value": 0.47, "least": 0.45, "most": None, "met": True}],
        **changes,
    }


def _part(status: str, name: str, summary: str = "so") -> dict[str, Any]:
    return {"part": name, "status": status, "seconds": 1.0, "summary": summary, "facts": {}}


def _memory(summary: str) -> dict[str, Any]:
    return _part("PASS", "memory", summary)


def test_the_newest_run_on_a_card_is_shown_and_tiny_ones_never(tmp_path: Path) -> None:
    assert "There is none yet" in page(tmp_path)
    for name, document in (
        ("a", _document()),
        ("b", _document(started="2025-12-31T00:00:00+00:00", parts=[_memory("first"), _part("SKIP", "self-check")])),
        ("d", _document(started="2025-12-30T00:00:00+00:00", parts=[_memory("zeroth"), _part("PASS", "self-check")])),
        ("e", _document(started="2026-01-01T00:00:00+00:00", machine={"device": "Another"}, parts=[_memory("other")])),
        ("c", _document(started="2027-01-01T00:00:00+00:00", tiny=True)),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    text = page(tmp_path)
    assert "Results of 2026-01-02" in text
    assert "The newest of 4 runs" in text
    assert "| FAIL | kernels | 2026-01-02 | 3 | a\\|b |" in text
    assert "| PASS | memory | 2025-12-31 | 1 | first |" in text
    assert "| PASS | self-check | 2025-12-30 | 1 | so |" in text
    assert "zeroth" not in text
    assert "other" not in text.partition("Results")[2].partition("###")[0].replace("the others", "")
    assert "| compiled | InductorError: by design |" in text
    assert "| share | 0.47 | at least 0.45 | met |" in text
    assert "| ours | 2 (1.9 to 2.2, n = 3) | 16 | 12,800 | 47 % | 41.3 |" in text
    assert "| liger | liger_kernel is not installed |" in text
    assert "| 50.0 % | 30.2 | 7 | `gemm\\|x` |" in text
    assert "There is none yet" not in text
