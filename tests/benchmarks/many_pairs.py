"""What a rank does over all pairs before its first step, and how it reads its own, with made-up pairs of any number.

    python -m tests.benchmarks.many_pairs [--pairs 100000000] [--folder FOLDER] [--ranks 1 2 4 8] [--reading]

Writes encoded pairs of a few tokens each as the cache holds them, into a temporary folder or, to be used again, into
`--folder`. Then so many processes at once do with them what `simpo train` does, in its order; `--reading` leaves out
all but the split, the order of the epochs and the reading. Seconds are of processor time. Memory is the peak of a
process during each part, that of the interpreter and its libraries subtracted; pages of files that the system keeps are
not of a process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from simpo_cli import statistics
from simpo_cli.audit.duplicates import repeated_and_contradictory
from simpo_cli.data import prepare
from simpo_cli.data.plan import Plan, row_tokens_of_each, tokens_of_each
from simpo_cli.data.store import (
    EncodedSource,
    Origin,
    highest_ids_of,
    lengths_in_blocks,
    prompt_keys_of,
    repeated_prompt_keys_of,
)
from simpo_cli.data.store.make import Account
from simpo_cli.data.store.pairs import ROW, ROWS, TOKENS, StoredPairs
from simpo_cli.recipe.schema import DataRecipe, ModelRecipe, Recipe
from tests.benchmarks.process import peak_resident_bytes, spread

_GB = 1e9
_PLACE_BYTES, _KEY_BYTES = 11, 16
_WRITTEN_AT_ONCE = 500_000
_HELD_OUT, _PAIRS_PER_STEP, _STEPS_READ = 2000, 128, 2000


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--reading", action="store_true")
    parser.add_argument("--one", nargs=3, metavar=("FOLDER", "RANK", "RANKS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        folder, rank, ranks = options.one
        print(json.dumps(_as_a_rank(Path(folder), int(rank), int(ranks), options.reading)))
        return
    with tempfile.TemporaryDirectory(prefix="simpo-pairs-") as temporary:
        folder = options.folder or Path(temporary)
        write_pairs(folder, options.pairs)
        size = sum((folder / name).stat().st_size for name in (ROWS, TOKENS))
        print(f"{options.pairs:,} pairs, {size / _GB:.1f} GB in files", flush=True)
        for ranks in options.ranks:
            print("\n".join(_lines(_at_once(folder, ranks, options.reading))), flush=True)


def write_pairs(folder: Path, count: int) -> None:
    """Made-up pairs as `PairWriter` lays them out; files that are there already are kept."""
    folder.mkdir(exist_ok=True)
    if (folder / ROWS).is_file() and (folder / ROWS).stat().st_size == count * ROW.itemsize:
        return
    draw, end = np.random.default_rng(1), 0
    with (folder / TOKENS).open("wb") as tokens_file, (folder / ROWS).open("wb") as rows_file:
        for start in range(0, count, _WRITTEN_AT_ONCE):
            n = min(_WRITTEN_AT_ONCE, count - start)
            lengths = draw.integers(1, 5, (n, 3), dtype=np.int32)
            num_ids = lengths.sum(axis=1)
            ids = draw.integers(3, 1000, (n, 12), dtype=np.int32)
            place = np.char.mod("p.json:%04d", np.arange(start, start + n) % 10_000).astype(f"S{_PLACE_BYTES}")
            tail = np.concatenate(
                [
                    place.view(np.uint8).reshape(n, _PLACE_BYTES),
                    draw.integers(0, 256, (n, _KEY_BYTES), dtype=np.uint8),
                ],
                axis=1,
            )
            body = np.concatenate([ids.view(np.uint8).reshape(n, 48), tail], axis=1)
            kept = np.concatenate(
                [np.arange(48) < 4 * num_ids[:, None], np.ones((n, _PLACE_BYTES + _KEY_BYTES), dtype=bool)], axis=1
            )
            sizes = 4 * num_ids.astype(np.int64) + _PLACE_BYTES + _KEY_BYTES
            rows = np.zeros(n, dtype=ROW)
            rows["start"] = end + np.cumsum(sizes) - sizes
            rows["prompt_key"] = draw.integers(0, 2**64, n, dtype=np.uint64)
            rows["prompt"], rows["chosen"], rows["rejected"] = lengths.T
            rows["place"], rows["highest_id"] = _PLACE_BYTES, 999
            body[kept].tofile(tokens_file)
            rows.tofile(rows_file)
            end += int(sizes.sum())


def _at_once(folder: Path, ranks: int, reading: bool) -> list[dict[str, Any]]:
    """What each of so many processes saw, which worked at the same time."""
    command = [sys.executable, "-m", "tests.benchmarks.many_pairs", *["--reading"] * reading, "--one", str(folder)]
    running = [
        subprocess.Popen([*command, str(rank), str(ranks)], stdout=subprocess.PIPE, text=True) for rank in range(ranks)
    ]
    answers = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running)
    return [json.loads(answer) for answer in answers]


# One process


def _as_a_rank(folder: Path, rank: int, ranks: int, reading: bool) -> dict[str, Any]:
    """Seconds and peak memory of each part of the work, and what is held after it."""
    held = _resident_bytes()
    seen: dict[str, Any] = {"interpreter": held, "parts": {}}

    def part(name: str, work: Callable[[], Any]) -> Any:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        started = time.process_time()
        result = work()
        seconds = time.process_time() - started
        seen["parts"][name] = {"seconds": seconds, "peak": peak_resident_bytes() - held, "value": str(result)[:60]}
        return result

    account = Account(
        decision="",
        files=[],
        records_read=0,
        pairs_of_source=[],
        dropped=Counter(),
        refused=[],
        counts=Counter(),
        needed={},
        warnings=Counter(),
        samples=[],
        content="",
    )

    def opened(*_: Any) -> EncodedSource:
        return EncodedSource(StoredPairs.open(folder), 0, account, Origin("hit", "", "", 0.0, 0.0))

    recipe = Recipe(
        name="pairs", model=ModelRecipe(path="builtin:guide"), data=DataRecipe(train="-", holdout=_HELD_OUT)
    )
    with patch.object(prepare, "encode_source", opened):
        data = part("open, split by prompt", lambda: prepare.prepare_data(recipe))
    plan = Plan(num_pairs=len(data.train), pairs_per_step=_PAIRS_PER_STEP, num_epochs=2, max_steps=None, seed=42)
    if not reading:
        _go_over_all(part, data, plan)
    part("order, first step", lambda: plan.pairs_of(0)[:3])
    part("fullest micro-batch", lambda: len(plan.fullest_microbatch(data.train, 512, "shared_prefix")))
    part(f"own pairs of {_STEPS_READ} steps", lambda: _read(data, plan, range(_STEPS_READ), rank, ranks))
    part("order, second epoch", lambda: plan.pairs_of(plan.steps_per_epoch)[:3])
    seen["held"] = _resident_bytes() - held
    return seen


def _go_over_all(part: Callable[[str, Callable[[], Any]], Any], data: prepare.PreparedData, plan: Plan) -> None:
    """What the checks, the receipt, the header and the self-check ask of all pairs."""
    part("highest id", lambda: highest_ids_of(data.scored).max())
    part("longest row", lambda: row_tokens_of_each(data.scored).max())
    part("longest pair", lambda: tokens_of_each(data.scored, "shared_prefix").max())
    part("fullest step", lambda: np.sort(tokens_of_each(data.train, "shared_prefix"))[-plan.pairs_per_step :].sum())
    part("identity of the data", lambda: data.identity)
    part("repeated pairs", lambda: repeated_and_contradictory(data.train))
    part("saving", lambda: [tokens_of_each(data.train, packing).sum() for packing in ("padded", "shared_prefix")])
    part("length wins", lambda: _longer_wins(data))
    part("longest, shortest", lambda: [(tokens := tokens_of_each(data.scored, "padded")).argmax(), tokens.argmin()])


def _longer_wins(data: prepare.PreparedData) -> float:
    longer_by = np.concatenate([lengths[:, 1] - lengths[:, 2] for lengths in lengths_in_blocks(data.train)])
    prompts = prompt_keys_of(data.train) if len(repeated_prompt_keys_of(data.train)) else None
    return statistics.longer_wins(longer_by, prompts).value


def _read(data: prepare.PreparedData, plan: Plan, steps: range, rank: int, ranks: int) -> int:
    """Read every `ranks`-th pair of the steps."""
    return sum(data.train[i].num_tokens for step in steps for i in plan.pairs_of(step)[rank::ranks])


def _resident_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def _lines(seen: list[dict[str, Any]]) -> list[str]:
    """A row for each part: seconds (median and range over the processes) and the highest peak of a process."""
    lines = [f"{len(seen)} at once{'':<18}{'seconds':>24}{'peak of one, GB':>18}"]
    for name in seen[0]["parts"]:
        of_part = [one["parts"][name] for one in seen]
        peak = max(one["peak"] for one in of_part) / _GB
        lines.append(
            f"{name:<27}{spread([one['seconds'] for one in of_part]):>24}{peak:>18.2f}   {of_part[0]['value']}"
        )
    held = [one["held"] / _GB for one in seen]
    return [*lines, f"{'held while training':<27}{'':>24}{max(held):>18.2f}   all: {sum(held):.2f}"]


if __name__ == "__main__":
    main()
