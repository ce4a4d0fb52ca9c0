"""The policy against one sequence at a time: log-probs, loss and every gradient, with prompts shared and padded."""

from typing import Any, get_args

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Packing
from simpo_cli.model.load import switch_off_dropout
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.flash_operators import FlashOperators
from tests.model.reference import (
    adapted,
    assert_equal_to_single_sequences,
    gradients,
    policy_loss,
    random_pairs,
    relative,
)
from tests.tiny import tiny_config, tiny_model

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
    "gpt2": {},
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


def _model(name: str) -> Any:
    changes = dict({**MODELS, **MIXTURES}[name])
    dtype = torch.float32 if name in MIXTURES else torch.float64
    model = tiny_model(changes.pop("model_type", name), dtype=dtype, **changes)
    switch_off_dropout(model)
    return model


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", [*MODELS, *MIXTURES])
def test_log_probs_loss_and_gradients_are_those_of_single_sequences(name: str, packing: Packing) -> None:
    seed = torch.seed() % 2**32  # drawn anew: any pair must do
    print("seed", seed)
    assert len(assert_equal_to_single_sequences(_model(name), packing, random_pairs(5, seed=seed))) > 5


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
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tiny_config("gemma3_text", sliding_window=6)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gemma3", text_config=text, vision_config={**vision, "image_size": 28, "patch_size": 14})
    )
    assert_equal_to_single_sequences(model.double().eval(), "shared_prefix", random_pairs(4, seed=17))


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "qwen3, heads 12 wide"])
def test_the_way_of_a_card_gives_the_numbers_of_single_sequences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer whose heads or soft cap the kernel does not take goes by segment, and prompts stay shared."""
    flash = FlashOperators("2.13")
    flash.put_in_place(monkeypatch)
    changes = {"head_dim": 12} if "wide" in name else MODELS[name]
    model = tiny_model(name.split(",")[0], dtype=torch.float64, **changes)
    assert_equal_to_single_sequences(model, "shared_prefix", random_pairs(4, seed=19))
    assert bool(flash.calls) == (name in ("llama", "mistral"))


@pytest.mark.parametrize("packing", PACKINGS)
def test_responses_of_one_token_are_scored(packing: Packing) -> None:
    pair = random_pairs(1, seed=14)[0]
    short = EncodedPair(pair.prompt, pair.chosen[:1], pair.rejected[:1], prompt_key="k", where="short")
    mixed = EncodedPair(pair.prompt, pair.chosen, pair.rejected[:1], prompt_key="k", where="mixed")
    assert_equal_to_single_sequences(_model("llama"), packing, [short, mixed, short])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_gradient_checkpointing_changes_no_gradient(name: str, packing: Packing) -> None:
    assert_equal_to_single_sequences(_model(name), packing, random_pairs(4, seed=3), recompute=True)


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


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_alone_get_gradients_and_they_are_right(recompute: bool, packing: Packing) -> None:
    model = adapted(tiny_model(), LoraRecipe(rank=4)).double()
    found = assert_equal_to_single_sequences(model, packing, random_pairs(4, seed=4), recompute=recompute)
    assert all("lora_" in name for name in found)


def test_an_adapter_on_the_head_counts() -> None:
    """A head that is no plain linear layer is called as a module, so what peft puts on it takes part."""
    model = adapted(tiny_model(), LoraRecipe(rank=4, target_modules=["lm_head"])).double()
    found = assert_equal_to_single_sequences(model, "shared_prefix", random_pairs(3, seed=6))
    assert {"A", "B"} == {name.split("lora_")[1][0] for name in found}


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_bf16_autocast_is_as_near_to_float32_with_shared_prompts_as_padded(name: str) -> None:
    changes = dict(MODELS[name])
    model = tiny_model(changes.pop("model_type", name), **changes)
    pairs = random_pairs(16, seed=15)

    def run(packing: Packing, *, autocast: bool) -> tuple[float, dict[str, torch.Tensor]]:
        policy = Policy(model)
        with policy.packed(packing):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = policy_loss(policy, pairs)
            loss.backward()
        return loss.item(), gradients(model)

    exact_loss, exact = run("shared_prefix", autocast=False)
    loss, shared = run("shared_prefix", autocast=True)
    _, padded = run("padded", autocast=True)
    assert loss != exact_loss
    assert loss == pytest.approx(exact_loss, rel=0.02)
    assert 0 < relative(shared, exact) < 1.5 * relative(padded, exact)


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
