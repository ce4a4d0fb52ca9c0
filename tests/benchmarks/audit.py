"""How fast the audit reads pairs, and in how much memory: in words, in full, in tokens, and as the data grow.

    python -m tests.benchmarks.audit [--full] [--rounds N] [--model FOLDER] [--page FOLDER]

The pairs are made up by a fixed seed, about 2.5 KB each, with known shares of repeated prompts, duplicates,
near-duplicates and contradictions, and go into a temporary file. Each measurement is a fresh process, the kinds taking
turns, so that its peak of memory is its own and a busy minute does not fall on one kind alone; most imports are over
before the clock starts. Prints medians with their range, and the seconds of processor of all processes of a
measurement. Asserts nothing: a time is a fact about a machine, not about the code alone. Where other programs are busy
too, only the seconds of processor say something.

- reading: records to pairs, nothing else.
- without near-duplicates: `simpo stats FILE --json`, its signatures and the search among them put out of action.
- whole audit: `simpo stats FILE --eval OTHER --json`, at an eighth, a quarter, half and all of the pairs.
- in tokens: `simpo stats FILE --tokenizer MODEL --json`, and beside it the tokenizer library alone on the very texts
  and batches that the audit gives it.

The default is 50 MB; --full is 2.5 GB and a million pairs, about ten minutes on two idle cores. --page writes
benchmarks-audit.md and benchmarks-audit.svg into a folder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.audit_page import print_heading, print_line, write_audit_page

PAIRS, FULL_PAIRS = 20_000, 1_000_000
TOKEN_PAIRS, FULL_TOKEN_PAIRS = 2_000, 10_000
ROUNDS, FULL_ROUNDS = 5, 2
SHARES_OF_ALL = (8, 4, 2, 1)  # of the pairs, for the curve
EVALUATION_PAIRS = 2_000
VOCABULARY = 30_000
SHARES = {"duplicate": 0.01, "near-duplicate": 0.01, "contradiction": 0.005, "same prompt": 0.2}
PARTS = (30, 160, 160)  # mean words of prompt, chosen, rejected


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="2.5 GB, a million pairs; about ten minutes on idle cores")
    parser.add_argument("--rounds", type=int, help=f"{ROUNDS}, or {FULL_ROUNDS} with --full")
    parser.add_argument("--model", default="builtin:guide", help="whose tokenizer counts tokens")
    parser.add_argument("--page", type=Path, metavar="FOLDER", help="write the page there, such as docs")
    parser.add_argument("--one", nargs=4, metavar=("KIND", "FILE", "EVAL", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(*options.one)))
        return
    pairs = FULL_PAIRS if options.full else PAIRS
    num_tokenized = FULL_TOKEN_PAIRS if options.full else TOKEN_PAIRS
    rounds = options.rounds or (FULL_ROUNDS if options.full else ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        sizes = [pairs // share for share in SHARES_OF_ALL]
        files = {count: Path(folder) / f"{count}.jsonl" for count in (*sizes, num_tokenized)}
        evaluation = Path(folder) / "eval.jsonl"
        write_pairs(files[pairs], pairs, seed=1)
        for count, file in files.items():
            if count != pairs:
                _write_first(file, files[pairs], count)
        write_evaluation(evaluation, pairs, seed=1)
        megabytes = {count: file.stat().st_size / 1e6 for count, file in files.items()}
        machine = _machine()
        print_heading(machine, pairs, megabytes[pairs], rounds)
        runs = [
            ("reading", pairs),
            ("without near-duplicates", pairs),
            *(("whole audit", count) for count in sizes),
            ("in tokens", num_tokenized),
            ("library alone", num_tokenized),
        ]
        seen: dict[tuple[str, int], list[dict[str, Any]]] = {run: [] for run in runs}
        for _ in range(rounds):
            for kind, count in runs:
                command = [sys.executable, "-m", "tests.benchmarks.audit", "--one", kind, str(files[count])]
                done = subprocess.run(
                    [*command, str(evaluation), options.model], check=True, stdout=subprocess.PIPE, text=True
                )
                seen[kind, count].append(json.loads(done.stdout))
    for (kind, count), measured in seen.items():
        print_line(kind, count, megabytes[count], measured)
    ours, library = (seen[kind, num_tokenized] for kind in ("in tokens", "library alone"))
    shares = [100 * b["seconds"] / a["seconds"] for a, b in zip(ours, library, strict=True)]
    print(
        f"\nin tokens: {statistics.median(shares):.0f} % ({min(shares):.0f} to {max(shares):.0f}) of the library's own "
        "speed, with all the rest of the audit"
    )
    print(f"found in {pairs:,} pairs: {seen['whole audit', pairs][0]['found']}")
    if options.page is not None:
        command = "python -m tests.benchmarks.audit" + (" --full" if options.full else "") + f" --model {options.model}"
        write_audit_page(options.page, machine, seen, megabytes, command)


def _write_first(file: Path, whole: Path, count: int) -> None:
    """The first records of the whole file."""
    with whole.open("rb") as source, file.open("wb") as sink:
        for _, line in zip(range(count), source, strict=False):
            sink.write(line)


# The pairs


def write_pairs(path: Path, count: int, *, seed: int) -> None:
    """Made-up pairs as JSON lines; words are drawn as in natural text, the k-th word with a weight of 1 / k."""
    with path.open("w", encoding="utf-8") as file:
        for prompt, chosen, rejected in made_pairs(count, seed):
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")


def write_evaluation(path: Path, count: int, *, seed: int) -> None:
    """Other pairs, of which every fourth has a prompt of the training pairs, every eighth one in capitals."""
    with path.open("w", encoding="utf-8") as file:
        both = zip(made_pairs(EVALUATION_PAIRS, seed + 1), made_pairs(count, seed), strict=False)
        for number, ((prompt, chosen, rejected), (known, _, _)) in enumerate(both):
            prompt = (prompt, known, prompt, prompt, prompt, known.upper(), prompt, prompt)[number % 8]
            file.write(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")


def made_pairs(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """Prompt, chosen, rejected; some are made of the one before as SHARES says."""
    draw = np.random.default_rng(seed)
    letters = draw.integers(97, 123, (VOCABULARY, 12), dtype=np.uint8)
    lengths = draw.integers(2, 12, VOCABULARY)
    words = np.array([bytes(row[:length]).decode() for row, length in zip(letters, lengths, strict=True)], dtype=object)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    bounds = np.cumsum(weights / weights.sum())
    prompt = chosen = rejected = ""
    for kind in draw.choice([*SHARES, "new"], size=count, p=[*SHARES.values(), 1 - sum(SHARES.values())]):
        if kind == "duplicate" and prompt:
            yield prompt, chosen, rejected
            continue
        if kind == "near-duplicate" and prompt:
            yield prompt, chosen + " indeed", rejected.capitalize()
            continue
        if kind == "contradiction" and prompt:
            yield prompt, rejected, chosen
            continue
        sizes = draw.integers(np.array(PARTS) // 2, np.array(PARTS) * 3 // 2)
        text = words[np.searchsorted(bounds, draw.random(sizes.sum()))].tolist()
        first, second = sizes[0], sizes[0] + sizes[1]
        if kind != "same prompt" or not prompt:
            prompt = " ".join(text[:first]).capitalize() + "?"
        chosen = _sentences(text[first:second])
        rejected = _sentences(text[second:])
        yield prompt, chosen, rejected


def _sentences(words: list[str]) -> str:
    return "\n\n".join(" ".join(words[i : i + 40]).capitalize() + "." for i in range(0, len(words), 40))


# One measurement, in a process of its own


def measure(kind: str, file: str, evaluation: str, model: str) -> dict[str, Any]:
    """Seconds, the peak of memory in bytes, and what was found."""
    from simpo_cli.data.load import PairReader
    from simpo_cli.recipe.schema import DataSource

    if kind not in ("reading", "library alone"):
        _examined(
            kind,
            PairReader([DataSource(path=file, max_pairs=100)], role="train", on_no_signal="keep"),
            evaluation,
            model,
        )
    reader = PairReader(file, role="train", on_no_signal="keep")
    found: dict[str, int] = {}
    with _Memory() as memory:
        if kind == "reading":
            times = _times_of(lambda: sum(1 for _ in reader))
        elif kind == "library alone":
            times = _library_times(file, model)
        else:
            document: dict[str, Any] = {}
            times = _times_of(lambda: document.update(_audit(kind, reader, evaluation, model)))
            found = {one["code"]: one["count"] for one in document["findings"]}
    return {**times, "peak_bytes": memory.peak_bytes, "found": found}


def _audit(kind: str, reader: Any, evaluation: str, model: str) -> dict[str, Any]:
    """The document, as the command makes it."""
    examination = _examined(kind, reader, evaluation, model)
    from simpo_cli.audit.document import stats_document  # with scipy, which takes memory and comes late

    return stats_document(examination, version="-")


def _examined(kind: str, reader: Any, evaluation: str, model: str) -> Any:
    from simpo_cli.audit.duplicates import read_prompts
    from simpo_cli.audit.examine import NO_LIMIT, Tokens, examine
    from simpo_cli.data.load import PairReader
    from simpo_cli.data.tokenizer import load_tokenizer
    from simpo_cli.recipe.schema import DataRecipe

    if kind == "without near-duplicates":
        _leave_out_near_duplicates()
    tokens, prompts = None, None
    if kind == "in tokens":
        data = DataRecipe(train="-", max_length=NO_LIMIT, max_prompt_length=NO_LIMIT - 1)
        tokens = Tokens(load_tokenizer(model), data)
    if kind == "whole audit":
        prompts = read_prompts(PairReader(evaluation, role="eval", on_no_signal="keep"))
    return examine(reader, tokens, evaluation=prompts)


def _leave_out_near_duplicates() -> None:
    """Put signatures and the search among them out of action, here and in the processes that measure."""
    from simpo_cli.audit import examine, reading
    from simpo_cli.audit.duplicates import NearPairs
    from tests.benchmarks import audit  # the processes know this module by that name

    none = np.empty(0, dtype=np.int64)
    examine.find_near_pairs = lambda *_, **__: NearPairs(none, none, none)
    reading.measure = audit.measure_without_signatures


def measure_without_signatures(pairs: Sequence[Any], *, own: tuple[str, ...] | None) -> Any:
    """What the texts of pairs show, with blank signatures."""
    from simpo_cli.audit import measures

    blank = np.zeros((3 * len(pairs), measures.SIGNATURE_BYTES), dtype=np.uint8)
    measures.signatures_of = lambda _: blank
    return measures.measure(pairs, own=own)


def _library_times(file: str, model: str) -> dict[str, float]:
    """What the tokenizer library takes for the texts of the audit, in the audit's batches, ids as lists included."""
    from simpo_cli.data.load import PairReader
    from simpo_cli.data.tokenizer import TextTokenizer

    batches: list[tuple[TextTokenizer, list[str], Any]] = []
    encode = TextTokenizer.encode_batch

    def noted(self: TextTokenizer, texts: Sequence[str], way: Any = "parsed") -> list[list[int]]:
        batches.append((self, list(texts), way))
        return encode(self, texts, way)

    TextTokenizer.encode_batch = noted  # type: ignore[method-assign]
    _audit("in tokens", PairReader(file, role="train", on_no_signal="keep"), "", model)
    TextTokenizer.encode_batch = encode  # type: ignore[method-assign]
    return _times_of(lambda: [encode(*batch) for batch in batches])


def _times_of(work: Callable[[], object]) -> dict[str, float]:
    """Seconds by the clock, and of processor: of this process and of those that it has started and that have ended."""
    started, before = time.perf_counter(), os.times()
    work()
    used = sum(after - earlier for after, earlier in zip(os.times()[:4], before[:4], strict=True))
    return {"seconds": time.perf_counter() - started, "processor_seconds": used}


class _Memory:
    """The most memory that this process and those that it has started hold together, looked at ten times a second.

    Of this process all that is resident counts, of the others what is theirs alone: libraries are in memory once.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while True:
            held = own.memory_info().rss
            for other in own.children():
                try:
                    held += other.memory_full_info().uss
                except psutil.Error:  # it has just ended
                    continue
            self.peak_bytes = max(self.peak_bytes, held)
            if self._is_over.wait(0.1):
                return


def _machine() -> dict[str, Any]:
    from tests.benchmarks.machine import describe_machine, versions  # imports torch, which a measurement must not

    return {**describe_machine(), "versions": versions("rensa", "tokenizers", "numpy")}


if __name__ == "__main__":
    main()
