"""What older releases of transformers do otherwise, put on the one that is here: `make test-oldest` runs a real one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from simpo_cli import SimPOConfig, SimPOTrainer
from simpo_cli.model.load import find_model, load_model
from simpo_cli.model.policy import Policy
from tests.tiny import save_tiny_model, tiny_model

IDS = torch.arange(1, 60).reshape(1, -1)


@pytest.fixture
def gemma2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A capped model, under a transformers that takes torch's SDPA for it, as those before 5.21 do."""
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)
    return save_tiny_model(tmp_path / "gemma2", model_type="gemma2", attn_logit_softcapping=0.5)


def test_models_that_are_loaded_or_given_to_the_library_apply_their_soft_cap(gemma2: Path) -> None:
    right = AutoModelForCausalLM.from_pretrained(gemma2, attn_implementation="eager")(IDS).logits
    plain: Any = AutoModelForCausalLM.from_pretrained(gemma2)
    assert plain.config._attn_implementation == "sdpa"  # else nothing is tested
    for model in (load_model(find_model(str(gemma2)), torch.float32), SimPOTrainer(plain, SimPOConfig()).model):
        torch.testing.assert_close(model(input_ids=IDS).logits, right)


def test_models_without_a_cap_keep_their_attention(tmp_path: Path) -> None:
    for name, changes in (("llama", {}), ("gemma2", {"attn_logit_softcapping": None})):
        folder = save_tiny_model(tmp_path / name, model_type=name, **changes)
        model: Any = load_model(find_model(str(folder)), torch.float32)
        own = AutoModelForCausalLM.from_pretrained(folder).config._attn_implementation
        assert model.config._attn_implementation == own


def test_activations_are_recomputed_under_the_former_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 5.22 there is `gradient_checkpointing_enable` alone."""
    enable = getattr(PreTrainedModel, "_activation_checkpointing_enable", PreTrainedModel.gradient_checkpointing_enable)
    monkeypatch.delattr(PreTrainedModel, "activation_checkpointing_enable", raising=False)
    monkeypatch.setattr(
        PreTrainedModel,
        "gradient_checkpointing_enable",
        lambda self, gradient_checkpointing_kwargs=None: enable(self, gradient_checkpointing_kwargs),
    )
    policy = Policy(tiny_model())
    policy.recompute_activations()
    [layer, *_] = policy.causal.model.layers
    assert layer.gradient_checkpointing
    assert layer._gradient_checkpointing_func.keywords == {"use_reentrant": False}
