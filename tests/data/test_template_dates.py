"""Chat templates that write the date: another day has other tokens, and a given moment has its own."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from simpo_cli.data.store import EncodedSource
from simpo_cli.data.tokenizer import TextTokenizer, compile_template, load_tokenizer
from simpo_cli.data.tokenizer.template import dates_of
from simpo_cli.recipe.schema import DataRecipe
from tests.data.pair_files import Write
from tests.data.stored import encoded, plain, records
from tests.tiny import CHATML, FAMILIES, chatml_tokenizer

NOON = datetime(2026, 11, 24, 12, 30, 5)
DAY = timedelta(days=1)
WHOLE = "2026-11-24T12:30:05"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, []),
        ("strftime_now('%d')", []),  # text
        ("{{ strftime_now('%d %b %Y') }}", ["24 Nov 2026"]),
        ("{% if strftime_now is defined %}{% set date = strftime_now('%Y') %}{% endif %}{{ date }}", ["2026"]),
        ("{{ strftime_now is defined }}", []),
        ("{{ strftime_now('%d') }}{% if x %}{{ strftime_now('%H:%M') }}{% endif %}", ["12:30", "24"]),
        ("{{ strftime_now('today') }}", ["today"]),
        ("{% set form = '%d' %}{{ strftime_now(form) }}", [WHOLE]),
        ("{{ strftime_now('%d' ~ x) }}", [WHOLE]),
        ("{% set clock = strftime_now %}{{ clock('%d') }}", [WHOLE]),
        ("{% macro f(x) %}{{ strftime_now(x) }}{% endmacro %}{{ f('%d') }}{{ strftime_now('%m') }}", ["11", WHOLE]),
    ],
)
def test_what_a_template_writes_of_a_moment(source: str, expected: list[str]) -> None:
    assert dates_of(compile_template(source, "here", NOON), source, NOON) == expected


@pytest.fixture
def dated(tmp_path: Path) -> Path:
    """A template that writes the day in front of every conversation."""
    chatml_tokenizer(tmp_path / "model")
    (tmp_path / "dated.jinja").write_text("{{ strftime_now('%d') }}" + CHATML)
    return tmp_path / "dated.jinja"


def _tokenizer(model: Path, moment: datetime, template: Path | None = None) -> TextTokenizer:
    return load_tokenizer(str(model), chat_template=None if template is None else str(template), moment=moment)


@pytest.mark.usefixtures("cache")
def test_the_tokens_of_a_day_are_cached_for_that_day(write: Write, dated: Path, tmp_path: Path) -> None:
    path = write("a.jsonl", records(6))

    def found(moment: datetime) -> EncodedSource:
        whole = DataRecipe(train="-", max_length=512, max_prompt_length=400)  # a cut prompt has lost its beginning
        return encoded(path, _tokenizer(tmp_path / "model", moment, dated), whole)

    first = found(NOON)
    later = found(NOON + timedelta(hours=9))
    assert (first.origin.cache, later.origin.cache) == ("miss", "hit")
    next_day = found(NOON + DAY)
    assert next_day.origin.cache == "miss"
    assert [plain(pair) for pair in next_day.pairs] != [plain(pair) for pair in first.pairs]
    assert next_day.pairs[0].prompt_key == first.pairs[0].prompt_key  # so that the same pairs are held out
    assert found(NOON).origin.cache == "hit"


@pytest.mark.usefixtures("cache")
def test_other_templates_do_not_care_for_the_day(write: Write, dated: Path, tmp_path: Path) -> None:
    path = write("a.jsonl", records(6))
    assert dated.is_file()
    caches = [encoded(path, _tokenizer(tmp_path / "model", NOON + i * DAY)).origin.cache for i in range(2)]
    assert caches == ["miss", "hit"]


def test_a_template_of_the_llama_family(tmp_path: Path) -> None:
    tokenizer = _tokenizer(FAMILIES["llama3"].save(tmp_path), NOON)
    assert tokenizer.dates == ["24 Nov 2026"]
    assert tokenizer.identity != _tokenizer(tmp_path, NOON + DAY).identity
    assert tokenizer.identity == _tokenizer(tmp_path, NOON + timedelta(hours=1)).identity
