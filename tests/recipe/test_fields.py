"""The JSON Schema that editors use: it takes every shipped recipe, refuses what is unknown, carries the sentences."""

import dataclasses
from typing import Any

import jsonschema
import pytest
import yaml

from simpo_cli.errors import UserError
from simpo_cli.names import shipped_names, shipped_root
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.fields import all_keys, json_schema
from simpo_cli.recipe.schema import LoraRecipe, LossRecipe, Recipe
from simpo_cli.recipe.tree import plain_value
from simpo_cli.recipe.yaml_text import parse_file


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def read(text: str) -> Any:
    return plain_value(parse_file(text, "r.yaml"))


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipes_are_valid(name: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(read((shipped_root() / f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", [name for name in shipped_names() if "lora" not in name])
def test_composed_recipes_are_valid(name: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(read(compose(name).as_yaml()))


@pytest.mark.parametrize(
    "text",
    [
        "defaults: demo",
        "defaults: [demo, lora]",
        "output_dir: runs/${name}",
        "loss: {beta: '${oc.env:BETA}'}",
        "model: {lora: null}",
        "train: {tokens_per_microbatch: auto}",
        "train: {tokens_per_microbatch: 4096}",
        "data: {holdout: 0.1}",
        "data: {train: [{path: x, columns: {prompt: y}}]}",
        "data: {columns: {prompt: y, answers: [a, b]}, labels: {first: [0, a, true], second: {above: 0}}}",
        "data: {chat_template_kwargs: {anything: [1, {a: b}]}}",
    ],
)
def test_what_a_recipe_may_hold(text: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(read(text))


@pytest.mark.parametrize(
    "text",
    [
        "bogus: 1",
        "loss: {bata: 2}",
        "model: {lora: {rnak: 2}}",
        "data: {train: [{path: x, splt: y}]}",
        "loss: {beta: two}",
        "loss: {type: sigmod}",
        "train: {max_steps: 1.5}",
        "train: {deterministic: 'yes'}",
        "name: 3",
        "tracking: {report_to: wandb}",
        "loss: 3",
        "data: {columns: {promt: y}}",
        "data: {columns: {prompt: 3}}",
        "data: {labels: {first: 0}}",
        "data: {labels: {first: {under: 0}}}",
        "data: {direction: second}",
    ],
)
def test_what_a_recipe_may_not_hold(text: str, validator: jsonschema.Draft202012Validator) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(read(text))


def test_every_key_has_a_sentence_and_its_default() -> None:
    for key in [*all_keys(), "data.train.0.path"]:
        section, _, name = key.rpartition(".")
        field = json_schema(section.removesuffix(".0"))["properties"][name]
        assert len(field["description"].split()) >= 2, key
    found = {key: json_schema(key.rpartition(".")[0])["properties"][key.rpartition(".")[2]] for key in all_keys()}
    for section, prefix in ((Recipe, ""), (LossRecipe, "loss."), (LoraRecipe, "model.lora.")):
        for field in dataclasses.fields(section):
            if field.default is not dataclasses.MISSING:
                assert found[prefix + field.name]["default"] == field.default


def test_a_section_stands_alone() -> None:
    schema = json_schema("model.lora")
    jsonschema.Draft202012Validator.check_schema(schema)
    assert list(schema["properties"]) == [
        *("rank", "alpha", "dropout", "target_modules", "use_rslora", "use_dora", "init")
    ]
    assert "split" in json_schema("data.train")["properties"]
    with pytest.raises(UserError, match="los is not a section of a recipe"):
        json_schema("los")
    with pytest.raises(UserError, match=r"loss\.beta is not a section of a recipe"):
        json_schema("loss.beta")


def test_plain_yaml_readers_understand_the_composed_recipe() -> None:
    """Readers of YAML 1.1 and 1.2 agree with us about every value, so no number is 1e-06 and no text is bare."""
    text = compose("demo", ["name='1e-5'", "train.learning_rate=1e-6", "output_dir=12:30"]).as_yaml()
    assert yaml.safe_load(text) == read(text)
