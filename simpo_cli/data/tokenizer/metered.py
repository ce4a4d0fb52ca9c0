"""Chat templates under a meter: a template is a foreign program, and no rendering takes more than a stated amount.

Jinja's sandbox keeps a template from the interpreter, and not from using up time and memory: `'a' * 10**10`, loops in
loops, lists of lists that double forty times. Here every way to repeat something or to make something large is counted
before it happens. What is counted does not depend on the machine, so a conversation is refused everywhere or nowhere.

    steps       parts of the template that are executed: bodies of loops and macros, calls, filters, items of lists
    characters  text that is made on the way, output included; an item of a list or mapping counts as eight

The counting is put in as calls of this environment, by a rewrite of the template's syntax tree. Filters and methods are
those that chat templates use; the others of Jinja (center, wordwrap, urlize ...) can make much of little.
"""

import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from types import BuiltinMethodType
from typing import Any

import jinja2
import jinja2.compiler
from jinja2 import nodes
from jinja2.runtime import LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

STEPS, STEPS_PER_GIVEN = 200_000, 10
CHARACTERS, CHARACTERS_PER_GIVEN = 2**24, 32
"""What a rendering may use, and how much more for each character that it is given."""
_ITEM = 8
_WIDEST = 1_000  # characters that a text may be padded or indented to
_LONGEST_NUMBER = 4_096  # bits

_FILTERS = (
    "abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower",
    "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
    "sort", "string", "striptags", "sum", "title", "trim", "truncate", "unique", "upper", "urlencode",
    "wordcount",
)  # fmt: skip
_OF_WHOLE_LISTS = frozenset(
    {"join", "list", "sort", "unique", "sum", "max", "min", "reverse", "groupby", "last", "length"}
)
_TEXT_METHODS = frozenset((
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii",
    "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
    "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper",
))  # fmt: skip
_METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, _TEXT_METHODS),
    (dict, frozenset({"get", "items", "keys", "values", "copy"})),
    (list, frozenset({"count", "index", "copy"})),
    (tuple, frozenset({"count", "index"})),
    (bytes, frozenset()),
    (int, frozenset()),
    (float, frozenset({"is_integer"})),
)
_SEQUENCES = (str, list, tuple)
_CONTAINERS = (list, tuple, dict, Namespace)
_MANY_DIGITS = re.compile(r"\d{4,}")


class TooMuchError(Exception):
    """A rendering that wants more than it may use; the message says of what."""


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    """Our own calls are made directly, and not as those of a template, which are looked at."""

    def visit_Call(self, node: nodes.Call, frame: Any, *args: Any, **options: Any) -> None:  # noqa: N802 - of Jinja
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, *args, **options)
            return
        self.write(f"environment.{node.node.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class _Left(threading.local):
    """What a rendering of this thread may still use; outside of renderings, when a template is compiled, anything."""

    steps: float = math.inf
    characters: float = math.inf


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which what a rendering uses is counted, each thread's by itself; `begin` starts the count."""

    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=self._put_out, **options)  # what is folded early is not counted
        self.filters = {name: self._metered(name, self.filters[name]) for name in _FILTERS}
        self.globals.pop("lipsum")
        self._left = _Left()

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """One that is not Jinja's, counted as the others are."""
        self.filters[name] = self._metered(name, function)

    def begin(self, given: int) -> None:
        """A rendering begins in this thread, which is given so many characters."""
        self._left.steps = STEPS + STEPS_PER_GIVEN * given
        self._left.characters = CHARACTERS + CHARACTERS_PER_GIVEN * given

    # Counting

    def tick(self, steps: int = 1) -> None:
        """Parts of the template are executed."""
        left = self._left
        left.steps -= steps
        if left.steps < 0:
            raise TooMuchError("it takes more steps than any answer to such a conversation needs")

    def _charge(self, characters: int) -> None:
        left = self._left
        left.characters -= characters
        if left.characters < 0:
            raise TooMuchError("it makes more text than any answer to such a conversation needs")

    def made(self, value: Any) -> Any:
        """A value that has come into being; a list or mapping counts with all that is in it, however often it is."""
        if isinstance(value, str):
            self._charge(len(value))
        elif isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
            raise TooMuchError("it computes with numbers of more than a thousand digits")
        elif isinstance(value, _CONTAINERS):
            waiting = [value]
            while waiting:
                one = waiting.pop()
                if isinstance(one, Namespace):
                    one = one._Namespace__attrs
                if isinstance(one, dict):
                    one = [*one.keys(), *one.values()]
                if isinstance(one, list | tuple):
                    self.tick(len(one) + 1)
                    self._charge(_ITEM * (len(one) + 1))
                    waiting += [item for item in one if isinstance(item, _CONTAINERS)]
        return value

    def counted(self, iterable: Any, steps: int) -> Any:
        """What a loop goes through, with the steps that each item takes."""
        if not hasattr(iterable, "__len__"):
            iterable = self._listed(iterable)
        self.tick(steps * len(iterable))
        return iterable

    def _listed(self, iterable: Iterable[Any]) -> list[Any]:
        items = []
        for item in iterable:
            self.tick()
            self._charge(_ITEM)
            items.append(item)
        return items

    def joined(self, *values: Any) -> str:
        """`a ~ b`."""
        return str(self.made("".join(map(self._text, values))))

    def _text(self, value: Any) -> str:
        return value if isinstance(value, str) else str(self.made(value))

    def _put_out(self, value: Any) -> Any:
        return value if isinstance(value, Undefined) else self.made(self._text(value))

    # What may be large before it is there

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 - of Jinja
        """Arithmetic, and what the same signs do with texts and lists."""
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, _SEQUENCES) and isinstance(other, int):
                    self._charge(max(0, other) * (len(one) if isinstance(one, str) else _ITEM * len(one)))
        elif operator == "**" and not (_is_small(left, 2**20) and _is_small(right, 64)):
            raise TooMuchError("it computes with large powers")
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, "%")
            right = self.made(right)
        return self.made(self.binop_table[operator](left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`'{}'.format(...)`, whose fields may be padded."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **named: Any) -> str:
            self._check_format(value.__self__, "{")
            return str(self.made(wrapped(*self.made(args), **self.made(named))))

        return checked

    def _check_format(self, text: str, sign: str) -> None:
        """Count what a format may make, whose fields begin with a `%` or a `{`."""
        is_computed = "%*" in text if sign == "%" else re.search(r"\{[^}]*:[^}]*\{", text)
        if is_computed or _MANY_DIGITS.search(text) or "%-*" in text or "%.*" in text:
            raise TooMuchError("it pads texts to a width that is computed, or above a thousand")
        self._charge(_WIDEST * text.count(sign))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Methods of plain values are those of a list, the others can make much of little."""
        for kind, allowed in _METHODS:
            if isinstance(obj, kind):
                return attr in allowed
        return super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, function: Any, /, *args: Any, **named: Any) -> Any:
        """Functions, macros and methods."""
        self.tick()
        if isinstance(function, LoopContext):  # {{ loop(children) }}
            args = tuple(self.counted(argument, 1) for argument in args)
        elif isinstance(function, BuiltinMethodType) and isinstance(function.__self__, str):
            self._before(function.__name__, (function.__self__, *args), named)
        return self.made(super().call(context, function, *args, **named))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that counts; Jinja's marks on it, which say what it is passed first, stay."""
        first = 1 if hasattr(function, "jinja_pass_arg") else 0

        @wraps(function)
        def metered(*args: Any, **named: Any) -> Any:
            self.tick()
            of_context, values = args[:first], list(args[first:])
            if name in _OF_WHOLE_LISTS and not hasattr(values[0], "__len__") and hasattr(values[0], "__iter__"):
                values[0] = self._listed(values[0])
            self._before(name, values, named)
            return self.made(function(*of_context, *values, **named))

        return metered

    def _before(self, name: str, values: Any, named: Mapping[str, Any]) -> None:
        """Count what a filter or a method of a text is about to make, where that is more than it is given."""
        text = values[0]
        given = [*values[1:], *named.values()]
        if isinstance(text, str):
            self._charge(len(text))
        match name:
            case "replace" if len(values) > 2:
                text, old, new = (self._text(value) for value in values[:3])
                self._charge(max(0, text.count(old)) * len(new))
            case "join":
                is_method = isinstance(text, str)
                items = values[1] if is_method and len(values) > 1 else text
                signs = [text] if is_method else [*values[1:2], *(named[key] for key in ("d",) if key in named)]
                if not hasattr(items, "__len__"):
                    raise TooMuchError("it joins what has no length")
                self.tick(len(items))
                self._charge(sum(map(len, map(str, signs))) * len(items))
                self._charge(sum(len(item) for item in items if isinstance(item, str)))
                self.made([item for item in items if not isinstance(item, str)])
            case "split" | "rsplit" | "splitlines" | "list" if isinstance(text, str):
                sign = given[0] if given and isinstance(given[0], str) and given[0] else None
                self._charge(_ITEM * (len(text) if sign is None else text.count(sign)))
            case "indent":
                width = next((len(one) if isinstance(one, str) else one for one in given), 4)
                if not _is_small(width, _WIDEST):
                    raise TooMuchError("it indents by more than a thousand")
                self._charge((self._text(text).count("\n") + 1) * int(width))
            case "format":
                self._check_format(self._text(text), "%")
                self.made(given)
            case "string" | "e" | "escape" | "forceescape" | "urlencode" | "upper" | "lower" | "title" | "tojson":
                self._charge(6 * len(self._text(text)))
            case "round" | "sum" if not all(one is None or isinstance(one, str) or _is_small(one, 64) for one in given):
                raise TooMuchError(f"it uses {name} with a large or foreign value")

    # The counting put in

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> Any:
        for loop in list(source.find_all(nodes.For)):
            test = 1 if loop.test is None else 1 + _size(loop.test)
            loop.iter = self._asked("counted", [loop.iter, nodes.Const(test)], loop.lineno)
        repeated: Any  # statements with a body
        for repeated in source.find_all((nodes.For, nodes.Macro, nodes.CallBlock, nodes.Block)):
            steps = sum(_size(statement) for statement in repeated.body)
            tick = self._asked("tick", [nodes.Const(steps)], repeated.lineno)
            repeated.body.insert(0, nodes.ExprStmt(tick, lineno=repeated.lineno))
        self._rewritten(source)
        return super()._generate(source, *args, **options)

    def _asked(self, name: str, args: list[Any], lineno: int) -> nodes.Call:
        function = nodes.EnvironmentAttribute(name, lineno=lineno)
        call = nodes.Call(function, args, [], None, None, lineno=lineno)
        call.set_environment(self)
        return call

    def _rewritten(self, node: Any) -> Any:
        """A node with `joined` and `made` around the expressions that make something; what is no node stays."""
        if not isinstance(node, nodes.Node):
            return node
        for field, value in node.iter_fields():
            is_list = isinstance(value, list)
            setattr(node, field, [self._rewritten(item) for item in value] if is_list else self._rewritten(value))
        match node:
            case nodes.Concat():
                return self._asked("joined", node.nodes, node.lineno)
            case nodes.Tuple(ctx="load") if not all(isinstance(item, nodes.Const) for item in node.items):
                return self._asked("made", [node], node.lineno)
            case nodes.List() | nodes.Dict() | nodes.Getitem(arg=nodes.Slice()):
                return self._asked("made", [node], node.lineno)
        return node


def _size(node: nodes.Node) -> int:
    """Parts of a piece of a template."""
    return 1 + sum(map(_size, node.iter_child_nodes()))


def _is_small(value: Any, most: int) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= most


def render(template: jinja2.Template, values: Mapping[str, Any], given: int) -> str:
    """Render a template of a `MeteredEnvironment`; the limits grow with the characters of the conversation, `given`.

    Raises TooMuchError where it wants more than it may use.
    """
    environment = template.environment
    assert isinstance(environment, MeteredEnvironment)
    environment.begin(given)
    return template.render(values)
