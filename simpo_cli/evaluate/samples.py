"""A few held-out pairs to read: some drawn by the seed, and those on which training did worst."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.data.writing import disk_faults, replacing
from simpo_cli.evaluate.score import PairScores

NUM_DRAWN = 3
NUM_WORST = 3


def write_samples(
    file: Path,
    pairs: Sequence[EncodedPair],
    before: PairScores,
    after: PairScores,
    *,
    tokenizer: TextTokenizer,
    seed: int,
) -> None:
    """A line of JSON a pair, whole or not at all, with the texts as the model saw them.

    Keys: line (of the pair in evals-pairs.jsonl, from 1), why (`drawn` by the seed, or `worst`: its margin fell most),
    and prompt, chosen, rejected. A page that shows only good examples misleads, and so does one of the worst alone.
    """
    rows = [
        {
            "line": position + 1,
            "why": why,
            "prompt": tokenizer.decode(pairs[position].prompt.tolist()),
            "chosen": tokenizer.decode(pairs[position].chosen.tolist()),
            "rejected": tokenizer.decode(pairs[position].rejected.tolist()),
        }
        for why, positions in (("drawn", _drawn(len(pairs), seed)), ("worst", _worst(before, after)))
        for position in positions
    ]
    then = ", and run the same command with --resume"
    with disk_faults(f"{file} cannot be written", then), replacing(file) as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _drawn(num_pairs: int, seed: int) -> list[int]:
    """Positions in an order that only the seed decides, the same on every machine."""
    return sorted(range(num_pairs), key=lambda at: hashlib.sha256(f"{seed}:{at}".encode()).digest())[:NUM_DRAWN]


def _worst(before: PairScores, after: PairScores) -> list[int]:
    """Positions of the pairs whose margin fell most, most first; of those only that fell at all."""
    change = (after.chosen - after.rejected) - (before.chosen - before.rejected)
    return [int(at) for at in np.argsort(change, kind="stable")[:NUM_WORST] if change[at] < 0]
