"""A conversation before the template: its prompt, and what stands behind it once it is answered."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from simpo_cli.data.messages import REASONING
from simpo_cli.data.pair import Message, RecordError
from simpo_cli.data.tokenizer import TemplateError, TextTokenizer, TurnMarks
from simpo_cli.recipe.schema import DataRecipe

AS_WRITTEN = "answer not as the template writes it"
HISTORY_CHANGED = "turns that the template writes otherwise once they are answered"
BEHIND_THOUGHT = "answer behind a thought that only the generation prompt closes"
NOT_WRITTEN = " that the template does not write"
STAND_IN, _LAST = "qZ7kqx", "qZ7kqy"  # a made-up answer, and a made-up last turn
_LONGEST_OPENING = 100  # characters of an answer that a generation prompt may begin
_MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")
_CLOSING = re.compile(r"</|\[/|<[^|].*\|>|.*(?<![a-z])(end|close)(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every pair of a call; `ends` are the tokens that end an answer."""

    data: DataRecipe
    tokenizer: TextTokenizer
    marks: TurnMarks
    ends: frozenset[int]

    @classmethod
    def of(cls, data: DataRecipe, tokenizer: TextTokenizer) -> "Rules":
        """The rules of a recipe's data under a tokenizer with the template that the recipe chose."""
        variables = data.chat_template_kwargs
        return cls(data, tokenizer, tokenizer.turn_marks(variables), tokenizer.end_ids_under(variables))

    @property
    def plain(self) -> bool:
        """Whether texts are used as they are."""
        return not self.tokenizer.has_template or self.data.rendered


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation ready for its answer; its texts are masked where they must be."""

    rules: Rules  # what holds for every pair
    turns: tuple[Message, ...]  # the turns of the prompt
    tools: Any  # as parsed JSON, or None
    template_kwargs: Mapping[str, Any]  # variables of the template, the recipe's and the record's
    marks: TurnMarks  # what the template writes around turns under these variables

    def prompt(self) -> str:
        """The conversation with the header of the answer."""
        return self._render(self.turns, generation_prompt=True) + self.marks.opening

    def prompt_of(self, turns: Sequence[Message]) -> str:
        """The same of other turns."""
        return replace(self, turns=tuple(turns)).prompt()

    def response(self, prompt: str, answer: Message) -> tuple[str, str]:
        """What stands behind the prompt, and the rule that says so where the rendering alone does not.

        Raises RecordError where no rule says how the answer continues the prompt.
        """
        whole = self._render((*self.turns, answer))
        if whole.startswith(prompt) and self._holds_answer(whole[len(prompt) :], prompt, answer):
            return whole[len(prompt) :], ""
        before, found, behind = self._render((*self.turns, Message("assistant", STAND_IN))).rpartition(STAND_IN)
        text = "" if answer.fields else answer.content  # what may stand there as it is
        if found and text and whole.startswith(prompt) and _without_opening(prompt, text) == text:
            space = before[len(prompt) :]
            return (space if not space.strip() else "") + text + behind, AS_WRITTEN
        opening, lead = self._seam(prompt, before) if found else ("", None)
        if word := opening.strip():
            if text.startswith(word):
                return text[len(word) :].removeprefix(opening[len(opening.rstrip()) :]) + behind, AS_WRITTEN
            if not _is_closed(word):
                raise RecordError(
                    f"the generation prompt ends with {opening!r}, and this answer does not begin with it",
                    "Give answers with their reasoning, or a template without it with data.chat_template or "
                    "data.chat_template_kwargs.",
                )
            rest = whole.removeprefix(before)
            if rest != whole and self._holds_answer(rest, "", answer) and not rest.startswith(_MARKER.findall(word)[0]):
                return rest, BEHIND_THOUGHT
        elif lead is not None:
            start = len(before) - len(lead)
            if whole.startswith(before[:start]) and self._holds_answer(whole[start:], prompt, answer):
                return whole[start:], HISTORY_CHANGED
        if answer.fields and whole.startswith(prompt):
            raise RecordError(
                "the chat template leaves the text beside the calls of the answer out",
                "Take the text out, or leave such records out with data.on_bad_record: skip.",
            )
        raise RecordError(
            "the chat template renders the conversation differently once the response is there",
            "Give a template that only appends with data.chat_template, or set data.chat_template_kwargs.",
        )

    def opening(self) -> str:
        """What the generation prompt already holds of the answer and leaves open, such as `<think>`."""
        opening = ""
        with suppress(TemplateError):  # one that takes no answer yet
            before, found, _ = self._render((*self.turns, Message("assistant", STAND_IN))).rpartition(STAND_IN)
            opening = self._seam(self.prompt(), before)[0] if found else ""
        return "" if _is_closed(opening) else opening

    def _seam(self, prompt: str, before: str) -> tuple[str, str | None]:
        """What the prompt ends with beyond the header of an answer, and what the header ends with beyond the prompt.

        Only one of them is more than nothing; where the two do not fit together, the second is None. Of a template that
        writes earlier turns otherwise once they are answered, only what stands behind them is looked at: the generation
        prompt, or, without one, what follows a made-up last turn.
        """
        if not prompt.startswith(before) and not before.startswith(prompt):
            header = prompt.removeprefix(self._render(self.turns))
            place = before.rfind(header) if header.strip() and header != prompt else -1
            if place >= 0:
                return "", before[place + len(header) :]
            with_last = replace(self, turns=(*self.turns[:-1], with_content(self.turns[-1], _LAST)))
            answered = with_last._render((*with_last.turns, Message("assistant", STAND_IN))).rpartition(STAND_IN)[0]
            _, in_prompt, prompt = with_last.prompt().rpartition(_LAST)
            _, in_before, before = answered.rpartition(_LAST)
            if not in_prompt or not in_before:
                return "", None
        if prompt.startswith(before):
            return prompt[len(before) :], ""
        return "", before[len(prompt) :] if before.startswith(prompt) else None

    def _holds_answer(self, rendered: str, prompt: str, answer: Message) -> bool:
        """Whether a rendering holds an answer, white space and what the prompt already holds of it aside."""
        if not answer.fields:
            return _holds(rendered, _without_opening(prompt, answer.content))
        shaped = self.rules.tokenizer.shape.of(answer)
        ends = [self.rules.tokenizer.text_of(end) for end in self.rules.ends & self.rules.tokenizer.special_ids]
        scored = rendered[: min((place for end in ends if (place := rendered.find(end)) >= 0), default=len(rendered))]
        if not _holds(scored, _without_opening(prompt, text_of(shaped))):
            return False
        if calls := shaped.get("tool_calls"):
            renamed = self._render((*self.turns, _renamed(answer)))
            if renamed.count(STAND_IN) < len(calls) or str(calls[-1]["function"]["name"]) not in scored:
                raise RecordError(
                    f"the chat template does not write {len(calls)} calls in one answer"
                    if len(calls) > 1
                    else "the chat template leaves the call of the answer out",
                    "Use a model whose template writes it, or leave such records out with data.on_bad_record: skip.",
                )
        return True

    def require_turns_kept(self, prompt: str) -> None:
        """Refuse (RecordError) a template that drops a turn, of a role that it does not know, without a word."""
        for i, turn in enumerate(self.turns):
            if turn.role == "assistant":
                self._require_calls_kept(i, prompt)
                continue  # what is taken out of earlier answers is the template's choice: their reasoning
            text = text_of(turn.as_record()).strip()
            if text in prompt or json.dumps(text, ensure_ascii=False)[1:-1] in prompt:
                continue
            # not there word for word: left out, or only changed?
            if STAND_IN not in self._with_turn(i, with_content(turn, STAND_IN)):
                raise RecordError(
                    f"the chat template leaves the {turn.role} turn out",
                    "Use a model whose template knows the role, or drop the turn from the data.",
                )

    def _require_calls_kept(self, place: int, prompt: str) -> None:
        turn = self.turns[place]
        calls = self.rules.tokenizer.shape.of(turn).get("tool_calls", ()) if turn.fields else ()
        if not calls:
            return
        with suppress(TemplateError):  # one that wants calls and results of one name
            prompt = self._with_turn(place, _renamed(turn))
        if prompt.count(STAND_IN) < len(calls) and any(call["function"]["name"] not in prompt for call in calls):
            raise RecordError(
                f"the chat template leaves {'a call' if len(calls) > 1 else 'the call'} of the assistant out",
                "Use a model whose template writes it, or leave such records out with data.on_bad_record: skip.",
            )

    def _with_turn(self, place: int, turn: Message) -> str:
        """The prompt with another turn at a place."""
        return self._render((*self.turns[:place], turn, *self.turns[place + 1 :]), generation_prompt=True)

    def _render(self, turns: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return self.rules.tokenizer.render(
            turns, generation_prompt=generation_prompt, tools=self.tools, template_kwargs=self.template_kwargs
        )


def _is_closed(opening: str) -> bool:
    """Whether what a generation prompt holds of an answer ends with `</think>`, `<channel|>` or the like."""
    markers = _MARKER.findall(opening)
    return bool(markers) and _CLOSING.match(markers[-1]) is not None


def unwritten(message: Message, text: str, earlier: str = "") -> Iterator[str]:
    """A note of each thing that a message holds beside its content and calls, and its rendering does not.

    `earlier` is put in front of `reasoning`, which templates leave out of earlier turns.
    """
    fields = json.loads(message.fields) if message.fields else {}
    for name, value in fields.items():
        if name == "tool_calls":
            if any(str(call.get("id") or "") not in text for call in value):
                yield f"tool call ids{NOT_WRITTEN}"
        elif name != "content" and not all(
            _holds(text, leaf) or json.dumps(leaf, ensure_ascii=False)[1:-1] in text for leaf in _texts_in(value)
        ):
            what = f"{earlier}reasoning" if name in REASONING else "tool call ids" if name == "tool_call_id" else name
            yield f"{what}{NOT_WRITTEN}"


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts_in(one)


def with_content(turn: Message, text: str) -> Message:
    """A turn that says something else; it stays a result of its call."""
    return Message(turn.role, text, json.dumps({**json.loads(turn.fields), "content": text}) if turn.fields else "")


def _renamed(turn: Message) -> Message:
    """A turn whose calls have a made-up name."""
    fields = json.loads(turn.fields)
    calls = [{**call, "function": {**call["function"], "name": STAND_IN}} for call in fields["tool_calls"]]
    return Message(turn.role, turn.content, json.dumps({**fields, "tool_calls": calls}))


def text_of(message: Mapping[str, Any]) -> str:
    """The content of a message as it goes to the template."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _without_opening(prompt: str, answer: str) -> str:
    """What of an answer the prompt does not hold already: a generation prompt may end with its `<think>`."""
    opened = prompt.rstrip()[-_LONGEST_OPENING:]
    start = opened.find(answer[:1]) if answer else -1
    while start >= 0 and not answer.startswith(opened[start:]):
        start = opened.find(answer[0], start + 1)
    return answer[len(opened) - start :] if start >= 0 else answer


def _holds(rendered: str, answer: str) -> bool:
    """Whether an answer is there, white space aside."""
    return answer.strip() in rendered or "".join(answer.split()) in "".join(rendered.split())
