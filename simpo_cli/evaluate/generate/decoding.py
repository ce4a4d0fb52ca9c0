"""How answers are drawn, and what comes of it: known without torch."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["greedy", "sampled"]
MODES: tuple[Mode, ...] = ("greedy", "sampled")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are drawn.

    Attributes:
        max_new_tokens: most tokens of an answer, its end token counted.
        temperature: divides the logits of sampled answers. Nothing else changes the distribution: no top-p, no top-k,
            no penalty, whatever the model's generation config suggests.
        seed: of the sampled answers.
        end_ids: tokens that end an answer, sorted.
    """

    max_new_tokens: int
    temperature: float
    seed: int
    end_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Generated:
    """The tokens of an answer without its end token, and whether it had one."""

    key: str
    ids: tuple[int, ...]
    ended: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one prompt.

    Attributes:
        key: the prompt's.
        text: what a person reads: its tokens without the end token, as text, white space at both ends left out.
        ids: its tokens without the end token.
        ended: whether the model ended it; else it was cut at max_new_tokens.
    """

    key: str
    text: str
    ids: tuple[int, ...]
    ended: bool


def uniforms(key: str, decoding: Decoding) -> NDArray[np.float64]:
    """(max_new_tokens,) random numbers in [0, 1) of one prompt: the same whatever else is asked, for either model."""
    digest = hashlib.sha256(f"{decoding.seed} {key}".encode()).digest()
    draw = np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64)))
    return draw.random(decoding.max_new_tokens)


def until_end(key: str, ids: Sequence[int], end_ids: Collection[int]) -> Generated:
    """An answer up to its end token; behind it there is only padding."""
    end = next((place for place, token in enumerate(ids) if token in end_ids), None)
    return Generated(key, tuple(ids if end is None else ids[:end]), end is not None)
