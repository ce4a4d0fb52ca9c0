"""Pairs to tokens: which tokens are the prompt, which are scored, and what is cut.

The response is the full rendering after the prompt's rendering (with its generation prompt), up to and including the
first end-of-turn token. The whole is rendered once and tokenized once; it is split where the prompt's own ids end.
Where the two do not agree, because a token would straddle the boundary, prompt and response are tokenized apart, as
they are when the model generates, and the pair is counted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.pair import EncodedPair, Message, PreferencePair
from simpo_cli.data.raw import BadRecord, RecordError
from simpo_cli.data.tokenizer import TemplateError, TextTokenizer, batches
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe

_BATCH = 512  # pairs tokenized together: enough to keep the library's threads busy, little to hold


@dataclass
class EncodedPairs:
    """What became of the pairs.

    Attributes:
        pairs: those that can be trained on or scored, in their order.
        dropped: pairs without signal, by reason.
        bad: pairs that the template or the rules refuse, each with the reason.
        counts: pairs with a property worth telling: `prompt cut`, `chosen cut`, `rejected cut`, `tokenized apart`,
            `no end token`, `special token kept as text`.
    """

    pairs: list[EncodedPair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[BadRecord] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Texts:
    """A pair as rendered text; chosen and rejected are what stands behind the prompt."""

    prompt: str
    chosen: str
    rejected: str
    masked: bool  # special tokens that the messages spell out have stand-ins


def encode_pairs(pairs: Sequence[PreferencePair], tokenizer: TextTokenizer, data: DataRecipe) -> EncodedPairs:
    """Render, tokenize, split, cut.

    Args:
        pairs: the pairs as text.
        tokenizer: the model's tokenizer with the template that the recipe chose.
        data: lengths, template variables and what to do with trouble.

    Raises:
        UserError: a pair without signal, or over the limits, where the recipe asks to stop.
    """
    result = EncodedPairs()
    for batch in batches(pairs, _BATCH):
        rendered: list[tuple[PreferencePair, _Texts]] = []
        for pair in batch:
            try:
                rendered.append((pair, _render(pair, tokenizer, data)))
            except RecordError as error:
                result.bad.append(BadRecord(pair.where, error.problem, error.fix, _shown(pair)))
        for (pair, texts), ids in zip(rendered, _tokenize([t for _, t in rendered], tokenizer), strict=True):
            _settle(pair, texts, ids, tokenizer, data, result)
    return result


def _shown(pair: PreferencePair) -> str:
    """The pair as text, for the file of rejected records."""
    prompt = pair.prompt if isinstance(pair.prompt, str) else [[turn.role, turn.content] for turn in pair.prompt]
    return json.dumps({"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}, ensure_ascii=False)


# Rendering


def _render(pair: PreferencePair, tokenizer: TextTokenizer, data: DataRecipe) -> _Texts:
    if not tokenizer.has_template or data.rendered:
        prompt = pair.prompt if isinstance(pair.prompt, str) else _transcript(pair.prompt)
        # data.rendered promises that special tokens in the text are meant; in plain text they are only text
        masked = not data.rendered and any(map(tokenizer.has_special_literal, (prompt, pair.chosen, pair.rejected)))
        texts = _Texts(prompt, pair.chosen, pair.rejected, masked)
        return _masked_plain(texts, tokenizer) if masked else texts
    messages = (Message("user", pair.prompt),) if isinstance(pair.prompt, str) else pair.prompt
    contents = [message.content for message in messages] + [pair.chosen, pair.rejected]
    masked = any(map(tokenizer.has_special_literal, contents))
    if masked:
        _refuse_rendered(contents, tokenizer, data)

    def keep(text: str) -> str:
        return tokenizer.mask_literals(text) if masked else text

    prompt_messages = [Message(message.role, keep(message.content)) for message in messages]
    options: dict[str, Any] = {"tools": pair.tools, "template_kwargs": data.chat_template_kwargs}
    try:
        prompt = tokenizer.render(prompt_messages, generation_prompt=True, **options)
        whole = [
            tokenizer.render([*prompt_messages, Message("assistant", keep(text))], generation_prompt=False, **options)
            for text in (pair.chosen, pair.rejected)
        ]
    except TemplateError as error:
        raise RecordError(
            f"the chat template refuses the conversation: {error}",
            "Mend the order of the turns, or set data.on_bad_record: skip to leave such records out.",
        ) from error
    for text in whole:
        if not text.startswith(prompt):
            raise RecordError(
                "the chat template renders the conversation differently once the response is there.",
                "Give a template that only appends with data.chat_template, or set data.chat_template_kwargs.",
            )
    _require_turns_kept(prompt_messages, prompt)
    return _Texts(prompt, whole[0][len(prompt) :], whole[1][len(prompt) :], masked)


def _masked_plain(texts: _Texts, tokenizer: TextTokenizer) -> _Texts:
    keep = tokenizer.mask_literals
    return _Texts(keep(texts.prompt), keep(texts.chosen), keep(texts.rejected), masked=True)


def _transcript(messages: Sequence[Message]) -> str:
    """A conversation for a model without a template, in the form of HH-RLHF: a Human/Assistant transcript."""
    names = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}
    turns = "".join(f"\n\n{names[message.role]}: {message.content}" for message in messages)
    return f"{turns}\n\nAssistant: "


def _refuse_rendered(contents: Sequence[str], tokenizer: TextTokenizer, data: DataRecipe) -> None:
    """Text that already holds the template's turn header was rendered before; rendering it again scores markers."""
    probe = [Message("user", "x")]
    plain = tokenizer.render(probe, generation_prompt=False, template_kwargs=data.chat_template_kwargs)
    opened = tokenizer.render(probe, generation_prompt=True, template_kwargs=data.chat_template_kwargs)
    header = opened[len(plain) :].strip() if opened.startswith(plain) else ""
    if header and any(header in content for content in contents):
        raise RecordError(
            f"the text already holds the chat template's markers ({header!r}).",
            "Set data.rendered: true to use such text as it is, or give plain messages.",
        )


def _require_turns_kept(messages: Sequence[Message], prompt: str) -> None:
    """A template that knows no tool or system role may drop the turn without a word; nobody would see it."""
    for message in messages:
        if message.role in ("tool", "system"):
            text = message.content.strip()
            if text not in prompt and json.dumps(text, ensure_ascii=False)[1:-1] not in prompt:
                raise RecordError(
                    f"the chat template leaves the {message.role} turn out.",
                    "Use a model whose template knows the role, or drop the turn from the data.",
                )


# Tokenizing


def _tokenize(texts: Sequence[_Texts], tokenizer: TextTokenizer) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids of (prompt, prompt + chosen, prompt + rejected) for each pair, in two calls of the library."""
    ids: list[tuple[list[int], list[int], list[int]] | None] = [None] * len(texts)
    for masked in (False, True):
        places = [i for i, text in enumerate(texts) if text.masked == masked]
        flat = [part for i in places for part in _wholes(texts[i])]
        encode = tokenizer.encode_masked if masked else tokenizer.encode_batch
        encoded = encode(flat) if flat else []
        for position, i in enumerate(places):
            prompt, chosen, rejected = encoded[3 * position : 3 * position + 3]
            ids[i] = (prompt, chosen, rejected)
    return [one for one in ids if one is not None]


def _wholes(texts: _Texts) -> tuple[str, str, str]:
    return texts.prompt, texts.prompt + texts.chosen, texts.prompt + texts.rejected


def _settle(
    pair: PreferencePair,
    texts: _Texts,
    ids: tuple[list[int], list[int], list[int]],
    tokenizer: TextTokenizer,
    data: DataRecipe,
    result: EncodedPairs,
) -> None:
    """Split, end, cut and judge one tokenized pair; it goes into `result` as a pair or as a count."""
    prompt, chosen, rejected = ids
    start = len(prompt)
    if chosen[:start] == prompt and rejected[:start] == prompt:
        chosen, rejected = chosen[start:], rejected[start:]
    else:
        result.counts["tokenized apart"] += 1
        if texts.masked:
            chosen, rejected = tokenizer.encode_masked([texts.chosen, texts.rejected])
        else:
            chosen, rejected = map(tokenizer.encode_continuation, (texts.chosen, texts.rejected))
    if texts.masked:
        result.counts["special token kept as text"] += 1

    if not tokenizer.has_template or data.rendered:
        prompt = [*tokenizer.plain_prefix, *prompt] if prompt[:1] != [tokenizer.bos_id] else prompt
        chosen, rejected = (_with_end(_up_to_end(response, tokenizer), tokenizer) for response in (chosen, rejected))
    else:
        chosen, rejected = (_up_to_end(response, tokenizer) for response in (chosen, rejected))
    if tokenizer.bos_id is not None and prompt[:2] == [tokenizer.bos_id] * 2:
        prompt = prompt[1:]
    if not all(response and response[-1] in _ends(tokenizer) for response in (chosen, rejected)):
        result.counts["no end token"] += 1

    num_prompt, num_chosen, num_rejected = len(prompt), len(chosen), len(rejected)
    prompt = _cut_prompt(prompt, data.max_prompt_length, tokenizer.bos_id)
    room = data.max_length - len(prompt)
    if (len(prompt) < num_prompt or max(num_chosen, num_rejected) > room) and data.overlong != "truncate":
        if data.overlong == "error":
            raise UserError(
                f"the pair has {num_prompt} prompt tokens and {num_chosen} and {num_rejected} response tokens, "
                f"over the limits of {data.max_prompt_length} and {data.max_length}.",
                "Raise data.max_length, or set data.overlong to truncate or drop.",
                where=pair.where,
            )
        result.dropped["over the length limits"] += 1
        return
    chosen, rejected = chosen[:room], rejected[:room]

    reason = _no_signal(chosen, rejected, tokenizer, data.min_response_tokens)
    if reason is not None:
        if data.on_no_signal == "error":
            raise UserError(
                f"the pair carries no signal: {reason}.",
                "Mend the record, or set data.on_no_signal: drop to leave such pairs out and count them.",
                where=pair.where,
            )
        result.dropped[reason] += 1
        return
    encoded = EncodedPair(
        prompt=_array(prompt),
        chosen=_array(chosen),
        rejected=_array(rejected),
        prompt_key=prompt_key(pair),
        where=pair.where,
        prompt_cut=len(prompt) < num_prompt,
        chosen_cut=len(chosen) < num_chosen,
        rejected_cut=len(rejected) < num_rejected,
    )
    for name in ("prompt_cut", "chosen_cut", "rejected_cut"):
        if getattr(encoded, name):
            result.counts[name.replace("_", " ")] += 1
    result.pairs.append(encoded)


def _ends(tokenizer: TextTokenizer) -> frozenset[int]:
    return tokenizer.end_ids | tokenizer.special_ids


def _up_to_end(response: list[int], tokenizer: TextTokenizer) -> list[int]:
    """The response up to and including its first end-of-turn token.

    That is the first token that the tokenizer or the generation config calls an end. Some models end their turns with
    another special token than either names; then it is the last special token that the template wrote.
    """
    for i, token in enumerate(response):
        if token in tokenizer.end_ids:
            return response[: i + 1]
    for i in range(len(response) - 1, -1, -1):
        if response[i] in tokenizer.special_ids:
            return response[: i + 1]
    return response


def _with_end(response: list[int], tokenizer: TextTokenizer) -> list[int]:
    """A response without a template has no end token of its own: the tokenizer's EOS goes behind it."""
    if tokenizer.eos_id is None or (response and response[-1] in _ends(tokenizer)):
        return response
    return [*response, tokenizer.eos_id]


def _cut_prompt(prompt: list[int], most: int, bos_id: int | None) -> list[int]:
    """The last `most` tokens, with the BOS kept in front."""
    if len(prompt) <= most:
        return prompt
    if bos_id is not None and prompt[0] == bos_id:
        return [bos_id, *prompt[len(prompt) - most + 1 :]]
    return prompt[len(prompt) - most :]


def _no_signal(chosen: list[int], rejected: list[int], tokenizer: TextTokenizer, fewest: int) -> str | None:
    for response in (chosen, rejected):
        content = len(response) - bool(response and response[-1] in _ends(tokenizer))
        if content < fewest:
            return "response without tokens" if content == 0 else f"response of fewer than {fewest} tokens"
    return "responses identical after the cut" if chosen == rejected else None


def _array(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.asarray(ids, dtype=np.int32)


def prompt_key(pair: PreferencePair) -> str:
    """A hash of the prompt's text; a string and the same string as one user message are the same prompt."""
    messages = (Message("user", pair.prompt),) if isinstance(pair.prompt, str) else pair.prompt
    text = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
