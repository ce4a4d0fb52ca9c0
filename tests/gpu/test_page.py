"""The page says what the results say, and the script runs its parts as it should."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu import check
from tests.gpu.check import MissingError, Outcome, Part, Place, require, run_parts
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
        "kernels": [{"name": "gemm|x", "calls": 7, "milliseconds": 30.25, "share": 0.5}],
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


def test_the_newest_run_on_a_card_is_shown_and_tiny_ones_never(tmp_path: Path) -> None:
    assert "There is none yet" in page(tmp_path)
    for name, document in (
        ("a", _document()),
        ("b", _document(started="2025-12-31T00:00:00+00:00", seconds=111.0)),
        ("c", _document(started="2027-01-01T00:00:00+00:00", tiny=True)),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    text = page(tmp_path)
    assert "Results of 2026-01-02" in text
    assert "It is the newest of 2 runs" in text
    assert "| FAIL | kernels | 3 | a\\|b |" in text
    assert "| share | 0.47 | at least 0.45 | met |" in text
    assert "| ours | 2 (1.9 to 2.2, n = 3) | 16 | 12,800 | 47 % | 41.3 |" in text
    assert "| liger | liger_kernel is not installed |" in text
    assert "| 50.0 % | 30.2 | 7 | `gemm\\|x` |" in text
    assert "There is none yet" not in text


def test_a_part_that_breaks_is_not_the_end_and_is_written_down(tmp_path: Path) -> None:
    seen = []

    def breaks(_: Place) -> tuple[str, dict[str, Any]]:
        raise ZeroDivisionError("by design")

    def lacks(_: Place) -> tuple[str, dict[str, Any]]:
        raise MissingError("liger_kernel is not installed")

    def is_wrong(_: Place) -> tuple[str, dict[str, Any]]:
        require(False, "0.2 from plain attention", {"rows": [1]})
        raise AssertionError

    def works(_: Place) -> tuple[str, dict[str, Any]]:
        seen.append(json.loads(output.read_text(encoding="utf-8"))["parts"])
        return "fine", {"a": 1}

    output = tmp_path / "gpu_check.json"
    chosen = [Part(run.__name__, run, 1.0) for run in (breaks, lacks, is_wrong, works)]
    outcomes = run_parts(chosen, Place(torch.device("cpu"), True, tmp_path), output)
    assert [outcome.status for outcome in outcomes] == ["FAIL", "SKIP", "FAIL", "PASS"]
    assert outcomes[0].summary == "ZeroDivisionError: by design"
    assert outcomes[2].facts["rows"] == [1]
    assert len(seen[0]) == 3  # what was known before the last part was in the file
    assert json.loads(output.read_text(encoding="utf-8"))["parts"][3]["facts"] == {"a": 1}


def test_what_would_pass_the_time_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_clear", "describe"):
        monkeypatch.setattr(check, name, lambda _: None)
    chosen = [Part(name, lambda _: ("ran", {}), seconds) for name, seconds in (("long", 1000.0), ("short", 1.0))]
    outcomes = run_parts(chosen, Place(torch.device("cuda"), False, tmp_path), tmp_path / "out.json")
    assert [outcome.status for outcome in outcomes] == ["SKIP", "PASS"]


def test_a_failure_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any) -> list[Outcome]:
        return [Outcome("kernels", "FAIL", 1.0, "wrong"), Outcome("memory", "SKIP", 0.0, "no")]

    monkeypatch.setattr(check, "run_parts", run)
    assert check.main(["--tiny", "--output", str(tmp_path / "out.json")]) == 1
    assert "FAIL  kernels" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card_it_says_how_to_try_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([]) == 4
    assert "--tiny" in capsys.readouterr().err
