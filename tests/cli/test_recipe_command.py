"""`simpo recipe`: what a person types and sees, with the exit code and the stream that each line goes to.

docs/recipes.md shows more of it, and is run by tests/recipe/test_shipped_recipes.py.
"""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from simpo_cli.names import shipped_names
from simpo_cli.recipe.composition import compose
from tests.cli.seen import Seen, Simpo, typed

BASE = "name: a\nmodel: {path: org/model}\ndata: {train: org/pairs}\n"


@pytest.fixture
def simpo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Simpo:
    """Run a command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return typed(capsys)


def test_list(simpo: Simpo) -> None:
    seen = simpo("recipe", "list")
    assert seen.code == 0
    assert [line.split()[0] for line in seen.out.splitlines()] == shipped_names()
    assert max(map(len, seen.out.splitlines())) <= 80
    assert "simpo recipe copy NAME" in seen.err
    rows = json.loads(simpo("recipe", "list", "--json").out)
    assert [row["name"] for row in rows] == shipped_names()
    assert [row["name"] for row in rows if row["piece"]] == ["lora", "qlora"]


def test_show_prints_a_recipe_that_loads_again(simpo: Simpo) -> None:
    seen = simpo("recipe", "show", "paper/gemma2-9b-it", "train.max_steps=3")
    assert (seen.code, seen.err) == (0, "")
    Path("shown.yaml").write_text(seen.out)
    assert compose("shown.yaml").recipe == compose("paper/gemma2-9b-it", ["train.max_steps=3"]).recipe


def test_show_origin_says_where_each_value_was_set(simpo: Simpo) -> None:
    Path("r.yaml").write_text(f"defaults: [paper/llama3-8b-instruct, lora]\n{BASE}loss:\n  beta: 3\n")
    document = json.loads(simpo("recipe", "show", "r.yaml", "seed=7", "--origin", "--json").out)
    assert document["recipe"]["loss"]["beta"] == 3.0
    said = {key.rpartition(".")[2]: where for key, where in document["origins"].items()}
    assert (said["beta"], said["seed"], said["sft_weight"]) == ("r.yaml:6", "override 1", "default")
    assert said["rank"].startswith("shipped:lora.yaml:")
    assert said["gamma_beta_ratio"].startswith("shipped:paper/llama3-8b-instruct.yaml:")


def test_show_of_a_piece_prints_what_it_sets(simpo: Simpo) -> None:
    seen = simpo("recipe", "show", "lora")
    assert seen.code == 0
    assert seen.out.splitlines()[:3] == ["model:", "  lora:", "    rank: 16"]
    assert "seed" not in seen.out
    assert seen.err == "lora is a piece to compose; this is what it sets.\n"


def test_check_shows_warnings(simpo: Simpo) -> None:
    assert simpo("recipe", "check", "demo") == Seen(0, "demo: no remarks.\n", "")
    Path("r.yaml").write_text(BASE + "loss: {beta: 0.1, gamma: 0.1}\n")
    seen = simpo("recipe", "check", "r.yaml", "train.learning_rate=1e-5")
    assert seen.code == 0
    remarks = [re.split(" {2,}", line)[:3] for line in seen.out.splitlines()]
    assert remarks == [["override 1", "warning", "REC001"], ["r.yaml:4", "warning", "REC003"]]


def test_check_shows_every_error_at_once(simpo: Simpo) -> None:
    Path("r.yaml").write_text("model: {path: x}\ndata: {train: y, max_length: 4}\nloss: {bata: 2}\nseed: no\n")
    seen = simpo("recipe", "check", "r.yaml")
    assert seen.code == 2
    assert [line for line in seen.err.splitlines() if not line.startswith(" ")] == [
        "Error: r.yaml:3: loss.bata is not a key of loss.",
        "Error: r.yaml:4: seed is no, which YAML reads as false; wanted: a whole number.",
        "Error: r.yaml:2: data.max_length is 4, must be at least 8.",
    ]
    findings = json.loads(simpo("recipe", "check", "r.yaml", "--json").out)["findings"]
    assert [finding["severity"] for finding in findings] == ["error"] * 3
    assert findings[0] == {
        "code": "REC000",
        "severity": "error",
        "where": "r.yaml:3",
        "sentence": "loss.bata is not a key of loss.",
        "fix": "Did you mean beta? All keys: simpo recipe schema loss",
    }


def test_check_of_a_text_that_is_no_yaml(simpo: Simpo) -> None:
    Path("r.yaml").write_text("a: [\n")
    assert simpo("recipe", "check", "r.yaml").code == 2
    seen = simpo("recipe", "check", "r.yaml", "--json")
    assert (seen.code, seen.err) == (2, "")
    assert json.loads(seen.out)["findings"][0]["where"] == "r.yaml:1"


def test_check_of_a_piece(simpo: Simpo) -> None:
    seen = simpo("recipe", "check", "lora")
    assert seen.code == 0
    assert seen.out == "lora is a piece to compose into another recipe; what it sets is valid.\n"
    seen = simpo("recipe", "check", "lora", "model.lora.rank=0")
    assert (seen.code, seen.err.splitlines()[0]) == (2, "Error: override 1: model.lora.rank is 0, must be at least 1.")
    document = json.loads(simpo("recipe", "check", "lora", "--json").out)
    assert document == {"recipe": "lora", "piece": True, "findings": []}


def test_check_of_a_recipe_whose_files_are_not_here(simpo: Simpo) -> None:
    seen = simpo("recipe", "check", "smollm2-135m")
    assert seen.code == 0
    assert "REC013  data.train: prefs.jsonl does not exist." in seen.out
    assert "model.path" not in seen.out  # an id of the hub
    seen = simpo("recipe", "check", "smollm2-135m", "model.path=smollm2", "data.train=org/pairs")
    assert seen.out.split("REC013  ")[1:] == ["the model folder smollm2 does not exist.\n"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("data.train=gone.jsonl", "override 1: data.train: gone.jsonl does not exist."),
        ("model.path=./gone", "override 1: the model folder ./gone does not exist."),
        ("data.chat_template=gone.jinja", "override 1: data.chat_template names gone.jinja, which cannot be read"),
        ("data.eval=[{path: gone.jsonl}]", "override 1: data.eval: gone.jsonl does not exist."),
        ("data.train=[{path: prefs.jsonl, columns: {prompt: question}}]", "question"),
        ("data.train=broken.jsonl", "broken.jsonl:2: "),
        ("data.train=r.yaml", "data.train: r.yaml is a recipe, and a file of pairs is wanted."),
        ("model.path=prefs.jsonl", "model.path: prefs.jsonl is a file of pairs, and a model folder is wanted."),
    ],
)
def test_check_looks_at_what_the_recipe_names(simpo: Simpo, change: str, said: str) -> None:
    pair = {"prompt": "p", "chosen": "good", "rejected": "bad"}
    Path("prefs.jsonl").write_text(json.dumps(pair) + "\n")
    Path("broken.jsonl").write_text(json.dumps(pair) + '\n{"prompt": 1}\n')
    Path("r.yaml").write_text("name: a\nmodel: {path: builtin:guide}\ndata: {train: prefs.jsonl}\n")
    assert simpo("recipe", "check", "r.yaml").code == 0
    seen = simpo("recipe", "check", "r.yaml", change)
    assert seen.code == 2
    assert said in seen.err
    [error] = json.loads(simpo("recipe", "check", "r.yaml", change, "--json").out)["findings"]
    assert (error["severity"], said in f"{error['where']}: {error['sentence']}") == ("error", True)


def test_copy_makes_a_recipe_that_editors_understand(simpo: Simpo) -> None:
    seen = simpo("recipe", "copy", "paper/llama3-8b-instruct", "my-run.yaml")
    assert (seen.code, seen.out) == (0, "")
    assert "simpo train my-run.yaml" in seen.err
    first, _, rest = Path("my-run.yaml").read_text().partition("\n")
    assert first == "# yaml-language-server: $schema=simpo-recipe.schema.json"
    assert rest.startswith("# The paper: Llama 3 8B Instruct\n")
    schema = json.loads(Path("simpo-recipe.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert compose("my-run.yaml").recipe == compose("paper/llama3-8b-instruct", ["name=my-run"]).recipe


def test_copy_chooses_a_name_and_takes_a_folder(simpo: Simpo) -> None:
    assert simpo("recipe", "copy", "demo").code == 0
    assert Path("demo.yaml").is_file()
    Path("runs").mkdir()
    assert simpo("recipe", "copy", "paper/gemma2-9b-it", "runs").code == 0
    assert Path("runs/gemma2-9b-it.yaml").is_file()
    assert Path("runs/simpo-recipe.schema.json").is_file()
    assert simpo("recipe", "copy", "demo.yaml", "again.yaml").code == 0
    assert Path("again.yaml").read_text() == Path("demo.yaml").read_text().replace("name: demo", "name: again")


@pytest.mark.parametrize(
    "file", ["my-run.yaml", "mine.yaml", "no.yaml", "2024.yaml", "1e-6.yaml", "12:30.yaml", "a b.yaml"]
)
def test_a_copy_is_named_after_its_file(simpo: Simpo, file: str) -> None:
    assert simpo("recipe", "copy", "smollm2-135m", file).code == 0
    assert compose(file).recipe == compose("smollm2-135m", [f"name={Path(file).stem}"]).recipe


def test_a_copy_whose_file_is_no_name_keeps_the_old_one(simpo: Simpo) -> None:
    assert simpo("recipe", "copy", "demo", "a..b.yaml").code == 0
    assert compose("a..b.yaml").recipe.name == "demo"
    seen = simpo("recipe", "copy", "lora", "piece.yaml")
    assert seen.err.splitlines()[1].endswith("then: name piece in the defaults: of a recipe")
    assert "name: " not in Path("piece.yaml").read_text().replace("name: my-run", "")


def test_copy_overwrites_nothing_and_makes_no_folder(simpo: Simpo) -> None:
    Path("demo.yaml").write_text("mine")
    seen = simpo("recipe", "copy", "demo")
    assert (seen.code, seen.err.splitlines()[0]) == (2, "Error: demo.yaml exists.")
    assert Path("demo.yaml").read_text() == "mine"
    Path("simpo-recipe.schema.json").write_text("mine")
    seen = simpo("recipe", "copy", "demo", "other.yaml")
    assert seen.code == 0
    assert "is not ours" in seen.err
    assert Path("simpo-recipe.schema.json").read_text() == "mine"
    seen = simpo("recipe", "copy", "demo", "no/such/folder.yaml")
    assert seen.code == 4
    assert seen.err.splitlines()[0] == "Error: no/such/folder.yaml cannot be written: No such file or directory."


def test_schema(simpo: Simpo) -> None:
    assert json.loads(simpo("recipe", "schema").out)["properties"]["loss"]["properties"]["beta"]["default"] == 2.0
    assert "rank" in json.loads(simpo("recipe", "schema", "model.lora").out)["properties"]
    seen = simpo("recipe", "schema", "los")
    assert (seen.code, seen.err.splitlines()[0]) == (2, "Error: los is not a section of a recipe.")


def test_an_unknown_recipe_or_key(simpo: Simpo) -> None:
    problem = "Error: there is no recipe 'dmo', neither as a file nor among the shipped ones.\n"
    fix = "  Did you mean demo? All shipped recipes: simpo recipe list\n"
    assert simpo("recipe", "show", "dmo") == Seen(2, "", problem + fix)
    fix = "  Did you mean beta? All keys: simpo recipe schema loss\n"
    assert simpo("recipe", "show", "demo", "loss.bata=2") == Seen(
        2, "", f"Error: override 1: loss.bata is not a key of loss.\n{fix}"
    )
