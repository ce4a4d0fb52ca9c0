"""Files to tokens: memory at two sizes of input, time of a cache miss and of a hit, speed against the tokenizer's own.

    python -m tests.benchmarks.loading [--full] [--model FOLDER] [--megabytes SMALL LARGE]

Writes made-up JSON lines of real words into a temporary folder, and prepares them in processes of their own with a
cache of their own, as `simpo train` does before it loads a model; their tokenizer splits into words, so that it is the
loader that is measured. `--full` goes to 2 GB. The speed against the library is that of the tokenizer that --model
names. Prints what was seen on this machine, and asserts nothing.
"""

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from simpo_cli.data.encode import encode_pairs, pair_batches
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.plan import Plan
from simpo_cli.data.prepare import prepare_data
from simpo_cli.data.store import lengths_of
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.recipe.schema import DataRecipe, ModelRecipe, Recipe
from tests.benchmarks.process import in_own_process, peak_resident_bytes, spread, timed
from tests.benchmarks.sample import tokenizer_calls
from tests.data.pair_files import load_pairs

_MB = 10**6
_WORDS = "builtin:guide"  # a tokenizer that takes next to no time
_ROUNDS, _PAIRS = 3, 2048  # of the comparison with the library
_BODIES = 400  # different bodies of records; the number in front makes each record another


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=_WORDS, help="whose tokenizer is compared with the library alone")
    parser.add_argument("--megabytes", type=int, nargs=2, default=None, help="the two sizes of input")
    parser.add_argument("--full", action="store_true", help="128 and 2,048 MB; about ten minutes on two idle cores")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "FILE", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        what, *of = options.one
        print(json.dumps({"prepare": _prepare, "speed": _speed}[what](*of)))
        return
    sizes = options.megabytes or ([128, 2048] if options.full else [8, 32])
    with tempfile.TemporaryDirectory(prefix="simpo-loading-") as folder:
        measured = [_measured(Path(folder), size, _WORDS) for size in sizes]
        speed = in_own_process("loading", "speed", measured[0]["file"], options.model, SIMPO_CACHE=folder)
    print("\n".join([f"tokenizer of {_WORDS}, {os.cpu_count()} cores", *_size_lines(measured)]))
    print("\n".join([f"tokenizer of {options.model}", *_speed_lines(speed)]))


def _measured(folder: Path, megabytes: int, model: str) -> dict[str, Any]:
    file = folder / f"{megabytes}.jsonl"
    _write_records(file, megabytes * _MB)
    cache = str(folder / f"cache-{megabytes}")
    miss, hit = (in_own_process("loading", "prepare", str(file), model, SIMPO_CACHE=cache) for _ in range(2))
    assert (miss["cache"], hit["cache"]) == ("miss", "hit")
    return {"megabytes": megabytes, "file": str(file), "miss": miss, "hit": hit}


def _write_records(file: Path, size: int) -> None:
    """Records as long as UltraFeedback's, of the words of the built-in pairs."""
    draw = random.Random(1)
    words = " ".join(pair.chosen for pair in load_pairs("builtin:guide", role="train").pairs).split()

    def text(mean: int) -> str:
        return " ".join(draw.choice(words) for _ in range(max(1, round(draw.expovariate(1 / mean)))))

    bodies = [json.dumps({"chosen": text(195), "rejected": text(174)})[1:] for _ in range(_BODIES)]
    prompts = [text(120) for _ in range(_BODIES)]
    written = number = 0
    with file.open("w", encoding="utf-8") as stream:
        while written < size:
            number += 1
            prompt = json.dumps(f"{number}: {prompts[number % _BODIES]}")
            written += stream.write(f'{{"prompt": {prompt}, {bodies[number * 7 % _BODIES]}\n')


# One measurement, in a process of its own


def _prepare(file: str, model: str) -> dict[str, Any]:
    """Everything that `simpo train` does with the data before it loads a model, then one epoch of reading the pairs."""
    recipe = Recipe(name="loading", model=ModelRecipe(path=model), data=DataRecipe(train=file))
    load_tokenizer(model)
    before = peak_resident_bytes()
    started = time.perf_counter()
    data = prepare_data(recipe)
    seconds, prepared = time.perf_counter() - started, peak_resident_bytes()
    plan = Plan(num_pairs=len(data.train), pairs_per_step=128, num_epochs=1, max_steps=None, seed=42)
    for step in range(plan.num_steps):
        for i in plan.pairs_of(step):
            assert data.train[i].num_tokens
    return {
        "cache": data.train_source.origin.cache,
        "pairs": len(data.scored),
        "tokens": int(lengths_of(data.scored).sum()),
        "seconds": seconds,
        "before_bytes": before,
        "prepared_bytes": prepared,
        "epoch_bytes": peak_resident_bytes(),
    }


def _speed(file: str, model: str) -> dict[str, Any]:
    """Seconds of wall and of processor time for pairs to tokens: ours, and the library's own on two sets of texts.

    `same` are the texts that our encoder gives the library, which hold each prompt once; `whole` are the prompt and the
    prompt with each answer, as they are without our encoder.
    """
    pairs = load_pairs(file, role="train").pairs[:_PAIRS]
    tokenizer, data = load_tokenizer(model), DataRecipe(train=file)
    encode_pairs(pairs[:64], tokenizer, data)
    same = tokenizer_calls(lambda: encode_pairs(pairs, tokenizer, data))
    whole = [[text for pair in batch for text in _whole_texts(tokenizer, pair)] for batch in pair_batches(pairs)]
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: encode_pairs(pairs, tokenizer, data),
        "same": lambda: [TextTokenizer.encode_batch(*call) for call in same],
        "whole": lambda: [tokenizer.encode_batch(texts) for texts in whole],
    }
    rounds = [{name: timed(work) for name, work in works.items()} for _ in range(_ROUNDS)]
    return {"pairs": len(pairs), **{name: [seen[name] for seen in rounds] for name in works}}


def _whole_texts(tokenizer: TextTokenizer, pair: PreferencePair) -> list[str]:
    turns = [Message("user", pair.prompt)] if isinstance(pair.prompt, str) else list(pair.prompt)
    if tokenizer.has_template:
        prompt = tokenizer.render(turns, generation_prompt=True)
    else:
        prompt = "\n".join(turn.content for turn in turns)
    return [prompt, prompt + pair.chosen, prompt + pair.rejected]


# What was seen


def _size_lines(seen: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"{'input':>9}{'pairs':>11}{'tokens':>14}{'peak memory of a process, MB':>40}{'seconds':>22}",
        f"{'MB':>9}{'':>11}{'':>14}{'before':>12}{'miss':>9}{'hit':>9}{'epoch':>10}{'miss':>10}{'hit':>12}",
    ]
    for row in seen:
        miss, hit = row["miss"], row["hit"]
        memory = [miss["before_bytes"], miss["prepared_bytes"], hit["prepared_bytes"], hit["epoch_bytes"]]
        lines.append(
            f"{row['megabytes']:>9,}{miss['pairs']:>11,}{miss['tokens']:>14,}"
            + "".join(f"{size / _MB:>{width}.0f}" for size, width in zip(memory, (12, 9, 9, 10), strict=True))
            + f"{miss['seconds']:>10.1f}{hit['seconds']:>12.2f}"
        )
    small, large = seen
    extra = large["miss"]["prepared_bytes"] - small["miss"]["prepared_bytes"]
    pairs = large["miss"]["pairs"] - small["miss"]["pairs"]
    times = large["megabytes"] / small["megabytes"]
    longer = large["miss"]["seconds"] / small["miss"]["seconds"]
    more = f"{extra / _MB:+.0f} MB: {extra / pairs:.0f} bytes a pair"
    return [*lines, f"{times:.0f} times the input takes {longer:.1f} times as long, and {more}"]


def _speed_lines(speed: dict[str, Any]) -> list[str]:
    """Our speed as a share of the library's: by the clock, and by processor time, which neighbours disturb less."""
    pairs, ours = speed["pairs"], speed["ours"]
    lines = [f"pairs to tokens: {pairs / min(wall for wall, _ in ours):,.0f} pairs a second, best of {len(ours)}"]
    for name, texts in (("same", "on the same texts"), ("whole", "on every prompt and answer whole")):
        shares = [[100 * library[i] / mine[i] for library, mine in zip(speed[name], ours, strict=True)] for i in (0, 1)]
        clock, processor = (spread(one, 0, unit=" %") for one in shares)
        lines.append(f"of the library's own speed {texts}: {clock} by the clock, {processor} by processor time")
    return lines


if __name__ == "__main__":
    main()
