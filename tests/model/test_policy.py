"""The policy against one sequence at a time: log-probs, loss and every gradient, with prompts shared and padded."""

from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from torch import nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Packing, microbatches
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import switch_off_dropout
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LoraRecipe, LossRecipe
from tests.model.flash_operators import FlashOperators
from tests.model.reference import random_pairs, response_logps, simpo_loss
from tests.tiny import tiny_model

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied head": {"model_type": "llama", "tie_word_embeddings": True},
    "mistral": {"sliding_window": 5},  # shorter than most prompts
    "qwen2": {},
    "qwen2, windows in some layers": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {},
    "gemma2": {"sliding_window": 6, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
    "cohere2": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "gpt_neox": {},
    "phi3": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "glm4": {},
    "ministral3": {},
    "smollm3": {},
}
# their experts' products are only there for float32
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
}
PACKINGS: tuple[Packing, ...] = get_args(Packing)
CPU = torch.device("cpu")


def _model(name: str, seed: int = 0) -> Any:
    changes = dict({**MODELS, **MIXTURES}[name])
    dtype = torch.float32 if name in MIXTURES else torch.float64
    model = tiny_model(changes.pop("model_type", name), seed=seed, dtype=dtype, **changes)
    switch_off_dropout(model)
    return model


def _loss(policy: Policy, pairs: Sequence[EncodedPair]) -> torch.Tensor:
    chosen, rejected = policy.response_means(pack(pairs, CPU))
    return Objective(LossRecipe()).terms(chosen, rejected).losses.mean()


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def _single(model: Any, pairs: Sequence[EncodedPair]) -> torch.Tensor:
    rows = [response_logps(model, p.prompt.tolist(), r.tolist()) for p in pairs for r in (p.chosen, p.rejected)]
    return torch.cat(rows)


def _assert_equal_to_single_sequences(model: Any, packing: Packing, pairs: Sequence[EncodedPair]) -> None:
    exact = model.dtype == torch.float64
    single = _single(model, pairs)
    expected_loss = simpo_loss(model, pairs, 2.0, 1.0)
    expected_loss.backward()
    expected = _gradients(model)
    model.zero_grad()

    policy = Policy(model, packing)
    torch.testing.assert_close(policy(pack(pairs, CPU)), single, rtol=0, atol=1e-5 if exact else 2e-4)
    loss = _loss(policy, pairs)
    loss.backward()
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-6 if exact else 1e-4)
    packed = _gradients(model)
    assert packed.keys() == expected.keys()
    assert len(packed) > 5
    total = torch.cat([(packed[k] - expected[k]).flatten() for k in expected]).norm()
    # parts of the models compute in float32 whatever the weights are: rotary angles, norms
    assert float(total / torch.cat([g.flatten() for g in expected.values()]).norm()) < (1e-6 if exact else 1e-3)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", [*MODELS, *MIXTURES])
def test_log_probs_loss_and_gradients_are_those_of_single_sequences(name: str, packing: Packing) -> None:
    seed = torch.seed() % 2**32  # drawn anew: any pair must do
    print("seed", seed)
    _assert_equal_to_single_sequences(_model(name), packing, random_pairs(5, seed=seed))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere"])
def test_logits_are_the_models_own(name: str, packing: Packing) -> None:
    model, [pair] = _model(name), random_pairs(1, seed=3)
    at = torch.tensor([0, len(pair.chosen) - 1, len(pair.chosen), len(pair.chosen) + len(pair.rejected) - 1])
    rows = []
    for response in (pair.chosen, pair.rejected):
        ids = torch.tensor([*pair.prompt.tolist(), *response.tolist()])
        own = model(input_ids=ids[None]).logits[0]
        rows += [own[len(pair.prompt) - 1], own[-2]]
    logits = Policy(model, packing).logits(pack([pair], CPU), at)
    torch.testing.assert_close(logits, torch.stack(rows).float(), rtol=0, atol=1e-5)


def test_the_text_part_of_a_model_of_text_and_images_is_enough() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    text = {
        "vocab_size": 400,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 6,
    }
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gemma3", text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    )
    _assert_equal_to_single_sequences(model.double().eval(), "shared_prefix", random_pairs(4, seed=17))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "qwen3, heads 12 wide"])
def test_the_way_of_a_card_gives_the_numbers_of_single_sequences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer whose heads or soft cap the kernel does not take goes by segment, and prompts stay shared."""
    flash = FlashOperators("2.13")
    flash.put_in_place(monkeypatch)
    changes = {"head_dim": 12} if "wide" in name else MODELS[name]
    model = tiny_model(name.split(",")[0], dtype=torch.float64, **changes)
    _assert_equal_to_single_sequences(model, "shared_prefix", random_pairs(4, seed=19))
    assert bool(flash.calls) == (name in ("llama", "mistral"))


def test_scaling_of_logits_is_not_optional() -> None:
    """The models above with a scale or a cap would differ without it, so the test above can see it."""
    pairs = random_pairs(3, seed=2)
    for name in ("gemma2", "granite", "cohere"):
        policy = Policy(_model(name))
        packed = pack(pairs, CPU)
        right = policy(packed)
        policy._scale = type(policy._scale)()
        assert (policy(packed) - right).abs().max() > 1e-2, name


@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_any_cut_and_any_order_gives_the_same_numbers(name: str) -> None:
    pairs = random_pairs(9, seed=13)
    policy = Policy(_model(name), "shared_prefix")
    whole = policy(pack(pairs, CPU)).split([n for p in pairs for n in (len(p.chosen), len(p.rejected))])
    smallest = max(pair.num_tokens for pair in pairs)
    for budget in (smallest, 2 * smallest, 10**6):
        for positions in microbatches(list(reversed(pairs)), budget, "shared_prefix"):
            chosen = [8 - i for i in positions]
            expected = torch.cat([whole[2 * i + which] for i in chosen for which in (0, 1)])
            torch.testing.assert_close(policy(pack([pairs[i] for i in chosen], CPU)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("packing", PACKINGS)
def test_responses_of_one_token_are_scored(packing: Packing) -> None:
    pair = random_pairs(1, seed=14)[0]
    short = EncodedPair(pair.prompt, pair.chosen[:1], pair.rejected[:1], prompt_key="k", where="short")
    mixed = EncodedPair(pair.prompt, pair.chosen, pair.rejected[:1], prompt_key="k", where="mixed")
    _assert_equal_to_single_sequences(_model("llama"), packing, [short, mixed, short])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_gradient_checkpointing_changes_no_gradient(name: str, packing: Packing) -> None:
    pairs = random_pairs(4, seed=3)
    gradients = []
    for recompute in (False, True):
        policy = Policy(_model(name), packing)
        policy.train()
        if recompute:
            policy.recompute_activations()
        _loss(policy, pairs).backward()
        gradients.append(_gradients(policy.model))
    for parameter, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][parameter], gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_alone_get_gradients_and_they_are_right(recompute: bool, packing: Packing) -> None:
    pairs = random_pairs(4, seed=4)
    torch.manual_seed(5)
    model = add_adapters(tiny_model(), LoraRecipe(rank=4)).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # they start at 0, which would hide the other half
            nn.init.normal_(parameter, std=0.1)
    simpo_loss(model, pairs, 2.0, 1.0).backward()
    expected = _gradients(model)
    model.zero_grad()
    policy = Policy(model, packing)
    policy.train()
    if recompute:
        policy.recompute_activations()
    _loss(policy, pairs).backward()
    packed = _gradients(model)
    assert packed
    assert all("lora_" in name for name in packed)
    assert packed.keys() == expected.keys()
    for name, gradient in expected.items():
        assert _relative(packed[name], gradient) < 1e-5, name


def test_an_adapter_on_the_head_counts() -> None:
    """A head that is no plain linear layer is called as a module, so what peft puts on it takes part."""
    pairs = random_pairs(3, seed=6)
    torch.manual_seed(7)
    model = add_adapters(tiny_model(), LoraRecipe(rank=4, target_modules=["lm_head"])).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    simpo_loss(model, pairs, 2.0, 1.0).backward()
    expected = _gradients(model)
    model.zero_grad()
    single = _single(model, pairs)
    policy = Policy(model, "shared_prefix")
    torch.testing.assert_close(policy(pack(pairs, CPU)), single, rtol=0, atol=1e-6)
    _loss(policy, pairs).backward()
    packed = _gradients(model)
    assert packed.keys() == expected.keys()
    assert {"A", "B"} == {name.split("lora_")[1][0] for name in packed}
    for name, gradient in expected.items():
        assert _relative(packed[name], gradient) < 1e-5, name


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bf16_autocast_is_as_near_to_float32_with_shared_prompts_as_padded(name: str) -> None:
    changes = dict(MODELS[name])
    model = tiny_model(changes.pop("model_type", name), **changes)
    pairs = random_pairs(16, seed=15)

    def run(packing: Packing, *, autocast: bool) -> tuple[float, torch.Tensor]:
        policy = Policy(model)
        with policy.packed(packing):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = _loss(policy, pairs)
            loss.backward()
        gradients = torch.cat([g.flatten() for g in _gradients(model).values()])
        model.zero_grad()
        return loss.item(), gradients

    exact_loss, exact = run("shared_prefix", autocast=False)
    loss, shared = run("shared_prefix", autocast=True)
    _, padded = run("padded", autocast=True)
    assert loss != exact_loss
    assert loss == pytest.approx(exact_loss, rel=0.02)
    assert 0 < _relative(shared, exact) < 1.5 * _relative(padded, exact)


def test_the_model_is_its_owners_again_outside_of_the_policy() -> None:
    """Generating goes through the attention that the model came with, and so does a copy that is saved."""
    model = tiny_model()
    prompt = torch.tensor([[5, 6, 7, 8]])
    before = model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
    policy = Policy(model, "shared_prefix")
    with policy.untouched() as causal:
        assert torch.equal(causal.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0), before)
    policy.packing = "padded"
    assert torch.equal(model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0), before)


def test_packing_keeps_targets_in_order_and_reads_no_last_token() -> None:
    pairs = random_pairs(6, seed=8)
    packed = pack(pairs, CPU)
    expected = [token for pair in pairs for part in (pair.chosen, pair.rejected) for token in part.tolist()]
    assert packed.targets.tolist() == expected
    assert len(packed.tokens) == sum(pair.num_tokens - 2 for pair in pairs) == packed.spans[-1].end
    # every target's predecessor: the prompt's last token, then the response's own tokens
    before = [t for p in pairs for r in (p.chosen, p.rejected) for t in (p.prompt[-1], *r[:-1])]
    assert packed.tokens[packed.predicting].tolist() == before
