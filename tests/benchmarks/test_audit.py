"""The benchmark of the audit: its pairs are the same every time, and hold what the audit is to find."""

import json
from pathlib import Path

from tests.benchmarks.audit import made_pairs, measure, write_evaluation, write_pairs


def test_made_pairs_hold_what_the_audit_finds(tmp_path: Path) -> None:
    file, evaluation = tmp_path / "pairs.jsonl", tmp_path / "eval.jsonl"
    write_pairs(file, 1500, seed=3)
    write_evaluation(evaluation, 1500, seed=3)
    pairs = [tuple(record.values()) for record in map(json.loads, file.read_text().splitlines())]
    assert pairs == list(made_pairs(1500, seed=3))
    assert pairs != list(made_pairs(1500, seed=4))
    swapped = {(prompt, rejected, chosen) for prompt, chosen, rejected in pairs}
    held_out = [json.loads(line)["prompt"] for line in evaluation.read_text().splitlines()]
    same = [pair[0] in held_out for pair in pairs]
    near = {pair for pair in pairs if pair[1].endswith(" indeed")}
    expected = {
        "DUP001": len(pairs) - len(set(pairs)),
        "DUP002": len(near),
        "LBL002": sum(pair in swapped for pair in pairs),
        "LEK001": sum(same),
        "LEK002": sum(pair[0].upper() in held_out and not is_same for pair, is_same in zip(pairs, same, strict=True)),
    }
    assert min(expected.values()) > 5
    measured = measure("whole audit", str(file), str(evaluation), "")
    assert {code: measured["found"].get(code) for code in expected} == expected
    assert measured["processor_seconds"] > 0
    assert measured["peak_bytes"] > 2**20
