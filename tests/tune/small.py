"""A study that takes seconds: a tiny model, forty training pairs and eighty held-out prompts."""

from collections.abc import Sequence
from pathlib import Path

from simpo_cli.pairs.scorer import Scorer
from simpo_cli.recipe.composition import compose
from simpo_cli.tune.study import Tuning
from tests.train.runs import write_prefs

RECIPE = """
model: {{path: {model}}}
data: {{train: {folder}/prefs.jsonl, eval: {folder}/held-out.jsonl, max_length: 64, max_prompt_length: 48}}
loss: {{beta: 4, gamma_beta_ratio: 0.5}}
train: {{pairs_per_step: 4, learning_rate: 1e-3, precision: fp32, num_epochs: 2}}
output_dir: {folder}/runs/${{name}}
tune:
  space: {{loss: {{beta: [2, 4, 8]}}}}
  budget: {{steps: 40}}
  answers: 30
  seeds: 2
"""


def write_recipe(folder: Path, model: Path) -> Path:
    """The recipe and its pairs in a folder."""
    write_prefs(folder / "prefs.jsonl", pairs=40, prompts=30)
    write_prefs(folder / "held-out.jsonl", pairs=90, prompts=90)
    file = folder / "small.yaml"
    file.write_text(RECIPE.format(model=model, folder=folder), encoding="utf-8")
    return file


def tuning_of(file: Path, *overrides: str, scorer: Scorer | None = None) -> Tuning:
    """The study of a recipe's file."""
    return Tuning(compose(str(file), overrides), overrides, scorer)


def values_of(trials: Sequence[dict[str, object]], stage: str) -> list[object]:
    """The settings of a stage's trials, in order."""
    return [trial["values"] for trial in trials if trial["stage"] == stage]
