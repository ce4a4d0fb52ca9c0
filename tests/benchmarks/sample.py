"""The pairs that a benchmark runs on: a fixed sample by hash, the same on every machine."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.tokenizer import SpecialTokenMode, TextTokenizer, load_tokenizer
from simpo_cli.recipe.schema import DataRecipe
from tests.benchmarks.work import WorkPair
from tests.data.pair_files import load_pairs

SEED = 20240523
MAX_LENGTH, MAX_PROMPT_LENGTH = 1024, 512
WARM_UP_CHOICE = 4  # the warm-up step takes the shortest of so many steps' pairs


class TooFewError(ValueError):
    """A data set has fewer pairs than the steps need."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """A file of pairs and what people call it."""

    key: str
    title: str
    file: str


DATA_SETS = (
    DataSet("hh", "HH-RLHF (harmless)", "hh_rlhf_harmless_base_test_public.jsonl.gz"),
    DataSet("ultrafeedback", "UltraFeedback", "ultrafeedback_train_1k.jsonl.gz"),
    DataSet("llamafactory", "LLaMA-Factory demo", "llamafactory_dpo_en_demo.json"),
    DataSet("orca", "Orca", "orca_dpo_pairs_validation.jsonl"),
)


@dataclass(frozen=True, slots=True)
class Source:
    """The pairs of one data set that take part.

    Attributes:
        every: all pairs with signal, in the order of the sample.
        pairs: those that the peer's memory allows at the micro-batch that is compared.
    """

    data: DataSet
    every: list[WorkPair]
    pairs: list[WorkPair]

    @classmethod
    def read(cls, data: DataSet, folder: Path, model: str, longest: int) -> "Source":
        """The data set's file in a folder; rows of more tokens than `longest` are for neither side."""
        every = by_hash(read_pairs(folder / data.file, model), SEED)
        return cls(data, every, [pair for pair in every if pair.row <= longest])


def read_pairs(file: Path, model: str) -> list[WorkPair]:
    """All pairs of a file that carry signal, as tokens of the model and as the texts that these tokens spell."""
    tokenizer = load_tokenizer(model)
    data = DataRecipe(train=str(file), max_length=MAX_LENGTH, max_prompt_length=MAX_PROMPT_LENGTH)
    pairs = []
    for pair in encode_pairs(load_pairs(str(file), role="train").pairs, tokenizer, data).pairs:
        ids = pair.prompt.tolist(), pair.chosen.tolist(), pair.rejected.tolist()
        prompt, chosen, rejected = map(tokenizer.decode, ids)
        pairs.append(WorkPair(prompt=ids[0], chosen=ids[1], rejected=ids[2], texts=(prompt, chosen, rejected)))
    return pairs


def tokenizer_calls(work: Callable[[], object]) -> list[tuple[TextTokenizer, list[str], SpecialTokenMode]]:
    """The arguments of every call of `TextTokenizer.encode_batch` that some work makes."""
    calls = []
    encode = TextTokenizer.encode_batch

    def noted(self: TextTokenizer, texts: Sequence[str], way: SpecialTokenMode = "parsed") -> list[list[int]]:
        calls.append((self, list(texts), way))
        return encode(self, texts, way)

    TextTokenizer.encode_batch = noted  # type: ignore[method-assign]
    try:
        work()
    finally:
        TextTokenizer.encode_batch = encode  # type: ignore[method-assign]
    return calls


def by_hash(pairs: Sequence[WorkPair], seed: int) -> list[WorkPair]:
    """The pairs in an order that depends on their tokens and the seed alone, each text once."""

    def key(pair: WorkPair) -> str:
        return hashlib.sha256(repr((seed, pair.prompt, pair.chosen, pair.rejected)).encode()).hexdigest()

    return [pair for _, pair in sorted({key(pair): pair for pair in pairs}.items())]


def steps_from(ordered: Sequence[WorkPair], pairs_per_step: int, num_steps: int) -> list[WorkPair]:
    """The pairs of a warm-up step and of the steps that are measured.

    The measured steps take the first pairs of the order. The warm-up takes the shortest of those that follow: it is
    there to fill caches and to make the optimizer's state, and need not take long.

    Raises:
        TooFewError: there are too few pairs.
    """
    measured, rest = ordered[: num_steps * pairs_per_step], ordered[num_steps * pairs_per_step :]
    if len(rest) < pairs_per_step:
        raise TooFewError(f"{len(ordered)} pairs are too few for {num_steps + 1} steps of {pairs_per_step}")
    choice = rest[: WARM_UP_CHOICE * pairs_per_step]
    return [*sorted(choice, key=lambda pair: pair.num_tokens)[:pairs_per_step], *measured]


def made_up_pair(prompt: int, response: int, vocab_size: int, *, seed: int = 0) -> WorkPair:
    """A pair of random ids with the lengths asked for; both responses have the same."""
    draw = random.Random(f"{seed} {prompt} {response}")
    ids = [[draw.randrange(vocab_size) for _ in range(length)] for length in (prompt, response, response)]
    return WorkPair(prompt=ids[0], chosen=ids[1], rejected=ids[2])
