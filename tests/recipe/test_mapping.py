"""`columns`, `labels` and `direction`: what a recipe may say of the fields of its files, and what is refused where."""

from pathlib import Path

import pytest

from simpo_cli.errors import UserError
from simpo_cli.recipe import DataSource, compose


def written(folder: Path, data: str, *overrides: str) -> tuple[str, list[DataSource]]:
    """A recipe with these lines below data, and the sources that it trains on."""
    file = folder / "r.yaml"
    file.write_text(f"name: r\nmodel: {{path: builtin:guide}}\ndata:\n{data}\n", encoding="utf-8")
    recipe = compose(str(file), overrides).recipe
    return str(file), recipe.data.sources(recipe.data.train)


def test_what_the_section_says_holds_for_every_source(tmp_path: Path) -> None:
    _, sources = written(
        tmp_path,
        "  train:\n  - {path: x.jsonl}\n  - {path: y.jsonl, columns: {prompt: q}, labels: {first: [a], second: [b]}}\n"
        "  columns: {prompt: question, label: winner}\n  labels: {first: [0], second: {above: 0}, tie: [2, no]}",
    )
    assert [source.columns for source in sources] == [
        {"prompt": "question", "label": "winner"},
        {"prompt": "q", "label": "winner"},
    ]
    assert sources[0].labels == {"first": [0], "second": {"above": 0.0}, "tie": [2, False]}
    assert sources[1].labels == {"first": ["a"], "second": ["b"]}  # all of them, not some of each
    assert [source.direction for source in sources] == [None, None]


def test_overrides_where_the_data_is_a_path(tmp_path: Path) -> None:
    _, (source,) = written(
        tmp_path,
        "  train: x.jsonl",
        "data.columns.prompt=question",
        "data.columns.answers=[a, b]",
        "data.labels={first: [1], second: ['1']}",
        "data.direction=first",
    )
    assert source.columns == {"prompt": "question", "answers": ["a", "b"]}
    assert source.labels == {"first": [1], "second": ["1"]}
    assert source.direction == "first"


@pytest.mark.parametrize(
    ("line", "problem", "fix"),
    [
        ("columns: {promt: q}", "data.columns has no part promt.", "Did you mean prompt?"),
        ("columns: {zzz: q}", "data.columns has no part zzz.", "It has prompt, input, system,"),
        ("columns: {prompt: [a, b]}", "data.columns.prompt is ['a', 'b'].", "Name one field: prompt: FIELD."),
        ("columns: {answers: [a]}", "data.columns.answers is ['a'].", "or several: answers: [FIELD, FIELD]."),
        ("columns: {best: higher}", "data.columns.best is 'higher'.", "highest, lowest"),
        ("columns: {prompt: 3}", "data.columns.prompt is 3, a number; wanted: text or a list of words.", "in quotes"),
        ("labels: {firts: [1]}", "data.labels has no part firts.", "Did you mean first?"),
        ("labels: {first: 1}", "data.labels.first is 1, a number; wanted:", ""),
        ("labels: {tie: [1]}", "data.labels says of no value which response it prefers.", "Write first: [..]"),
        ("labels: {first: [1, a], tie: [a]}", "data.labels.tie has the value 'a', which labels.first has as well.", ""),
        ("labels: {first: [[1]]}", "data.labels.first has the value [1].", "List single values."),
        ("labels: {first: {belw: 0}}", "data.labels.first has no part belw.", "Did you mean below?"),
        (
            "labels: {first: {below: 0, above: 3}}",
            "data.labels.first is {'below': 0.0, 'above': 3.0}.",
            "{below: 0} or",
        ),
        (
            "labels: {first: {below: 1}, second: {above: 0}}",
            "another side has some of these numbers as well.",
            "reverse",
        ),
        (
            "labels: {first: {below: 1}, second: {below: 0}}",
            "another side has some of these numbers as well.",
            "reverse",
        ),
        ("direction: second", "data.direction is 'second'; wanted: first or null.", ""),
    ],
)
def test_what_is_refused_has_its_place(tmp_path: Path, line: str, problem: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        written(tmp_path, f"  train: x.jsonl\n  {line}")
    assert problem in caught.value.problem
    assert fix in caught.value.fix
    assert caught.value.where == f"{tmp_path}/r.yaml:5"
    with pytest.raises(UserError) as caught:
        written(tmp_path, f"  train:\n  - path: x.jsonl\n    {line}")
    assert problem.replace("data.", "data.train.0.", 1) in caught.value.problem
    assert caught.value.where == f"{tmp_path}/r.yaml:6"


def test_numbers_as_keys_are_refused(tmp_path: Path) -> None:
    """YAML takes `0` and `false` for keys of one mapping in more than one spelling, so values stand in lists."""
    with pytest.raises(UserError, match="0 stands as a key"):
        written(tmp_path, "  train: x.jsonl\n  labels: {0: first, 1: second}")


def test_values_of_other_types_are_other_values() -> None:
    DataSource(path="x", labels={"first": [1, "a"], "second": [True, "1"], "tie": ["A"]})
