"""Where prompts and responses are cut: what goes of a prompt, so that what is left is a conversation still.

The oldest turns go, whole, from one of the user's to the next, and the system turn stays. Where the last turn of the
user and those behind it do not fit by themselves, the beginning of the longest of them goes, behind its header; calls
are no text and stay whole; where the system turn leaves no room for that, it goes too. Where that is not enough either,
because tools or headers are too long, only whole turns behind them stay. Text without turns loses its first tokens. BOS
stays in any case. A response ends with its first end token, or keeps its first tokens and has no end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from simpo_cli.data.encode.conversation import STAND_IN, text_of, with_content
from simpo_cli.data.encode.rendering import Texts
from simpo_cli.data.encode.rules import Rules
from simpo_cli.data.pair import Message
from simpo_cli.data.raw import RecordError
from simpo_cli.data.tokenizer import EncodingError, TemplateError


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
    starts = [i for i, turn in enumerate(texts.turns) if turn.role == "user"]
    low, high = 0, len(starts)  # the first start with which it fits
    while low < high:
        middle = (low + high) // 2
        ids = _ids(texts.write([*opening, *texts.turns[starts[middle] :]]), texts, rules)
        low, high = (low, middle) if len(ids) <= most else (middle + 1, high)
    if low < len(starts):
        return _ids(texts.write([*opening, *texts.turns[starts[low] :]]), texts, rules)
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
    starts = (i for i in range(len(prompt)) if header and prompt[i : i + len(header)] == header)
    start = next(starts, 0)
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
    places = [ids.index(end) for end in rules.ends if end in ids]
    if places:
        return Response(ids[: min(places) + 1], True)
    ends = (rules.marks.call_end_id if calls else None, rules.marks.end_id, rules.tokenizer.eos_id)
    end = next((one for one in ends if one is not None), None)
    if end is not None and (rules.plain or not rules.marks.end_is_written):
        return Response([*ids, end], True)
    return Response(ids, False)
