"""Rendered pairs to token ids, in few calls of the library for many pairs; prompt and response are split by tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from simpo_cli.data.encode.rendering import Texts
from simpo_cli.data.encode.rules import SKIP
from simpo_cli.data.raw import RecordError
from simpo_cli.data.tokenizer import EncodingError, TextTokenizer, Way


@dataclass(frozen=True, slots=True)
class Ids:
    """A tokenized pair: prompt and responses, and whether they had to be tokenized apart."""

    prompt: list[int]
    responses: tuple[list[int], list[int]]
    apart: bool


def tokenize(texts: Sequence[Texts], tokenizer: TextTokenizer) -> list[Ids | RecordError]:
    """Ids of each pair, or why it has none, in a few calls of the library for all of them."""
    found: dict[int, Ids | RecordError] = {}
    for way in get_args(Way):
        places = [i for i, one in enumerate(texts) if one.way == way]
        if not places:
            continue
        found.update(zip(places, _tokenize_way([texts[i] for i in places], way, tokenizer), strict=True))
    return [found[i] for i in range(len(texts))]


def _tokenize_way(texts: Sequence[Texts], way: Way, tokenizer: TextTokenizer) -> list[Ids | RecordError]:
    try:
        return list(_tokenize_all(texts, way, tokenizer))
    except EncodingError as error:  # one of the texts; which one, the library does not say
        if len(texts) > 1:
            half = len(texts) // 2
            return [one for part in (texts[:half], texts[half:]) for one in _tokenize_way(part, way, tokenizer)]
        return [RecordError(f"the text {error}", SKIP)]


def _tokenize_all(texts: Sequence[Texts], way: Way, tokenizer: TextTokenizer) -> list[Ids]:
    starts = [tokenizer.last_break(one.prompt) if way == "parsed" else 0 for one in texts]
    flat = [
        text
        for one, start in zip(texts, starts, strict=True)
        for text in (one.prompt, *(one.prompt[start:] + response for response in one.responses))
    ]
    once = list(dict.fromkeys(flat))  # several pairs of a prompt often stand together
    ids_of = dict(zip(once, tokenizer.encode_batch(once, way), strict=True))
    encoded = [ids_of[text] for text in flat]
    prompts = encoded[::3]
    wholes = [whole for i, whole in enumerate(encoded) if i % 3]
    responses = [_behind(prompts[i // 2], whole, starts[i // 2] > 0) for i, whole in enumerate(wholes)]
    straddling = [i for i, response in enumerate(responses) if response is None]
    again = tokenizer.encode_behind([texts[i // 2].responses[i % 2] for i in straddling], way)
    apart = dict(zip(straddling, again, strict=True))
    settled = [apart[i] if response is None else response for i, response in enumerate(responses)]
    return [
        Ids(prompt, (settled[2 * i], settled[2 * i + 1]), 2 * i in apart or 2 * i + 1 in apart)
        for i, prompt in enumerate(prompts)
    ]


def _behind(prompt: list[int], whole: list[int], from_break: bool) -> list[int] | None:
    """What a tokenized text holds behind the prompt's tokens, or None where it does not begin with them.

    With `from_break` the text begins with the prompt's last special token, else with the prompt's beginning.
    """
    if from_break:
        prompt = prompt[len(prompt) - 1 - prompt[::-1].index(whole[0]) :]
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else None
