"""Chat templates: Jinja programs of the model's, compiled as transformers compiles them, and metered."""

import json
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser

from simpo_cli.data.tokenizer.metered import MeteredEnvironment
from simpo_cli.errors import UserError

LONGEST = 100_000
"""Characters of a chat template."""


_MOST_INDENT = 16
_CLOCK = "strftime_now"


class TemplateError(ValueError):
    """The chat template cannot render a conversation; the message is the template's own reason."""


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
        source: its text.
        where: its place, for messages.
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
    calls = [call for call in tree.find_all(jinja2.nodes.Call) if _is_clock(call.node)]
    asked_whether_known = [test for test in tree.find_all(jinja2.nodes.Test) if _is_clock(test.node)]
    mentions = [name for name in tree.find_all(jinja2.nodes.Name) if _is_clock(name)]
    dates = [_date(call, moment) for call in calls]
    if len(mentions) > len(calls) + len(asked_whether_known):
        dates.append(None)
    return sorted({moment.isoformat() if date is None else date for date in dates})


def _is_clock(node: jinja2.nodes.Node) -> bool:
    return isinstance(node, jinja2.nodes.Name) and node.name == _CLOCK


def _date(call: jinja2.nodes.Call, moment: datetime) -> str | None:
    match call.args, call.kwargs, call.dyn_args, call.dyn_kwargs:
        case [jinja2.nodes.Const(value=str(written))], [], None, None:
            try:
                return moment.strftime(written)
            except ValueError:  # which it will be for the template, too
                return None
    return None
