"""The end, the cut and the verdict: what of a tokenized pair is trained on, or why nothing is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.encode.cutting import cut_prompt, whole_prompt
from simpo_cli.data.encode.rendering import Texts
from simpo_cli.data.encode.rules import SKIP, EncodedPairs, Rules, prompt_key, refusal
from simpo_cli.data.encode.tokenizing import Ids
from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.raw import RecordError
from simpo_cli.errors import UserError


def settle(pair: PreferencePair, texts: Texts, ids: Ids, rules: Rules, result: EncodedPairs) -> None:
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
    for limit, needed, is_cut in (
        ("max_prompt_length", num_prompt, encoded.prompt_cut),
        ("max_length", len(prompt) + longest, encoded.chosen_cut or encoded.rejected_cut),
    ):
        if is_cut:
            result.needed[limit][needed + -needed % 64] += 1
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
