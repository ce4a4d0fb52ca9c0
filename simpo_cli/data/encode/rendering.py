"""A pair as the model's template writes it: the prompt, and what stands behind it for either response."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simpo_cli.data.encode.conversation import NOT_WRITTEN, Conversation, Rules, unwritten
from simpo_cli.data.formats.names import SKIP
from simpo_cli.data.messages import as_transcript, text_of
from simpo_cli.data.pair import Message, PreferencePair, RecordError, prompt_messages
from simpo_cli.data.tokenizer import GIVEN_BY_US, EncodingError, SpecialTokenMode, TemplateError
from simpo_cli.errors import UserError

LONGEST_WORD = 1_000_000
"""Characters without white space, or of white space, that a text may hold in a row. A longer run is no text, and
tokenizers take long for it, or all memory."""

CALLS_AS_TEXT = "calls written as text, because the template has no place for them"
AS_TRANSCRIPT = "conversations written as Human/Assistant text, because there is no chat template"
_TOOLS_LEFT_OUT = "tools unknown to the template"
_RUNS = re.compile(r"\S+|\s+")


@dataclass(frozen=True, slots=True)
class Texts:
    """A pair as rendered text.

    Counted are the rules by which the answers continue the prompt, where the whole rendering does not say so itself,
    and what of the record is not written.
    """

    prompt: str  # what is not scored
    responses: tuple[str, str]  # what stands behind it, chosen and rejected
    mode: SpecialTokenMode  # how special tokens in it are read
    notes: frozenset[str] = frozenset()  # what is counted of it
    turns: tuple[Message, ...] = ()  # those of the prompt, where it is a conversation
    write: Callable[[Sequence[Message]], str] = field(default=lambda _: "", compare=False)  # the prompt of other turns
    calls: tuple[bool, bool] = (False, False)  # whether each response calls tools


def render(pair: PreferencePair, rules: Rules) -> Texts:
    contents = [turn.content for turn in prompt_messages(pair.prompt)]
    for name, text in (*(("prompt", text) for text in contents), ("chosen", pair.chosen), ("rejected", pair.rejected)):
        if len(text) > LONGEST_WORD and any(run.end() - run.start() > LONGEST_WORD for run in _RUNS.finditer(text)):
            raise RecordError(f"{name}: a word, or a gap, of more than {LONGEST_WORD:,} characters", SKIP)
    if rules.plain:
        return _render_plain(pair, rules)
    _refuse_rendered([*contents, pair.chosen, pair.rejected], rules)
    try:
        return _render_chat(pair, rules)
    except TemplateError as error:
        raise RecordError(
            f"the chat template refuses the conversation: {error}",
            "Mend the order of the turns, or set data.on_bad_record: skip to leave such records out.",
        ) from stopped_if_endless(error, rules)
    except EncodingError as error:
        raise RecordError(f"the text {error}", SKIP) from error


def stopped_if_endless(error: TemplateError, rules: Rules) -> TemplateError:
    """The error of a template that refuses one conversation.

    Raises UserError where the template calls itself without an end, and so refuses all.
    """
    if isinstance(error.__cause__, RecursionError):
        raise UserError(
            "the chat template was stopped: it calls itself without an end.",
            "Use another with data.chat_template, or another model.",
            where=rules.tokenizer.where,
        ) from error
    return error


def render_prompt(prompt: tuple[Message, ...] | str, rules: Rules) -> Texts:
    """A prompt without a response, as it is in front of one.

    Raises:
        RecordError: the text holds the template's markers, or the template drops one of its turns.
        TemplateError: the template refuses the conversation.
        EncodingError: a special token that the prompt spells out cannot be kept as text.
        UserError: the template never ends.
    """
    pair = PreferencePair(prompt, "", "", where="")
    if rules.plain:
        return _render_plain(pair, rules)
    _refuse_rendered([turn.content for turn in prompt_messages(prompt)], rules)
    try:
        conversation, _, mode = _conversation_of(pair, rules)
        text = conversation.prompt()
        conversation.require_turns_kept(text)
    except TemplateError as error:
        raise stopped_if_endless(error, rules) from error.__cause__
    return Texts(text, ("", ""), mode, turns=conversation.turns, write=conversation.prompt_of)


def opening_of(prompt: tuple[Message, ...], rules: Rules) -> str:
    """What a generation prompt already holds of the answer and leaves open, such as `<think>`; mostly nothing."""
    if rules.plain:
        return ""
    return _conversation_of(PreferencePair(prompt, "", "", where=""), rules)[0].opening()


def _render_plain(pair: PreferencePair, rules: Rules) -> Texts:
    """Prompt and response as they are; a conversation becomes a Human/Assistant transcript, in the form of HH-RLHF."""
    prompt, turns, notes = pair.prompt, tuple[Message, ...](), set[str]()
    if not isinstance(prompt, str) and rules.data.rendered:
        if len(prompt) != 1:
            raise RecordError(
                "the prompt is a conversation, and data.rendered: true says that the texts are rendered already",
                "Leave data.rendered out, or, for plain Human/Assistant transcripts, set data.chat_template: none.",
            )
        prompt = prompt[0].content
    responses = tuple(map(_spoken_text, pair.answers))
    for turn, text in zip(pair.answers, responses, strict=True):
        notes.update(unwritten(turn, text))
    if not isinstance(prompt, str):
        if rules.data.chat_template != "none":
            notes.add(AS_TRANSCRIPT)
        turns = tuple(Message(turn.role, _spoken_text(turn)) for turn in prompt)
        for turn, said in zip(prompt, turns, strict=True):
            notes.update(unwritten(turn, said.content))
        # The space behind "Assistant:" is the answer's, where tokenizers have it: " Yes" is one token
        prompt, responses = _transcript(turns), tuple(f" {text}" for text in responses)
    if pair.tools is not None:
        notes.add(_TOOLS_LEFT_OUT)
    # data.rendered promises that special tokens in the text are meant; in plain text they are only text
    literal = not rules.data.rendered and any(map(rules.tokenizer.has_special_literal, (prompt, *responses)))
    mode: SpecialTokenMode = "literal" if literal else "parsed"
    return Texts(prompt, (responses[0], responses[1]), mode, frozenset(notes), turns, _transcript)


def _transcript(turns: Sequence[Message]) -> str:
    return "\n\n" + as_transcript(turns)


def _spoken_text(turn: Message) -> str:
    """What a turn says, without its reasoning."""
    record = turn.as_record()
    return text_of(record.get("content"), record.get("tool_calls", ()))


def _render_chat(pair: PreferencePair, rules: Rules) -> Texts:
    conversation, answers, mode = _conversation_of(pair, rules)
    tokenizer = rules.tokenizer
    prompt = conversation.prompt()
    (chosen, chosen_rule), (rejected, rejected_rule) = (conversation.response(prompt, answer) for answer in answers)
    conversation.require_turns_kept(prompt)
    notes = {chosen_rule, rejected_rule} - {""}
    for turn, text in zip(answers, (chosen, rejected), strict=True):
        notes.update(unwritten(turn, text))
    for turn in conversation.turns:
        notes.update(unwritten(turn, prompt, "earlier "))
    calls = tuple('"tool_calls"' in turn.fields for turn in (*conversation.turns, *answers))
    if any(calls) and not tokenizer.shape.calls:
        notes.add(CALLS_AS_TEXT)
    if conversation.tools is not None and "tools" not in tokenizer.known_variables:
        notes.add(_TOOLS_LEFT_OUT)
    elif any(name not in prompt for name in _tool_names(conversation.tools)):
        notes.add(f"tools{NOT_WRITTEN}")
    unread = conversation.template_kwargs.keys() - rules.data.chat_template_kwargs.keys() - tokenizer.known_variables
    notes.update(f"chat_template_kwargs.{name} of the record, which the template does not read" for name in unread)
    turns, write = conversation.turns, conversation.prompt_of
    return Texts(prompt, (chosen, rejected), mode, frozenset(notes), turns, write, calls=(calls[-2], calls[-1]))


def _tool_names(tools: Any) -> Iterator[str]:
    for tool in tools or ():
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            yield function["name"]


def _conversation_of(
    pair: PreferencePair, rules: Rules
) -> tuple[Conversation, tuple[Message, Message], SpecialTokenMode]:
    """The conversation and its two answers, masked where one of their texts spells out a special token."""
    tokenizer = rules.tokenizer
    tools = None if pair.tools is None else json.loads(pair.tools)
    tools = [tools] if isinstance(tools, dict) else tools
    own = {} if pair.template_kwargs is None else json.loads(pair.template_kwargs)
    if taken := sorted(own.keys() & set(GIVEN_BY_US)):
        raise RecordError(f"chat_template_kwargs.{taken[0]} cannot be set: it is made from the data", SKIP)
    turns = (*prompt_messages(pair.prompt), *pair.answers)
    is_literal, mask = tokenizer.has_special_literal, tokenizer.mask_literals
    masked = any(is_literal(turn.content) or is_literal(turn.fields) for turn in turns)
    masked = masked or _any_string([tools, own], is_literal)
    if masked:
        fields = [json.dumps(_each_string(json.loads(turn.fields), mask)) if turn.fields else "" for turn in turns]
        turns = tuple(Message(turn.role, mask(turn.content), of) for turn, of in zip(turns, fields, strict=True))
        tools = _each_string(tools, mask)
        own = {name: _each_string(value, mask) for name, value in own.items()}
    *prompt, chosen, rejected = turns
    given: Mapping[str, Any] = {**rules.data.chat_template_kwargs, **own}
    marks = tokenizer.turn_marks(given) if own else rules.marks
    conversation = Conversation(rules, tuple(prompt), tools, given, marks)
    return conversation, (chosen, rejected), "masked" if masked else "parsed"


def _refuse_rendered(contents: Sequence[str], rules: Rules) -> None:
    """Refuse (RecordError) text that was rendered before, by the turn headers in it: the markers would be scored.

    Headers of mere words, such as `ASSISTANT:`, also occur in texts about something else; these are refused where a
    text ends with the assistant's, as only a rendered prompt does.
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
