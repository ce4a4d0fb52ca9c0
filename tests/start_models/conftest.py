"""The working folder and the command line of the tests of security, and adapters made by plain peft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.security.conftest import place, simpo
from tests.tiny import save_tiny_model

__all__ = ["place", "simpo"]

MakeAdapter = Callable[..., Path]


@pytest.fixture(scope="session")
def tied_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose head is the embedding."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tied", tie_word_embeddings=True)


@pytest.fixture
def make_adapter(tmp_path: Path, tiny_folder: Path) -> MakeAdapter:
    """Makes an adapter folder as supervised tuning with peft leaves one: trained a little, with dropout."""

    def make(name: str = "sft", base: Path = tiny_folder, **settings: Any) -> Path:
        from peft import LoraConfig, get_peft_model

        kept = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
        model = AutoModelForCausalLM.from_pretrained(base)
        if settings.pop("added_tokens", 0):
            model.resize_token_embeddings(403, mean_resizing=False)
        adapted: Any = get_peft_model(model, LoraConfig(**{"task_type": "CAUSAL_LM", **kept, **settings}))
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
        adapted.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make
