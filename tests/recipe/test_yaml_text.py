"""Whatever is written: a recipe or one clear error, never a crash; and what was composed loads again unchanged."""

import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpo_cli.errors import UserError
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.fields import all_keys
from simpo_cli.recipe.interpolation import resolve
from simpo_cli.recipe.tree import DEFAULT, node_of, plain_value
from simpo_cli.recipe.yaml_text import parse_file, to_yaml
from tests.recipe.conftest import BASE

in_one_folder = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

SNIPPETS = ["${name}", "${", "}", "no", "12:30", "1e-5", "null", "~", "- ", ": ", "#", "'", '"', "\n", "\t", "  ", "[",
            "]", "{", "&a ", "*a", "<<: ", "!!", "---\n", "loss:", "beta: ", "defaults: ", "train", ".nan", "\\",
            "${oc.env:X}", "é", "\u2028", "\x85", "\\ud800"]  # fmt: skip
LINES = BASE + "seed: 3\nloss:\n  beta: 2\n  gamma: 1\ntrain: {max_steps: 10, learning_rate: 1e-6}\ndefaults: [lora]\n"


def assert_recipe_or_error(name: str, *overrides: str) -> None:
    error = None
    try:
        compose(name, overrides)
    except UserError as caught:
        error = caught
    assert error is None or (error.fix and len(str(error).split("\n")) == 2)


@in_one_folder
@given(data=st.data())
def test_a_damaged_recipe_is_a_recipe_or_one_error(tmp_path: Path, data: st.DataObject) -> None:
    text = LINES
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        until = min(len(text), at + data.draw(st.integers(0, 6)))
        text = text[:at] + data.draw(st.sampled_from(SNIPPETS) | st.text(max_size=3)) + text[until:]
    path = tmp_path / "damaged.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    assert_recipe_or_error(str(path))


@in_one_folder
@given(
    key=st.sampled_from(sorted(all_keys())) | st.text(max_size=8),
    value=st.sampled_from(SNIPPETS) | st.text(max_size=12),
)
def test_any_override_is_taken_or_refused(key: str, value: str) -> None:
    assert_recipe_or_error("demo", f"{key}={value}")


words = st.text(max_size=20) | st.sampled_from(SNIPPETS) | st.text(alphabet="0123456789.:_+-eExonuly~${}\\", max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)


def is_writable(value: Any) -> bool:
    """YAML has no way to write lone surrogates; everything else has one."""
    return "\\ud" not in ascii(value)


@in_one_folder
@given(st.dictionaries(st.text(alphabet=string.ascii_letters, min_size=1, max_size=4), values, max_size=4))
def test_what_is_written_is_read_again(content: dict[str, Any]) -> None:
    if not content or not is_writable(content):
        return
    tree = node_of(content, DEFAULT)
    text = to_yaml(tree)
    read = resolve(parse_file(text, "r.yaml"))
    assert plain_value(read) == content
    assert to_yaml(read) == text


@pytest.mark.parametrize(
    "value", ["a${b}", "\\${b}", "\\\\${b", "${", "$ {", "x\\", "${}\n", "no", "1e5", "0x1", "=", "<<"]
)
def test_texts_that_look_like_something_else(value: str) -> None:
    tree = node_of({"data": {"chat": value, "in": [value]}}, DEFAULT)
    assert plain_value(resolve(parse_file(to_yaml(tree), "r.yaml"))) == {"data": {"chat": value, "in": [value]}}
