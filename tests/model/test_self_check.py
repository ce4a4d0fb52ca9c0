"""The self-check sees what is wrong, and the run falls back; each break below is one that happens."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from simpo_cli.data.pair import EncodedPair
from simpo_cli.errors import UserError
from simpo_cli.model import self_check
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.attention import interface
from simpo_cli.model.attention.interface import why_not_shared
from simpo_cli.model.load import switch_off_dropout
from simpo_cli.model.logprobs import LogitScale
from simpo_cli.model.packed import PackedPairs, PairSpan, layout_of
from simpo_cli.model.policy import Policy, shared_hidden_states
from simpo_cli.model.self_check import MOST_TOKENS, CheckPairs, SelfCheck, choose_packing
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.live_bytes import LiveBytes
from tests.model.reference import random_pairs
from tests.tiny import tiny_config, tiny_model

PAIRS = random_pairs(6, seed=21)
CHECK = CheckPairs.of(PAIRS, PAIRS[:4])


def _checked(model: Any, *, why_padded: str | None = None, wanted: Any = "auto") -> tuple[SelfCheck, Policy]:
    switch_off_dropout(model)
    policy = Policy(model).train()
    return choose_packing(policy, wanted, why_padded, CHECK), policy


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "changes"),
    [("llama", {}), ("gemma2", {"sliding_window": 6}), ("gpt2", {}), ("gpt_oss", {"num_local_experts": 4})],
)
def test_models_that_share_prompts_rightly_pass(name: str, changes: dict[str, Any], dtype: torch.dtype) -> None:
    check, policy = _checked(tiny_model(name, dtype=dtype, **changes))
    assert check.packing == policy.packing == "shared_prefix"
    assert check.why_padded is None
    assert check.difference is not None
    assert check.difference.tokens == sum(
        len(pair.chosen) + len(pair.rejected) for batch in CHECK.batches for pair in batch
    )
    assert check.difference.highest < 2e-4
    assert check.difference.gradient is not None
    assert "prompts shared · self-check: " in str(check)
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert next(policy.parameters()).dtype == dtype


@pytest.mark.parametrize(
    ("name", "changes"),
    [("llama", {}), ("llama", {"tie_word_embeddings": True, "pad_token_id": 40}), ("gpt2", {}), ("phi", {})],
)
def test_a_copy_knows_the_first_tokens_only(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, same = (tiny_model(name, dtype=torch.bfloat16, vocab_size=20_000, **changes) for _ in range(2))
    copies: list[Policy] = []
    difference = self_check._difference
    monkeypatch.setattr(self_check, "_MOST_IDS", 30)
    monkeypatch.setattr(
        self_check, "_difference", lambda checked, *others: (copies.append(checked), difference(checked, *others))[1]
    )
    with LiveBytes() as seen:
        check, policy = _checked(model)
    assert check.packing == "shared_prefix"
    assert check.difference is not None
    assert check.difference.is_rounding
    [copied] = copies
    shapes = [tuple(weight.shape) for weight in copied.parameters()]
    assert max(max(shape) for shape in shapes) < 1000
    tied = copied.causal.get_input_embeddings().weight is copied.causal.get_output_embeddings().weight
    assert tied == policy.causal.config.tie_word_embeddings
    assert seen.peak < policy.causal.get_input_embeddings().weight.nbytes
    assert {len(policy.causal.get_input_embeddings().weight), policy.causal.config.vocab_size} == {20_000}
    with monkeypatch.context() as broken:
        broken.setattr("simpo_cli.model.policy.shared_hidden_states", _one_mask_over_the_pack)
        assert _checked(same)[0].packing == "padded"


def test_a_copy_with_an_adapter_on_its_head_knows_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_MOST_IDS", 30)
    model = tiny_model(dtype=torch.bfloat16)
    check, _ = _checked(add_adapters(model, LoraRecipe(rank=4, target_modules=["lm_head", "q_proj"])))
    assert check.packing == "shared_prefix"


def _positions_off_by_one(decoder: nn.Module, packed: PackedPairs) -> Tensor:
    shifted = packed.positions + (packed.positions >= 2)
    return shared_hidden_states(decoder, replace(packed, positions=shifted))


def _responses_one_off(decoder: nn.Module, packed: PackedPairs) -> Tensor:
    """Every token scored by the state behind it."""
    later = (packed.predicting + 1).clamp(max=len(packed.tokens) - 1)
    return shared_hidden_states(decoder, replace(packed, predicting=later))


def _one_mask_over_the_pack(decoder: nn.Module, packed: PackedPairs) -> Tensor:
    """Plain causal attention over everything: rejected sees chosen, and pairs see each other."""
    whole = layout_of([PairSpan(0, len(packed.tokens), 0, 0)], packed.tokens.device)
    return shared_hidden_states(decoder, replace(packed, layout=whole))


def _raises(*_: Any) -> Tensor:
    raise RuntimeError("no kernel for this\nand a second line")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (_positions_off_by_one, "sharing them is not exact here: log-probs differ by up to "),
        (_responses_one_off, "sharing them is not exact here: log-probs differ by up to "),
        (_one_mask_over_the_pack, "sharing them is not exact here: log-probs differ by up to "),
        (_raises, "RuntimeError: no kernel for this"),
    ],
)
def test_a_wrong_pack_is_noticed_and_the_run_goes_padded(
    broken: Callable[[nn.Module, PackedPairs], Tensor], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simpo_cli.model.policy.shared_hidden_states", broken)
    check, policy = _checked(tiny_model())
    assert check.packing == policy.packing == "padded"
    assert check.why_padded is not None
    assert check.why_padded.startswith(why)
    assert "\n" not in check.why_padded
    assert check.difference is not None
    assert check.difference.is_rounding


@pytest.mark.parametrize(
    ("name", "lost", "changes"),
    [
        ("mistral", "sliding_window", {"sliding_window": 5}),
        ("gemma2", "softcap", {"attn_logit_softcapping": 2.0}),
        ("gpt_oss", "s_aux", {"num_local_experts": 4}),
    ],
)
def test_what_a_layer_asks_for_is_missed_when_it_is_lost(
    name: str, lost: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = interface.shared_prefix_attention

    def forgetful(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        return right(*args, **{**kwargs, lost: None})

    monkeypatch.setitem(interface.AttentionInterface._global_mapping, interface.NAME, forgetful)
    check, _ = _checked(tiny_model(name, **changes))
    assert check.packing == "padded"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("granite", {"logits_scaling": 3.0}),
    ],
)
def test_a_lost_scale_of_the_logits_is_wrong_either_way_and_refused(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simpo_cli.model.policy.logit_scale_of", lambda _: LogitScale())
    with pytest.raises(UserError, match="what is computed here is not what this model computes itself"):
        _checked(tiny_model(name, **changes))


def test_an_adapter_on_the_head_that_is_ignored_shows_in_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters start at zero, so no log-prob can tell."""
    model = add_adapters(tiny_model(), LoraRecipe(rank=4, target_modules=["lm_head", "q_proj"]))
    causal: Any = model.get_base_model()  # type: ignore[operator]
    monkeypatch.setattr(causal, "get_output_embeddings", lambda: causal.lm_head.base_layer)
    with pytest.raises(UserError, match="gradient by"):
        _checked(model)
    monkeypatch.undo()
    check, _ = _checked(add_adapters(tiny_model(), LoraRecipe(rank=4, target_modules=["lm_head", "q_proj"])))
    assert check.packing == "shared_prefix"


def test_numbers_that_are_not_finite_do_not_pass() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(UserError, match="log-probs are not finite"):
        _checked(model)


def _why_not(config: Any, longest: int) -> str | None:
    return why_not_shared(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, longest)


@pytest.mark.parametrize("name", ["bloom", "stablelm", "mamba", "llama4_text", "falcon_mamba"])
def test_models_that_cannot_share_prompts_are_known_and_run_padded(name: str) -> None:
    why = _why_not(tiny_config(name), 80)
    assert why is not None
    assert name in why
    check, _ = _checked(tiny_model(name), why_padded=why)
    assert (check.packing, check.why_padded) == ("padded", why)
    assert check.difference is not None
    assert check.difference.is_rounding
    if name in ("bloom", "mamba", "stablelm"):  # the check itself would find them
        assert _checked(tiny_model(name))[0].packing == "padded"


def test_stretched_rotary_embeddings_and_layers_with_a_state_are_padded() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    config = tiny_config("llama", rope_parameters=rope)
    assert _why_not(config, 512) is None
    assert "beyond 512 tokens the dynamic rotary embedding of llama" in str(_why_not(config, 513))
    config = tiny_config("lfm2", layer_types=["conv", "full_attention"])
    assert _why_not(config, 40) == "lfm2 has layers of type conv"


def test_a_recipe_may_insist() -> None:
    check, policy = _checked(tiny_model(), wanted="padded")
    assert (check.packing, check.why_padded, policy.packing) == ("padded", None, "padded")
    with pytest.raises(UserError, match=r"model\.attention is shared_prefix, and this model cannot share prompts: why"):
        _checked(tiny_model(), wanted="shared_prefix", why_padded="why")


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"simpo_spans": None}, "did not pass the spans"),
        ({"dropout": 0.1}, "dropout"),
        ({"position_bias": torch.zeros(1)}, "position_bias, which packed attention does not know"),
        ({"is_causal": False}, "looks at later tokens"),
    ],
)
def test_attention_refuses_what_it_does_not_know(given: dict[str, Any], problem: str) -> None:
    states = torch.randn(1, 2, 5, 4)
    arguments = {"simpo_spans": layout_of([PairSpan(0, 2, 2, 1)], states.device), **given}
    with pytest.raises(interface.UnsupportedAttentionError, match=problem):
        interface.shared_prefix_attention(nn.Module(), states, states, states, None, **arguments)


BACKENDS: Any = torch.backends
_BELOW = ("cudnn", "cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
PRECISIONS = {"all": BACKENDS, **{name: attrgetter(name)(BACKENDS) for name in _BELOW}}
OLDER: dict[str, Callable[[], Any]] = {
    "older matmul": torch.get_float32_matmul_precision,
    "older cuda.matmul": lambda: BACKENDS.cuda.matmul.allow_tf32,
    "older cudnn": lambda: BACKENDS.cudnn.allow_tf32,
}


def _precisions() -> dict[str, Any]:
    """Every setting of both interfaces as a user reads it."""
    found = {name: setting.fp32_precision for name, setting in PRECISIONS.items()}
    for name, read in OLDER.items():
        try:
            found[name] = read()
        except RuntimeError as error:  # torch will not say where its two interfaces are at odds
            found[name] = str(error)
    return found


def _newer(*names: str, value: str = "tf32") -> None:
    for name in names:
        PRECISIONS[name].fp32_precision = value


def _followers() -> set[str]:
    """The settings that have no value of their own and go by the one above all."""
    own, followers = BACKENDS.fp32_precision, set(_BELOW)
    for value in ("tf32", "ieee"):
        BACKENDS.fp32_precision = value
        followers = {name for name in followers if PRECISIONS[name].fp32_precision == value}
    BACKENDS.fp32_precision = own
    return followers


@pytest.fixture
def _default_precisions() -> Iterator[None]:
    before = _precisions()
    yield
    torch.set_float32_matmul_precision(before["older matmul"])
    BACKENDS.cudnn.allow_tf32 = before["older cudnn"]
    for name, setting in PRECISIONS.items():
        setting.fp32_precision = before[name]
    assert _precisions() == before


@pytest.mark.usefixtures("_default_precisions")
@pytest.mark.parametrize(
    "switch_on",
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision("high"),
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: setattr(BACKENDS.cuda.matmul, "allow_tf32", True),  # what an image's environment variable does too
        lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
        lambda: _newer("all"),
        lambda: _newer("cudnn"),
        lambda: _newer("cuda.matmul"),
        lambda: _newer("mkldnn.matmul", value="bf16"),
        lambda: [torch.set_float32_matmul_precision("high"), _newer("cuda.matmul", value="ieee")],
        lambda: [_newer("all"), _newer("cudnn.conv", "cudnn.rnn", value="none")],
    ],
)
def test_float32_is_ieee_within_the_check_and_as_the_user_set_it_after(switch_on: Callable[[], Any]) -> None:
    switch_on()
    before, followers = _precisions(), _followers()
    within: list[dict[str, Any]] = []
    model = tiny_model()
    model.model.layers[0].register_forward_hook(lambda *_: within.append(_precisions()))
    model.model.layers[0].register_full_backward_hook(lambda *_: within.append(_precisions()))
    check, _ = _checked(model)
    assert check.packing == "shared_prefix"
    assert within
    for seen in within:
        assert {seen[name] for name in PRECISIONS} <= {"ieee", "none"}
        assert [seen[name] for name in OLDER] == ["highest", False, False]
    assert _precisions() == before
    assert _followers() == followers


def _pair_of(prompt: int, chosen: int, rejected: int) -> EncodedPair:
    parts = [
        np.arange(start, start + length, dtype=np.int32) for start, length in enumerate((prompt, chosen, rejected))
    ]
    return EncodedPair(*parts, prompt_key="k", where="w")


def _tokens(check: CheckPairs) -> int:
    gradient = 0 if check.shortest is None else check.shortest.num_tokens
    return gradient + sum(pair.num_tokens for batch in check.batches for pair in batch)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    "lengths",
    [(9000, 1, 1), (1, 9000, 1), (1, 1, 9000), (1, 1, 2046), (3000, 3000, 3000), (1, 5000, 5000), (700, 300, 20)],
)
def test_at_most_so_many_tokens_are_compared_and_none_of_the_parts_is_empty(
    lengths: tuple[int, int, int], trained: bool
) -> None:
    pairs = [_pair_of(*lengths)] * 7
    check = CheckPairs.of(pairs, pairs, trained=trained)
    assert _tokens(check) <= MOST_TOKENS
    assert len(check.batches[1]) >= 2
    for cut in (pair for batch in check.batches for pair in batch):
        assert min(len(cut.prompt), len(cut.chosen), len(cut.rejected)) >= 1
        assert cut.prompt.tolist() == pairs[0].prompt[-len(cut.prompt) :].tolist()
        assert cut.chosen.tolist() == pairs[0].chosen[: len(cut.chosen)].tolist()
        assert cut.rejected.tolist() == pairs[0].rejected[: len(cut.rejected)].tolist()
    longest = check.batches[0][0].num_tokens
    assert min(sum(lengths), MOST_TOKENS // 2 - 3) <= longest <= MOST_TOKENS // 2


def test_pairs_that_fit_are_compared_whole_and_in_their_order() -> None:
    pairs = [_pair_of(n, n, n) for n in (90, 10, 300, 40, 200)]
    check = CheckPairs.of(pairs, pairs)
    assert check.batches == [[pairs[2]], pairs]
    assert check.shortest is pairs[1]
    many = pairs * 3
    assert CheckPairs.of(many, many).batches[1] == [pair for pair in many if len(pair.prompt) < 300]


def test_a_gradient_is_compared_in_the_room_of_one() -> None:
    """By the bytes of tensors alive: the weights' two gradients would be twice their size."""
    policy = Policy(tiny_model(hidden_size=64, intermediate_size=256, num_hidden_layers=8)).train()
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    pairs = random_pairs(1, seed=3, longest=3)
    with LiveBytes() as seen:
        check = choose_packing(policy, "auto", None, CheckPairs.of(pairs, pairs))
    assert check.difference is not None
    assert check.difference.gradient is not None
    assert weights < seen.peak < 1.5 * weights


@pytest.mark.parametrize(
    ("change", "least", "most"),
    [
        pytest.param(lambda mean, _: 2 * mean, 0.9999, 1.0001, id="twice the means have twice the gradient"),
        pytest.param(lambda mean, extra: mean + 100 * extra, 0.1, torch.inf, id="a parameter that one side alone uses"),
    ],
)
def test_the_difference_of_gradients_is_relative_to_the_models_own(
    change: Callable[[Tensor, Tensor], Tensor], least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy(tiny_model()).train()
    extra = nn.Parameter(torch.zeros(()))
    policy.register_parameter("extra", extra)
    means = Policy.response_means
    monkeypatch.setattr(Policy, "response_means", lambda *args: tuple(change(mean, extra) for mean in means(*args)))
    assert least < self_check._gradient_difference(policy, policy, PAIRS[0]) < most
