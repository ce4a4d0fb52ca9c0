"""The page made of results that are simple enough to check by eye."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import page
from tests.benchmarks.page import extra_bytes, ratios, shares, spread, write_page

pytest.importorskip("matplotlib")


def _steps(*seconds: float, pairs: int = 8) -> list[dict[str, Any]]:
    row = {"pairs": pairs, "loss": 1.5, "system_seconds": 0.1, "idle_cpu_seconds": 0.01, "plan_seconds": 0.001}
    return [{**row, "seconds": each, "cpu_seconds": 2 * each} for each in seconds]


def _side(
    who: str, microbatch: int, steps: list[dict[str, Any]], peak: float, precision: str = "fp32"
) -> dict[str, Any]:
    return {
        "name": f"{who}{microbatch or ''}-{precision}",
        "who": who,
        "microbatch": microbatch,
        "precision": precision,
        "peak_bytes": peak,
        "state_bytes": 2e9,
        "libraries_bytes": 5e8,
        "counted_flops": [100, 200, 300] if who == "peer" else [100, 100, 100],
        "given_as_ids": 1 if who == "peer" else 0,
        "versions": {"torch": "2.13.0"},
        "steps": steps,
    }


def _session() -> dict[str, Any]:
    return {
        "key": "hh",
        "title": "HH-RLHF (harmless)",
        "pairs_per_step": 8,
        "rounds": 3,
        "mean_tokens": {"prompt": 100.0, "chosen": 50.0, "rejected": 60.0},
        "pairs_in_file": 40,
        "too_long": 3,
        "same_tokens": 32,
        "first_step_difference": 1e-6,
        "later_differences": [2e-6],
        "product_speeds": {"fp32": [90e9, 100e9], "bf16": [300e9]},
        "needed_flops": [50_000_000_000] * 3,
        "predicted_peaks": {"peer4-fp32": 6.1e9},
        "not_run": [{"microbatch": 16, "predicted_bytes": 25e9, "fits": False}],
        "machine": {
            "processor": "A processor",
            "cores": 2,
            "threads": 2,
            "memory_gb": 24.0,
            "system": "Linux",
            "python": "3.11.0",
            "instructions": ["avx2"],
        },
        "sides": [_side("ours", 0, _steps(1.0, 2.0, 1.6), 3e9), _side("peer", 4, _steps(3.0, 5.0, 4.0), 6e9)],
    }


@pytest.fixture
def results() -> dict[str, Any]:
    session = _session()
    return {
        "schema_version": 1,
        "date": "2026-01-02",
        "kind": "make bench",
        "complete": True,
        "model": "a-model",
        "settings": {
            "max_length": 1024,
            "max_prompt_length": 512,
            "seed": 7,
            "beta": 2.0,
            "gamma": 1.0,
            "memory_limit_bytes": 14e9,
        },
        "peer_memory": {"fixed": 2.7e9, "per_token": 1e6, "per_score": 900.0, "longest_row": 800},
        "versus": [session],
        "alone": {
            "title": "HH-RLHF (harmless)",
            "pairs_per_step": 16,
            "steps": _steps(2.0, 2.5),
            "product_speeds": [100e9],
            "needed_flops": [100_000_000_000] * 2,
            "growth": {
                "pairs": [{"pairs": 2, "prompt": 64, "response": 64, "needed_flops": 4e9, "steps": _steps(0.5, 0.7)}]
            },
        },
        "precision": {
            **_session(),
            "sides": [
                _side("ours", 0, _steps(2.0, 2.0, 2.0), 3e9),
                _side("ours", 0, _steps(1.0, 1.0, 0.5), 3e9, "bf16"),
            ],
        },
    }


def test_rates_ratios_memory_and_shares(results: dict[str, Any]) -> None:
    ours, peer = results["versus"][0]["sides"]
    assert page.rates(ours) == [8.0, 4.0, 5.0]
    assert ratios(ours, peer) == [3.0, 2.5, 2.5]
    assert extra_bytes(peer) == 4_000_000_000
    assert shares(ours["steps"], [50_000_000_000] * 3, [90e9, 100e9]) == [0.5, 0.25, 0.3125]
    assert spread([3.0, 1.0, 2.5]) == "2.50 (1.00..3.00)"


def test_the_page_says_what_was_measured(results: dict[str, Any]) -> None:
    text = page.page(results)
    for part in (
        "A processor, 2 cores, 2 threads, 24 GB, Linux (avx2)",
        "| HH-RLHF (harmless) | 8 | 3 | ours | 5.000 (4.000..8.000) |  |  |",
        "|  |  |  | TRL, micro-batch 4 | 2.000 (1.600..2.667) | 2.50 (2.50..3.00) times | 2.0 |",
        "| TRL, micro-batch 16 | not run: would need 25 GB |",
        "0.50 GB on ours, 0.50 GB on TRL's",
        "| TRL, micro-batch 4 | 6.00 | 4.00 | 25 % | 6.1 |",
        "32 pairs with the same tokens on both sides",
        "| 31.2 (25.0..50.0) % | 100 (90) |",
        "| 16 | 2 | 100 | 45.0 (40.0..50.0) % |",
        "| ours, bf16 | 3 | 8.000 (8.000..16.000) | 2.00 (2.00..4.00) | 1.50000 | +0.000 % |",
    ):
        assert part in text


def test_a_page_of_part_of_the_results(results: dict[str, Any]) -> None:
    """A call that stopped early leaves what it has."""
    text = page.page({**results, "alone": None, "precision": None, "complete": False})
    assert "stopped before its end" in text
    assert "bf16" not in text.split("## Share")[1]
    assert "How time grows" not in text


def test_files_are_made_again_from_the_json_alone(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_page(results, tmp_path)
    first = {name: (tmp_path / name).read_bytes() for name in ("benchmarks.md", "benchmarks.svg")}
    assert b"<svg" in first["benchmarks.svg"]
    (tmp_path / "benchmarks.json").write_text(json.dumps(results), encoding="utf-8")
    for name in first:
        (tmp_path / name).unlink()
    monkeypatch.setattr(sys, "argv", ["page", str(tmp_path)])
    page.main()
    assert {name: (tmp_path / name).read_bytes() for name in first} == first
