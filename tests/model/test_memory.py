"""What a run needs before weights are read: against tensors of real steps, in decisions, in the paper's recipes."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import simpo_cli
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model import memory, widened
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.backend import available_bytes
from simpo_cli.model.load import ParameterCounts, load_model
from simpo_cli.model.memory import (
    MemoryNeed,
    Phase,
    Strategy,
    Workload,
    choose_budget,
    choose_strategy,
    is_worth_checkpointing,
    require_memory,
)
from simpo_cli.model.source import find_model
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.counted_step import measured
from tests.model.shapes import GEMMA2_9B, LLAMA_8B, MISTRAL_7B, QWEN_1B5, SMOLLM2_135M
from tests.tiny import tiny_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FP32, BF16 = torch.float32, torch.bfloat16
_ALONE: tuple[Strategy, int] = ("none", 1)
_LAYERS = 4  # what holds for four layers holds for any number
_FEW = (2, 16)  # rows and their width
# the attention that is counted here does not keep scores, which those that are capped are
_UNCAPPED_GEMMA = {**GEMMA2_9B, "attn_logit_softcapping": None}
_SMALL_HEAD = {**MISTRAL_7B, "vocab_size": 2000}


def _workload(config: Any, parameters: ParameterCounts, device: torch.device = CUDA, **types: Any) -> Workload:
    return Workload(config=config, parameters=parameters, longest_row=512, device=device, available=0, **types)


@pytest.fixture
def counted_here(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Workload]:
    """Workloads of a CPU in bytes of tensors, of which its allocator takes no more."""
    monkeypatch.setattr(memory, "_CPU_HEAP", memory._Heap())
    return partial(_workload, device=CPU)


@pytest.mark.parametrize(
    ("shape", "rows", "width", "types", "checkpointing", "strategy", "ranks"),
    [
        pytest.param(shape, *rows_and_width, types, checkpointing, strategy, ranks, id=f"{name}, {strategy} x {ranks}")
        for name, shape, rows_and_width, types, checkpointing, set_ups in (
            ("float32", SMOLLM2_135M, (8, 512), (FP32, FP32, None), False, (_ALONE, ("fsdp2", 2))),
            ("bf16", QWEN_1B5, (8, 512), (FP32, BF16, None), False, (_ALONE, ("fsdp2", 8))),
            ("bf16, checkpointed", LLAMA_8B, (8, 512), (FP32, BF16, None), True, (_ALONE, ("fsdp2", 2))),
            ("adapters", LLAMA_8B, (8, 512), (BF16, BF16, 16), False, (_ALONE, ("fsdp2", 8))),
            ("adapters, checkpointed", LLAMA_8B, (16, 512), (BF16, BF16, 16), True, (_ALONE, ("fsdp2", 2))),
            (
                "tied head of 256,000 tokens",
                _UNCAPPED_GEMMA,
                (4, 512),
                (FP32, BF16, None),
                True,
                (_ALONE, ("fsdp2", 8)),
            ),
            # with hardly a token, so that what is whole for a while decides
            ("heads", LLAMA_8B, _FEW, (FP32, FP32, None), True, (("fsdp2", 2),)),
            ("frozen heads", LLAMA_8B, _FEW, (BF16, BF16, 16), True, (("fsdp2", 2),)),
            ("layers", _SMALL_HEAD, _FEW, (FP32, BF16, None), True, (("fsdp2", 8),)),
            ("frozen layers", _SMALL_HEAD, _FEW, (BF16, BF16, 16), True, (("fsdp2", 8),)),
            ("buckets", SMOLLM2_135M, _FEW, (FP32, FP32, 256), True, (("ddp", 2),)),
        )
        for strategy, ranks in set_ups
    ],
)
def test_a_step_takes_what_is_predicted(
    shape: dict[str, Any],
    rows: int,
    width: int,
    types: tuple[torch.dtype, torch.dtype, int | None],
    checkpointing: bool,
    strategy: Strategy,
    ranks: int,
    monkeypatch: pytest.MonkeyPatch,
    counted_here: Callable[..., Workload],
) -> None:
    """Never less than the peak, and at most 5 % more."""
    config = transformers.AutoConfig.for_model(**shape | {"num_hidden_layers": _LAYERS})
    known: dict[str, Any] = dict(zip(("weights", "compute", "lora_rank"), types, strict=True))
    known |= {"strategy": strategy, "ranks": ranks}
    peak, parameters = measured(config, monkeypatch, rows=rows, width=width, checkpointing=checkpointing, **known)
    predicted = counted_here(config, parameters, **known).training(checkpointing=checkpointing).total(rows * width)
    assert 1 <= predicted / peak < 1.05


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize(
    ("shape", "rows", "width", "compute", "lora_rank", "checkpointing"),
    [
        (SMOLLM2_135M, 8, 512, BF16, None, False),
        (SMOLLM2_135M, 8, 512, FP32, None, False),
        (SMOLLM2_135M, *_FEW, FP32, None, True),
        (LLAMA_8B, 4, 512, FP32, None, True),
        (SMOLLM2_135M, 8, 512, FP32, 16, False),
        (SMOLLM2_135M, 8, 512, FP32, 16, True),
        (SMOLLM2_135M, *_FEW, FP32, 16, True),
    ],
)
def test_a_step_of_bf16_weights_takes_what_is_predicted(
    shape: dict[str, Any],
    rows: int,
    width: int,
    compute: torch.dtype,
    lora_rank: int | None,
    checkpointing: bool,
    is_fast: bool,
    monkeypatch: pytest.MonkeyPatch,
    counted_here: Callable[..., Workload],
) -> None:
    """With and without autocast, and where a CPU multiplies such weights in float32."""
    monkeypatch.setattr(widened, "multiplies_in_bf16", lambda _: is_fast)
    config = transformers.AutoConfig.for_model(**shape | {"num_hidden_layers": _LAYERS})
    known: dict[str, Any] = {"weights": BF16, "compute": compute, "lora_rank": lora_rank}
    peak, parameters = measured(config, monkeypatch, rows=rows, width=width, checkpointing=checkpointing, **known)
    predicted = counted_here(config, parameters, **known).training(checkpointing=checkpointing).total(rows * width)
    assert 1 <= predicted / peak < 1.06


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize(("width", "compute", "checkpointing"), [(512, FP32, False), (32, BF16, True), (8, FP32, True)])
def test_a_step_beside_quantised_weights_takes_what_is_predicted(
    kind: Any,
    width: int,
    compute: torch.dtype,
    checkpointing: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counted_here: Callable[..., Workload],
) -> None:
    """Of a model that is small, because its weights have numbers."""
    monkeypatch.setattr(widened, "multiplies_in_bf16", lambda _: False)
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_attention_heads": 8,
        "head_dim": 64,
        "vocab_size": 2000,
    }
    config = tiny_config(num_hidden_layers=_LAYERS, num_key_value_heads=4, **sizes)
    whole = transformers.AutoModelForCausalLM.from_config(config, dtype=BF16)
    whole.save_pretrained(tmp_path / "whole")
    stored: Any = load_model(find_model(str(tmp_path / "whole"), quantization=kind), BF16)
    stored.save_pretrained(tmp_path / kind)
    known: dict[str, Any] = {"weights": BF16, "compute": compute, "lora_rank": 16}
    peak, parameters = measured(
        config,
        monkeypatch,
        rows=4,
        width=width,
        checkpointing=checkpointing,
        quantised=tmp_path / kind,
        **known,
    )
    # of the plain model, as a run counts them before it reads a weight
    with torch.device("meta"):
        plain = transformers.AutoModelForCausalLM.from_config(config, dtype=BF16)
        counts = ParameterCounts.of(add_adapters(plain, LoraRecipe(rank=16)))
    assert parameters.trainable == counts.trainable
    work = counted_here(config, counts, quantization=kind, **known)
    predicted = work.training(checkpointing=checkpointing).total(4 * width)
    # what a CPU holds while it multiplies 8-bit codes by their scales is in no tensor that can be counted here
    assert 1 <= predicted / peak < (1.3 if kind == "int8" else 1.1)


@pytest.mark.parametrize(("shape", "weights", "compute"), [(SMOLLM2_135M, FP32, FP32), (LLAMA_8B, FP32, BF16)])
def test_scoring_takes_what_is_predicted(
    shape: dict[str, Any],
    weights: torch.dtype,
    compute: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    counted_here: Callable[..., Workload],
) -> None:
    config = transformers.AutoConfig.for_model(**shape)
    peak, parameters = measured(config, monkeypatch, rows=8, width=512, weights=weights, compute=compute, trained=False)
    need = counted_here(config, parameters, weights=weights, compute=compute).scoring()
    assert need.total(8 * 512) == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(
    ("trainable", "weights", "lora_rank", "state"),
    [(1000, FP32, None, 16_000), (10, BF16, 4, 10 * 16 + 990 * 2)],
    ids=["full", "adapters"],
)
def test_sixteen_bytes_for_a_trainable_float32_parameter(
    trainable: int, weights: torch.dtype, lora_rank: int | None, state: int
) -> None:
    counts = ParameterCounts(1000, trainable, largest_layer=100, outside_layers=200)
    work = _workload(tiny_config(), counts, weights=weights, compute=BF16, lora_rank=lora_rank)
    assert work.training(checkpointing=False).state == state


@pytest.mark.parametrize(
    ("optimizer", "weights", "sizes", "moments"),
    [
        ("adamw", BF16, (8192, 100), 8 * 8292),  # float32, whatever the weights are
        ("adamw_8bit", FP32, (8192, 100), 2 * (8192 + 4 * 32 + 1024) + 8 * 100),
        ("adamw_8bit", FP32, (4097,), 2 * (4097 + 4 * 17 + 1024)),
        ("adamw_8bit", BF16, (4097,), 8 * 4097),  # no whole blocks
        ("paged_adamw_8bit", FP32, (4096, 4095), 2 * (4096 + 4 * 16 + 1024) + 8 * 4095),
    ],
)
def test_two_bytes_for_a_parameter_whose_moments_are_8_bits(
    optimizer: str, weights: torch.dtype, sizes: tuple[int, ...], moments: int
) -> None:
    total = sum(sizes)
    counts = ParameterCounts(total, total, 0, 0, trained_sizes=sizes)
    work = _workload(tiny_config(), counts, weights=weights, compute=BF16, optimizer=optimizer)
    need = work.training(checkpointing=False)
    assert (need.weights, need.gradients, need.optimizer) == (*[total * weights.itemsize] * 2, moments)


@pytest.mark.parametrize(
    ("weights", "compute", "lora_rank", "each"),
    [
        (FP32, BF16, None, 6),  # a copy and the gradient
        (FP32, FP32, None, 4),
        (FP32, BF16, 4, 2),  # the copy
        (BF16, BF16, 4, 0),
    ],
)
def test_six_bytes_for_a_parameter_of_a_trained_head_in_bf16(
    weights: torch.dtype, compute: torch.dtype, lora_rank: int | None, each: int
) -> None:
    """What the backward pass of the head takes by itself: its layers are computed again, so no other copy is there."""
    config = tiny_config()
    work = _workload(
        config, ParameterCounts(1000, 1000, 100, 200), weights=weights, compute=compute, lora_rank=lora_rank
    )
    head = config.vocab_size * config.hidden_size
    assert work.training(checkpointing=True).phases[1].fixed == each * head


@pytest.mark.parametrize("lora_rank", [None, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_heap_of_a_cpu_takes_more_than_tensors(lora_rank: int | None, checkpointing: bool) -> None:
    """As `make bench-memory` and `make bench-savings` have measured it."""
    counts = ParameterCounts(1000, 1000 if lora_rank is None else 10, 100, 200)
    types: dict[str, Any] = {"weights": FP32, "compute": FP32, "lora_rank": lora_rank}
    work = _workload(tiny_config(num_hidden_layers=6), counts, **types, strategy="fsdp2", ranks=2)
    card, machine = (replace(work, device=device).training(checkpointing=checkpointing) for device in (CUDA, CPU))
    assert machine.state == card.state
    assert machine.logit_row == pytest.approx(1.35 * card.logit_row, abs=1)
    layer = work._token_bytes().layer if checkpointing else 0
    again = (0, 0, 3 * layer, 0, 1.5 * layer, 0, 0)  # four times the layer that is computed again, and half of it
    for ours, theirs, more in zip(machine.phases, card.phases, again, strict=True):
        assert ours.per_token == pytest.approx(1.35 * (theirs.per_token + more), abs=20)
        assert (ours.fixed, ours.gathered) == (pytest.approx(1.35 * theirs.fixed, abs=1), int(2.4 * theirs.gathered))
        assert ours.has_logits == (theirs.has_logits or (more > 0 and ours is machine.phases[2]))


def test_an_update_of_8_bit_moments_takes_five_arrays_on_a_cpu() -> None:
    """As bitsandbytes computes it there: both moments, gradient, root and denominator, beside those of one tensor."""
    counts = ParameterCounts(9000, 9000, 100, 200, trained_sizes=(8192, 808))
    work = _workload(tiny_config(), counts, weights=FP32, compute=FP32, optimizer="adamw_8bit")
    on_card = work.training(checkpointing=False).phases
    on_cpu = replace(work, device=CPU).training(checkpointing=False).phases
    assert len(on_cpu) == len(on_card) + 1
    assert on_cpu[-1] == Phase(int(1.35 * 20 * 8192), 0, has_logits=False)
    narrow = replace(work, device=CPU, weights=BF16).training(checkpointing=False).phases
    assert len(narrow) == len(on_card)


# Decisions


def _need(*, state: int = 0, per_token: int = 1 << 20, fixed: int = 0, available: int = 4 << 30) -> MemoryNeed:
    return MemoryNeed(state, 0, 0, (Phase(fixed, per_token, has_logits=True),), 1 << 10, 64, available)


def test_the_highest_phase_counts_and_logits_no_further_than_their_chunk() -> None:
    phases = (Phase(50, 1, has_logits=True), Phase(0, 2, has_logits=False, gathered=30))
    need = MemoryNeed(400, 200, 400, phases, 7, 10, 0)
    assert need.total(5) == 1000 + 50 + 5 + 7 * 5
    assert need.total(20) == 1000 + 50 + 20 + 7 * 10
    assert need.total(200) == 1000 + 30 + 2 * 200
    assert need.parts(20) == {
        "weights": 400, "gradients": 200, "optimizer": 400, "copies": 50, "gathered": 0, "activations": 20, "logits": 70
    }  # fmt: skip


def test_the_budget_fits_and_holds_the_longest_pair() -> None:
    need = _need(state=1 << 30, fixed=1 << 30, available=3 << 30)
    budget = choose_budget(need, CPU, longest=100)
    assert 100 < budget < 1024
    room = need.available - need.state
    assert need.total(budget) <= need.state + 0.8 * room < need.total(budget + 1)
    assert choose_budget(need, CPU, longest=9000) == 9000


def test_more_tokens_than_gain_anything_are_never_chosen() -> None:
    plenty = _need(per_token=1, available=1 << 40)
    assert choose_budget(plenty, CUDA, longest=100) == 16384
    assert choose_budget(plenty, CPU, longest=100) == 1024


@pytest.mark.parametrize(
    ("fitting", "longest", "step_tokens", "device", "budget", "wanted"),
    [
        (8192, 1000, 99_999, CUDA, None, False),
        (8191, 1000, 99_999, CUDA, None, True),
        (3000, 1000, 3000, CUDA, None, False),  # the whole step
        (2999, 1000, 3000, CUDA, None, True),
        (9000, 9001, 99_999, CUDA, None, True),  # the longest pair
        (512, 100, 99_999, CPU, None, False),
        (511, 100, 99_999, CPU, None, True),
        (80, 10, 10**6, CUDA, 100, False),  # 100 fit with nothing to spare
        (80, 10, 10**6, CUDA, 101, True),
    ],
)
def test_layers_are_computed_again_where_too_little_fits_without(
    fitting: int, longest: int, step_tokens: int, device: torch.device, budget: int | None, wanted: bool
) -> None:
    need = MemoryNeed(0, 0, 0, (Phase(0, 1000, has_logits=False),), 0, 1, available=fitting * 1250)
    assert need.comfortable_tokens(1 << 20) == fitting
    assert is_worth_checkpointing(need, device, longest=longest, step_tokens=step_tokens, budget=budget) == wanted


@pytest.mark.parametrize(
    ("ranks", "offloads", "may_checkpoint", "available", "chosen"),
    [
        (1, False, True, 0, "none"),
        (1, True, True, 0, "none"),
        (8, False, True, 0, "fsdp2"),
        (8, False, True, 10**12, "ddp"),
        (8, True, True, 10**12, "fsdp2"),
        (8, False, True, 150 * 10**9, "ddp"),  # the recipes say 149 GB; it is 181 where layers are not computed again
        (8, False, False, 150 * 10**9, "fsdp2"),
        (8, False, True, 149 * 10**9, "fsdp2"),
    ],
)
def test_a_model_is_divided_only_where_it_does_not_fit_whole(
    ranks: int, offloads: bool, may_checkpoint: bool, available: int, chosen: str
) -> None:
    counts = ParameterCounts(8_030_261_248, 8_030_261_248, 218_112_000, 1_050_677_248)
    work = _workload(transformers.AutoConfig.for_model(**LLAMA_8B), counts, weights=FP32, compute=BF16)
    work = replace(work, ranks=ranks, cpu_offload=offloads, available=available)
    assert choose_strategy(work, longest=4096, may_checkpoint=may_checkpoint) == chosen


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_layers_and_what_is_outside_of_them_are_counted_without_adapters(lora_rank: int | None) -> None:
    config = tiny_config(tie_word_embeddings=False)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    layer = sum(weight.numel() for weight in model.model.layers[1].parameters())
    if lora_rank is not None:
        model = add_adapters(model, LoraRecipe(rank=lora_rank))
    counts = ParameterCounts.of(model)
    assert counts.largest_layer == layer
    assert counts.outside_layers == 2 * config.vocab_size * config.hidden_size + config.hidden_size
    adapters = 0 if lora_rank is None else counts.trainable
    assert counts.total == adapters + counts.outside_layers + config.num_hidden_layers * layer


def test_what_is_divided_can_lie_on_the_host() -> None:
    counts = ParameterCounts(1000, 100, 100, 200)
    adapted: dict[str, Any] = {"weights": BF16, "compute": BF16, "lora_rank": 4}
    for types, counted, here, there in (
        ({"weights": FP32, "compute": BF16}, replace(counts, trainable=1000), (0, 0, 0), 4000),
        (adapted, counts, (400, 400, 800), 450),
    ):
        work = _workload(tiny_config(), counted, **types, strategy="fsdp2", ranks=4, cpu_offload=True)
        need = work.training(checkpointing=True)
        assert (need.weights, need.gradients, need.optimizer, need.on_host) == (*here, there)
        assert need.phases == replace(work, cpu_offload=False).training(checkpointing=True).phases


def test_what_does_not_fit_names_only_remedies_that_are_left_and_what_fits_is_told() -> None:
    need = _need(state=8 << 30)
    with pytest.raises(UserError, match="does not fit in memory") as caught:
        require_memory(need, 1000, adapters=True, checkpointing=False)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert "lora" not in caught.value.fix
    assert "gradient_checkpointing" in caught.value.fix
    for on, said in ((True, "on"), (False, "off")):
        line = require_memory(_need(), 1000, adapters=True, checkpointing=on)
        assert line.endswith(f"micro-batches of up to 1,000 tokens, gradient checkpointing {said}")


def test_what_torch_has_cached_of_a_card_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 100 bytes, 70 of them in torch's cache, where a cycle of objects holds another 20."""
    cached, in_cycle = 70, 20

    class Holder:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            nonlocal cached, in_cycle
            cached, in_cycle = cached + in_cycle, 0

    def empty_cache() -> None:
        nonlocal cached
        cached = 0

    Holder()
    card = SimpleNamespace(
        is_available=lambda: True, empty_cache=empty_cache, mem_get_info=lambda _: (100 - cached - in_cycle, 100)
    )
    monkeypatch.setattr(torch, "cuda", card)
    monkeypatch.setattr(torch, "get_device_module", lambda _: card)
    assert available_bytes(CUDA) == 100


ROOT = Path(simpo_cli.__file__).parent.parent
SHAPES = {"Mistral 7B": MISTRAL_7B, "Llama 3 8B": LLAMA_8B, "Gemma 2 9B": GEMMA2_9B}
RECIPES = {
    "mistral-7b-base": "Mistral 7B",
    "mistral-7b-instruct": "Mistral 7B",
    "llama3-8b-base": "Llama 3 8B",
    "llama3-8b-instruct": "Llama 3 8B",
    "llama3-8b-instruct-v2": "Llama 3 8B",
    "gemma2-9b-it": "Gemma 2 9B",
}


@cache
def _paper_need(name: str, lora: LoraRecipe | None, *, checkpointing: bool) -> tuple[MemoryNeed, ParameterCounts]:
    config = transformers.AutoConfig.for_model(**SHAPES[name])
    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config)
        if lora is not None:
            model = add_adapters(model, lora)
    counts = ParameterCounts.of(model)
    types: dict[str, Any] = {"weights": FP32} if lora is None else {"weights": BF16, "lora_rank": lora.rank}
    work = replace(_workload(config, counts, compute=BF16, **types), longest_row=2048)
    return work.training(checkpointing=checkpointing), counts


def _gb(size: int) -> str:
    return f"{size / 1e9:.0f} GB"


@pytest.mark.parametrize(("recipe", "name"), RECIPES.items())
def test_the_header_says_what_the_recipe_takes(recipe: str, name: str) -> None:
    full, _ = _paper_need(name, None, checkpointing=True)
    lora = compose(f"paper/{recipe}", ["model.lora={}"]).recipe.model.lora
    adapted, _ = _paper_need(name, lora, checkpointing=True)
    header = f"""\
# All weights are trained: float32 weights, gradients and two moments are 16 bytes a parameter, {_gb(full.state)}. With
# copies of the weights in bfloat16, the head and micro-batches of 4,096 tokens a card needs about \
{_gb(full.total(4096))}. With
# adapters it needs about {_gb(adapted.total(4096))}: defaults: [paper/{recipe}, lora]
# By arithmetic, not yet measured on a card; docs/paper.md has the table.
"""
    assert header in (ROOT / f"recipes/paper/{recipe}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SHAPES)
def test_the_page_says_the_same(name: str) -> None:
    lora = LoraRecipe()
    full, counts = _paper_need(name, None, checkpointing=True)
    adapted, with_adapters = _paper_need(name, lora, checkpointing=True)
    kept, _ = _paper_need(name, lora, checkpointing=False)
    row = (
        f"| {name} | {counts.total / 1e9:.2f} | {_gb(full.total(4096))} | {with_adapters.trainable / 1e6:.0f} | "
        f"{_gb(adapted.total(4096))} | {_gb(kept.total(8192))} |"
    )
    assert row in (ROOT / "docs/paper.md").read_text(encoding="utf-8")
