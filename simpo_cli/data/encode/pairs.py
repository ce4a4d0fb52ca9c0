"""Pairs as text to pairs as tokens, in batches: rendered, tokenized, split into prompt and response, ended and cut.

Of a prompt that is cut, what is left is a conversation still. The oldest turns go, whole, from one of the user's to the
next, and the system turn stays. Where the last turn of the user and those behind it do not fit by themselves, the
beginning of the longest of them goes, behind its header; calls are no text and stay whole; where the system turn leaves
no room for that, it goes too. Where that is not enough either, because tools or headers are too long, only whole turns
behind them stay. Text without turns loses its first tokens. BOS stays in any case. A response ends with its first end
token, or keeps its first tokens and has no end.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np

from simpo_cli.data.batches import in_batches, results_in_order
from simpo_cli.data.encode.conversation import STAND_IN, Rules, text_of, with_content
from simpo_cli.data.encode.rendering import Texts, opening_of, render, render_prompt
from simpo_cli.data.formats.names import SKIP
from simpo_cli.data.pair import EncodedPair, EncodedPairs, Message, PreferencePair, RecordError, pair_key, prompt_key
from simpo_cli.data.tokenizer import EncodingError, SpecialTokenMode, TemplateError, TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe

BATCHES_AHEAD = 2
"""Batches that are tokenized while another one is looked at."""
_BATCH_CHARACTERS = 4_000_000

Batch = TypeVar("Batch")


def encode_batches(
    batches: Iterator[tuple[Batch, Sequence[PreferencePair]]], tokenizer: TextTokenizer, data: DataRecipe
) -> Iterator[tuple[Batch, EncodedPairs]]:
    """Batches of pairs with their tokens, in order.

    While the library tokenizes, which it does on all cores and without the interpreter's lock, other batches are read,
    rendered and looked at.

    Args:
        batches: what the caller wants back with the tokens, and the pairs to encode.

    Raises:
        UserError: as `encode_pairs` does, or as the batches do when they are read; in the order of the batches.
    """
    with ThreadPoolExecutor(max_workers=BATCHES_AHEAD) as threads:
        yield from results_in_order(
            batches, lambda pairs: threads.submit(encode_pairs, pairs, tokenizer, data), most_ahead=BATCHES_AHEAD
        )


def pair_batches(pairs: Iterable[PreferencePair]) -> Iterator[list[PreferencePair]]:
    """Consecutive pairs, as many together as are tokenized together."""
    return in_batches(pairs, lambda pair: pair.num_characters, most_characters=_BATCH_CHARACTERS)


def encode_pairs(pairs: Sequence[PreferencePair], tokenizer: TextTokenizer, data: DataRecipe) -> EncodedPairs:
    """Render, tokenize, split, cut.

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
    for batch in pair_batches(pairs):
        rendered: list[tuple[PreferencePair, Texts]] = []
        for pair in batch:
            try:
                rendered.append((pair, render(pair, rules)))
            except RecordError as error:
                result.refuse(pair, error)
        tokenized = tokenize([texts for _, texts in rendered], tokenizer)
        for (pair, texts), tokens in zip(rendered, tokenized, strict=True):
            if isinstance(tokens, RecordError):
                result.refuse(pair, tokens)
            else:
                _add_cut_pair(pair, texts, tokens, rules, result)
        if result.bad and data.on_bad_record == "error":
            break
    return result


def encode_prompt(
    prompt: tuple[Message, ...] | str, tokenizer: TextTokenizer, data: DataRecipe, most: int | None = None
) -> list[int]:
    """The ids of a prompt without a response, for generation: those that the same prompt has in a pair.

    Args:
        most: tokens to keep, as `data.max_prompt_length` does for a pair; None keeps all.

    Raises:
        RecordError: the template or the tokenizer refuses the prompt, or nothing is left of it.
    """
    fix = "Mend the prompt, or leave it out."
    rules = Rules.of(data, tokenizer)
    try:
        texts = render_prompt(prompt, rules)
        ids = _ids(texts.prompt, texts, rules)
    except TemplateError as error:
        raise RecordError(f"the chat template refuses the prompt: {error}", fix) from error
    except EncodingError as error:
        raise RecordError(f"the text {error}", fix) from error
    if not ids:
        raise RecordError("the prompt has no tokens", fix)
    return ids if most is None else cut_prompt(ids, texts, most, rules)


def answer_opening(prompt: tuple[Message, ...], tokenizer: TextTokenizer, data: DataRecipe) -> str:
    """What the template's generation prompt already holds of an answer, such as `<think>`; mostly nothing.

    A model continues behind it, and an answer in a pair begins with it.
    """
    return opening_of(prompt, Rules.of(data, tokenizer))


# Tokenizing, in few calls of the library for many pairs


@dataclass(frozen=True, slots=True)
class PairTokens:
    """A tokenized pair: prompt and responses, and whether they had to be tokenized apart."""

    prompt: list[int]
    responses: tuple[list[int], list[int]]
    apart: bool


def tokenize(texts: Sequence[Texts], tokenizer: TextTokenizer) -> list[PairTokens | RecordError]:
    """The tokens of each pair, or why it has none, in a few calls of the library for all of them."""
    found: dict[int, PairTokens | RecordError] = {}
    for mode in get_args(SpecialTokenMode):
        places = [i for i, one in enumerate(texts) if one.mode == mode]
        if places:
            found.update(zip(places, _in_mode([texts[i] for i in places], mode, tokenizer), strict=True))
    return [found[i] for i in range(len(texts))]


def _in_mode(texts: Sequence[Texts], mode: SpecialTokenMode, by: TextTokenizer) -> Sequence[PairTokens | RecordError]:
    try:
        return _split(texts, mode, by)
    except EncodingError as error:  # one of the texts; which one, the library does not say
        if len(texts) > 1:
            half = len(texts) // 2
            return [one for part in (texts[:half], texts[half:]) for one in _in_mode(part, mode, by)]
        return [RecordError(f"the text {error}", SKIP)]


def _split(texts: Sequence[Texts], mode: SpecialTokenMode, tokenizer: TextTokenizer) -> list[PairTokens]:
    """Prompt and whole are tokenized, and the response is what the whole holds behind the prompt's tokens.

    Where the whole does not begin with these, prompt and response are tokenized apart.
    """
    starts = [tokenizer.last_break(one.prompt) if mode == "parsed" else 0 for one in texts]
    flat = [
        text
        for one, start in zip(texts, starts, strict=True)
        for text in (one.prompt, *(one.prompt[start:] + response for response in one.responses))
    ]
    once = list(dict.fromkeys(flat))  # several pairs of a prompt often stand together
    ids_of = dict(zip(once, tokenizer.encode_batch(once, mode), strict=True))
    encoded = [ids_of[text] for text in flat]
    prompts, wholes = encoded[::3], [whole for i, whole in enumerate(encoded) if i % 3]
    behind = [_behind(prompts[i // 2], whole, starts[i // 2] > 0) for i, whole in enumerate(wholes)]
    straddling = [i for i, response in enumerate(behind) if response is None]
    again = tokenizer.encode_behind([texts[i // 2].responses[i % 2] for i in straddling], mode)
    apart = dict(zip(straddling, again, strict=True))
    responses = [apart[i] if response is None else response for i, response in enumerate(behind)]
    return [
        PairTokens(prompt, (responses[2 * i], responses[2 * i + 1]), 2 * i in apart or 2 * i + 1 in apart)
        for i, prompt in enumerate(prompts)
    ]


def _behind(prompt: list[int], whole: list[int], from_break: bool) -> list[int] | None:
    """What a tokenized text holds behind the prompt's tokens, or None where it does not begin with them.

    With `from_break` the text begins with the prompt's last special token, else with the prompt's beginning.
    """
    if from_break:
        prompt = prompt[len(prompt) - 1 - prompt[::-1].index(whole[0]) :]
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else None


# The cut


def whole_prompt(ids: list[int], rules: Rules) -> tuple[list[int], bool]:
    """A prompt with what the tokenizer puts in front of plain text, and with one BOS; and whether there were two."""
    prefix, bos_id = rules.tokenizer.plain_prefix, rules.tokenizer.bos_id
    # a rendered text may hold it already
    prompt = [*prefix, *ids] if rules.plain and ids[: len(prefix)] != prefix else ids
    num_rendered = len(prompt)
    while bos_id is not None and prompt[:2] == [bos_id] * 2:
        prompt = prompt[1:]
    return prompt, len(prompt) < num_rendered


def cut_prompt(prompt: list[int], texts: Texts, most: int, rules: Rules) -> list[int]:
    """At most `most` tokens of a prompt."""
    if len(prompt) <= most:
        return prompt
    opening = [turn for turn in texts.turns[:1] if turn.role == "system"]
    for kept in (opening, [])[: len(opening) + 1]:
        try:
            shorter = _fewer_turns(kept, texts, most, rules)
        except (TemplateError, EncodingError, RecordError):  # the template refuses what is left
            continue
        if shorter is not None:
            return shorter
    return _from_a_turn(_last_tokens(prompt, most, rules.tokenizer.bos_id), rules)


def _fewer_turns(opening: list[Message], texts: Texts, most: int, rules: Rules) -> list[int] | None:
    """The opening and the prompt's last turns; None where not even the headers fit."""

    def ids_from(start: int) -> list[int]:
        return _ids(texts.write([*opening, *texts.turns[start:]]), texts, rules)

    starts = [i for i, turn in enumerate(texts.turns) if turn.role == "user"]
    first = bisect_left(starts, True, key=lambda start: len(ids_from(start)) <= most)  # with which it fits
    if first < len(starts):
        return ids_from(starts[first])
    others = [turn for turn in texts.turns if turn.role != "system"]
    left = [*opening, *(texts.turns[starts[-1] :] if starts else others)]
    if len(left) == len(opening):
        return None
    places = sorted(range(len(opening), len(left)), key=lambda i: -len(text_of(left[i].as_record())))
    shorter = (_without_beginning(left, place, texts, most, rules) for place in places)
    return next((ids for ids in shorter if ids is not None), None)


def _without_beginning(turns: Sequence[Message], place: int, texts: Texts, most: int, rules: Rules) -> list[int] | None:
    """The turns, of which one has lost as much of its beginning as it must."""
    emptied = texts.write([*turns[:place], with_content(turns[place], STAND_IN), *turns[place + 1 :]])
    before, found, behind = emptied.rpartition(STAND_IN)
    header, rest = _ids(before, texts, rules), rules.tokenizer.encode_behind([behind], texts.mode)[0]
    num_kept = most - len(header)
    if not found or num_kept <= len(rest):
        return None
    ids = _ids(texts.write(turns), texts, rules)
    return [*header, *ids[len(ids) - num_kept :]]


def _ids(text: str, texts: Texts, rules: Rules) -> list[int]:
    return whole_prompt(rules.tokenizer.encode_batch([text], texts.mode)[0], rules)[0]


def _last_tokens(prompt: list[int], most: int, bos_id: int | None) -> list[int]:
    """The last `most` tokens, with the BOS kept in front, once."""
    if bos_id is not None and prompt[0] == bos_id:
        kept = prompt[len(prompt) - most + 1 :]
        while kept[:1] == [bos_id]:  # in ChatML the BOS opens every turn, and the cut may come right before one
            kept = kept[1:]
        return [bos_id, *kept]
    return prompt[len(prompt) - most :]


def _from_a_turn(prompt: list[int], rules: Rules) -> list[int]:
    """BOS and what stands from the first whole turn of the user on; the prompt as it is where it has none."""
    header = rules.tokenizer.encode_batch([rules.marks.user_header])[0]
    start = next((i for i in range(len(prompt)) if header and prompt[i : i + len(header)] == header), 0)
    bos_id = rules.tokenizer.bos_id
    lead = [bos_id] if start and bos_id is not None and prompt[0] == bos_id != header[0] else []
    return [*lead, *prompt[start:]]


# Responses


@dataclass(frozen=True, slots=True)
class Response:
    """A response's tokens, and whether the last one is an end token."""

    ids: list[int]
    has_end: bool

    @property
    def num_without_end(self) -> int:
        """Tokens, the end token not counted."""
        return len(self.ids) - self.has_end

    def cut(self, room: int) -> "Response":
        """The first `room` tokens; one that is cut has no end token. Itself where it fits."""
        return self if len(self.ids) <= room else Response(self.ids[:room], False)


def ended_response(ids: list[int], calls: bool, rules: Rules) -> Response:
    """A response up to and including its first end token, put there where the rendering has none of its own."""
    if places := [ids.index(end) for end in rules.ends if end in ids]:
        return Response(ids[: min(places) + 1], True)
    ends = (rules.marks.call_end_id if calls else None, rules.marks.end_id, rules.tokenizer.eos_id)
    end = next((one for one in ends if one is not None), None)
    if end is not None and (rules.plain or not rules.marks.end_is_written):
        return Response([*ids, end], True)
    return Response(ids, False)


# The limits, and what is left under them


def _add_cut_pair(pair: PreferencePair, texts: Texts, tokens: PairTokens, rules: Rules, result: EncodedPairs) -> None:
    """End and cut a pair; what is left goes into `result`, or why it is dropped or refused."""
    tokenizer, data = rules.tokenizer, rules.data
    prompt, has_second_bos = whole_prompt(tokens.prompt, rules)
    if not prompt:
        result.refuse(pair, RecordError("the prompt has no tokens", SKIP))
        return
    chosen, rejected = (ended_response(*one, rules) for one in zip(tokens.responses, texts.calls, strict=True))
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
    shortest, reason = min(chosen_cut.num_without_end, rejected_cut.num_without_end), ""
    if shortest == 0:
        reason = "response without tokens"
    elif shortest < data.min_response_tokens:
        reason = f"response of fewer than {data.min_response_tokens} tokens"
    elif chosen_cut.ids == rejected_cut.ids:
        reason = "responses identical after the cut"
    if reason:
        if data.on_no_signal == "error":
            raise UserError(
                f"the pair carries no signal: {reason}.",
                "Mend the record, or set data.on_no_signal: drop to leave such pairs out and count them.",
                where=pair.where,
            )
        result.drop(reason, pair.where)
        return
    counted = {
        "prompt cut": len(prompt) < num_prompt,
        "chosen cut": chosen_cut is not chosen,
        "rejected cut": rejected_cut is not rejected,
        "response of one token": 1 in (chosen_cut.num_without_end, rejected_cut.num_without_end),
        "tokenized apart": tokens.apart,
        "no end token": not (chosen.has_end and rejected.has_end),
        "second BOS left out": has_second_bos,
        "special token kept as text": texts.mode != "parsed",
        **dict.fromkeys(texts.notes, True),
    }
    for what, holds in counted.items():
        if holds:
            result.count(what, pair.where)
    result.pairs.append(
        EncodedPair(
            prompt=np.asarray(prompt, dtype=np.int32),
            chosen=np.asarray(chosen_cut.ids, dtype=np.int32),
            rejected=np.asarray(rejected_cut.ids, dtype=np.int32),
            prompt_key=prompt_key(pair),
            where=pair.where,
            prompt_cut=counted["prompt cut"],
            chosen_cut=counted["chosen cut"],
            rejected_cut=counted["rejected cut"],
            pair_key=pair_key(pair),
        )
    )
