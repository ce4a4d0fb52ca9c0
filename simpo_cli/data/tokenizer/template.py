"""Chat templates: Jinja programs of the model's, compiled as transformers compiles them, and metered.

What a template reads and writes is learned by rendering made-up messages: their form, and the marks around turns.
Messages go to the template as the record holds them, as in transformers, but for what a template cannot write:

- Arguments of a call are an object or its JSON as text, and many templates write only one of the two right: the other
  is quoted twice, or written as Python writes it. There the arguments are given in the form that the template writes.
- Content is null beside calls in OpenAI's form. Where a template fails at it, or writes `None`, it is an empty text.
- Where a template has no place for calls, they stand behind the content as JSON, one a line.
- Reasoning is also given under the names that templates read, `reasoning_content` and `thinking`.
- Where a template writes only lists of content parts, a text is a list of one.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser

from simpo_cli.data.messages import REASONING, text_of
from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer.metered import MeteredEnvironment
from simpo_cli.errors import UserError

if TYPE_CHECKING:
    from simpo_cli.data.tokenizer.text_tokenizer import TextTokenizer

LONGEST = 100_000
"""Characters of a chat template."""

_MOST_INDENT = 16
_CLOCK = "strftime_now"


class TemplateError(ValueError):
    """The chat template cannot render a conversation; the message is the template's own reason."""


class EncodingError(ValueError):
    """The tokenizer cannot encode a text; the message is the reason, without a subject."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text in some templates; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and not 0 <= indent <= _MOST_INDENT:
        raise jinja2.exceptions.TemplateError(f"tojson is asked for an indent of {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compile_template(source: str, where: str, moment: datetime) -> jinja2.Template:
    """Compile a chat template with the functions that templates of models expect.

    Args:
        moment: what a template that writes today's date takes for now.

    Raises:
        UserError: the text is not a Jinja template; `where` is named.
    """
    if len(source) > LONGEST:
        raise UserError(
            f"the chat template has {len(source):,} characters.",
            f"Templates are programs of at most {LONGEST:,} characters.",
            where=where,
        )
    environment = MeteredEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals[_CLOCK] = moment.strftime
    try:
        template = environment.from_string(source)
        template.globals = dict(template.globals)  # a chain of mappings before, which each rendering walks through
        return template
    except (jinja2.TemplateError, ValueError, SyntaxError, OverflowError, RecursionError, MemoryError) as error:
        reason = str(error) or type(error).__name__
        if isinstance(error, jinja2.TemplateSyntaxError):
            reason = f"{error.message} (its line {error.lineno})"
        elif isinstance(error, RecursionError | MemoryError):
            reason = "it is nested too deeply"
        raise UserError(
            f"the chat template is not valid Jinja: {reason}.",
            "Mend the template, or name another with data.chat_template.",
            where=where,
        ) from error


def variables_of(template: jinja2.Template, source: str) -> frozenset[str]:
    """Names that a template reads without setting them first."""
    read = jinja2.meta.find_undeclared_variables(template.environment.parse(source))
    return frozenset(read).difference(template.environment.globals)


def dates_of(template: jinja2.Template, source: str, moment: datetime) -> list[str]:
    """The moment in each format that a template writes it in, none for a template that does not write it.

    Where a format is not spelled out, or the clock is handed on to other parts of the template, nobody knows what will
    be written: there the whole moment stands for it.
    """
    tree = template.environment.parse(source)
    calls_and_tests: Any = tree.find_all((jinja2.nodes.Call, jinja2.nodes.Test))
    used = [node for node in calls_and_tests if isinstance(node.node, jinja2.nodes.Name) and node.node.name == _CLOCK]
    dates = {_date(node, moment) for node in used if isinstance(node, jinja2.nodes.Call)}
    if sum(name.name == _CLOCK for name in tree.find_all(jinja2.nodes.Name)) > len(used):
        dates.add(moment.isoformat())
    return sorted(dates)


def _date(call: jinja2.nodes.Call, moment: datetime) -> str:
    match call.args, call.kwargs, call.dyn_args, call.dyn_kwargs:
        case [jinja2.nodes.Const(value=str(written))], [], None, None:
            with suppress(ValueError):  # which it will be for the template, too
                return moment.strftime(written)
    return moment.isoformat()


# What a template reads and writes

# Words of made-up turns, which no template writes itself
CALL_KEY, CALL_VALUE = "qZ7kqk", "qZ7kqw"  # an argument
_ARGUMENTS = {CALL_KEY: CALL_VALUE}
_TEXT = json.dumps(_ARGUMENTS)
_QUESTION, _ANSWER, _SECOND, _SYSTEM = "qZ7kqu", "qZ7kqa", "qZ7kqv", "qZ7kqs"  # what made-up turns say
_NO_PARAMETERS = {"type": "object", "properties": {}}
MADE_UP_TOOLS = [{"type": "function", "function": {"name": "qZ7kqf", "description": "-", "parameters": _NO_PARAMETERS}}]

Render = Callable[[Sequence[dict[str, Any]]], str]


@dataclass(frozen=True, slots=True)
class MessageShape:
    """What a template can write."""

    calls: bool = True  # tool calls
    arguments_as_object: bool = True  # their arguments in this form
    arguments_as_text: bool = True  # the same
    null_content: bool = True  # a turn of calls whose content is null
    parts: bool = False  # content is to be a list of parts

    def of(self, message: Message) -> dict[str, Any]:
        """A message as this template reads it."""
        fields: dict[str, Any] = json.loads(message.fields) if message.fields else {"content": message.content}
        if calls := fields.get("tool_calls"):
            if self.calls:
                fields["tool_calls"] = [self._call(call) for call in calls]
                if fields.get("content") is None and not self.null_content:
                    fields["content"] = ""
            else:
                del fields["tool_calls"]
                fields["content"] = text_of(fields.get("content"), calls)
        if self.parts and isinstance(fields.get("content"), str):
            fields["content"] = [{"type": "text", "text": fields["content"]}]
        reasoning = next((fields[name] for name in REASONING if fields.get(name) is not None), None)
        if reasoning is not None:
            fields = {"thinking": reasoning, **fields, "reasoning_content": reasoning}
        return {"role": message.role, **fields}

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        given = call["function"].get("arguments")
        if isinstance(given, str) and not self.arguments_as_text:
            with suppress(json.JSONDecodeError, RecursionError):
                given = json.loads(given)
        elif isinstance(given, dict) and not self.arguments_as_object:
            given = json.dumps(given, ensure_ascii=False)
        else:
            return call
        return {**call, "function": {**call["function"], "arguments": given}}


def made_up_call(content: str | None, arguments: Any) -> dict[str, Any]:
    """An assistant's turn that calls a made-up tool."""
    call = {"id": "qZ7kqid01", "type": "function", "function": {"name": "qZ7kqf", "arguments": arguments}}
    return {"role": "assistant", "content": content, "tool_calls": [call]}


def learn_shape(render: Render, *, knows_calls: bool) -> MessageShape:
    """What a template can write, which is given messages as they are; `knows_calls` if it mentions calls at all."""

    def tried(*messages: dict[str, Any]) -> str | None:
        try:
            return render(messages)
        except TemplateError:
            return None

    parts = False
    if _QUESTION not in (tried({"role": "user", "content": _QUESTION}) or ""):
        as_parts = tried({"role": "user", "content": [{"type": "text", "text": _QUESTION}]})
        parts = as_parts is not None and as_parts.count(_QUESTION) == 1 and repr(_QUESTION) not in as_parts
    if not knows_calls:
        return MessageShape(calls=False, parts=parts)
    question = {"role": "user", "content": [{"type": "text", "text": _QUESTION}] if parts else _QUESTION}
    seen = {
        (content, form): tried(question, made_up_call(content, arguments))
        for content in (None, "")
        for form, arguments in (("object", _ARGUMENTS), ("text", _TEXT))
    }
    if all(text is None for text in seen.values()):  # it says itself what it wants
        return MessageShape(parts=parts)
    objects, texts = ([seen[content, form] or "" for content in (None, "")] for form in ("object", "text"))
    # and not as Python writes them
    as_object = any(CALL_KEY in text and CALL_VALUE in text and repr(_ARGUMENTS) not in text for text in objects)
    as_text = any(_TEXT in text for text in texts)
    form = "object" if as_object else "text"
    null, empty = seen[None, form], seen["", form]
    return MessageShape(
        calls=as_object or as_text,
        arguments_as_object=as_object,
        arguments_as_text=as_text,
        null_content=null is not None and (empty is None or null.count("None") <= empty.count("None")),
        parts=parts,
    )


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


_Rendering = Callable[[Sequence[Message], bool], str]  # the second argument asks for the generation prompt


def learn_marks(render: _Rendering, tokens: "TextTokenizer") -> TurnMarks:
    """What the template writes around made-up turns; nothing of a template that renders none of them."""
    for lead in ((), (Message("system", _SYSTEM),)):  # some templates insist on a system turn
        turns = [*lead, Message("user", _QUESTION), Message("assistant", _ANSWER), Message("user", _SECOND)]
        first = len(lead) + 1
        try:
            prompt, opened = render(turns[:first], False), render(turns[:first], True)
            answered, dialog = render(turns[: first + 1], False), render(turns, False)
            if _QUESTION in answered and _ANSWER in answered and _SECOND in dialog:
                marks = _marks_of(prompt, opened, answered, dialog, tokens)
                return marks if marks.end_is_written else replace(marks, call_end_id=_call_end(render, lead, tokens))
        except (TemplateError, EncodingError):
            continue
    return TurnMarks()


def _marks_of(prompt: str, opened: str, answered: str, dialog: str, tokens: "TextTokenizer") -> TurnMarks:
    before, _, behind = answered.rpartition(_ANSWER)
    next_turn = dialog.rpartition(_SECOND)[0].rpartition(_ANSWER)[2]
    turn_ids, last_ids = tokens.added_in(next_turn), tokens.added_in(behind)
    every = [last for last, _ in takewhile(lambda two: two[0] == two[1], zip(last_ids, turn_ids, strict=False))]
    end_id = next((i for i in every if i in tokens.named_end_ids), next(iter(last_ids), None))
    end_is_written = True
    if end_id is None and turn_ids and turn_ids[0] in tokens.named_end_ids:
        end_id, end_is_written = turn_ids[0], False
    opening = ""
    if opened == prompt and before.startswith(opened):
        opening = before[len(opened) :].rstrip(" ") if before[len(opened) :].strip() else ""
    end_text = tokens.text_of(end_id) if end_id is not None and end_is_written else None
    header = ""  # the generation prompt, as far as the answer's own rendering has it: not an opening `<think>`
    if opened.startswith(prompt) and before.startswith(prompt):
        header = shared_lead(opened, before)[len(prompt) :]
    return TurnMarks(
        end_id=end_id,
        end_is_written=end_is_written,
        opening=opening,
        turn_ids=frozenset(turn_ids),
        user_header=_header(next_turn, end_text),
        answer_header=_header(header, None) or _header(before.rpartition(_QUESTION)[2], end_text),
    )


def _call_end(render: _Rendering, lead: Sequence[Message], tokens: "TextTokenizer") -> int | None:
    """The named end token that stands between a call and its result."""
    call = Message("assistant", "", json.dumps(made_up_call("", _ARGUMENTS)))
    try:
        text = render([*lead, Message("user", _QUESTION), call, Message("tool", _SECOND)], False)
    except (TemplateError, EncodingError):
        return None
    gap = text.rpartition(_SECOND)[0].rpartition(CALL_VALUE)[2]
    return next((i for i in tokens.added_in(gap) if i in tokens.named_end_ids), None)


def _header(gap: str, end_text: str | None) -> str:
    """What opens a turn, of what stands between two turns: the first line behind the end of the first turn."""
    if end_text is not None and end_text in gap:
        gap = gap.split(end_text, 1)[1]
    lines = gap.strip().splitlines()
    return lines[0].strip() if lines else ""


def shared_lead(a: str, b: str) -> str:
    """The longest beginning that two texts share."""
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]
