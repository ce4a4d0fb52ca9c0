"""The pairs that a person reads: some drawn by the seed, and those on which training did worst."""

import json
from pathlib import Path

import numpy as np
import pytest

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.evaluate.metrics import PairScores
from simpo_cli.evaluate.pair_files import write_samples


def _pair(number: int, ids: list[int]) -> EncodedPair:
    tokens = np.array(ids, dtype=np.int32)
    return EncodedPair(tokens, tokens[::-1], tokens[:1], prompt_key=f"{number:016x}", where=f"prefs.jsonl:{number}")


def _scores(margins: list[float]) -> PairScores:
    zeros = np.zeros(len(margins))
    lengths = np.ones(len(margins), dtype=np.int64)
    return PairScores(np.array(margins), zeros, lengths, lengths, tuple(range(len(margins))))


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return load_tokenizer("builtin:guide")


def _rows(tmp_path: Path, tokenizer, after: list[float], seed: int = 1) -> list[dict[str, object]]:  # type: ignore[no-untyped-def]
    ids = tokenizer.encode_batch(["To turn it on, press Save."])[0]
    pairs = [_pair(number, ids) for number in range(1, len(after) + 1)]
    file = tmp_path / "samples.jsonl"
    write_samples(file, pairs, _scores([0.0] * len(after)), _scores(after), tokenizer=tokenizer, seed=seed)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_worst_are_those_whose_margin_fell_most(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    rows = _rows(tmp_path, tokenizer, [0.5, -0.1, -0.4, 0.0, -0.2, -0.3])
    assert [row["line"] for row in rows if row["why"] == "worst"] == [3, 6, 5]
    assert rows[0]["prompt"] == "To turn it on, press Save."
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_where_no_margin_fell_there_is_no_worst(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert {row["why"] for row in _rows(tmp_path, tokenizer, [0.5, 0.0, 0.1])} == {"drawn"}


def test_the_seed_draws_and_nothing_else(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    def drawn(seed: int, after: list[float]) -> list[object]:
        return [row["line"] for row in _rows(tmp_path, tokenizer, after, seed) if row["why"] == "drawn"]

    seen = {tuple(drawn(seed, [0.1] * 50)) for seed in range(20)}
    assert len(seen) == 20
    assert drawn(3, [0.1] * 50) == drawn(3, [-0.1, *[0.3] * 49])
    assert sorted(drawn(3, [0.1] * 2)) == [1, 2]
