"""Fields of the data's files in a recipe, and KEY=VALUE on the command line: what is taken or refused, and where."""

from pathlib import Path
from typing import Any

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


PAPER = "paper/llama3-8b-instruct"


def value_of(recipe: Any, key: str) -> Any:
    for part in key.split("."):
        recipe = recipe[int(part)] if isinstance(recipe, list) else getattr(recipe, part)
    return recipe


@pytest.mark.parametrize(
    ("override", "key", "wanted"),
    [
        ("name=no", "name", "no"),
        ("name=2024", "name", "2024"),
        ("name=12:30", "name", "12:30"),
        ("name='quoted'", "name", "quoted"),
        ("output_dir=a=b", "output_dir", "a=b"),
        ("output_dir=runs/# 1", "output_dir", "runs/# 1"),
        ("output_dir=out/${name}", "output_dir", "out/llama3-8b-instruct"),
        ("model.revision=null", "model.revision", None),
        ("model.revision=1234567", "model.revision", "1234567"),
        ("data.eval=null", "data.eval", None),
        ("data.train=x.json", "data.train", [DataSource(path="x.json")]),
        ("data.train=[{path: x}, {path: y, repeat: 2}]", "data.train",
         [DataSource(path="x"), DataSource(path="y", repeat=2)]),
        ("data.train.0.max_pairs=10", "data.train.0.max_pairs", 10),
        ("data.train[0].split=other", "data.train.0.split", "other"),
        ("data.holdout=0.1", "data.holdout", 0.1),
        ("data.holdout=100", "data.holdout", 100),
        ("data.chat_template_kwargs.enable_thinking=false", "data.chat_template_kwargs", {"enable_thinking": False}),
        ("train.tokens_per_microbatch=auto", "train.tokens_per_microbatch", "auto"),
        ("train.tokens_per_microbatch=4096", "train.tokens_per_microbatch", 4096),
        ("train.deterministic=yes", "train.deterministic", True),
        ("model.lora.rank=8", "model.lora.rank", 8),
        ("model.lora={rank: 8, alpha: 4}", "model.lora.alpha", 4.0),
        ("tracking.report_to=[tensorboard, wandb]", "tracking.report_to", ["tensorboard", "wandb"]),
        ("train.pairs_per_step=1_000", "train.pairs_per_step", 1000),
    ],
)  # fmt: skip
def test_a_value_is_read_by_the_kind_of_its_key(override: str, key: str, wanted: Any) -> None:
    value = value_of(compose(PAPER, [override]).recipe, key)
    assert (value, type(value)) == (wanted, type(wanted))


@pytest.mark.parametrize(
    ("override", "problem", "fix"),
    [
        ("train.max_steps", "'train.max_steps' is not KEY=VALUE.", "Write it as train.max_steps=30"),
        ("seed: 3", "'seed: 3' is not KEY=VALUE.", "Did you mean seed=3?"),
        ("lora.yaml", "'lora.yaml' is not KEY=VALUE.", "One recipe is named first"),
        ("=3", "'=3' does not begin with a key.", "A key is words joined by dots"),
        ("a b=3", "'a b=3' does not begin with a key.", "A key is words joined by dots"),
        ("loss..beta=3", "'loss..beta=3' does not begin with a key.", "A key is words joined by dots"),
        ("+seed=3", "'+seed=3' does not begin with a key.", "Did you mean seed=...?"),
        ("train.max_steps=", "train.max_steps is given no value.", "Write it after the equals sign"),
        ("loss.bata=3", "loss.bata is not a key of loss.", "Did you mean beta? All keys: simpo recipe schema loss"),
        ("loss=3", "loss is 3, a number; wanted: a mapping.", "See: simpo recipe schema loss"),
        ("loss=null", "loss is a section and cannot be null.", "Set its keys one by one."),
        ("loss.beta.x=3", "loss.beta is a mapping here and a single value in", "Mappings are joined key by key"),
        ("loss={gamma: 1, gamma_beta_ratio: 2}", "loss.gamma and loss.gamma_beta_ratio say one thing", "Keep one"),
        ("seed=12:30", "seed is 12:30, which YAML reads as the number 750.", "Quote it ('12:30')"),
        ("seed=[1", "a quote or bracket that begins here is never closed.", "Close it"),
        ("seed=!!python/name:os.system", "the tag !!python/name:os.system is not allowed", "Delete the tag."),
        ("seed=\udcff", "the text is not UTF-8.", "Type it again"),
        ("defaults=lora", "defaults cannot be changed from the command line.", "Write a recipe that begins"),
        ("data.train.1.split=x", "data.train has no item 1: the list in shipped:", "Items are counted from 0."),
        ("data.train.0.splt=x", "data.train.0.splt is not a key of data.train.0.", "Did you mean split?"),
        ("output_dir=", "output_dir is '', which is not usable as a folder.", "Use runs/${name}."),
        ("x" * 500, f'"\'{"x" * 59}" is not KEY=VALUE.', "Write it as"),
    ],
)
def test_a_bad_override_is_named_by_its_number(override: str, problem: str, fix: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(PAPER, ["seed=1", override])
    assert caught.value.where == "override 2"
    assert caught.value.problem.startswith(problem)
    assert caught.value.fix.startswith(fix)
    assert len(str(caught.value).splitlines()) == 2


def test_the_override_is_named_when_it_breaks_a_value_of_the_file() -> None:
    with pytest.raises(UserError) as caught:
        compose("demo", ["data.max_length=64"])
    assert str(caught.value).splitlines()[0] == (
        "override 1: data.max_prompt_length is 128, must be below max_length (64)."
    )
