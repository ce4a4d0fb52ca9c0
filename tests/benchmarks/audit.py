"""How fast the audit reads pairs, and in how much memory: in words, in full, in tokens, and as the data grow.

    python -m tests.benchmarks.audit [--full] [--rounds N] [--model FOLDER] [--page FOLDER]

The pairs are made up by a fixed seed, about 2.5 KB each, with known shares of repeated prompts, duplicates,
near-duplicates and contradictions, and go into a temporary file. Each measurement is a fresh process, the kinds taking
turns, so that its peak of memory is its own and a busy minute does not fall on one kind alone; most imports are over
before the clock starts. Prints medians with their range as a page, which --page writes into a folder with a plot:
benchmarks-audit.md and benchmarks-audit.svg. Asserts nothing: a time is a fact about a machine, not about the code
alone. Where other programs are busy too, only the seconds of processor say something.

- reading: records to pairs, nothing else.
- without near-duplicates: `simpo stats FILE --json`, its signatures and the search among them put out of action.
- whole audit: `simpo stats FILE --eval OTHER --json`, at an eighth, a quarter, half and all of the pairs.
- in tokens: `simpo stats FILE --tokenizer MODEL --json`, and beside it the tokenizer library alone on the very texts
  and batches that the audit gives it.

The default is 50 MB; --full is 2.5 GB and a million pairs, about ten minutes on two idle cores.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil

from tests.benchmarks.page import plot_file, table
from tests.benchmarks.process import Took, in_own_process, spread, timed

Seen = Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]

PAIRS, FULL_PAIRS = 20_000, 1_000_000
TOKEN_PAIRS, FULL_TOKEN_PAIRS = 2_000, 10_000
ROUNDS, FULL_ROUNDS = 5, 2
SHARES_OF_ALL = (8, 4, 2, 1)  # of the pairs, for the curve
EVALUATION_PAIRS = 2_000
VOCABULARY = 30_000
SHARES = {"duplicate": 0.01, "near-duplicate": 0.01, "contradiction": 0.005, "same prompt": 0.2}
PARTS = (30, 160, 160)  # mean words of prompt, chosen, rejected

_INTRODUCTION = """# Benchmarks: the audit

Written by `{command} --page docs` on {date}, which anyone
can repeat. Numbers are medians with the range in brackets over n = {rounds} fresh processes of each kind, the kinds
taking turns.

{facts}

{pairs:,} pairs made up by a fixed seed, {megabytes:,.0f} MB of JSON lines, with known shares of repeated prompts,
duplicates, near-duplicates and contradictions. *Processor* is the time of all processes of a measurement, *peak memory*
what they hold together. *reading* makes pairs of records and does nothing else; *without near-duplicates* is `simpo
stats FILE --json` with the signatures and the search among them put out of action; *whole audit* is `simpo stats FILE
--eval OTHER --json`.
"""


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
                with files[pairs].open("rb") as source, file.open("wb") as sink:
                    sink.writelines(itertools.islice(source, count))
        write_evaluation(evaluation, pairs, seed=1)
        megabytes = {count: file.stat().st_size / 1e6 for count, file in files.items()}
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
                task = (kind, str(files[count]), str(evaluation), options.model)
                seen[kind, count].append(in_own_process("audit", *task))
    from tests.benchmarks.machine import describe_machine, versions  # imports torch, which a measurement must not

    machine = {**describe_machine(), "versions": versions("rensa", "tokenizers", "numpy")}
    command = "python -m tests.benchmarks.audit" + (" --full" if options.full else "") + f" --model {options.model}"
    print(page := audit_page(machine, seen, megabytes, command))
    print(f"Found in {pairs:,} pairs: {seen['whole audit', pairs][0]['found']}")
    if options.page is not None:
        (options.page / "benchmarks-audit.md").write_text(page, encoding="utf-8")
        plot(seen, options.page / "benchmarks-audit.svg")


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
        changed = {
            "duplicate": (prompt, chosen, rejected),
            "near-duplicate": (prompt, chosen + " indeed", rejected.capitalize()),
            "contradiction": (prompt, rejected, chosen),
        }
        if kind in changed and prompt:
            yield changed[kind]
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
        few = PairReader([DataSource(path=file, max_pairs=100)], role="train", on_no_signal="keep")
        _examined(kind, few, evaluation, model)
    reader = PairReader(file, role="train", on_no_signal="keep")
    found: dict[str, int] = {}
    with _memory() as held:
        if kind == "reading":
            took = timed(lambda: sum(1 for _ in reader))
        elif kind == "library alone":
            took = _library_alone(file, model)
        else:
            document: dict[str, Any] = {}
            took = timed(lambda: document.update(_audit(kind, reader, evaluation, model)))
            found = {one["code"]: one["count"] for one in document["findings"]}
    return {
        "seconds": took.clock,
        "processor_seconds": took.processor,
        "peak_bytes": max(held),
        "found": found,
    }


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


def _library_alone(file: str, model: str) -> Took:
    """What the tokenizer library takes for the texts of the audit, in the audit's batches, ids as lists included."""
    from simpo_cli.data.load import PairReader
    from simpo_cli.data.tokenizer import TextTokenizer
    from tests.benchmarks.sample import tokenizer_calls

    reader = PairReader(file, role="train", on_no_signal="keep")
    calls = tokenizer_calls(lambda: _audit("in tokens", reader, "", model))
    return timed(lambda: [TextTokenizer.encode_batch(*call) for call in calls])


@contextlib.contextmanager
def _memory() -> Iterator[list[int]]:
    """Bytes that this process and those that it has started hold together, looked at ten times a second.

    Of this process all that is resident counts, of the others what is theirs alone: libraries are in memory once.
    """
    seen: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        own = psutil.Process()
        while not seen or not is_over.wait(0.1):
            seen.append(own.memory_info().rss)
            for other in own.children():
                with contextlib.suppress(psutil.Error):  # it has just ended
                    seen[-1] += other.memory_full_info().uss

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        is_over.set()
        thread.join()


# The page


def audit_page(machine: Mapping[str, Any], seen: Seen, megabytes: Mapping[int, float], command: str) -> str:
    """The page as Markdown.

    Args:
        machine: what it was measured on.
        seen: the measurements of each kind at each number of pairs.
        megabytes: of the files, by the number of pairs.
        command: what was typed.
    """
    whole = _whole(seen)
    pairs = max(whole)
    used = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    facts = (
        f"- {machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['system']}\n"
        f"- Python {machine['python']}, {used}"
    )
    introduction = _INTRODUCTION.format(
        command=command,
        date=datetime.date.today().isoformat(),
        rounds=len(whole[pairs]),
        facts=facts,
        pairs=pairs,
        megabytes=megabytes[pairs],
    )
    growth = "## How time grows\n\n![seconds against pairs](benchmarks-audit.svg)\n\n" + _growth(whole)
    return "\n".join([introduction, _table(seen, megabytes), growth, "## In tokens\n\n" + _tokens(seen)])


def _whole(seen: Seen) -> dict[int, Sequence[Mapping[str, Any]]]:
    return {count: measured for (kind, count), measured in seen.items() if kind == "whole audit"}


def _values(measured: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float(one[key]) for one in measured]


def _table(seen: Seen, megabytes: Mapping[int, float]) -> str:
    head = " | pairs | MB | n | seconds | MB/s | processor seconds | MB a processor second | peak memory, MB"
    rows: list[Sequence[str]] = [head.split(" | ")]
    for (kind, count), measured in seen.items():
        size = megabytes[count]
        seconds, processor = (_values(measured, key) for key in ("seconds", "processor_seconds"))
        cells = (
            kind,
            f"{count:,}",
            f"{size:,.0f}",
            f"{len(measured)}",
            spread(seconds, 1),
            spread([size / one for one in seconds], 1),
            spread(processor, 1),
            f"{size / median(processor):.1f}",
            f"{max(_values(measured, 'peak_bytes')) / 1e6:.0f}",
        )
        rows.append(cells)
    return table(rows)


def _growth(whole: Mapping[int, Sequence[Mapping[str, Any]]]) -> str:
    """How much longer twice the pairs take, and the memory that a pair more takes."""
    counts = sorted(whole)
    times = {count: median(_values(whole[count], "seconds")) for count in counts}
    peaks = {count: max(_values(whole[count], "peak_bytes")) for count in counts}
    doubled = ", ".join(
        f"{large / small:.1f} times the pairs took {times[large] / times[small]:.2f} times as long"
        for small, large in itertools.pairwise(counts)
    )
    per_pair = (peaks[counts[-1]] - peaks[counts[0]]) / (counts[-1] - counts[0])
    return f"{doubled[:1].upper()}{doubled[1:]}.\nA pair more takes {per_pair:.0f} bytes at the peak of memory.\n"


def _tokens(seen: Seen) -> str:
    (ours,) = (measured for (kind, _), measured in seen.items() if kind == "in tokens")
    (library,) = (measured for (kind, _), measured in seen.items() if kind == "library alone")
    said = []
    for key, name in (("seconds", "by the clock"), ("processor_seconds", "by processor time")):
        shares = [100 * b / a for a, b in zip(_values(ours, key), _values(library, key), strict=True)]
        said.append(f"{spread(shares, 0)} % {name}")
    return (
        "`simpo stats FILE --tokenizer MODEL --json`, the rest of the audit included, against the tokenizer library\n"
        f"alone on the same texts in the same batches: {', '.join(said)}.\n"
    )


def plot(seen: Seen, file: Path) -> None:
    """Seconds against pairs, every measurement a point, with the straight line through nought and the last median."""
    whole = _whole(seen)
    with plot_file(file, 1, 6.0) as axes:
        most = max(whole)
        axes.plot([0, most], [0, median(_values(whole[most], "seconds"))], color="0.7", label="in proportion")
        for number, (count, measured) in enumerate(whole.items()):
            seconds = _values(measured, "seconds")
            axes.plot([count] * len(seconds), seconds, "o", color="C0", label=None if number else "whole audit")
        axes.set_xlabel("pairs")
        axes.set_ylabel("seconds")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False)


if __name__ == "__main__":
    main()
