"""Files with a row for each held-out pair, so that anyone can compute the numbers again: of a run and of `--pairs`."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.evaluate.metrics import PairScores
from simpo_cli.evaluate.results import Evaluation
from simpo_cli.files import disk_faults, replacing
from simpo_cli.objective import Objective

NUM_DRAWN = 3
NUM_WORST = 3
SUFFIXES = (".jsonl", ".parquet")
_PARTS = ("prompt", "chosen", "rejected")
_MARK = "chosen_baseline"  # a column that files of ours have, and hardly others


def write_pairs(file: Path, pairs: Sequence[EncodedPair], before: PairScores, after: PairScores) -> None:
    """A line of JSON a held-out pair, whole or not at all, so that anyone can compute the run's numbers again.

    Keys: where (its record), prompt (a hash: pairs of one prompt share it), pair (a digest of its texts, see
    `data.encode.pair_key`), chosen_tokens and rejected_tokens (scored), and chosen_before, rejected_before,
    chosen_after, rejected_after (mean log-prob, nats per token).
    """
    names = ("chosen_before", "rejected_before", "chosen_after", "rejected_after")
    numbers = np.stack([before.chosen, before.rejected, after.chosen, after.rejected], axis=1).tolist()
    _write_rows(
        file,
        (
            {**_place(pair), **_lengths(pair), **dict(zip(names, of_pair, strict=True))}
            for pair, of_pair in zip(pairs, numbers, strict=True)
        ),
    )


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
    # the seed alone decides the order, the same on every machine
    drawn = sorted(range(len(pairs)), key=lambda at: hashlib.sha256(f"{seed}:{at}".encode()).digest())[:NUM_DRAWN]
    change = (after.chosen - after.rejected) - (before.chosen - before.rejected)
    worst = [at for at in np.argsort(change, kind="stable")[:NUM_WORST].tolist() if change[at] < 0]
    _write_rows(
        file,
        (
            {
                "line": at + 1,
                "why": why,
                **{part: tokenizer.decode(getattr(pairs[at], part).tolist()) for part in _PARTS},
            }
            for why, positions in (("drawn", drawn), ("worst", worst))
            for at in positions
        ),
    )


def _place(pair: EncodedPair) -> dict[str, Any]:
    return {"where": pair.where, "prompt": pair.prompt_key, "pair": pair.pair_key}


def _lengths(pair: EncodedPair) -> dict[str, Any]:
    return {"chosen_tokens": len(pair.chosen), "rejected_tokens": len(pair.rejected)}


def _write_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    then = ", and run the same command with --resume"
    with disk_faults(f"{file} cannot be written", then), replacing(file) as stream:
        stream.writelines(_line(row) for row in rows)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


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


def write_pairs_file(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Write a row for each model and pair, whole or not at all.

    Columns: model, where (the record), prompt (a hash), pair (a digest of its texts), the columns of `--by`,
    chosen_tokens and rejected_tokens (scored), chosen and rejected (mean log-prob, nats per token), margin (in units of
    the reward), and chosen_baseline, rejected_baseline, margin_baseline, which are null where there is no baseline.
    """
    rows = (row for one in evaluations for row in _rows(one))
    with disk_faults(f"--pairs {path} cannot be written"), replacing(path, "xb") as file:
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), file)
        else:
            file.writelines(_line(row).encode() for row in rows)


def _rows(one: Evaluation) -> Iterator[dict[str, Any]]:
    objective = Objective(one.target.recipe.loss)
    base = None if one.baseline is None else one.baseline.scores
    for i, pair in enumerate(one.held_out.pairs):
        row: dict[str, Any] = {"model": one.target.name, **_place(pair)}
        row |= {column: values[i] for column, values in one.values.items() if column not in row}
        row |= _lengths(pair)
        for end, scores in (("", one.scores), ("_baseline", base)):
            both = (None, None) if scores is None else (float(scores.chosen[i]), float(scores.rejected[i]))
            margin = None if scores is None else objective.margin(*both)
            row |= {f"chosen{end}": both[0], f"rejected{end}": both[1], f"margin{end}": margin}
        yield row


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix == ".parquet":
            return _MARK in pq.read_schema(path).names
        with path.open(encoding="utf-8") as file:
            return _MARK in json.loads(file.readline())
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return False
