"""What a chat template writes around turns, learned by rendering a few made-up ones."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Protocol

from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer.message_shape import CALL_KEY, CALL_VALUE, made_up_call
from simpo_cli.data.tokenizer.special_texts import EncodingError, shared_lead
from simpo_cli.data.tokenizer.template import TemplateError

_MADE_UP = ("qZ7kqu", "qZ7kqa", "qZ7kqv", "qZ7kqs")  # words of made-up turns; no template writes them itself


@dataclass(frozen=True, slots=True)
class TurnMarks:
    """What a chat template writes around turns.

    Attributes:
        end_id: the token that ends an answer, or None where the template ends it with none. Of several that stand
            behind every answer, it is the one that tokenizer or generation config name (Command A).
        call_end_id: the same of an answer that calls tools, where the header of the next turn ends it.
        end_is_written: False where the header of the next turn ends an answer, as in GLM-4: the rendering of a
            conversation then lacks it, and it is put behind the answer.
        opening: the header of an answer, where the template has no generation prompt that would hold it; often empty.
        turn_ids: added tokens that stand between an answer and the next turn.
        user_header, answer_header: what opens a turn of the user and of the assistant, such as `<|im_start|>user`.
    """

    end_id: int | None = None
    call_end_id: int | None = None
    end_is_written: bool = True
    opening: str = ""
    turn_ids: frozenset[int] = frozenset()
    user_header: str = ""
    answer_header: str = ""


class Tokens(Protocol):
    """What has to be known of a tokenizer to learn its template's marks."""

    def added_in(self, text: str) -> list[int]:
        """The added tokens of a text that are more than white space."""

    def text_of(self, added_id: int) -> str:
        """How an added token is spelled."""

    @property
    def named_end_ids(self) -> frozenset[int]:
        """Tokens that end an answer by the tokenizer or the generation config."""


def learn_marks(render: Callable[[Sequence[Message], bool], str], tokens: Tokens) -> TurnMarks:
    """What the template writes around made-up turns; nothing of a template that renders none of them.

    Args:
        render: the template; its second argument asks for the generation prompt.
        tokens: what is added to the tokenizer's vocabulary.
    """
    user, answer, second, system = _MADE_UP
    for lead in ((), (Message("system", system),)):  # some templates insist on a system turn
        turns = [*lead, Message("user", user), Message("assistant", answer), Message("user", second)]
        first = len(lead) + 1
        try:
            question, asked = render(turns[:first], False), render(turns[:first], True)
            answered, dialog = render(turns[: first + 1], False), render(turns, False)
            if all(word in text for word, text in ((user, answered), (answer, answered), (second, dialog))):
                marks = _marks_of(question, asked, answered, dialog, tokens)
                return marks if marks.end_is_written else replace(marks, call_end_id=_call_end(render, lead, tokens))
        except (TemplateError, EncodingError):
            continue
    return TurnMarks()


def _marks_of(question: str, asked: str, answered: str, dialog: str, tokens: Tokens) -> TurnMarks:
    user, answer, second, _ = _MADE_UP
    before, _, behind = answered.rpartition(answer)
    next_turn = dialog.rpartition(second)[0].rpartition(answer)[2]
    turn_ids, last_ids = tokens.added_in(next_turn), tokens.added_in(behind)
    every = [last for last, _ in takewhile(lambda two: two[0] == two[1], zip(last_ids, turn_ids, strict=False))]
    end_id = next((i for i in every if i in tokens.named_end_ids), next(iter(last_ids), None))
    end_is_written = True
    if end_id is None and turn_ids and turn_ids[0] in tokens.named_end_ids:
        end_id, end_is_written = turn_ids[0], False
    opening = ""
    if asked == question and before.startswith(asked):
        opening = before[len(asked) :].rstrip(" ") if before[len(asked) :].strip() else ""
    end_text = tokens.text_of(end_id) if end_id is not None and end_is_written else None
    header = ""  # the generation prompt, as far as the answer's own rendering has it: not an opening `<think>`
    if asked.startswith(question) and before.startswith(question):
        header = shared_lead(asked[len(question) :], before[len(question) :])
    return TurnMarks(
        end_id=end_id,
        end_is_written=end_is_written,
        opening=opening,
        turn_ids=frozenset(turn_ids),
        user_header=_header(next_turn, end_text),
        answer_header=_header(header, None) or _header(before.rpartition(user)[2], end_text),
    )


def _call_end(render: Callable[[Sequence[Message], bool], str], lead: Sequence[Message], tokens: Tokens) -> int | None:
    """The named end token that stands between a call and its result."""
    user, _, result, _ = _MADE_UP
    call = Message("assistant", "", json.dumps(made_up_call("", {CALL_KEY: CALL_VALUE})))
    try:
        text = render([*lead, Message("user", user), call, Message("tool", result)], False)
    except (TemplateError, EncodingError):
        return None
    gap = text.rpartition(result)[0].rpartition(CALL_VALUE)[2]
    return next((i for i in tokens.added_in(gap) if i in tokens.named_end_ids), None)


def _header(gap: str, end_text: str | None) -> str:
    """What opens a turn, of what stands between two turns: the first line behind the end of the first turn."""
    if end_text is not None and end_text in gap:
        gap = gap.split(end_text, 1)[1]
    lines = gap.strip().splitlines()
    return lines[0].strip() if lines else ""
