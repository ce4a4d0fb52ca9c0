"""A pair as the model's template writes it: the prompt, and what stands behind it for either response."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from simpo_cli.data.encode.rules import SKIP, Rules
from simpo_cli.data.messages import as_transcript
from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.raw import RecordError
from simpo_cli.data.tokenizer import EncodingError, TemplateError, Way

LONGEST_WORD = 1_000_000
"""Characters without white space, or of white space, that a text may hold in a row. A longer run is no text, and
tokenizers take long for it, or all memory."""

AS_WRITTEN = "answer not as the template writes it"
HISTORY_CHANGED = "turns that the template writes otherwise once they are answered"
_STAND_IN = "qZ7kqx"  # a made-up answer
_LONGEST_OPENING = 100  # characters of an answer that a generation prompt may begin
_RUNS = re.compile(r"\S+|\s+")


@dataclass(frozen=True, slots=True)
class Texts:
    """A pair as rendered text.

    Attributes:
        prompt: what is not scored.
        responses: what stands behind it, chosen and rejected.
        way: how special tokens in it are read.
        rules: the rules by which the answers continue the prompt, where the whole rendering does not say so itself.
        tools_left_out: whether the pair has definitions of tools that the template does not read.
    """

    prompt: str
    responses: tuple[str, str]
    way: Way
    rules: frozenset[str] = frozenset()
    tools_left_out: bool = False


def _contents(pair: PreferencePair) -> list[str]:
    return [pair.prompt] if isinstance(pair.prompt, str) else [turn.content for turn in pair.prompt]


def render(pair: PreferencePair, rules: Rules) -> Texts:
    contents = _contents(pair)
    for name, text in (*(("prompt", text) for text in contents), ("chosen", pair.chosen), ("rejected", pair.rejected)):
        if len(text) > LONGEST_WORD and any(run.end() - run.start() > LONGEST_WORD for run in _RUNS.finditer(text)):
            raise RecordError(f"{name}: a word, or a gap, of more than {LONGEST_WORD:,} characters", SKIP)
    return _render_plain(pair, rules) if rules.plain else _render_chat(pair, contents, rules)


def render_prompt(prompt: tuple[Message, ...] | str, rules: Rules) -> tuple[str, Way]:
    """A prompt without a response, as it is in front of one: its text, and how special tokens in it are read.

    Raises:
        RecordError: the text holds the template's markers, or the template drops one of its turns.
        TemplateError: the template refuses the conversation.
        EncodingError: a special token that the prompt spells out cannot be kept as text.
    """
    pair = PreferencePair(prompt, "", "", where="")
    if rules.plain:
        texts = _render_plain(pair, rules)
        return texts.prompt, texts.way
    contents = _contents(pair)
    _refuse_rendered(contents, rules)
    masked = any(map(rules.tokenizer.has_special_literal, contents))
    kept = [rules.tokenizer.mask_literals(text) if masked else text for text in contents]
    talk = _Talk(rules, tuple(map(Message, _roles(prompt), kept)), None)
    text = talk.prompt()
    talk.require_turns_kept(text)
    return text, "masked" if masked else "parsed"


def _render_plain(pair: PreferencePair, rules: Rules) -> Texts:
    """Prompt and response as they are; a conversation becomes a Human/Assistant transcript, in the form of HH-RLHF."""
    prompt, responses = pair.prompt, (pair.chosen, pair.rejected)
    if not isinstance(prompt, str) and rules.data.rendered:
        if len(prompt) != 1:
            raise RecordError(
                "the prompt is a conversation, and data.rendered: true says that the texts are rendered already",
                "Leave data.rendered out, or, for plain Human/Assistant transcripts, set data.chat_template: none.",
            )
        prompt = prompt[0].content
    if not isinstance(prompt, str):
        # The space behind "Assistant:" is the answer's, where tokenizers have it: " Yes" is one token
        prompt, responses = "\n\n" + as_transcript(prompt), (f" {pair.chosen}", f" {pair.rejected}")
    # data.rendered promises that special tokens in the text are meant; in plain text they are only text
    literal = not rules.data.rendered and any(map(rules.tokenizer.has_special_literal, (prompt, *responses)))
    return Texts(prompt, responses, "literal" if literal else "parsed")


def _render_chat(pair: PreferencePair, contents: Sequence[str], rules: Rules) -> Texts:
    tokenizer = rules.tokenizer
    _refuse_rendered([*contents, pair.chosen, pair.rejected], rules)
    tools = None if pair.tools is None else json.loads(pair.tools)
    tools = [tools] if isinstance(tools, dict) else tools
    untold = tools is not None and not tokenizer.knows_tools
    found = _any_string(tools, tokenizer.has_special_literal)
    masked = found or any(map(tokenizer.has_special_literal, (*contents, pair.chosen, pair.rejected)))

    def keep(text: str) -> str:
        return tokenizer.mask_literals(text) if masked else text

    try:
        talk = _Talk(
            rules,
            tuple(Message(role, keep(text)) for role, text in zip(_roles(pair.prompt), contents, strict=True)),
            _each_string(tools, keep) if masked else tools,
        )
        answers = keep(pair.chosen), keep(pair.rejected)
        prompt = talk.prompt()
        (chosen, chosen_rule), (rejected, rejected_rule) = (talk.response(prompt, answer) for answer in answers)
        talk.require_turns_kept(prompt)
    except TemplateError as error:
        raise RecordError(
            f"the chat template refuses the conversation: {error}",
            "Mend the order of the turns, or set data.on_bad_record: skip to leave such records out.",
        ) from error
    except EncodingError as error:
        raise RecordError(f"the text {error}", SKIP) from error
    way: Way = "masked" if masked else "parsed"
    return Texts(prompt, (chosen, rejected), way, frozenset(filter(None, (chosen_rule, rejected_rule))), untold)


def _roles(prompt: tuple[Message, ...] | str) -> list[str]:
    return ["user"] if isinstance(prompt, str) else [turn.role for turn in prompt]


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation before the template, ready for its answer; its texts are masked where they must be."""

    rules: Rules
    turns: tuple[Message, ...]
    tools: Any

    def prompt(self) -> str:
        """The conversation with the header of the answer."""
        return self._render(self.turns, generation_prompt=True) + self.rules.marks.opening

    def response(self, prompt: str, answer: str) -> tuple[str, str]:
        """What stands behind the prompt, and the rule that says so where the rendering alone does not.

        Raises:
            RecordError: no rule says how the answer continues the prompt.
        """
        whole = self._render((*self.turns, Message("assistant", answer)))
        unsaid = _unsaid(prompt, answer)
        if whole.startswith(prompt) and _holds(whole[len(prompt) :], unsaid):
            return whole[len(prompt) :], ""
        before, found, behind = self._render((*self.turns, Message("assistant", _STAND_IN))).rpartition(_STAND_IN)
        if found and whole.startswith(prompt) and unsaid == answer:
            space = before[len(prompt) :]
            return (space if not space.strip() else "") + answer + behind, AS_WRITTEN
        opening = prompt[len(before) :] if prompt.startswith(before) else ""
        word = opening.strip()
        if found and word:
            if answer.startswith(word):
                return answer[len(word) :].removeprefix(opening[len(opening.rstrip()) :]) + behind, AS_WRITTEN
            raise RecordError(
                f"the generation prompt ends with {opening!r}, and this answer does not begin with it",
                "Give answers with their reasoning, or a template without it with data.chat_template or "
                "data.chat_template_kwargs.",
            )
        start = self._answer_start(prompt, before) if found else 0
        if start and whole.startswith(before[:start]) and _holds(whole[start:], unsaid):
            return whole[start:], HISTORY_CHANGED
        raise RecordError(
            "the chat template renders the conversation differently once the response is there",
            "Give a template that only appends with data.chat_template, or set data.chat_template_kwargs.",
        )

    def _answer_start(self, prompt: str, before: str) -> int:
        """Where, of a rendering up to its answer, the generation prompt ends; 0 where it is not there."""
        question = self._render(self.turns)
        header = prompt[len(question) :] if prompt.startswith(question) else ""
        place = before.rfind(header) if header.strip() else -1
        return place + len(header) if place >= 0 else 0

    def require_turns_kept(self, prompt: str) -> None:
        """A template that knows no tool or system role may drop the turn without a word; nobody would see it.

        Raises:
            RecordError: names the role.
        """
        for i, turn in enumerate(self.turns):
            text = turn.content.strip()
            if turn.role == "assistant" or text in prompt or json.dumps(text, ensure_ascii=False)[1:-1] in prompt:
                continue  # what is taken out of earlier answers is the template's choice: their reasoning
            # not there word for word: left out, or only changed?
            changed = (*self.turns[:i], Message(turn.role, _STAND_IN), *self.turns[i + 1 :])
            if _STAND_IN not in self._render(changed, generation_prompt=True):
                raise RecordError(
                    f"the chat template leaves the {turn.role} turn out",
                    "Use a model whose template knows the role, or drop the turn from the data.",
                )

    def _render(self, turns: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return self.rules.tokenizer.render(
            turns,
            generation_prompt=generation_prompt,
            tools=self.tools,
            template_kwargs=self.rules.data.chat_template_kwargs,
        )


def _unsaid(prompt: str, answer: str) -> str:
    """What of an answer the prompt does not hold already: a generation prompt may end with its `<think>`."""
    said = prompt.rstrip()[-_LONGEST_OPENING:]
    start = said.find(answer[:1]) if answer else -1
    while start >= 0 and not answer.startswith(said[start:]):
        start = said.find(answer[0], start + 1)
    return answer[len(said) - start :] if start >= 0 else answer


def _holds(rendered: str, answer: str) -> bool:
    """Whether an answer is there, white space aside."""
    return answer.strip() in rendered or "".join(answer.split()) in "".join(rendered.split())


def _refuse_rendered(contents: Sequence[str], rules: Rules) -> None:
    """Text that already holds the template's turn headers was rendered before; rendering it again scores markers.

    Headers of mere words, such as `ASSISTANT:`, also occur in texts about something else; these are refused where a
    text ends with the assistant's, as only a rendered prompt does.

    Raises:
        RecordError: names the header.
    """
    user, answer = rules.marks.user_header, rules.marks.answer_header
    for header in filter(None, (user, answer)):
        if any(sign in header for sign in "<>[]{}|"):
            holds = any(header in text for text in contents)
        else:
            holds = header == answer and any(user in text and text.rstrip().endswith(answer) for text in contents)
        if holds:
            raise RecordError(
                f"the text already holds the chat template's markers ({header!r})",
                "Set data.rendered: true to use such text as it is, or give plain messages.",
            )


def _any_string(value: Any, holds: Callable[[str], bool]) -> bool:
    match value:
        case str():
            return holds(value)
        case list():
            return any(_any_string(item, holds) for item in value)
        case dict():
            return any(_any_string(item, holds) for pair in value.items() for item in pair)
        case _:
            return False


def _each_string(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case list():
            return [_each_string(item, change) for item in value]
        case dict():
            return {change(key): _each_string(item, change) for key, item in value.items()}
        case _:
            return value
