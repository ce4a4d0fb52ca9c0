"""How recipes compose: layers, overrides, origins, the margin, interpolation, and YAML that loads again."""

from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import ExitCode, UserError, about
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import DataSource, LoraRecipe, TrainRecipe
from simpo_cli.recipe.tree import Origin
from tests.recipe.conftest import BASE, Write


def test_three_lines_are_a_recipe_with_the_papers_defaults(write: Write) -> None:
    write("r", BASE)
    recipe = compose("r.yaml").recipe
    assert (recipe.name, recipe.seed, recipe.output_dir) == ("a", 42, "runs/a")
    assert (recipe.loss.beta, recipe.loss.margin, recipe.loss.margin_beta_ratio) == (2.0, 1.0, 0.5)
    assert (recipe.loss.label_smoothing, recipe.loss.sft_weight) == (0.0, 0.0)
    assert recipe.train == TrainRecipe(
        pairs_per_step=128,
        num_epochs=1,
        learning_rate=1e-6,
        lr_scheduler="cosine",
        warmup_ratio=0.1,
        weight_decay=0.0,
        max_grad_norm=1.0,
    )


def test_a_run_is_called_after_its_file(write: Write) -> None:
    unnamed = BASE.removeprefix("name: a\n")
    write("my-run.v2", unnamed)
    composed = compose("my-run.v2.yaml")
    assert (composed.recipe.name, composed.recipe.output_dir) == ("my-run.v2", "runs/my-run.v2")
    assert str(composed.origins["name"]) == "default"
    assert compose("my-run.v2.yaml", ["name=other"]).recipe.output_dir == "runs/other"
    write("again", composed.as_yaml())  # a run folder keeps the name that it has
    assert compose("again.yaml").recipe == composed.recipe
    write("on-demo", "defaults: demo\n")
    assert compose("on-demo.yaml").recipe.name == "demo"  # what it builds on says a name
    write("-x", unnamed)
    with pytest.raises(UserError, match="^-x.yaml: name is '-x', which is not usable as a folder name"):
        compose("-x.yaml")
    write("only-named", "name: a\n")
    with pytest.raises(UserError, match=r"model\.path is missing"):
        compose("only-named.yaml")


def test_later_layers_win_key_by_key(write: Write) -> None:
    write("one", "seed: 1\nloss: {beta: 1.5, label_smoothing: 0.1}\ntrain: {max_steps: 10}\n")
    write("two", "seed: 2\nloss:\n  beta: 3\n")
    write("r", "defaults: [one, two]\n" + BASE + "train:\n  max_steps: 30\n")
    composed = compose("r.yaml", ["train.num_epochs=2", "seed=4", "seed=5"])
    recipe = composed.recipe
    assert (recipe.seed, recipe.loss.beta, recipe.loss.label_smoothing) == (5, 3.0, 0.1)
    assert (recipe.train.max_steps, recipe.train.num_epochs) == (30, 2)
    wanted = {
        "name": "r.yaml:2",
        "model.path": "r.yaml:3",
        "seed": "override 3",
        "loss.beta": "two.yaml:3",
        "loss.label_smoothing": "one.yaml:2",
        "train.max_steps": "r.yaml:6",
        "train.num_epochs": "override 1",
        "train.warmup_ratio": "default",
        "output_dir": "default",
    }
    assert {key: str(composed.origins[key]) for key in wanted} == wanted
    assert composed.origins["loss.beta"] == Origin(file="two.yaml", line=3)


def test_every_value_of_the_recipe_has_an_origin(write: Write) -> None:
    write("r", BASE)
    written = [line.split(" # ") for line in compose("r.yaml").as_yaml(origins=True).splitlines()]
    assert all(len(parts) == 2 or parts[0].endswith(":") for parts in written)


def test_defaults_are_found_beside_the_file_then_among_the_shipped(write: Write) -> None:
    write("sub/base", "seed: 7\n")
    write("sub/r", "defaults: [paper/llama3-8b-instruct, lora, base]\nname: mine\n")
    recipe = compose("sub/r.yaml").recipe
    assert (recipe.seed, recipe.loss.beta, recipe.train.learning_rate) == (7, 2.5, 1e-5)
    assert recipe.model.lora == LoraRecipe(rank=16, alpha=32.0)


def test_a_name_that_hides_a_shipped_recipe_is_mentioned(write: Write) -> None:
    write("demo", "defaults: demo\nseed: 9\n")  # but a file may extend the one whose name it has
    composed = compose("demo.yaml")
    assert (composed.recipe.seed, composed.recipe.train.pairs_per_step, composed.warnings) == (9, 16, ())
    write("lora", "seed: 3\n")
    write("r", "defaults: [lora]\n" + BASE)
    composed = compose("r.yaml")
    assert composed.recipe.seed == 3
    assert [finding.sentence for finding in composed.warnings] == [
        "lora is lora.yaml, not the shipped recipe of that name."
    ]


def test_a_file_comes_before_a_shipped_recipe_and_a_folder_does_not(write: Write) -> None:
    Path("demo").mkdir()
    composed = compose("demo")
    assert composed.recipe.name == "demo"
    assert composed.warnings[0].sentence == "demo is the shipped recipe, not the folder of that name."
    write("demo", BASE)
    assert compose("demo.yaml").recipe.name == "a"
    assert compose("demo.yaml").warnings == ()
    Path("lora").write_text(BASE)
    assert compose("lora").warnings[0].sentence == "lora is the file here, not the shipped recipe."


@pytest.mark.parametrize(
    ("base", "over", "overrides", "margin"),
    [
        ("", "", [], 1.0),
        ("gamma: 3", "", [], 3.0),
        ("gamma_beta_ratio: 0.8", "", [], 1.6),
        ("gamma: 3", "gamma_beta_ratio: 0.1", [], 0.2),
        ("gamma_beta_ratio: 0.1", "gamma: 3", [], 3.0),
        ("gamma: 3", "beta: 4", [], 3.0),
        ("gamma_beta_ratio: 0.25", "beta: 4", [], 1.0),
        ("gamma: 3", "gamma: 2", ["loss.gamma_beta_ratio=0.25"], 0.5),
        ("gamma: 3", "", ["loss.gamma_beta_ratio=0.25", "loss.gamma=5"], 5.0),
        ("gamma: 3", "gamma: null", [], 1.0),
        ("gamma_beta_ratio: 0.8", "gamma: null", [], 1.6),
        ("gamma: 3", "gamma: null\n  gamma_beta_ratio: 0.2", [], 0.4),
    ],
)
def test_the_last_layer_that_names_the_margin_wins(
    base: str, over: str, overrides: list[str], margin: float, write: Write
) -> None:
    write("base", f"loss:\n  {base}\n" if base else "seed: 1\n")
    write("r", f"defaults: base\n{BASE}loss:\n  {over}\n")
    composed = compose("r.yaml", overrides)
    loss = composed.recipe.loss
    assert loss.margin == pytest.approx(margin)
    assert (loss.gamma is None) != (loss.gamma_beta_ratio is None)
    assert ("gamma:" in composed.as_yaml()) != ("gamma_beta_ratio:" in composed.as_yaml())


def test_a_section_with_all_its_lines_commented_out_changes_nothing(write: Write) -> None:
    write("base", "loss: {beta: 5}\n")
    write("r", "defaults: base\n" + BASE + "loss:\n  # beta: 3\ntrain:\n")
    assert compose("r.yaml").recipe.loss.beta == 5.0


def test_values_are_computed_from_others(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPO_TEST_STEPS", "12")
    monkeypatch.delenv("SIMPO_TEST_OUT", raising=False)
    text = (
        "seed: 3\nname: run-${seed}\noutput_dir: ${oc.env:SIMPO_TEST_OUT,out}/${name}\n"
        "model: {path: builtin:guide}\n"
        "data:\n  train: builtin:guide\n  eval: ${.train}\n"
        "loss: {beta: '${seed}', type: '${oc.env:SIMPO_TEST_TYPE,hinge}'}\n"
        "train: {max_steps: '${oc.env:SIMPO_TEST_STEPS}', num_epochs: '${eval.every}'}\neval: {every: 5}\n"
    )
    write("r", text)
    recipe = compose("r.yaml").recipe
    write("again", compose("r.yaml").as_yaml())
    assert compose("again.yaml").recipe == recipe  # 12 came as text from outside and is written as a number
    assert (recipe.name, recipe.output_dir, recipe.data.eval) == ("run-3", "out/run-3", recipe.data.train)
    assert (recipe.loss.beta, recipe.loss.type) == (3.0, "hinge")
    assert (recipe.train.max_steps, recipe.train.num_epochs) == (12, 5)


def test_a_default_can_be_referred_to_and_a_list_too(write: Write) -> None:
    text = "name: a\nmodel: {path: x}\ndata:\n  train: [{path: x, split: a}]\n  eval: ${data.train}\n"
    write("r", text + "output_dir: runs/beta${loss.beta}-${data.train[0].split}-${data.train.0.path}\n")
    recipe = compose("r.yaml").recipe
    assert recipe.output_dir == "runs/beta2.0-a-x"
    assert recipe.data.eval == [DataSource(path="x", split="a")]


def test_a_backslash_keeps_the_two_characters_as_text(write: Write) -> None:
    write("r", BASE + r"output_dir: runs/\${name}" + "\n")
    composed = compose("r.yaml")
    assert composed.recipe.output_dir == "runs/${name}"
    write("again", composed.as_yaml())
    assert compose("again.yaml").recipe == composed.recipe


@pytest.mark.parametrize("form", ["${oc.env:%s}", "${oc.env:%s,x}", "a/${ oc.env : %s }/b", "${name}-${oc.env:%s}"])
@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "my_secret", "DB_PASSWORD", "PLAIN_NAME"])
def test_secrets_stay_in_the_environment(form: str, name: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_abcdefghijklmnopqrstuvwxyz0123"  # PLAIN_NAME is refused for what it holds
    monkeypatch.setenv(name, secret)
    write("r", BASE + "output_dir: '" + form % name + "'\n")
    with pytest.raises(UserError) as caught:
        compose("r.yaml")
    assert caught.value.problem == f"output_dir reads the environment variable {name}, which looks like a secret."
    assert secret not in str(caught.value)


@pytest.mark.parametrize("form", ["${oc.env:'HF_TOKEN'}", "${oc.env:${name}}", "${oc.decode:${oc.env:HF_TOKEN}}",
                                  "${oc.${name}:HF_TOKEN}", "${${name}:HF_TOKEN}", "\\${name} ${oc.env:HF_TOKEN}",
                                  "${oc.env:HOME,${oc.env:HF_TOKEN}}"])  # fmt: skip
def test_no_detour_leads_to_a_secret(form: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "not-even-of-a-known-form")
    write("r", BASE + f"output_dir: {form!r}\n".replace("\\\\", "\\"))
    with pytest.raises(UserError) as caught:
        compose("r.yaml")
    assert "not-even" not in str(caught.value)


def test_yaml_merge_keys_and_aliases_work(write: Write) -> None:
    text = "name: a\nmodel: {path: x}\ndata:\n  train:\n    - &one {path: x, split: s}\n    - {<<: *one, split: t}\n"
    write("r", text)
    assert compose("r.yaml").recipe.data.train == [DataSource(path="x", split="s"), DataSource(path="x", split="t")]
    write("r", text.replace("<<: *one", "<<: [{split: u}, *one]").replace(", split: t", ""))
    sources = compose("r.yaml").recipe.data.train
    assert sources == [DataSource(path="x", split="s"), DataSource(path="x", split="u")]  # the first of several wins


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e-5", 1e-5), ("1E-5", 1e-5), ("1.e-5", 1e-5), ("1e+0", 1.0), ("3", 3.0), (".5", 0.5), ("1_0.5", 10.5)],
)
def test_numbers_are_numbers(written: str, read: float, write: Write) -> None:
    write("r", BASE + f"train: {{learning_rate: {written}}}\n")
    value = compose("r.yaml").recipe.train.learning_rate
    assert (value, type(value)) == (read, float)
    assert compose("demo", [f"train.learning_rate={written}"]).recipe.train.learning_rate == read


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf" + BASE.encode(), BASE.replace("\n", "\r\n").encode(),
                                     BASE.rstrip().encode(), b"---\n" + BASE.encode() + b"...\n"])  # fmt: skip
def test_a_byte_order_mark_other_line_ends_and_markers_are_accepted(content: bytes, write: Write) -> None:
    write("r", content)
    assert compose("r.yaml").recipe.name == "a"


def test_the_composed_recipe_loads_again_to_the_same_recipe(write: Write) -> None:
    write("r", "defaults: [paper/gemma2-9b-it, lora]\nname: '12:30'\n")
    composed = compose("r.yaml", ["data.chat_template_kwargs={a: [1, {b: no}], c: 'no'}", "loss.gamma=3"])
    write("again", composed.as_yaml())
    again = compose("again.yaml")
    assert again.recipe == composed.recipe
    assert again.as_yaml() == composed.as_yaml()
    write("with-origins", composed.as_yaml(origins=True))
    assert compose("with-origins.yaml").recipe == composed.recipe


def test_a_piece_says_that_it_is_one() -> None:
    with pytest.raises(UserError) as caught:
        compose("lora")
    assert "lora is a piece to compose into another recipe" in caught.value.problem
    with pytest.raises(UserError, match="not a key of loss"):
        compose("lora", ["loss.x=3"])


# KEY=VALUE on the command line; more of what is refused stands in bad_files.txt

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
        ("seed: 3", "'seed: 3' is not KEY=VALUE.", "Did you mean seed=3?"),
        ("lora.yaml", "'lora.yaml' is not KEY=VALUE.", "One recipe is named first"),
        ("=3", "'=3' does not begin with a key.", "A key is words joined by dots"),
        ("a b=3", "'a b=3' does not begin with a key.", "A key is words joined by dots"),
        ("loss..beta=3", "'loss..beta=3' does not begin with a key.", "A key is words joined by dots"),
        ("+seed=3", "'+seed=3' does not begin with a key.", "Did you mean seed=...?"),
        ("seed=12:30", "seed is 12:30, which YAML reads as the number 750.", "Quote it ('12:30')"),
        ("seed=[1", "a quote or bracket that begins here is never closed.", "Close it"),
        ("seed=\udcff", "the text is not UTF-8.", "Type it again"),
        ("data.train.0.splt=x", "data.train.0.splt is not a key of data.train.0.", "Did you mean split?"),
        ("data.max_length=1800", "data.max_prompt_length is 1800, must be below max_length (1800).", "Leave room"),
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


# Errors that a run raises long after the recipe was read

LOCATED = """\
name: a
model:
  path: org/model
  lora:
    target_modules: [nope]
data:
  train: prefs.jsonl
  holdout: 5
"""


@pytest.mark.parametrize(
    ("key", "where"),
    [
        ("model.lora.target_modules", "r.yaml:5"),
        ("model.lora.rank", "r.yaml:4"),  # nobody wrote it: its section
        ("data.max_length", "r.yaml:6"),
        ("data.chat_template_kwargs.foo", "r.yaml:6"),
        ("train.tokens_per_microbatch", "override 1"),
        ("tracking.report_to", "r.yaml"),
        ("output_dir", "r.yaml"),
        ("model.path", "r.yaml:3"),
        ("data.holdout", "r.yaml:8"),
        ("", ""),
    ],
)
def test_the_place_of_an_error_is_that_of_its_key(key: str, where: str, write: Write) -> None:
    write("r", LOCATED)
    composed = compose("r.yaml", ["train.tokens_per_microbatch=8"])
    error = UserError("it is so.", "Mend it.", key=key, exit_code=ExitCode.ENVIRONMENT)
    located = composed.located(error)
    assert (located.problem, located.fix, located.where) == ("it is so.", "Mend it.", where)
    assert (located.key, located.exit_code) == (key, ExitCode.ENVIRONMENT)
    in_the_data = UserError("this pair is over the limits.", "", where="prefs.jsonl:17", key=key)
    assert composed.located(in_the_data) is in_the_data


def test_the_nearest_key_counts() -> None:
    for given, key in (("", "model.path"), ("model.lora.rank", "model.lora.rank")):
        with pytest.raises(UserError) as caught, about("model.path"):
            raise UserError("it is so.", "", key=given)
        assert caught.value.key == key
