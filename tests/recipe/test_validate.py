"""Everything that goes wrong in the text of a recipe: for each kind one error of two lines, with file and line.

The kinds and their errors are written out in bad_lines.txt (what follows the three lines of a complete recipe) and in
bad_files.txt (whole files, files that build on others, overrides); here are those that do not fit into a text file.
"""

import itertools
import os
import sys
from pathlib import Path

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.fields import all_keys
from simpo_cli.recipe.tree import flat, plain_value, unflat
from simpo_cli.recipe.validate import HABITS, recipe_of
from tests.recipe.conftest import BASE, Write, cases_of, write_case

NINES = "9" * 40
# (name, what follows the three lines, what is said of line 4)
UNPRINTABLE = [
    ("control character", "seed: a\x1bb\n", "the file holds the character U+001B, which YAML does not allow."),
    ("NUL", "seed: a\0b\n", "the file holds the character U+0000, which YAML does not allow."),
    ("deep nesting", f"seed: {'[' * 5_000}\n", "the values are nested more than 20 levels deep."),
    ("5,000 digits", f"seed: {'9' * 5_000}\n", f"seed is '{NINES}', which YAML cannot read as int."),
    ("400 digits", f"loss: {{beta: {'9' * 400}}}\n", f"loss.beta is {NINES}..., a number; wanted: a number."),
]  # fmt: skip
NOT_UTF8 = [
    (b"seed: 1\nname: caf\xe9\n", "r.yaml:2: the file is not UTF-8 (byte 0xe9 at offset 17)."),
    (b"\xff\xfe" + BASE.encode("utf-16-le"), "r.yaml:1: the file is not UTF-8 (UTF-16 at offset 0)."),
]

ALIAS_BOMB = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{name}: &{name} [{', '.join(['*' + below] * 9)}]" for below, name in zip("abcdefgh", "bcdefghi", strict=True)]
)


def error_of(path: str, *overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        compose(path, overrides)
    assert caught.value.exit_code == ExitCode.USAGE
    assert len(str(caught.value).splitlines()) == 2
    return caught.value


@pytest.mark.parametrize(("text", "wanted"), cases_of("bad_lines.txt"))
def test_a_bad_line_is_named_with_its_place_and_its_cure(
    text: str, wanted: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a-secret-that-must-not-be-shown")
    monkeypatch.setenv("SIMPO_TEST_WORD", "a-word")
    monkeypatch.setenv("SIMPO_TEST_NEGATIVE", "-3.5")
    write("r", BASE + text)
    assert str(error_of("r.yaml")) == wanted


@pytest.mark.parametrize(("text", "wanted"), cases_of("bad_files.txt"))
def test_a_bad_recipe_is_named_with_its_place_and_its_cure(text: str, wanted: str, write: Write) -> None:
    assert str(error_of("r.yaml", *write_case(text, write))) == wanted


@pytest.mark.parametrize(("name", "text", "problem"), UNPRINTABLE, ids=[case[0] for case in UNPRINTABLE])
def test_a_line_that_no_editor_shows(name: str, text: str, problem: str, write: Write) -> None:
    write("r", BASE + text)
    error = error_of("r.yaml")
    assert (error.where, error.problem) == ("r.yaml:4", problem), name


@pytest.mark.parametrize(("content", "wanted"), NOT_UTF8)
def test_a_file_in_another_encoding(content: bytes, wanted: str, write: Write) -> None:
    write("r", content)
    error = error_of("r.yaml")
    assert f"{error.where}: {error.problem}" == wanted
    assert "iconv" in error.fix


def test_an_alias_bomb_is_refused_before_it_goes_off(write: Write) -> None:
    write("r", ALIAS_BOMB)
    assert error_of("r.yaml").problem == "the file expands to more than 5,000 values."


def test_an_interpolation_bomb_is_refused(write: Write) -> None:
    keys = [f"k{number}" for number in range(40)]
    bomb = {a: f"${{.{b}}}${{.{b}}}" for a, b in itertools.pairwise(keys)} | {keys[-1]: "x"}
    lines = "".join(f"    {key}: '{value}'\n" for key, value in bomb.items())
    write("r", BASE.replace("{train: builtin:guide}", f"\n  train: builtin:guide\n  chat_template_kwargs:\n{lines}"))
    assert "expands to more than 1,000 values" in error_of("r.yaml").problem


def test_an_interpolation_circle_shows_the_way_round(write: Write) -> None:
    write("r", BASE + "output_dir: ${export.dtype}\nexport:\n  dtype: ${output_dir}\n")
    wanted = "r.yaml:4: output_dir refers to itself: output_dir -> export.dtype -> output_dir."
    assert str(error_of("r.yaml")).startswith(wanted)


def test_defaults_in_a_circle_show_the_way_round(write: Write) -> None:
    write("a", "defaults: b\n" + BASE)
    write("b", "seed: 1\ndefaults: [c]\n")
    write("c", "defaults: a\n")
    wanted = "c.yaml:1: defaults go round in a circle: a.yaml -> b.yaml -> c.yaml -> a.yaml."
    assert str(error_of("a.yaml")).startswith(wanted)


def test_defaults_that_are_too_deep_or_too_many_are_refused(write: Write) -> None:
    write("r0", BASE)
    for number in range(1, 20):
        write(f"r{number}", f"defaults: [r{number - 1}, r{number - 1}]\n")
    assert error_of("r19.yaml").problem == "defaults are nested more than 8 deep or name more than 64 files."
    assert error_of("r7.yaml").problem == "defaults are nested more than 8 deep or name more than 64 files."
    assert compose("r5.yaml").recipe.name == "a"


def test_a_folder_in_defaults_is_refused(write: Write) -> None:
    Path("folder").mkdir()
    write("r", "defaults: folder\n" + BASE)
    assert error_of("r.yaml").problem == "defaults names 'folder', which is a folder."


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("model: {path: folder}\ndata: {train: builtin:guide}\noutput_dir: folder/runs\n", "model.path"),
        ("model: {path: folder}\ndata: {train: builtin:guide}\noutput_dir: ./folder\n", "model.path"),
        ("model: {path: builtin:guide}\ndata: {train: folder}\noutput_dir: x/../folder/y\n", "data.train"),
        ("model: {path: x}\ndata: {train: y, eval: [{path: folder}]}\noutput_dir: folder/y\n", "data.eval"),
    ],
)
def test_a_run_inside_its_model_or_data_is_refused(text: str, key: str, write: Write) -> None:
    Path("folder").mkdir()
    write("r", "name: a\n" + text)
    error = error_of("r.yaml")
    assert (error.where, f"inside {key} (folder)." in error.problem) == ("r.yaml:4", True)


def test_a_run_folder_that_is_a_file_is_refused(write: Write) -> None:
    write("r", BASE + "output_dir: r.yaml\n")
    assert error_of("r.yaml").problem == "output_dir is r.yaml, which is a file."


@pytest.mark.parametrize(
    ("name", "problem", "fix"),
    [
        ("nope.yaml", "there is no recipe 'nope.yaml', neither as a file nor among", "See the shipped"),
        ("dmo", "there is no recipe 'dmo', neither as a file nor among", "Did you mean demo?"),
        ("gemma2-9b-it", "there is no recipe 'gemma2-9b-it', neither", "Did you mean paper/gemma2-9b-it?"),
        ("my-rn.yaml", "there is no recipe 'my-rn.yaml', neither", "Did you mean my-run.yaml?"),
        ("my-run", "there is no recipe 'my-run', neither", "Did you mean my-run.yaml?"),
        ("folder", "folder is a folder, not a recipe.", "Name a YAML file"),
        ("run", "run is a folder, not a recipe.", "Did you mean run/recipe.yaml?"),
        ("~nobody-of-this-name/r.yaml", "there is no recipe '~nobody-of-this-name/r.yaml', neither", "See the shipped"),
        ("dangling.yaml", "dangling.yaml is a link to something that does not exist.", "Mend the link"),
        ("loop.yaml", "loop.yaml is a link to something that does not exist.", "Mend the link"),
        ("", "the name of the recipe is empty.", "Name a YAML file"),
        ("x" * 5_000, "there is no recipe 'xxx", "See the shipped"),
        ("big.yaml", "big.yaml has 70,000 bytes.", "A recipe is a short YAML file."),
    ],
)
def test_a_name_that_is_no_recipe(name: str, problem: str, fix: str, write: Write) -> None:
    write("my-run", BASE)
    write("big", "#" * 70_000)
    write("run/recipe", BASE)
    Path("folder").mkdir()
    os.symlink("nowhere", "dangling.yaml")
    os.symlink("loop.yaml", "loop.yaml")
    error = error_of(name)
    assert error.problem.startswith(problem)
    assert error.fix.startswith(fix)


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_a_pipe_is_refused_and_does_not_hang() -> None:
    os.mkfifo("pipe.yaml")
    assert error_of("pipe.yaml").problem == "pipe.yaml is not a regular file."


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(write: Write) -> None:
    write("r", BASE).chmod(0)
    assert error_of("r.yaml").problem == "r.yaml cannot be read: Permission denied."


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("loss: {bata: 2}", "loss.bata"),
        ("seed: -1", "seed"),
        ("loss: {type: hinge, label_smoothing: 0.1}", "loss.label_smoothing"),
        ("data: {columns: {promt: q}}", "data.columns.promt"),
    ],
)
def test_an_error_of_the_text_names_its_key(text: str, key: str, write: Write) -> None:
    write("r", f"defaults: demo\n{text}\n")
    assert error_of("r.yaml").key == key


# Keys that people write by habit, and the fields of files


@pytest.mark.parametrize("name", sorted(HABITS))
def test_every_habit_leads_somewhere(name: str) -> None:
    key, note = HABITS[name]
    assert key or note
    assert not key or key in {*all_keys(), "model.lora"}
    error = error_of("demo", f"train.{name}=1")
    assert error.problem.startswith(f"train.{name} is not a key of train.")
    assert key in error.fix
    assert note in error.fix


def test_a_habit_is_known_in_any_spelling() -> None:
    fix = error_of("demo", "train.Gradient-Accumulation-Steps=2").fix
    assert fix.startswith("Did you mean train.pairs_per_step? It counts the pairs of a whole step")


@pytest.mark.parametrize(
    ("line", "problem", "fix"),
    [
        ("columns: {answers: [a]}", "columns.answers is ['a'].", "or several: answers: [FIELD, FIELD]."),
        ("labels: {firts: [1]}", "labels has no part firts.", "Did you mean first?"),
        ("labels: {first: {below: 0}, second: {below: 1}}", "another side has some of these numbers", "the reverse."),
        ("direction: second", "direction is 'second'; wanted: first or null.", ""),
    ],
)
def test_what_is_refused_of_the_data_is_refused_of_a_source(line: str, problem: str, fix: str, write: Write) -> None:
    start = "name: a\nmodel: {path: x}\ndata:\n"
    for where, section, lines in (
        ("r.yaml:5", "data", f"  train: x.jsonl\n  {line}\n"),
        ("r.yaml:6", "data.train.0", f"  train:\n  - path: x.jsonl\n    {line}\n"),
    ):
        write("r", start + lines)
        error = error_of("r.yaml")
        assert (error.where, error.problem.startswith(f"{section}.")) == (where, True)
        assert problem in error.problem
        assert fix in error.fix


def test_what_the_section_says_holds_for_every_source(write: Write) -> None:
    write(
        "r",
        "name: a\nmodel: {path: x}\ndata:\n  train:\n  - {path: x.jsonl, direction: first}\n"
        "  - {path: y.jsonl, columns: {prompt: q}, labels: {first: [1, a], second: [true, '1']}}\n"
        "  columns: {prompt: question, label: winner}\n  labels: {first: [0], second: {above: 0}, tie: [2, no]}\n",
    )
    data = compose("r.yaml").recipe.data
    first, second = data.sources(data.train)
    assert (first.columns, first.direction) == ({"prompt": "question", "label": "winner"}, "first")
    assert first.labels == {"first": [0], "second": {"above": 0.0}, "tie": [2, False]}
    assert (second.columns, second.direction) == ({"prompt": "q", "label": "winner"}, None)
    assert second.labels == {"first": [1, "a"], "second": [True, "1"]}  # all of them; 1, true and '1' differ
    data = compose("r.yaml", ["data.columns.answers=[a, b]", "data.direction=first"]).recipe.data
    second = data.sources(data.train)[1]
    assert (second.columns["answers"], second.direction) == (["a", "b"], "first")


def test_a_recipe_of_values_by_their_keys() -> None:
    values = {
        "model.path": "a",
        "data.train": "b.jsonl",
        "loss.beta": 3.0,
        "model.lora.rank": 4,
        "tracking.report_to": [],
    }
    assert flat(plain_value(unflat(values))) == values
    recipe = recipe_of(values)
    assert (recipe.model.path, recipe.loss.beta, recipe.data.train[0].path) == ("a", 3, "b.jsonl")
    assert recipe.model.lora is not None
    assert recipe.model.lora.rank == 4
    with pytest.raises(UserError, match=r"^loss\.beta is -1\.0, must be"):
        recipe_of(values | {"loss.beta": -1.0})
