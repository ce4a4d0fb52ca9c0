"""What the recipes of the paper say they take: the numbers of the formula, in their headers and on docs/paper.md."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import simpo_cli
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import ParameterCounts
from simpo_cli.model.memory import MemoryNeed, Workload
from simpo_cli.recipe import compose
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.shapes import GEMMA2_9B, LLAMA_8B, MISTRAL_7B

ROOT = Path(simpo_cli.__file__).parent.parent
RECIPES = {
    "mistral-7b-base": "Mistral 7B",
    "mistral-7b-instruct": "Mistral 7B",
    "llama3-8b-base": "Llama 3 8B",
    "llama3-8b-instruct": "Llama 3 8B",
    "llama3-8b-instruct-v2": "Llama 3 8B",
    "gemma2-9b-it": "Gemma 2 9B",
}
SHAPES = {"Mistral 7B": MISTRAL_7B, "Llama 3 8B": LLAMA_8B, "Gemma 2 9B": GEMMA2_9B}


@cache
def _need(name: str, lora: LoraRecipe | None, *, checkpointing: bool) -> tuple[MemoryNeed, ParameterCounts]:
    config = transformers.AutoConfig.for_model(**SHAPES[name])
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        if lora is not None:
            model = add_adapters(model, lora)
    parameters = list(model.parameters())
    counts = ParameterCounts(
        total=sum(p.numel() for p in parameters), trainable=sum(p.numel() for p in parameters if p.requires_grad)
    )
    work = Workload(
        config=config,
        parameters=counts,
        weights=torch.float32 if lora is None else torch.bfloat16,
        compute=torch.bfloat16,
        lora_rank=None if lora is None else lora.rank,
        longest_row=2048,
        device=torch.device("cuda"),
        available=0,
    )
    return work.training(checkpointing=checkpointing), counts


def _gb(size: int) -> str:
    return f"{size / 1e9:.0f} GB"


@pytest.mark.parametrize(("recipe", "name"), RECIPES.items())
def test_the_header_says_what_the_recipe_takes(recipe: str, name: str) -> None:
    full, _ = _need(name, None, checkpointing=True)
    adapted, _ = _need(name, _lora(recipe), checkpointing=True)
    assert _header(recipe, full.state, full.total(4096), adapted.total(4096)) in (
        ROOT / f"recipes/paper/{recipe}.yaml"
    ).read_text(encoding="utf-8")


def _lora(recipe: str) -> LoraRecipe:
    lora = compose(f"paper/{recipe}", ["model.lora={}"]).recipe.model.lora
    assert lora is not None
    return lora


def _header(recipe: str, state: int, full: int, adapted: int) -> str:
    return f"""\
# All weights are trained: float32 weights, gradients and two moments are 16 bytes a parameter, {_gb(state)}. With
# copies of the weights in bfloat16, the head and micro-batches of 4,096 tokens a card needs about {_gb(full)}. With
# adapters it needs about {_gb(adapted)}: defaults: [paper/{recipe}, lora]
# By arithmetic, not yet measured on a card; docs/paper.md has the table.
"""


@pytest.mark.parametrize("name", SHAPES)
def test_the_page_says_the_same(name: str) -> None:
    lora = LoraRecipe()
    full, counts = _need(name, None, checkpointing=True)
    adapted, with_adapters = _need(name, lora, checkpointing=True)
    kept, _ = _need(name, lora, checkpointing=False)
    row = (
        f"| {name} | {counts.total / 1e9:.2f} | {_gb(full.total(4096))} | {with_adapters.trainable / 1e6:.0f} | "
        f"{_gb(adapted.total(4096))} | {_gb(kept.total(8192))} |"
    )
    assert row in (ROOT / "docs/paper.md").read_text(encoding="utf-8")
