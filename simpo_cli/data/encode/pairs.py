"""Pairs as text to pairs as tokens, in batches: rendered, tokenized, then ended, cut and judged.

Rendered pairs go to the tokenizer in few calls for many pairs, and prompt and response are split by their tokens.
Prompts without responses, for generation, get the ids that the same prompt has in a pair.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.encode.rendering import Texts, render, render_prompt
from simpo_cli.data.encode.rules import SKIP, EncodedPairs, Rules, pair_key, prompt_key, refusal
from simpo_cli.data.encode.truncation import cut_prompt, whole_prompt
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair
from simpo_cli.data.raw import RecordError
from simpo_cli.data.tokenizer import EncodingError, SpecialTokenMode, TemplateError, TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe


@dataclass(frozen=True, slots=True)
class Ids:
    """A tokenized pair: prompt and responses, and whether they had to be tokenized apart."""

    prompt: list[int]
    responses: tuple[list[int], list[int]]
    apart: bool


def tokenize(texts: Sequence[Texts], tokenizer: TextTokenizer) -> list[Ids | RecordError]:
    """Ids of each pair, or why it has none, in a few calls of the library for all of them."""
    found: dict[int, Ids | RecordError] = {}
    for way in get_args(SpecialTokenMode):
        places = [i for i, one in enumerate(texts) if one.way == way]
        if not places:
            continue
        found.update(zip(places, _tokenize_way([texts[i] for i in places], way, tokenizer), strict=True))
    return [found[i] for i in range(len(texts))]


def _tokenize_way(texts: Sequence[Texts], way: SpecialTokenMode, tokenizer: TextTokenizer) -> list[Ids | RecordError]:
    try:
        return list(_tokenize_all(texts, way, tokenizer))
    except EncodingError as error:  # one of the texts; which one, the library does not say
        if len(texts) > 1:
            half = len(texts) // 2
            return [one for part in (texts[:half], texts[half:]) for one in _tokenize_way(part, way, tokenizer)]
        return [RecordError(f"the text {error}", SKIP)]


def _tokenize_all(texts: Sequence[Texts], way: SpecialTokenMode, tokenizer: TextTokenizer) -> list[Ids]:
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


def prepare(pair: PreferencePair, texts: Texts, ids: Ids, rules: Rules, result: EncodedPairs) -> None:
    """End, cut and judge one tokenized pair; it goes into `result` as a pair or as a count."""
    tokenizer, data = rules.tokenizer, rules.data
    prompt, mended = whole_prompt(ids.prompt, rules)
    if not prompt:
        result.bad.append(refusal(pair, RecordError("the prompt has no tokens", SKIP)))
        return
    chosen, rejected = (_ended(*response, rules) for response in zip(ids.responses, texts.calls, strict=True))
    num_prompt = len(prompt)
    if data.overlong == "truncate":
        prompt = cut_prompt(prompt, texts, data.max_prompt_length, rules)
    assert tokenizer.bos_id is None or prompt[:2] != [tokenizer.bos_id] * 2
    room = data.max_length - len(prompt)
    longest = max(len(chosen.ids), len(rejected.ids))
    result.need("max_prompt_length", num_prompt, data.max_prompt_length)
    result.need("max_length", min(len(prompt), data.max_prompt_length) + longest, data.max_length)
    if data.overlong != "truncate" and (num_prompt > data.max_prompt_length or longest > room):
        if data.overlong == "error":
            raise UserError(
                f"the pair has {num_prompt} prompt tokens and {len(chosen.ids)} and {len(rejected.ids)} response "
                f"tokens, over the limits of {data.max_prompt_length} and {data.max_length}.",
                "Raise data.max_length, or set data.overlong to truncate or drop.",
                where=pair.where,
            )
        result.drop("over the length limits", pair.where)
        return
    chosen_cut, rejected_cut = chosen.cut(room), rejected.cut(room)
    reason = _no_signal(chosen_cut, rejected_cut, data.min_response_tokens)
    if reason is not None:
        if data.on_no_signal == "error":
            raise UserError(
                f"the pair carries no signal: {reason}.",
                "Mend the record, or set data.on_no_signal: drop to leave such pairs out and count them.",
                where=pair.where,
            )
        result.drop(reason, pair.where)
        return
    encoded = EncodedPair(
        prompt=_array(prompt),
        chosen=_array(chosen_cut.ids),
        rejected=_array(rejected_cut.ids),
        prompt_key=prompt_key(pair),
        where=pair.where,
        prompt_cut=len(prompt) < num_prompt,
        chosen_cut=chosen_cut is not chosen,
        rejected_cut=rejected_cut is not rejected,
        pair_key=pair_key(pair),
    )
    for what, holds in (
        ("prompt cut", encoded.prompt_cut),
        ("chosen cut", encoded.chosen_cut),
        ("rejected cut", encoded.rejected_cut),
        ("response of one token", chosen_cut.num_without_end == 1 or rejected_cut.num_without_end == 1),
        ("tokenized apart", ids.apart),
        ("no end token", not (chosen.has_end and rejected.has_end)),
        ("second BOS left out", mended),
        ("special token kept as text", texts.way != "parsed"),
        *((note, True) for note in texts.notes),
    ):
        if holds:
            result.count(what, pair.where)
    result.pairs.append(encoded)


@dataclass(frozen=True, slots=True)
class _Response:
    """A response's tokens, and whether the last one is an end token."""

    ids: list[int]
    has_end: bool

    @property
    def num_without_end(self) -> int:
        """Tokens, the end token not counted."""
        return len(self.ids) - self.has_end

    def cut(self, room: int) -> "_Response":
        """The first `room` tokens; one that is cut has no end token. Itself where it fits."""
        return self if len(self.ids) <= room else _Response(self.ids[:room], False)


def _ended(ids: list[int], calls: bool, rules: Rules) -> _Response:
    """A response up to and including its first end token, put there where the rendering has none of its own."""
    places = [ids.index(end) for end in rules.ends if end in ids]
    if places:
        return _Response(ids[: min(places) + 1], True)
    ends = (rules.marks.call_end_id if calls else None, rules.marks.end_id, rules.tokenizer.eos_id)
    end = next((one for one in ends if one is not None), None)
    if end is not None and (rules.plain or not rules.marks.end_is_written):
        return _Response([*ids, end], True)
    return _Response(ids, False)


def _no_signal(chosen: _Response, rejected: _Response, fewest: int) -> str | None:
    """Why a pair cannot teach, or None."""
    shortest = min(chosen.num_without_end, rejected.num_without_end)
    if shortest == 0:
        return "response without tokens"
    if shortest < fewest:
        return f"response of fewer than {fewest} tokens"
    return "responses identical after the cut" if chosen.ids == rejected.ids else None


def _array(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.asarray(ids, dtype=np.int32)


_BATCH = 512  # pairs tokenized together: enough to keep the library's threads busy, little to hold
_BATCH_CHARACTERS = 4_000_000


def encode_pairs(pairs: Sequence[PreferencePair], tokenizer: TextTokenizer, data: DataRecipe) -> EncodedPairs:
    """Render, tokenize, split, cut.

    Args:
        pairs: the pairs as text.
        tokenizer: the model's tokenizer with the template that the recipe chose.
        data: lengths, template variables and what to do with trouble.

    Returns:
        What became of the pairs. Where the recipe stops at bad records, no pair is looked at behind the batch with the
        first ones: the caller is about to stop.

    Raises:
        UserError: a pair without signal, or over the limits, where the recipe asks to stop; or template variables that
            the template does not have.
    """
    tokenizer.require_known(data.chat_template_kwargs)
    rules = Rules.of(data, tokenizer)
    result = EncodedPairs()
    for batch in in_batches(pairs):
        rendered: list[tuple[PreferencePair, Texts]] = []
        for pair in batch:
            try:
                rendered.append((pair, render(pair, rules)))
            except RecordError as error:
                result.bad.append(refusal(pair, error))
        tokenized = tokenize([texts for _, texts in rendered], tokenizer)
        for (pair, texts), ids in zip(rendered, tokenized, strict=True):
            if isinstance(ids, RecordError):
                result.bad.append(refusal(pair, ids))
            else:
                prepare(pair, texts, ids, rules, result)
        if result.bad and data.on_bad_record == "error":
            break
    return result


def in_batches(pairs: Iterable[PreferencePair]) -> Iterator[list[PreferencePair]]:
    """Consecutive pairs, as many together as are tokenized together."""
    batch: list[PreferencePair] = []
    held = 0
    for pair in pairs:
        batch.append(pair)
        held += pair.num_characters
        if len(batch) == _BATCH or held >= _BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


_MEND = "Mend the prompt, or leave it out."


def encode_prompt(prompt: tuple[Message, ...] | str, tokenizer: TextTokenizer, data: DataRecipe) -> list[int]:
    """The ids of a prompt with the header of the answer, as training sees them, not cut.

    Args:
        prompt: a conversation that ends before the answer, or plain text.
        tokenizer: the model's tokenizer with the template that the recipe chose.
        data: the template's variables.

    Raises:
        RecordError: the template or the tokenizer refuses the prompt, or nothing is left of it.
    """
    rules = Rules.of(data, tokenizer)
    try:
        text, way = render_prompt(prompt, rules)
        ids = tokenizer.encode_batch([text], way)[0]
    except TemplateError as error:
        raise RecordError(f"the chat template refuses the prompt: {error}", _MEND) from error
    except EncodingError as error:
        raise RecordError(f"the text {error}", _MEND) from error
    ids, _ = whole_prompt(ids, rules)
    if not ids:
        raise RecordError("the prompt has no tokens", _MEND)
    return ids


AHEAD = 2
"""Batches that are tokenized while another one is looked at."""

Batch = TypeVar("Batch")


def encode_ahead(
    batches: Iterator[tuple[Batch, Sequence[PreferencePair]]], tokenizer: TextTokenizer, data: DataRecipe
) -> Iterator[tuple[Batch, EncodedPairs]]:
    """Batches of pairs with their tokens, in order.

    While the library tokenizes, which it does on all cores and without the interpreter's lock, other batches are read,
    rendered and looked at. What goes wrong is raised in the order of the batches, whichever thread saw it first.

    Args:
        batches: what the caller wants back with the tokens, and the pairs to encode.
        tokenizer, data: as for `encode_pairs`.

    Raises:
        UserError: as `encode_pairs` does, or as the batches do when they are read.
    """
    waiting: deque[tuple[Batch, Future[EncodedPairs]]] = deque()
    stopped: UserError | None = None
    with ThreadPoolExecutor(max_workers=AHEAD) as threads:
        while stopped is None:
            try:
                batch, pairs = next(batches)
            except StopIteration:
                break
            except UserError as error:
                stopped = error
                continue
            waiting.append((batch, threads.submit(encode_pairs, pairs, tokenizer, data)))
            if len(waiting) > AHEAD:
                batch, encoded = waiting.popleft()
                yield batch, encoded.result()
        while waiting:
            batch, encoded = waiting.popleft()
            yield batch, encoded.result()
    if stopped is not None:
        raise stopped
