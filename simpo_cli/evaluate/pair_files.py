"""Files with a row for each held-out pair, so that anyone can compute the numbers again: of a run and of `--pairs`."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from numpy.typing import NDArray

from simpo_cli.audit.measures import surface_differences
from simpo_cli.audit.surface import TIE, fit
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.evaluate.results import Assessed
from simpo_cli.evaluate.scoring import PairScores
from simpo_cli.files import disk_faults, replacing
from simpo_cli.objective import Objective
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
    seen = map(train.__getitem__, range(0, len(train), -(-len(train) // _MOST_FITTED)))
    differences = [
        surface_differences((_text(pair.chosen, tokenizer), _text(pair.rejected, tokenizer)) for pair in pairs)
        for pairs in (seen, held_out)
    ]
    margins = fit(differences[0]).margins(differences[1])
    right = np.where(np.abs(margins) < TIE, 0.5, margins > 0)
    return proportion(right, prompt_keys_of(held_out))


def _text(response: NDArray[np.int32], tokenizer: TextTokenizer) -> str:
    """A response without its end token, which a cut one lacks."""
    ids = response.tolist()
    return tokenizer.decode(ids[:-1] if ids[-1] in tokenizer.end_ids else ids)


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


SUFFIXES = (".jsonl", ".parquet")
_MARK = "chosen_baseline"  # a column that files of ours have, and hardly others


def require_pairs_file(path: Path) -> None:
    """Refuse a name of neither kind, and to write over a file that is not of this kind.

    Raises:
        UserError: says which it is.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"--pairs {path} says neither JSON lines nor Parquet.", "Let it end in .jsonl or .parquet.")
    if path.is_dir():
        raise UserError(f"--pairs {path} is a folder.", "Name a file.")
    if path.exists() and not _is_ours(path):
        raise UserError(f"--pairs {path} exists and holds no per-pair results of simpo.", "Name another file.")


def write_pairs_file(path: Path, assessed: Sequence[Assessed]) -> None:
    """Write a row for each model and pair, whole or not at all.

    Columns: model, where (the record), prompt (a hash), pair (a digest of its texts), the columns of `--by`,
    chosen_tokens and rejected_tokens (scored), chosen and rejected (mean log-prob, nats per token), margin (in units of
    the reward), and chosen_baseline, rejected_baseline, margin_baseline, which are null where there is no baseline.
    """
    rows = (row for one in assessed for row in _rows(one))
    with disk_faults(f"--pairs {path} cannot be written"), replacing(path, "xb") as file:
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), file)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n" for row in rows)


def _rows(one: Assessed) -> Iterator[dict[str, Any]]:
    objective, scores = Objective(one.target.recipe.loss), one.scores
    base = None if one.baseline is None else one.baseline.scores
    for i, pair in enumerate(one.held_out.pairs):
        row: dict[str, Any] = {"model": one.target.name, "where": pair.where, "prompt": pair.prompt_key}
        row["pair"] = pair.pair_key
        row |= {column: values[i] for column, values in one.values.items() if column not in row}
        row |= {"chosen_tokens": len(pair.chosen), "rejected_tokens": len(pair.rejected)}
        row |= _scores(objective, float(scores.chosen[i]), float(scores.rejected[i]), "")
        chosen, rejected = (None, None) if base is None else (float(base.chosen[i]), float(base.rejected[i]))
        yield row | _scores(objective, chosen, rejected, "_baseline")


def _scores(objective: Objective, chosen: float | None, rejected: float | None, end: str) -> dict[str, float | None]:
    margin = None if chosen is None or rejected is None else objective.margin(chosen, rejected)
    return {f"chosen{end}": chosen, f"rejected{end}": rejected, f"margin{end}": margin}


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix == ".parquet":
            return _MARK in pq.read_schema(path).names
        with path.open(encoding="utf-8") as file:
            return _MARK in json.loads(file.readline())
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return False
