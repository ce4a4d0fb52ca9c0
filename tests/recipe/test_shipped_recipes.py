"""The recipes that ship: all load, those of the paper carry its numbers, and the wheel holds them."""

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import simpo_cli
from simpo_cli.errors import UserError
from simpo_cli.names import shipped_names, title_of
from simpo_cli.recipe import DataSource, compose, examine
from simpo_cli.recipe.tree import recipe_values
from tests.recipe.recipe_texts import Write

ULTRAFEEDBACK = "HuggingFaceH4/ultrafeedback_binarized"
# name, start model, data, splits, beta, gamma/beta, learning rate, max and prompt length
PAPER = [
    ("mistral-7b-base", "alignment-handbook/zephyr-7b-sft-full", ULTRAFEEDBACK, "_prefs", 2.0, 0.8, 3e-7, 1024, 512),
    ("mistral-7b-instruct", "mistralai/Mistral-7B-Instruct-v0.2", "princeton-nlp/mistral-instruct-ultrafeedback", "",
     2.5, 0.1, 5e-7, 2048, 1800),
    ("llama3-8b-base", "princeton-nlp/Llama-3-Base-8B-SFT", ULTRAFEEDBACK, "_prefs", 2.0, 0.5, 6e-7, 2048, 1800),
    ("llama3-8b-instruct", "meta-llama/Meta-Llama-3-8B-Instruct", "princeton-nlp/llama3-ultrafeedback", "",
     2.5, 0.55, 1e-6, 2048, 1800),
    ("llama3-8b-instruct-v2", "meta-llama/Meta-Llama-3-8B-Instruct", "princeton-nlp/llama3-ultrafeedback-armorm", "",
     10.0, 0.3, 1e-6, 2048, 1800),
    ("gemma2-9b-it", "google/gemma-2-9b-it", "princeton-nlp/gemma2-ultrafeedback-armorm", "",
     10.0, 0.5, 8e-7, 2048, 1800),
]  # fmt: skip

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


@pytest.mark.parametrize("name", FIXED)
def test_a_run_of_an_earlier_version_resumes_under_the_same_identity(name: str, write: Write) -> None:
    composed = compose(name)
    write("recipe", composed.as_yaml())
    again = compose("recipe.yaml")
    for recipe in (composed.recipe, again.recipe):
        values = json.dumps(recipe_values(recipe), sort_keys=True)
        assert hashlib.sha256(values.encode()).hexdigest()[:16] == FIXED[name][0]
    assert hashlib.sha256(composed.as_yaml().encode()).hexdigest()[:16] == FIXED[name][1]
    assert again.as_yaml() == composed.as_yaml()


def test_the_shipped_names() -> None:
    assert shipped_names() == ["demo", "lora", "smollm2-135m", *sorted(f"paper/{row[0]}" for row in PAPER)]


@pytest.mark.parametrize(
    ("name", "model", "data", "split", "beta", "ratio", "rate", "max_length", "max_prompt"),
    PAPER,
    ids=[row[0] for row in PAPER],
)
def test_the_papers_numbers(
    name: str,
    model: str,
    data: str,
    split: str,
    beta: float,
    ratio: float,
    rate: float,
    max_length: int,
    max_prompt: int,
) -> None:
    composed = compose(f"paper/{name}")
    recipe = composed.recipe
    assert recipe.name == name
    assert recipe.model.path == model
    assert recipe.data.train == [DataSource(path=data, split=f"train{split}")]
    assert recipe.data.eval == [DataSource(path=data, split=f"test{split}")]
    assert (recipe.data.max_length, recipe.data.max_prompt_length) == (max_length, max_prompt)
    assert (recipe.loss.beta, recipe.loss.gamma_beta_ratio, recipe.loss.gamma) == (beta, ratio, None)
    assert recipe.train.learning_rate == rate
    # one epoch, cosine, warm-up 0.1, 128 pairs a step, AdamW, seed 42
    assert (recipe.train.num_epochs, recipe.train.max_steps) == (1, None)
    assert (recipe.train.lr_scheduler, recipe.train.warmup_ratio) == ("cosine", 0.1)
    assert (recipe.train.pairs_per_step, recipe.train.optimizer, recipe.seed) == (128, "adamw", 42)
    assert (recipe.train.weight_decay, recipe.train.max_grad_norm) == (0.0, 1.0)
    assert recipe.model.gradient_checkpointing == "auto"  # theirs is always on; it changes rounding at most
    # nothing but SimPO, and all weights
    assert (recipe.loss.type, recipe.loss.label_smoothing, recipe.loss.sft_weight) == ("sigmoid", 0.0, 0.0)
    assert recipe.model.lora is None
    assert composed.warnings == ()


@pytest.mark.parametrize("name", [f"paper/{row[0]}" for row in PAPER] + ["demo", "smollm2-135m"])
def test_lora_composes_into_every_recipe(name: str, write: Write) -> None:
    write("r", f"defaults: [{name}, lora]\nname: mine\n")
    composed = compose("r.yaml")
    assert composed.recipe.model.lora is not None
    assert composed.recipe.model.lora.target_modules == "all-linear"
    assert composed.recipe.train.learning_rate == 1e-5
    assert str(composed.origins["model.lora.rank"]).startswith("shipped:lora.yaml:")
    assert composed.recipe.loss == compose(name).recipe.loss
    assert composed.warnings == ()


def test_the_demo() -> None:
    recipe = compose("demo").recipe
    builtin = [DataSource(path="builtin:guide")]
    assert (recipe.model.path, recipe.data.train, recipe.data.eval) == ("builtin:guide", builtin, builtin)
    assert (recipe.loss.type, recipe.loss.sft_weight, recipe.loss.margin_beta_ratio) == ("sigmoid", 0.1, 0.1)
    assert compose("demo").warnings == ()


def test_the_small_model() -> None:
    recipe = compose("smollm2-135m").recipe
    assert (recipe.train.pairs_per_step, recipe.train.max_steps) == (8, 30)
    assert (recipe.data.max_length, recipe.data.max_prompt_length, recipe.data.holdout) == (512, 256, 100)
    assert recipe.model.gradient_checkpointing is False
    assert recipe.model.path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert compose("smollm2-135m").warnings == ()


def test_lora_is_the_only_piece() -> None:
    assert [name for name in shipped_names() if examine(name).is_piece] == ["lora"]
    with pytest.raises(UserError):
        compose("lora")


@pytest.mark.parametrize("name", shipped_names())
def test_titles_fit_into_a_narrow_terminal(name: str) -> None:
    assert 20 <= len(title_of(name)) <= 50


def test_the_wheel_holds_the_recipes(tmp_path: Path) -> None:
    root = Path(simpo_cli.__file__).parent.parent
    if not (root / "pyproject.toml").is_file():
        pytest.skip("the package is installed, not a checkout")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=root,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("simpo_cli/shipped_recipes/")}
        assert held == {f"simpo_cli/shipped_recipes/{name}.yaml" for name in shipped_names()}
        archive.extractall(tmp_path / "installed")
    listing = subprocess.run(
        [
            sys.executable,
            "-c",
            "from simpo_cli.recipe import compose; print(compose('paper/gemma2-9b-it').recipe.loss.beta)",
        ],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
    )
    assert listing.stdout == "10.0\n"
