"""Which share of pairs with changed words the search for near-duplicates finds, by how many words were changed.

    python -m tests.benchmarks.near [--rounds N] [--pairs N]

Pairs are made up by fixed seeds, in words with spaces (prompts of 15 to 45 words, responses of 80 to 240) and in
Chinese characters (as many). Of each pair a copy is made in which one word, or character, in so many is another one: in
all three texts at equal distances, the first of them drawn; or in the prompt alone, the responses staying as they are.
All pairs and their copies are searched together, as `simpo stats` does. Prints the share of copies that are found
(DUP002) as mean over the rounds with the range in brackets, and whatever is found beside the copies. Beyond the rule in
docs/stats.md the shares are those of false pairs. Asserts nothing; tests/audit/test_duplicates.py does.
"""

import argparse
import random
from collections.abc import Sequence
from statistics import mean

import numpy as np

from simpo_cli.audit.duplicates import find_near_pairs
from simpo_cli.audit.signatures import SIGNATURE_BYTES, signatures_of
from tests.benchmarks.audit import made_pairs

EVERY = (5, 8, 10, 12, 15, 20, 25, 30, 40)
SHORT = (6, 8, 10, 12, 15, 20, 30)
PAIRS, ROUNDS = 400, 5
_LETTERS = [chr(number) for number in range(0x4E00, 0x4E00 + 3000)]  # of Chinese

Texts = tuple[str, str, str]


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    print(f"n = {options.pairs} pairs in each of {options.rounds} rounds\n")
    print(f"{'one changed in':<16}{'words':>24}{'characters':>24}")
    for every in EVERY:
        rounds = [
            [found_share(made(options.pairs, seed, spaced), every, seed, spaced) for seed in range(options.rounds)]
            for spaced in (True, False)
        ]
        print(f"{every:<16}{_said(rounds[0]):>24}{_said(rounds[1]):>24}", flush=True)
    print("\nonly the prompt is another one, by one word\nwords of prompt")
    for length in SHORT:
        shares = [one_word_share(options.pairs, length, seed) for seed in range(options.rounds)]
        print(f"{length:<16}{_said(shares):>24}", flush=True)


def _said(shares: Sequence[float]) -> str:
    return f"{100 * mean(shares):.1f} % ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def made(count: int, seed: int, spaced: bool) -> list[Texts]:
    """Pairs of which no two are alike, in words or in Chinese characters."""
    if spaced:
        texts = {pair[0]: pair for pair in made_pairs(2 * count, seed)}  # one a prompt
        return list(texts.values())[:count]
    draw = random.Random(seed)
    sizes = ((15, 45), (80, 240), (80, 240))
    return [tuple(_characters(draw.randint(*size), draw) for size in sizes) for _ in range(count)]  # type: ignore[misc]


def _characters(count: int, draw: random.Random) -> str:
    return "".join(_LETTERS[min(len(_LETTERS) - 1, int(draw.paretovariate(0.6)))] for _ in range(count))


def changed(text: str, every: int, draw: random.Random, spaced: bool) -> str:
    """A text in which one word, or character, in so many is another one."""
    parts = text.split(" ") if spaced else list(text)
    for place in range(draw.randrange(every), len(parts), every):
        parts[place] = f"new{draw.randrange(10**6)}" if spaced else draw.choice(_LETTERS)
    return (" " if spaced else "").join(parts)


def found_share(pairs: Sequence[Texts], every: int, seed: int, spaced: bool) -> float:
    """Which share of changed copies is found; what is found beside them would be an error of its own."""
    draw = random.Random(seed + 1000 * every)
    return _share(pairs, [tuple(changed(text, every, draw, spaced) for text in pair) for pair in pairs])


def one_word_share(count: int, length: int, seed: int) -> float:
    """Which share of pairs is taken for near-duplicates whose prompts of this many words differ in one of them."""
    draw = random.Random(seed)
    pairs = [(" ".join((prompt.split(" ") * 9)[:length]), *rest) for prompt, *rest in made(count, seed, spaced=True)]
    others = [(changed(prompt, length, draw, spaced=True), *rest) for prompt, *rest in pairs]
    return _share(pairs, others)


def _share(pairs: Sequence[Texts], copies: Sequence[Sequence[str]]) -> float:
    signed = signatures_of([text for pair in (*pairs, *copies) for text in pair]).reshape(-1, 3, SIGNATURE_BYTES)
    none = np.empty(0, dtype=np.int64)
    found = find_near_pairs(signed, none, none).duplicates
    assert (found >= len(pairs)).all(), "two pairs that were made apart are taken for near-duplicates"
    return len(found) / len(pairs)


if __name__ == "__main__":
    main()
