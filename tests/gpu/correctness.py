"""Parts that compare: kernels with plain attention, a step with single sequences, predicted memory with real memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Packing, fullest_microbatch, row_tokens_of_each
from simpo_cli.model.attention.interface import SPANS, shared_prefix_attention
from simpo_cli.model.attention.varlen_cuda import fits_varlen
from simpo_cli.model.load import ParameterCounts
from simpo_cli.model.memory import Workload
from simpo_cli.model.packed import PairSpan, layout_of, pack, spans_of
from simpo_cli.model.policy import Policy, means_of
from simpo_cli.model.self_check import MOST_KERNEL_DIFFERENCE, CheckPairs, SelfCheck, choose_packing
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe, TrainRecipe
from simpo_cli.train.optimizer import make_optimizer, start_moments
from tests.gpu import models
from tests.gpu.check import MissingError, Place, require
from tests.model.reference import gradients, plain_attention, relative, response_logps, simpo_loss_backward

LOSS = LossRecipe()
_SHAPES = ((32, 8, 128), (14, 2, 64), (9, 3, 64), (16, 16, 80), (8, 4, 256), (12, 12, 100))  # heads, key heads, width
_WINDOWS = (None, 7, 130)
_PARTS = ((40, 20, 31), (1, 1, 1), (300, 90, 5), (2, 0, 1), (129, 128, 64), (1, 0, 0), (64, 1, 200), (17, 33, 0))


# Kernels


def kernels(place: Place) -> tuple[str, dict[str, Any]]:
    """What a layer calls, against attention with the whole of the scores: output and gradients of six head shapes."""
    spans = spans_of(tuple(length for parts in _PARTS[: 2 if place.tiny else None] for length in parts))
    rows: list[dict[str, Any]] = []
    for heads, key_heads, width in _SHAPES:
        for window in _WINDOWS:
            difference, by_kernel = _kernel_difference(spans, heads, key_heads, width, window, place)
            shape = {"heads": heads, "key_heads": key_heads, "width": width, "window": window}
            rows.append({**shape, "by_kernel": by_kernel, "difference": difference})
    most = MOST_KERNEL_DIFFERENCE if place.on_cuda else 1e-4
    worst = max(row["difference"] for row in rows)
    facts = {"bound": most, "rows": rows}
    require(
        all(row["difference"] <= most for row in rows), f"up to {worst:.2g} of the norm from plain attention", facts
    )
    kernel_rows = sum(row["by_kernel"] for row in rows)
    if place.on_cuda and torch.cuda.get_device_capability() >= (8, 0):
        require(kernel_rows == 15, f"the kernel computed {kernel_rows} of 18 shapes, and should compute 15", facts)
    return (
        f"{len(rows)} shapes and windows within {worst:.2g} of the norm (bound {most:g}), {kernel_rows} by kernel",
        facts,
    )


def _kernel_difference(
    spans: Sequence[PairSpan], heads: int, key_heads: int, width: int, window: int | None, place: Place
) -> tuple[float, bool]:
    """Highest difference of output and gradients relative to their norm, and whether the card's kernel computed it."""
    generator = torch.Generator(place.device).manual_seed(0)
    shapes = [(1, count, spans[-1].end, width) for count in (heads, key_heads, key_heads)]
    drawn = [torch.randn(shape, generator=generator, device=place.device).to(place.compute) for shape in shapes]
    results = []
    for own in (False, True):
        inputs = [tensor.float() if own else tensor.clone() for tensor in drawn]
        for tensor in inputs:
            tensor.requires_grad_()
        if own:
            output = plain_attention(*inputs, spans, width**-0.5, window=window)
        else:
            output, _ = shared_prefix_attention(
                nn.Module(), *inputs, None, sliding_window=window, **{SPANS: layout_of(spans, place.device)}
            )
        weights = torch.linspace(-1, 1, output.numel(), device=place.device).reshape(output.shape).to(output.dtype)
        results.append([output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)])
    apart = [float((a.float() - b).norm() / b.norm()) for a, b in zip(*results, strict=True)]
    return max(apart), fits_varlen(drawn[0])


# A step against single sequences


class _Step(NamedTuple):
    logps: Tensor  # (N,) of every response token, chosen and rejected of each pair in turn
    gradient: dict[str, Tensor]


def agreement(place: Place) -> tuple[str, dict[str, Any]]:
    """Log-probs and the gradient of a step, float32 and bf16, prompts shared and padded rows."""
    config = models.tiny() if place.tiny else models.smollm2_135m()
    policy = models.build(config, place.device, weights=torch.float32)
    pairs = models.make_pairs(12, models.TINY if place.tiny else models.SHORT, config.vocab_size)
    with ieee_float32():
        reference = _reference(policy, pairs)
        errors = {}
        for precision in ("fp32", "bf16"):
            for packing in ("shared_prefix", "padded"):
                step = _ours(policy, pairs, packing, precision, place)
                apart = step.logps - reference.logps
                errors[f"{precision}_{packing}"] = {
                    "logps": float(apart.abs().max()),
                    "logps_rms": float(apart.square().mean().sqrt()),
                    "gradient": relative(step.gradient, reference.gradient),
                }
    for packing in ("shared_prefix", "padded"):
        found = errors[f"fp32_{packing}"]
        require(found["logps"] <= 5e-4, f"float32 {packing}: a log-prob differs by {found['logps']:.2g} nats", errors)
        require(
            found["gradient"] <= 2e-4, f"float32 {packing}: the gradient differs by {found['gradient']:.2g}", errors
        )
    full, shared, padded = errors["fp32_shared_prefix"], errors["bf16_shared_prefix"], errors["bf16_padded"]
    for what in ("logps_rms", "gradient"):
        ratio = shared[what] / padded[what]
        require(ratio <= 1.5, f"bf16: shared prompts err {ratio:.2f} times as much as padded rows in {what}", errors)
    return (
        f"float32: log-probs to {full['logps']:.1e} nats, gradient to {full['gradient']:.1e}; bf16, shared and padded: "
        f"log-probs to {shared['logps_rms']:.1e} and {padded['logps_rms']:.1e} (root mean square), gradient to "
        f"{shared['gradient']:.1e} and {padded['gradient']:.1e} ({len(reference.logps):,} tokens, one seed)",
        errors,
    )


def _reference(policy: Policy, pairs: Sequence[EncodedPair]) -> _Step:
    """One sequence at a time through the model's own forward and its own logits."""
    with policy.untouched() as causal:
        with torch.no_grad():
            logps = [response_logps(causal, p.prompt, r) for p in pairs for r in (p.chosen, p.rejected)]
        simpo_loss_backward(causal, pairs, LOSS.beta, Objective(LOSS).gamma)
    return _Step(torch.cat(logps), gradients(policy))


def _ours(policy: Policy, pairs: Sequence[EncodedPair], packing: Packing, precision: str, place: Place) -> _Step:
    autocast = torch.autocast(place.device.type, torch.bfloat16) if precision == "bf16" else nullcontext()
    packed = pack(pairs, place.device)
    with policy.packed(packing), autocast:
        logps = policy(packed)
        chosen, rejected = means_of(logps, packed)
        (Objective(LOSS).terms(chosen, rejected).losses.sum() / len(pairs)).backward()
    return _Step(logps.detach().float(), gradients(policy))


@contextmanager
def ieee_float32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# The self-check of a run


def self_check(place: Place) -> tuple[str, dict[str, Any]]:
    """That it shares prompts on this device: full float32 weights, with TF32 on too, and adapters over bf16 weights."""
    facts, told = {}, []
    for name, config, weights, lora, tf32 in (
        ("full", models.smollm2_135m(), torch.float32, False, False),
        ("full, TF32 on", models.smollm2_135m(), torch.float32, False, True),
        ("1.5B, adapters, bf16", models.qwen2_1_5b(), torch.bfloat16, True, False),
    ):
        config = models.tiny() if place.tiny else config
        policy = models.build(config, place.device, weights=weights, lora=lora)
        pairs = models.make_pairs(24, models.TINY if place.tiny else models.LONG, config.vocab_size)
        fullest = fullest_microbatch(pairs, 16384, "shared_prefix")
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            check = choose_packing(policy, "auto", None, CheckPairs.of(pairs, fullest))
            kept = torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        finally:
            torch.set_float32_matmul_precision(before)
        facts[name] = check.as_json()
        require(check.packing == "shared_prefix", f"{name}: {check}", facts)
        require(kept, f"{name}: the setting of TF32 is not what it was", facts)
        told.append(f"{name}: {_in_short(check)}")
    return "; ".join(told), facts


def _in_short(check: SelfCheck) -> str:
    assert check.difference is not None
    return f"{check.difference.highest:.0e} nats"


# Memory


class _Setting(NamedTuple):
    name: str
    config: Any
    weights: torch.dtype
    compute: torch.dtype
    lora: bool
    checkpointing: bool
    tokens: int


def memory(place: Place) -> tuple[str, dict[str, Any]]:
    """The memory that is predicted before a run, against the peak of a real step, for six settings."""
    f32, bf16 = torch.float32, torch.bfloat16
    settings = [
        _Setting("135M full, bf16", models.smollm2_135m(), f32, bf16, False, False, 16384),
        _Setting("1.5B full, float32", models.qwen2_1_5b(), f32, f32, False, False, 4096),
        _Setting("1.5B full, bf16", models.qwen2_1_5b(), f32, bf16, False, False, 8192),
        _Setting("1.5B full, bf16, checkpointing", models.qwen2_1_5b(), f32, bf16, False, True, 16384),
        _Setting("8B LoRA, bf16", models.llama3_8b(), bf16, bf16, True, False, 8192),
        _Setting("8B LoRA, bf16, checkpointing", models.llama3_8b(), bf16, bf16, True, True, 16384),
    ]
    if place.tiny:
        settings = [setting._replace(config=models.tiny(), tokens=256) for setting in settings]
    rows: list[dict[str, Any]] = []
    facts = {"rows": rows, "do_not_fit": (small := [])}
    for setting in settings:
        place.release()
        try:
            predicted, measured = _predicted_and_measured(setting, place)
        except torch.OutOfMemoryError:
            small.append(setting.name)
            continue
        rows.append({"setting": setting.name, "predicted_gb": predicted / 1e9, "measured_gb": measured / 1e9})
        place.keep(facts)
    if not place.on_cuda:
        return f"{len(rows)} steps ran; on a CPU nobody counts their memory", facts
    if not rows:
        raise MissingError("none of the settings fits this card")
    off = [row["predicted_gb"] / row["measured_gb"] - 1 for row in rows]
    place.bar("memory formula, furthest from the measured peak", max(map(abs, off)), most=0.1)
    told = ", ".join(f"{100 * one:+.0f} %" for one in off)
    return f"predicted against measured: {told}" + (f"; {', '.join(small)} do not fit" if small else ""), facts


def _predicted_and_measured(setting: _Setting, place: Place) -> tuple[int, int]:
    before = place.allocated()
    policy = models.build(setting.config, place.device, weights=setting.weights, lora=setting.lora)
    if setting.checkpointing:
        policy.recompute_activations()
    optimizer = make_optimizer(policy, TrainRecipe())
    start_moments(optimizer)
    pairs = fullest_microbatch(
        models.make_pairs(200, models.TINY if place.tiny else models.LONG, setting.config.vocab_size),
        setting.tokens,
        "shared_prefix",
    )
    tokens = sum(pair.num_tokens for pair in pairs)
    models.without_fused_layers(policy)
    policy.packing = "shared_prefix"
    place.release()
    for _ in range(2):  # gradients are there from the first on
        with torch.autocast(place.device.type, torch.bfloat16, enabled=setting.compute == torch.bfloat16):
            chosen, rejected = policy.response_means(pack(pairs, place.device))
        (Objective(LOSS).terms(chosen, rejected).losses.sum() / len(pairs)).backward()
        optimizer.step()
    measured = place.peak() - before
    workload = Workload(
        config=setting.config,
        parameters=ParameterCounts.of(policy.model),
        weights=setting.weights,
        compute=setting.compute,
        lora_rank=models.LORA.rank if setting.lora else None,
        longest_row=int(row_tokens_of_each(pairs).max()),
        device=place.device,
        available=0,
    )
    return workload.training(checkpointing=setting.checkpointing).total(tokens), measured
