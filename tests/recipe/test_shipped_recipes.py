"""The recipes that ship: all load, those of the paper carry its numbers, and the wheel holds them."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import simpo_cli
from simpo_cli.cli.main import run
from simpo_cli.names import shipped_names, title_of
from simpo_cli.recipe.composition import compose, examine
from simpo_cli.recipe.schema import DataSource
from simpo_cli.recipe.tree import recipe_values
from tests.recipe.conftest import Write

DOCS = Path(simpo_cli.__file__).parent.parent / "docs"
NEEDS_DOCS = pytest.mark.skipif(not DOCS.is_dir(), reason="the package is installed, not a checkout")

# sha256 of the recipe's values as a checkpoint holds them, and of the recipe.yaml of a run: both as 0.1.0 wrote them
FIXED = {
    "demo": ("89599ffdfdab1298", "ffef5b9cacfdd0bd"),
    "smollm2-135m": ("88f63d5231325276", "f4ee069725685d37"),
    "paper/gemma2-9b-it": ("a118d544525aafd8", "a1f3e48dfd4a9244"),
    "paper/llama3-8b-base": ("d0df43d925dbd5cf", "f172ab0e0e5da81b"),
    "paper/llama3-8b-instruct": ("c2fe1469fcf351c6", "e2c9af36578ff57c"),
    "paper/llama3-8b-instruct-v2": ("444a49de317fee67", "7d4c0312557c4e1f"),
    "paper/mistral-7b-base": ("93d25e25c3940a93", "4ed3a66895f46e2c"),
    "paper/mistral-7b-instruct": ("8da2c49f3ad4e348", "8a3bdcc460c035a0"),
}
LATER = ("distributed.", "pairs.", "tune.", "model.quantization", "model.activation_offload", "eval.part")


@pytest.mark.parametrize("name", FIXED)
def test_a_run_of_an_earlier_version_resumes_under_the_same_identity(name: str, write: Write) -> None:
    composed = compose(name)
    write("recipe", composed.as_yaml())
    again = compose("recipe.yaml")
    for recipe in (composed.recipe, again.recipe):
        of_0_1_0 = {key: v for key, v in recipe_values(recipe).items() if not key.startswith(LATER)}
        values = json.dumps(of_0_1_0, sort_keys=True)
        assert hashlib.sha256(values.encode()).hexdigest()[:16] == FIXED[name][0]
    written, _ = composed.as_yaml().split("distributed:")
    for line in ("  quantization: null\n", "  activation_offload: false\n", "  part: all\n"):
        written = written.replace(line, "")
    assert hashlib.sha256(written.encode()).hexdigest()[:16] == FIXED[name][1]
    assert again.as_yaml() == composed.as_yaml()
    assert composed.warnings == ()


def test_the_shipped_names() -> None:
    assert shipped_names() == sorted(
        [*FIXED, "demo-round", "lora", "qlora"], key=lambda name: (name.startswith("paper/"), name)
    )


@NEEDS_DOCS
def test_the_papers_numbers() -> None:
    """The table of docs/paper.md, and what all of the paper's recipes have in common."""
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in (DOCS / "paper.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `paper/")
    ]
    assert sorted(row[0] for row in rows) == [name for name in shipped_names() if name.startswith("paper/")]
    for name, model, data, beta, ratio, gamma, rate, lengths in rows:
        recipe = compose(name).recipe
        assert f"paper/{recipe.name}" == name
        assert recipe.model.path == model
        split = "_prefs" if data == "HuggingFaceH4/ultrafeedback_binarized" else ""
        assert recipe.data.train == [DataSource(path=data, split=f"train{split}")]
        assert recipe.data.eval == [DataSource(path=data, split=f"test{split}")]
        assert (recipe.loss.beta, recipe.loss.gamma_beta_ratio) == (float(beta), float(ratio))
        assert recipe.loss.margin == pytest.approx(float(gamma))
        assert recipe.train.learning_rate == float(rate)
        assert lengths == f"{recipe.data.max_length} / {recipe.data.max_prompt_length}"
        # one epoch, cosine, warm-up 0.1, 128 pairs a step, AdamW, seed 42
        assert (recipe.train.num_epochs, recipe.train.max_steps) == (1, None)
        assert (recipe.train.lr_scheduler, recipe.train.warmup_ratio) == ("cosine", 0.1)
        assert (recipe.train.pairs_per_step, recipe.train.optimizer, recipe.seed) == (128, "adamw", 42)
        assert (recipe.train.weight_decay, recipe.train.max_grad_norm) == (0.0, 1.0)
        assert recipe.model.gradient_checkpointing == "auto"  # theirs is always on; it changes rounding at most
        # nothing but SimPO, and all weights
        assert (recipe.loss.type, recipe.loss.label_smoothing, recipe.loss.sft_weight) == ("sigmoid", 0.0, 0.0)
        assert recipe.model.lora is None


@pytest.mark.parametrize(("piece", "quantization"), [("lora", None), ("qlora", "nf4")])
@pytest.mark.parametrize("name", FIXED)
def test_adapters_compose_into_every_recipe(name: str, piece: str, quantization: str | None, write: Write) -> None:
    write("r", f"defaults: [{name}, {piece}]\nname: mine\n")
    composed = compose("r.yaml")
    assert composed.recipe.model.quantization == quantization
    assert composed.recipe.model.lora is not None
    assert composed.recipe.model.lora.target_modules == "all-linear"
    assert composed.recipe.train.learning_rate == 1e-5
    assert str(composed.origins["model.lora.rank"]).startswith("shipped:lora.yaml:")
    assert composed.recipe.loss == compose(name).recipe.loss
    assert composed.warnings == ()


def test_the_pieces() -> None:
    assert [name for name in shipped_names() if examine(name).is_piece] == ["lora", "qlora"]


@pytest.mark.parametrize("name", shipped_names())
def test_titles_fit_into_a_narrow_terminal(name: str) -> None:
    assert 20 <= len(title_of(name)) <= 50


@NEEDS_DOCS
def test_the_wheel_holds_the_recipes(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=DOCS.parent, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("simpo_cli/shipped_recipes/")}
        assert held == {f"simpo_cli/shipped_recipes/{name}.yaml" for name in shipped_names()}
        archive.extractall(tmp_path / "installed")
    program = "from simpo_cli.recipe.composition import compose; print(compose('paper/gemma2-9b-it').recipe.loss.beta)"
    environment = {"PYTHONPATH": str(tmp_path / "installed")}
    listing = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert listing.stdout == "10.0\n"


# docs/recipes.md is run: its YAML blocks are files, its commands are typed, and they print what it shows

HINTS = ("To look at one", "To make it yours", "Wrote ", "Next: ")


def typed(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What one line of a shell prints; a pipe into grep -E is done here."""
    command, _, pattern = line.partition(" | grep -E ")
    assert command.startswith("simpo ")
    run(shlex.split(command)[1:])
    shown = capsys.readouterr()
    lines = [*shown.out.splitlines(), *(text for text in shown.err.splitlines() if not text.startswith(HINTS))]
    return [text for text in lines if re.search(shlex.split(pattern)[0], text)] if pattern else lines


@NEEDS_DOCS
def test_the_page_about_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SCRATCH", raising=False)
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL):
        if language == "yaml":
            name = text.partition("\n")[0].removeprefix("# ")
            Path(name).write_text(text)
            continue
        seen: list[str] = []
        for line in text.splitlines():
            if line.startswith("$ "):
                seen += [line, *typed(line[2:], capsys)]
        assert seen == text.splitlines()
