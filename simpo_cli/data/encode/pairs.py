"""Pairs as text to pairs as tokens, in batches: rendered, tokenized, split into prompt and response, ended and cut."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar, get_args

import numpy as np

from simpo_cli.data.batches import in_batches, results_in_order
from simpo_cli.data.encode.rendering import Texts, render, render_prompt
from simpo_cli.data.encode.rules import SKIP, EncodedPairs, Rules, pair_key, prompt_key
from simpo_cli.data.encode.truncation import Response, cut_prompt, ended_response, whole_prompt
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair
from simpo_cli.data.raw import RecordError
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
        tokenizer, data: as for `encode_pairs`.

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


def encode_prompt(prompt: tuple[Message, ...] | str, tokenizer: TextTokenizer, data: DataRecipe) -> list[int]:
    """The ids of a prompt without a response, for generation: those that the same prompt has in a pair, not cut.

    Args:
        prompt: a conversation that ends before the answer, or plain text.
        tokenizer: the model's tokenizer with the template that the recipe chose.
        data: the template's variables.

    Raises:
        RecordError: the template or the tokenizer refuses the prompt, or nothing is left of it.
    """
    fix = "Mend the prompt, or leave it out."
    rules = Rules.of(data, tokenizer)
    try:
        text, mode = render_prompt(prompt, rules)
        ids, _ = whole_prompt(tokenizer.encode_batch([text], mode)[0], rules)
    except TemplateError as error:
        raise RecordError(f"the chat template refuses the prompt: {error}", fix) from error
    except EncodingError as error:
        raise RecordError(f"the text {error}", fix) from error
    if not ids:
        raise RecordError("the prompt has no tokens", fix)
    return ids


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


def _in_mode(
    texts: Sequence[Texts], mode: SpecialTokenMode, tokenizer: TextTokenizer
) -> Sequence[PairTokens | RecordError]:
    try:
        return _split(texts, mode, tokenizer)
    except EncodingError as error:  # one of the texts; which one, the library does not say
        if len(texts) > 1:
            half = len(texts) // 2
            return [one for part in (texts[:half], texts[half:]) for one in _in_mode(part, mode, tokenizer)]
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


# The limits, and what is left under them


def _add_cut_pair(pair: PreferencePair, texts: Texts, tokens: PairTokens, rules: Rules, result: EncodedPairs) -> None:
    """End and cut a pair; what is left goes into `result`, or why it is dropped or refused."""
    tokenizer, data = rules.tokenizer, rules.data
    prompt, has_second_bos = whole_prompt(tokens.prompt, rules)
    if not prompt:
        result.refuse(pair, RecordError("the prompt has no tokens", SKIP))
        return
    chosen, rejected = (
        ended_response(*response, rules) for response in zip(tokens.responses, texts.calls, strict=True)
    )
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
    prompt_ids, chosen_ids, rejected_ids = (
        np.asarray(ids, dtype=np.int32) for ids in (prompt, chosen_cut.ids, rejected_cut.ids)
    )
    result.pairs.append(
        EncodedPair(
            prompt=prompt_ids,
            chosen=chosen_ids,
            rejected=rejected_ids,
            prompt_key=prompt_key(pair),
            where=pair.where,
            prompt_cut=counted["prompt cut"],
            chosen_cut=counted["chosen cut"],
            rejected_cut=counted["rejected cut"],
            pair_key=pair_key(pair),
        )
    )


def _no_signal(chosen: Response, rejected: Response, fewest: int) -> str | None:
    """Why a pair cannot teach, or None."""
    shortest = min(chosen.num_without_end, rejected.num_without_end)
    if shortest == 0:
        return "response without tokens"
    if shortest < fewest:
        return f"response of fewer than {fewest} tokens"
    return "responses identical after the cut" if chosen.ids == rejected.ids else None
