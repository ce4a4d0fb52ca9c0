"""What `tests.benchmarks.loading` measures, in a process of its own: prepare a file, or time its tokenizing."""

import json
import sys
import time
from typing import Any

from simpo_cli.data.encode import encode_pairs, pair_batches
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.plan import Plan
from simpo_cli.data.prepare import prepare_data
from simpo_cli.data.store import lengths_of
from simpo_cli.data.tokenizer import SpecialTokenMode, TextTokenizer, load_tokenizer
from simpo_cli.recipe.schema import DataRecipe, ModelRecipe, Recipe
from tests.benchmarks.resident import peak_resident_bytes
from tests.data.loading import load_pairs

_ROUNDS = 3
_PAIRS = 2048


def prepare(file: str, model: str) -> dict[str, Any]:
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


class _Listening(TextTokenizer):
    """A tokenizer that remembers the texts it is given."""

    calls: list[tuple[list[str], SpecialTokenMode]]

    def encode_batch(self, texts: Any, way: SpecialTokenMode = "parsed") -> list[list[int]]:
        self.calls.append((list(texts), way))
        return super().encode_batch(texts, way)


def speed(file: str, model: str) -> dict[str, Any]:
    """Seconds of wall and of processor time for pairs to tokens: ours, and the library's own on two sets of texts.

    `same` are the texts that our encoder gives the library, which hold each prompt once; `whole` are the prompt and the
    prompt with each answer, as they are without our encoder.
    """
    pairs = load_pairs(file, role="train").pairs[:_PAIRS]
    tokenizer, data = load_tokenizer(model), DataRecipe(train=file)
    encode_pairs(pairs[:64], tokenizer, data)
    tokenizer.__class__, tokenizer.calls = _Listening, []  # type: ignore[attr-defined]
    encode_pairs(pairs, tokenizer, data)
    tokenizer.__class__, same = TextTokenizer, tokenizer.calls  # type: ignore[attr-defined]
    whole = [
        ([text for pair in batch for text in _whole_texts(tokenizer, pair)], "parsed") for batch in pair_batches(pairs)
    ]

    def library(calls: Any) -> None:
        for texts, way in calls:
            tokenizer.encode_batch(texts, way)

    seen: dict[str, Any] = {"pairs": len(pairs), "ours": [], "same": [], "whole": []}
    for _ in range(_ROUNDS):
        seen["ours"].append(_seconds(lambda: encode_pairs(pairs, tokenizer, data)))
        seen["same"].append(_seconds(lambda: library(same)))
        seen["whole"].append(_seconds(lambda: library(whole)))
    return seen


def _whole_texts(tokenizer: TextTokenizer, pair: PreferencePair) -> list[str]:
    turns = [Message("user", pair.prompt)] if isinstance(pair.prompt, str) else list(pair.prompt)
    if tokenizer.has_template:
        prompt = tokenizer.render(turns, generation_prompt=True)
    else:
        prompt = "\n".join(turn.content for turn in turns)
    return [prompt, prompt + pair.chosen, prompt + pair.rejected]


def _seconds(work: Any) -> tuple[float, float]:
    started, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started, time.process_time() - processor


if __name__ == "__main__":
    print(json.dumps({"prepare": prepare, "speed": speed}[sys.argv[1]](*sys.argv[2:])))
