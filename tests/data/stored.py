"""Pairs to be stored: records of a file, and made-up tokens."""

import random
from pathlib import Path
from typing import Any

import numpy as np

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import EncodedSource, encode_source
from simpo_cli.data.store.pairs import PairWriter, StoredPairs
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe, DataSource

DATA = DataRecipe(train="-", max_length=48, max_prompt_length=24)


def records(count: int, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = ["open", "settings", "choose", "people", "<|im_end|>", "naïve", "press", "the", "address", "🙂"]

    def text(most: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(1, most)))

    return [
        {"prompt": f"{draw.randrange(count)} {text(30)}", "chosen": text(40), "rejected": text(9)} for _ in range(count)
    ]


def encoded(path: str | list[DataSource], tokenizer: TextTokenizer, data: DataRecipe = DATA) -> EncodedSource:
    sources = [DataSource(path=path)] if isinstance(path, str) else path
    return encode_source(sources, "train", data, tokenizer)


def plain(pair: EncodedPair) -> tuple[Any, ...]:
    tokens = (pair.prompt.tolist(), pair.chosen.tolist(), pair.rejected.tolist())
    return (*tokens, pair.prompt_key, pair.where, pair.prompt_cut, pair.chosen_cut, pair.rejected_cut, pair.pair_key)


def made_up(count: int, seed: int) -> list[EncodedPair]:
    draw = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return draw.integers(0, 2**31 - 1, draw.integers(1, 9), dtype=np.int32)

    flags = draw.integers(0, 2, (count, 3)).astype(bool).tolist()
    keys = [f"{int(key):016x}" for key in draw.integers(0, 2**64, count, dtype=np.uint64)]
    texts = [draw.bytes(16).hex() for _ in range(count)]
    places = ["a.jsonl:17", "b c.json, record 3", "中文/🙂.csv:1", "\udcff.jsonl:2", ""]
    return [
        EncodedPair(ids(), ids(), ids(), keys[i], places[i % len(places)], *flags[i], texts[i]) for i in range(count)
    ]


def written(folder: Path, pairs: list[EncodedPair]) -> StoredPairs:
    folder.mkdir()
    writer = PairWriter(folder)
    for start in range(0, len(pairs), 7):
        writer.add(pairs[start : start + 7])
    writer.close()
    return StoredPairs.open(folder)
