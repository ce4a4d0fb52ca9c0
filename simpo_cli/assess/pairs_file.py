"""Per-pair results as JSON lines or Parquet, so that anyone can compute the numbers again."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from simpo_cli.assess.assessment import Assessed
from simpo_cli.data.writing import disk_faults, replacing
from simpo_cli.errors import UserError

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
    beta, scores = one.target.recipe.loss.beta, one.scores
    base = None if one.baseline is None else one.baseline.scores
    for i, pair in enumerate(one.held_out.pairs):
        row: dict[str, Any] = {"model": one.target.name, "where": pair.where, "prompt": pair.prompt_key}
        row["pair"] = pair.pair_key
        row |= {column: values[i] for column, values in one.values.items() if column not in row}
        row |= {"chosen_tokens": len(pair.chosen), "rejected_tokens": len(pair.rejected)}
        row |= _scores(beta, float(scores.chosen[i]), float(scores.rejected[i]), "")
        chosen, rejected = (None, None) if base is None else (float(base.chosen[i]), float(base.rejected[i]))
        yield row | _scores(beta, chosen, rejected, "_baseline")


def _scores(beta: float, chosen: float | None, rejected: float | None, end: str) -> dict[str, float | None]:
    margin = None if chosen is None or rejected is None else beta * (chosen - rejected)
    return {f"chosen{end}": chosen, f"rejected{end}": rejected, f"margin{end}": margin}


def _is_ours(path: Path) -> bool:
    try:
        if path.suffix == ".parquet":
            return _MARK in pq.read_schema(path).names
        with path.open(encoding="utf-8") as file:
            return _MARK in json.loads(file.readline())
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return False
