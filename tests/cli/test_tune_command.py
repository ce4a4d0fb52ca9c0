"""`simpo tune` as it is typed: the screen, the document, and one sentence for what is refused."""

import json
from pathlib import Path

import pytest

from simpo_cli import versions
from simpo_cli.recipe.composition import compose
from simpo_cli.tune import bench
from simpo_cli.versions import install_command
from tests.cli.seen import Simpo, typed
from tests.tune.small import write_recipe


@pytest.fixture
def simpo(
    tmp_path: Path, tiny_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Simpo:
    write_recipe(tmp_path, tiny_folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "ANSWER_TOKENS", 6)  # a random model does not end its answers
    return typed(capfd)


def test_from_the_recipe_to_the_next_command(simpo: Simpo) -> None:
    seen = simpo("tune", "small.yaml", "output_dir=runs/small")
    assert seen.code == 0, seen.err
    lines = seen.out.splitlines()
    assert lines[1].split() == ["beta", "steps", "utility", "likeness", "accuracy", "length-balanced"]
    rows = [" ".join(line.split()[:2]) for line in lines[2:6]]
    assert rows == ["before training", "1 your", "2 beta", "3 beta"]
    assert "search  at most 4 trials of 10 steps, about " in seen.err
    assert "then 4 to confirm what is found, about " in seen.err
    assert any(line.startswith("choosing half: ") for line in lines)
    assert "recipe  runs/small-tune/best.yaml" in seen.err
    assert "report  runs/small-tune/study.html" in seen.err
    document = json.loads(Path("runs/small-tune/study.json").read_text("utf-8"))
    is_better = document["verdict"]["found"] == "better"
    words = "runs/small-tune/best.yaml" if is_better else "small.yaml output_dir=runs/small"
    assert f"next    simpo train {words}\n" in seen.err
    assert simpo("recipe", "check", "runs/small-tune/best.yaml").code == 0
    assert compose("runs/small-tune/best.yaml").recipe.output_dir == "runs/small-tuned"
    again = simpo("tune", "small.yaml", "output_dir=runs/small")
    assert (again.code, again.out) == (2, "")
    assert "runs/small-tune holds a study already." in again.err
    document = json.loads(simpo("tune", "small.yaml", "output_dir=runs/small", "--resume", "--json").out)
    assert (document["kind"], document["objective"], document["current"]) == ("study", "utility", {"loss.beta": 4.0})
    written = simpo("report", "runs/small-tune", "--output", "page.html")
    assert written.code == 0
    assert Path("page.html").read_text("utf-8") == Path("runs/small-tune/study.html").read_text("utf-8")


def test_a_rule_is_what_chooses(simpo: Simpo) -> None:
    """Its scores are of the answers: here all the same, so that the recipe stays."""
    Path("rule.py").write_text("def score(prompt, answer):\n    return 2.5\n")
    seen = simpo("tune", "small.yaml", "output_dir=runs/ruled", "--rule", "rule.py:score", "--json")
    document = json.loads(seen.out)
    assert document["scorer"]["rule"] == "rule.py:score"
    assert {trial["measures"]["objective"] for trial in document["trials"]} == {2.5}
    assert document["verdict"]["found"] == "untuned"
    assert document["objective"] == "score"
    other = simpo("tune", "small.yaml", "output_dir=runs/ruled", "--resume")
    assert "holds a study that is judged otherwise (--rule)" in other.err


REFUSED = {
    "tune small.yaml --resume --fresh": "--resume, --fresh and --join exclude one another.",
    "tune demo tune.space={}": "tune.space is empty: there is nothing to try.",
    "tune small.yaml tune.space.loss.bata=[1]": "loss.bata is not a key of a recipe.",
    "tune small.yaml tune.budget.minutes=3": "tune.budget.steps and minutes are both given.",
    "tune small.yaml --rule rule.py": "--rule is 'rule.py', which does not name a file and a function.",
    "tune nowhere.yaml": "nowhere.yaml",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_makes_no_sense_is_refused_in_a_sentence(simpo: Simpo, command: str) -> None:
    seen = simpo(*command.split())
    assert (seen.code, seen.out) == (2, "")
    assert REFUSED[command] in seen.err
    assert "Traceback" not in seen.err
    assert not Path("runs").exists()


def test_without_the_extra_it_says_what_to_install(simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "find_spec", lambda _: None)
    seen = simpo("tune", "small.yaml")
    assert seen.code == 4
    assert "simpo tune needs the package optuna, which is not installed." in seen.err
    assert install_command("tune") in seen.err


def test_a_line_of_the_recipe_is_named(simpo: Simpo) -> None:
    text = Path("small.yaml").read_text("utf-8").replace("beta: [2, 4, 8]", "beta: [2, 0]")
    Path("small.yaml").write_text(text)
    line = next(number for number, row in enumerate(text.splitlines(), start=1) if "beta: [2, 0]" in row)
    assert f"small.yaml:{line}: tune.space.loss.beta has the value 0" in simpo("tune", "small.yaml").err
