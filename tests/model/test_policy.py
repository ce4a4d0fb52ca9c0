"""The policy against one sequence at a time: log-probs, loss and every gradient."""

from typing import Any

import pytest
import torch
from torch import nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.objective import simpo_terms
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.reference import response_logps, simpo_loss
from tests.pairs import random_pairs
from tests.tiny import tiny_model

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied head": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 6, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
    "gpt_neox": {},
    "phi3": {},
}


def _model(name: str, seed: int = 0) -> Any:
    changes = dict(MODELS[name])
    return tiny_model(changes.pop("model_type", name), seed=seed, dtype=torch.float64, **changes)


def _loss(policy: Policy, pairs: list[EncodedPair]) -> torch.Tensor:
    chosen, rejected = policy.response_means(pack(pairs, torch.device("cpu")))
    return simpo_terms(chosen, rejected, beta=2.0, gamma=1.0).losses.mean()


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@pytest.mark.parametrize("name", MODELS)
def test_log_probs_loss_and_gradients_are_those_of_single_sequences(name: str) -> None:
    model = _model(name)
    pairs = random_pairs(5, seed=1)
    policy = Policy(model)

    logps = policy(pack(pairs, torch.device("cpu")))
    single = [
        response_logps(model, pair.prompt.tolist(), response.tolist())
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
    ]
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), torch.cat(single), rtol=0, atol=2e-5)

    _loss(policy, pairs).backward()
    packed = _gradients(model)
    model.zero_grad()
    expected_loss = simpo_loss(model, pairs, 2.0, 1.0)
    expected_loss.backward()
    expected = _gradients(model)
    assert _loss(policy, pairs).item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert packed.keys() == expected.keys()
    assert len(packed) > 5
    total = torch.cat([(packed[k] - expected[k]).flatten() for k in expected]).norm()
    assert float(total / torch.cat([g.flatten() for g in expected.values()]).norm()) < 1e-5


def test_scaling_of_logits_is_not_optional() -> None:
    """The models above with a scale or a cap would differ without it, so the test above can see it."""
    pairs = random_pairs(3, seed=2)
    for name in ("gemma2", "granite", "cohere"):
        policy = Policy(_model(name))
        packed = pack(pairs, torch.device("cpu"))
        right = policy(packed)
        policy._scale = type(policy._scale)()
        assert (policy(packed) - right).abs().max() > 1e-2, name


def test_gradient_checkpointing_changes_no_gradient() -> None:
    pairs = random_pairs(4, seed=3)
    gradients = []
    for recompute in (False, True):
        policy = Policy(_model("llama"))
        policy.train()
        if recompute:
            policy.recompute_activations()
        _loss(policy, pairs).backward()
        gradients.append(_gradients(policy.model))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_alone_get_gradients_and_they_are_right(recompute: bool) -> None:
    pairs = random_pairs(4, seed=4)
    torch.manual_seed(5)
    model = add_adapters(tiny_model(), LoraRecipe(rank=4)).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # they start at 0, which would hide the other half
            nn.init.normal_(parameter, std=0.1)
    policy = Policy(model)
    policy.train()
    if recompute:
        policy.recompute_activations()
    _loss(policy, pairs).backward()
    packed = _gradients(model)
    assert packed
    assert all("lora_" in name for name in packed)
    model.zero_grad()
    simpo_loss(model, pairs, 2.0, 1.0).backward()
    expected = _gradients(model)
    assert packed.keys() == expected.keys()
    for name, gradient in expected.items():
        assert _relative(packed[name], gradient) < 1e-4, name


def test_an_adapter_on_the_head_counts() -> None:
    """The head is called as a module, so what peft puts on it takes part."""
    pairs = random_pairs(3, seed=6)
    torch.manual_seed(7)
    model = add_adapters(tiny_model(), LoraRecipe(rank=4, target_modules=["lm_head"])).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    logps = Policy(model)(pack(pairs, torch.device("cpu")))
    single = [
        response_logps(model, pair.prompt.tolist(), response.tolist())
        for pair in pairs
        for response in (pair.chosen, pair.rejected)
    ]
    torch.testing.assert_close(logps.double(), torch.cat(single), rtol=0, atol=2e-5)


def test_packing_keeps_targets_in_order() -> None:
    pairs = random_pairs(6, seed=8)
    packed = pack(pairs, torch.device("cpu"))
    expected = [token for pair in pairs for part in (pair.chosen, pair.rejected) for token in part.tolist()]
    assert packed.targets().tolist() == expected
    assert packed.num_tokens == sum(pair.num_tokens for pair in pairs)
