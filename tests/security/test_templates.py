"""Chat templates are foreign programs: they reach nothing outside, and no rendering takes more than a stated amount."""

import resource
import signal
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2.sandbox
import pytest

from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import compile_template, load_tokenizer, metered
from simpo_cli.data.tokenizer.metered import TooMuchError
from simpo_cli.errors import UserError
from tests.cli.seen import Simpo
from tests.tiny import CHATML

NOON = datetime(2026, 11, 24, 12)
TALK = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": "Well, thank you."}]
DOUBLE = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}USE"


def _doubled(start: str, step: str, use: str = "{{ ns.x|length }}") -> str:
    return DOUBLE.replace("START", start).replace("STEP", step).replace("USE", use)


BOMBS = {
    "loop in loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "range": "{% for i in range(10**12) %}{% endfor %}",
    "loops that keep nothing": "{% for i in range(9999) %}{% for j in range(9999) if false %}{% endfor %}"
    "{% endfor %}",
    "texts that are looked through": "{% set s = 'x' * 90000 %}{% for i in range(9999) %}{% if s.count('y') %}"
    "{% endif %}{% endfor %}",
    "slices": "{% set s = 'x' * 900000 %}{% for i in range(99999) %}{% set y = s[1:] %}{% endfor %}",
    "text times number": "{{ 'a' * 10**10 }}",
    "number times text": "{{ 10**10 * 'a' }}",
    "list times number": "{{ ([0] * 10**10) | length }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "power of a float": "{{ 2.0 ** 1e9 }}",
    "numbers that double": _doubled("3", "ns.x * ns.x", "{{ ns.x > 1 }}"),
    "texts that double": _doubled("'ab'", "ns.x ~ ns.x"),
    "texts that double by +": _doubled("'ab'", "ns.x + ns.x"),
    "texts that double by join": _doubled("'ab'", "[ns.x, ns.x] | join"),
    "texts that double by a method": _doubled("'ab'", "''.join([ns.x, ns.x])"),
    "texts that double by format": _doubled("'ab'", "'{0}{0}'.format(ns.x)"),
    "texts that double by %": _doubled("'ab'", "'%s%s' % (ns.x, ns.x)"),
    "texts that grow by replace": _doubled("'aa'", "ns.x.replace('a', 'aaaa')"),
    "texts that grow by the filter": _doubled("'aa'", "ns.x | replace('a', ns.x)"),
    "lists that double": _doubled("[1]", "ns.x + ns.x"),
    "lists of lists that double": _doubled("[1]", "[ns.x, ns.x]"),
    "lists of lists, written": _doubled("[1]", "[ns.x, ns.x]", "{{ ns.x }}"),
    "lists of lists, compared": _doubled("[1]", "[ns.x, ns.x]", "{{ ns.x == [ns.x[0], ns.x[1]] }}"),
    "tuples that double": _doubled("(1,)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "mappings that double": _doubled("{}", "{'a': ns.x, 'b': ns.x}", "{{ ns.x | tojson }}"),
    "mappings that double by dict": _doubled("{}", "dict(a=ns.x, b=ns.x)", "{{ ns.x | string }}"),
    "namespaces that double": "{% set a = namespace() %}{% for i in range(60) %}"
    "{% set b = namespace(x=[a, a]) %}{% endfor %}"
    + "".join(f"{{% set n{i + 1} = namespace(x=[n{i}, n{i}]) %}}" for i in range(60)) + "{{ n60 }}",
    "a namespace of itself": "{% set a = namespace() %}{% set a.x = [a, a] %}{{ a }}",
    "sums of lists": "{{ ([[0] * 99999] * 99999) | sum(start=[]) | length }}",
    "join by a long text": "{{ range(99999) | map('string') | join('x' * 900000) }}",
    "join by a long text, a method": "{{ ('x' * 900000).join(['a'] * 99999) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}"
    "{% endmacro %}{{ f(60) }}",
    "a loop that calls itself": "{% for i in range(99) recursive %}{{ loop(range(99)) }}{% endfor %}",
    "a block that calls itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "a caller": "{% macro f() %}{{ caller() }}{{ caller() }}{% endmacro %}{% call f() %}{% call f() %}"
    "{{ 'x' * 10**8 }}{% endcall %}{% endcall %}",
    "padded by %": "{{ '%1000000000d' % 1 }}",
    "padded by a computed width": "{{ '%*d' % (1000000000, 1) }}",
    "padded by the filter": "{{ '%1000000000d' | format(1) }}",
    "padded by format": "{{ '{:>1000000000}'.format(1) }}",
    "padded by a nested field": "{{ '{:>{}}'.format(1, 1000000000) }}",
    "indented": "{{ '\n\n\n' | indent(10**9) }}",
    "indented by a text": "{{ ('\n' * 90000) | indent('x' * 90000) }}",
    "indented JSON": "{{ messages | tojson(indent=10**9) }}",
    "rounded": "{{ 1.5 | round(10**9, 'ceil') }}",
    "split": "{{ ('x' * 60000000) | list | length }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "encoded": "{{ 'x'.encode() * 10**10 }}",
    "translated": "{{ ('a' * 900000).translate({97: 'b' * 900000}) }}",
    "tabs": "{{ ('\t' * 900000).expandtabs(900000) }}",
    "center": "{{ 'x'.center(10**10) }}",
    "ljust": "{{ 'x'.ljust(10**10) }}",
    "zfill": "{{ 'x'.zfill(10**10) }}",
    "the filter center": "{{ 'x' | center(10**10) }}",
    "wordwrap": "{{ ('x ' * 900000) | wordwrap(1, wrapstring='y' * 900000) }}",
    "batches": "{{ [1] | batch(10**10, 'x') | list }}",
    "slices by the filter": "{{ [1] | slice(10**10) | list }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "a number of many digits": "{{ " + "9" * 10_000 + " }}",
    "parentheses": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "a sum without end": "{{ " + "1+" * 200_000 + "1 }}",
    "ifs": "{% if 1 %}" * 5_000 + "{% endif %}" * 5_000,
    "a long template": "x" * (2**20 + 1),
}  # fmt: skip
ESCAPES = [
    "''.__class__.__mro__[1].__subclasses__()", "''['__class__']", "''|attr('__class__')", "''|attr('__cla' ~ 'ss__')",
    "'{0.__class__}'.format(1)", "'{0.__class__}'.format_map({'0': 1})", "(''.format)('{.__class__}')",
    "''|attr('format')('{0.__class__}')", "['{0.__class__}']|map('format', 1)|list", "raise_exception.__globals__",
    "raise_exception.__globals__['__builtins__']", "strftime_now.__self__", "strftime_now.__func__", "range.__init__",
    "namespace.__init__.__globals__", "cycler.__init__.__globals__.os", "joiner.__init__.__globals__",
    "self._TemplateReference__context", "self.__init__", "messages|map(attribute='__class__')|list",
    "messages.__class__", "messages.append(1)", "messages[0].update({'role': 'x'})", "messages[0].pop('role')",
    "messages|attr('append')", "(messages|attr('clear'))()", "dict.__base__", "loop.__init__", "caller.__globals__",
    "tojson.__globals__", "messages|tojson.__globals__", "environment", "ctx.environment", "get_ctx()", "tick", "made",
    "().__class__.__bases__[0].__subclasses__()", "(1).__class__", "(1.0).__reduce__()", "''.__reduce_ex__(2)",
    "namespace(x=1)._Namespace__attrs", "cycler('a').__init__", "(raise_exception|attr('__code__')).co_code",
    "(messages|items|first).__class__", "(g for g in [1]).gi_frame", "{}.get.__self__.__class__",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """A bomb that went off would stop the tests; it fails instead."""

    def stop(*_: object) -> None:
        raise AssertionError("the template was not stopped")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _render(source: str, messages: list[dict[str, Any]] = TALK, **more: Any) -> str:
    template = compile_template(source, "there", NOON)
    return metered.render(template, {"messages": messages, "add_generation_prompt": False, **more}, 30)


@pytest.mark.parametrize("name", BOMBS)
def test_no_template_takes_all_time_or_memory(name: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((TooMuchError, UserError, jinja2.TemplateError, TypeError, RecursionError, ArithmeticError)):
        _render(BOMBS[name])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 2**30, f"{grown:,} bytes"


@pytest.mark.parametrize(
    ("bomb", "said"), [("{% for j in range(99999) %}{% endfor %}", "more steps"), ("{{ 'a' * 10**10 }}", "more text")]
)
def test_a_template_that_takes_too_much_ends_the_command_at_once(
    bomb: str, said: str, simpo: Simpo, place: Path
) -> None:
    (place / "t.jinja").write_text(CHATML + "{% for i in range(99) %}" + bomb + "{% endfor %}")
    text = (place / "run.yaml").read_text().replace("data:\n", "data:\n  chat_template: t.jinja\n")
    (place / "bomb.yaml").write_text(text)
    for words in (
        ("train", "bomb.yaml", "--dry-run", "data.on_bad_record=skip"),
        ("inspect", "bomb.yaml", "--no-model"),
        ("stats", "--recipe", "bomb.yaml"),
    ):
        seen = simpo(*words)
        assert seen.code == 2
        assert "t.jinja: the chat template was stopped: it" in seen.err
        assert said in seen.err


@pytest.mark.parametrize("expression", ESCAPES)
def test_nothing_outside_is_reached(expression: str) -> None:
    messages = [dict(message) for message in TALK]
    try:
        shown = _render("{{ " + expression + " }}", messages)
    except (jinja2.TemplateError, UserError, TooMuchError, TypeError, ValueError, AttributeError, LookupError):
        shown = ""
    assert messages == TALK
    assert not any(sign in shown for sign in ("<class", "<function", "<built-in", "<bound", "<module", " at 0x"))


def test_it_renders_what_jinja_renders() -> None:
    plain = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    for source in (
        CHATML,
        "{% for m in messages if m.role == 'user' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
        "{{ m['content'][1:-1] }}{% else %}none{% endfor %}",
        "{% for m in messages | selectattr('role', 'equalto', 'user') %}{{ loop.revindex }}{{ m.content }}"
        "{% endfor %}",
        "{% for m in missing %}x{% else %}none{% endfor %}{{ missing }}{{ missing is defined }}",
        "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}{{ ns.found }}",
        "{% macro turn(m, tag='b') %}<{{ tag }}>{{ m.content | trim | upper }}{{ caller() if caller }}"
        "{% endmacro %}{{ turn(messages[0]) }}{{ turn(messages[1], tag='i') }}",
        "{{ messages[0].content ~ 1 ~ none ~ true ~ [1, 'a'] ~ {'b': 2.5} }}{{ 7 // 2 }}{{ 7 % 4 }}{{ -3 }}"
        "{{ 2 ** 5 }}{{ 1 / 4 }}",
        "{{ messages | map(attribute='role') | join(', ') }}{{ ['a', 'b'] | join }}{{ ','.join(['x', 'y']) }}"
        "{{ (1, 2) }}{{ 'ab' * 3 }}",
        "{{ 'a b c'.split() | length }}{{ 'a-b'.split('-')[-1] }}{{ 'x' in 'xy' }}{{ ' a '.strip() }}"
        "{{ 'abc'.startswith('a') }}{{ 'abc' | replace('b', 'dd') }}",
        "{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}"
        "{{ messages[0].get('none', 'd') }}{{ messages[0] | dictsort }}",
        "{% for i in range(3) recursive %}{{ i }}{{ loop([]) }}{% endfor %}{% set x %}a{{ 1 }}{% endset %}"
        "{{ x }}{% filter upper %}b{% endfilter %}",
        "{{ '%s-%03d' % ('a', 7) }}{{ '%s' | format('b') }}{{ '{0:>4}|{a}'.format(1, a=2) }}"
        "{{ 'a\nb' | indent(2) }}{{ 1.26 | round(1) }}{{ [3, 1] | sort }}",
        "{{ messages | length }}{{ [1, 2] | sum }}{{ 'x' | default('y') }}{{ none | string }}{{ '<' | e }}"
        "{{ [1, 1] | unique | list }}{{ [1, 2] | reverse | list }}",
        "{% with a = [1] + [2] %}{{ a }}{{ a[:1] }}{{ a[-1] }}{% endwith %}",
    ):  # fmt: skip
        values = {"messages": TALK, "add_generation_prompt": True}
        assert _render(source, add_generation_prompt=True) == plain.from_string(source).render(values), source


def test_long_conversations_are_rendered(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_folder))
    talk = [Message(("user", "assistant")[turn % 2], "word " * 20) for turn in range(20_000)]
    assert tokenizer.render(talk, generation_prompt=True).count("<|im_start|>") == 20_001
    long = [Message("user", "x " * 8_000_000)]
    assert len(tokenizer.render(long, generation_prompt=False)) > 16_000_000


def test_each_rendering_begins_anew(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_folder))
    talk = [Message("user", "word " * 200_000)]
    for _ in range(100):  # each is far below the limits, all together are above
        tokenizer.render(talk, generation_prompt=True)


def test_what_a_template_refuses_is_told_on_one_line(simpo: Simpo, place: Path) -> None:
    (place / "t.jinja").write_text(r"{{ raise_exception('no\n\x1b[2J\u202e::error::[red]') }}")
    seen = simpo("train", "run.yaml", "data.chat_template=t.jinja", "--dry-run")
    assert seen.code == 2
    assert not any(sign in seen.err for sign in "\x1b\u202e")
