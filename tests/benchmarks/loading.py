"""Files to tokens: memory at two sizes of input, time of a cache miss and of a hit, speed against the tokenizer's own.

    python -m tests.benchmarks.loading [--full] [--model FOLDER] [--megabytes SMALL LARGE] [--page FOLDER]

Writes made-up JSON lines of real words into a temporary folder, and prepares them in processes of their own with a
cache of their own, as `simpo train` does before it loads a model; their tokenizer splits into words, so that it is the
loader that is measured. `--full` goes to 2 GB. The speed against the library is that of the tokenizer that --model
names. Prints what was seen on this machine, and asserts nothing; --page writes the same into benchmarks-loading.md.
"""

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_MB = 10**6
_WORDS = "builtin:guide"  # a tokenizer that takes next to no time
_PAGE = """# Benchmarks: files to tokens

Written by `{command} --page docs` on {date}, which anyone
can repeat: made-up JSON lines as long as UltraFeedback's, prepared as `simpo train` does before it loads a model, once
with the tokens made (miss) and once with the tokens from the cache (hit), then read for an epoch. Every number of the
first table is of one process.

```
{sizes}
```

Pairs to tokens, one batch after the other, against the tokenizer library alone (medians with the range of n = 3 rounds,
both sides in turn):

```
{speed}
```
"""
_BODIES = 400  # different bodies of records; the number in front makes each record another


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=_WORDS, help="whose tokenizer is compared with the library alone")
    parser.add_argument("--megabytes", type=int, nargs=2, default=None, help="the two sizes of input")
    parser.add_argument("--full", action="store_true", help="128 and 2,048 MB; about ten minutes on two idle cores")
    parser.add_argument("--page", type=Path, metavar="FOLDER", help="write the page there, such as docs")
    options = parser.parse_args()
    sizes = options.megabytes or ([128, 2048] if options.full else [8, 32])
    with tempfile.TemporaryDirectory(prefix="simpo-loading-") as folder:
        seen = [_measured(Path(folder), size, _WORDS) for size in sizes]
        speed = _in_own_process(["speed", seen[0]["file"], options.model], folder)
    said = [f"tokenizer of {_WORDS}, {os.cpu_count()} cores", *_sizes_said(seen)]
    faster = [f"tokenizer of {options.model}", *_speed_said(speed)]
    print("\n".join([*said, *faster]))
    if options.page is not None:
        command = "python -m tests.benchmarks.loading" + (" --full" if options.full else "")
        page = _PAGE.format(
            command=f"{command} --model {options.model}",
            date=datetime.date.today().isoformat(),
            sizes="\n".join(said),
            speed="\n".join(faster),
        )
        (options.page / "benchmarks-loading.md").write_text(page, encoding="utf-8")


def _measured(folder: Path, megabytes: int, model: str) -> dict[str, Any]:
    file = folder / f"{megabytes}.jsonl"
    _write_records(file, megabytes * _MB)
    environment = str(folder / f"cache-{megabytes}")
    miss, hit = (_in_own_process(["prepare", str(file), model], environment) for _ in range(2))
    assert (miss["cache"], hit["cache"]) == ("miss", "hit")
    return {"megabytes": megabytes, "file": str(file), "miss": miss, "hit": hit}


def _write_records(file: Path, size: int) -> None:
    """Records as long as UltraFeedback's, of the words of the built-in pairs."""
    from tests.data.loading import load_pairs

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


def _in_own_process(task: Sequence[str], cache: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.loading_side", *task],
        env={**os.environ, "SIMPO_CACHE": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _sizes_said(seen: Sequence[dict[str, Any]]) -> list[str]:
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
    lines.append(f"{times:.0f} times the input takes {longer:.1f} times as long, and {extra / _MB:+.0f} MB: ")
    lines[-1] += f"{extra / pairs:.0f} bytes a pair"
    return lines


def _speed_said(speed: dict[str, Any]) -> list[str]:
    """Our speed as a share of the library's: by the clock, and by processor time, which neighbours disturb less."""
    pairs, ours = speed["pairs"], speed["ours"]
    lines = [f"pairs to tokens: {pairs / min(wall for wall, _ in ours):,.0f} pairs a second, best of {len(ours)}"]
    for name, said in (("same", "on the same texts"), ("whole", "on every prompt and answer whole")):
        shares = [[100 * library[i] / mine[i] for library, mine in zip(speed[name], ours, strict=True)] for i in (0, 1)]
        clock, processor = (f"{statistics.median(one):.0f} % ({min(one):.0f} to {max(one):.0f})" for one in shares)
        lines.append(f"of the library's own speed {said}: {clock} by the clock, {processor} by processor time")
    return lines


if __name__ == "__main__":
    main()
