"""What is known of each held-out pair: its scores before and after training, and the bar that its surface sets."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from simpo_cli.audit.features import SurfaceDifferences
from simpo_cli.audit.surface import TIE, fit
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.data.writing import disk_faults, replacing
from simpo_cli.evaluate.score import PairScores
from simpo_cli.stages import stage
from simpo_cli.statistics import Measured, proportion

_MOST_FITTED = 5_000  # training pairs: more hardly move fourteen weights


def write_pairs(file: Path, pairs: Sequence[EncodedPair], before: PairScores, after: PairScores) -> None:
    """A line of JSON a held-out pair, whole or not at all, so that anyone can compute the run's numbers again.

    Keys: where (its record), prompt (a hash: pairs of one prompt share it), pair (a digest of its texts, see
    `data.encode.pair_key`), chosen_tokens and rejected_tokens (scored), and chosen_before, rejected_before,
    chosen_after, rejected_after (mean log-prob, nats per token).
    """
    rows = zip(
        pairs,
        *(scores.tolist() for scores in (before.chosen, before.rejected, after.chosen, after.rejected)),
        strict=True,
    )
    then = ", and run the same command with --resume"
    with disk_faults(f"{file} cannot be written", then), replacing(file) as stream:
        for pair, chosen_before, rejected_before, chosen_after, rejected_after in rows:
            row = {
                "where": pair.where,
                "prompt": pair.prompt_key,
                "pair": pair.pair_key,
                "chosen_tokens": len(pair.chosen),
                "rejected_tokens": len(pair.rejected),
                "chosen_before": chosen_before,
                "rejected_before": rejected_before,
                "chosen_after": chosen_after,
                "rejected_after": rejected_after,
            }
            stream.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")


@stage("fitting a classifier of surface features")
def surface_accuracy(
    train: Sequence[EncodedPair], held_out: Sequence[EncodedPair], tokenizer: TextTokenizer
) -> Measured:
    """Accuracy on held-out pairs of a classifier that sees only counts of list items, letters and the like.

    It is fitted on at most 5,000 of the training pairs, taken at equal distances, and sees the responses as they were
    trained on, that is, cut where they are too long; see `audit.surface`. There is at least one pair of each kind.
    """
    seen, unseen = SurfaceDifferences(), SurfaceDifferences()
    for position in range(0, len(train), -(-len(train) // _MOST_FITTED)):
        _add(seen, train[position], tokenizer)
    for pair in held_out:
        _add(unseen, pair, tokenizer)
    margins = fit(seen.rows).margins(unseen.rows)
    right = np.where(np.abs(margins) < TIE, 0.5, margins > 0)
    return proportion(right, prompt_keys_of(held_out))


def _add(differences: SurfaceDifferences, pair: EncodedPair, tokenizer: TextTokenizer) -> None:
    differences.add(*(_text(response.tolist(), tokenizer) for response in (pair.chosen, pair.rejected)))


def _text(ids: list[int], tokenizer: TextTokenizer) -> str:
    """A response without its end token, which a cut one lacks."""
    return tokenizer.decode(ids[:-1] if ids[-1] in tokenizer.end_ids else ids)
