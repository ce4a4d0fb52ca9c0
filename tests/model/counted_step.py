"""The memory that a training step really takes, without the memory: its tensors have shapes and no numbers.

A model of real size is made of fake tensors, its step is run by torch as ever, and every storage that an operation
makes is counted from then until it is freed. Attention is a stand-in that keeps what a fused kernel keeps. Of several
devices one is there, and the others are a process group that does nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch import distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AttentionInterface, AttentionMaskInterface

from simpo_cli.data.pair import EncodedPair
from simpo_cli.distributed import sharded
from simpo_cli.distributed.gradients import reduce_gradients
from simpo_cli.distributed.sharded import local
from simpo_cli.model import logprobs
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import ParameterCounts, load_model
from simpo_cli.model.memory import Strategy
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.model.source import find_model
from simpo_cli.model.widened import widen_products
from simpo_cli.recipe.schema import LoraRecipe, TrainRecipe
from simpo_cli.train.optimizer import make_optimizer, start_moments
from tests.model.live_bytes import LiveBytes

_ATTENTION = "keeps_as_a_kernel_does"


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, width = query.shape
        output = query.new_empty(batch, length, heads, width)
        ctx.save_for_backward(query, key, value, output, query.new_empty(batch, heads, length, dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def _attend(_: nn.Module, query: Tensor, key: Tensor, value: Tensor, *__: None, **___: Any) -> tuple[Tensor, None]:
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else value.dtype
    return _Attention.apply(query.to(dtype), key.to(dtype), value.to(dtype)), None  # type: ignore[no-untyped-call]


def _no_mask(**_: Any) -> None:
    """Nothing is masked."""


AttentionInterface.register(_ATTENTION, _attend)
AttentionMaskInterface.register(_ATTENTION, _no_mask)


def measured(
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
    *,
    rows: int,
    width: int,
    weights: torch.dtype,
    compute: torch.dtype,
    lora_rank: int | None = None,
    checkpointing: bool = False,
    trained: bool = True,
    strategy: Strategy = "none",
    ranks: int = 1,
    quantised: Path | None = None,
) -> tuple[int, ParameterCounts]:
    """Highest number of bytes alive over two micro-batches of (rows, width) tokens and a step of AdamW.

    Every token is scored, in padded rows. With `trained` false it is a forward pass of a frozen model. Of several
    `ranks` the bytes are those of one. A folder of `quantised` weights takes memory, as their library makes nothing of
    fake tensors.

    Returns:
        The bytes, and the parameters.
    """
    monkeypatch.setattr(logprobs, "_is_plain_linear", lambda _: True)  # parameters are of a type of their own here
    config._attn_implementation = _ATTENTION
    with torch.device("meta") if quantised is None else nullcontext():
        model: Any
        if quantised is None:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=weights)
        else:
            model = load_model(find_model(str(quantised)), weights)
            model.set_attn_implementation(_ATTENTION)
        if lora_rank is not None:
            model = add_adapters(model, LoraRecipe(rank=lora_rank))
    response = np.zeros(width, np.int32)  # behind a prompt of one token a row of `width`, since the last is not read
    packed = pack([EncodedPair(response[:1], response, response, "", "")] * (rows // 2), torch.device("cpu"))
    live = LiveBytes()
    with (
        _others(ranks, monkeypatch),
        FakeTensorMode(allow_non_fake_inputs=True) if quantised is None else nullcontext(),
    ):
        if quantised is None:
            _make_fake(model)
        widen_products(model)
        policy = Policy(model).train(trained)
        counts = ParameterCounts.of(model)
        adapters = [p for p in policy.parameters() if p.requires_grad and lora_rank is not None]
        if strategy == "fsdp2":
            sharded.shard(policy, list(policy.layers), device=torch.device("cpu"), whole=adapters)
        for parameter in policy.parameters():
            parameter.requires_grad_(parameter.requires_grad and trained)
            live.count(local(parameter))
            for scale in _scales(parameter):
                live.count(scale)
        if checkpointing:
            policy.recompute_activations()
        if trained:
            optimizer = make_optimizer(policy, TrainRecipe())
            start_moments(optimizer)
            for moments in optimizer.state.values():
                live.count(local(moments["exp_avg"]))
                live.count(local(moments["exp_avg_sq"]))
        with live, torch.set_grad_enabled(trained):
            for _ in range(2):
                narrow = compute == torch.bfloat16
                with torch.autocast("cpu", torch.bfloat16, enabled=narrow, cache_enabled=strategy != "fsdp2"):
                    logps = policy(packed)
                if trained:
                    logps.sum().backward()
                del logps
            if trained:
                weights = list(trainable(policy).values())
                reduce_gradients(weights, [True] * len(weights))
                optimizer.step()
    return live.peak, counts


def _scales(weight: Any) -> list[Tensor]:
    """What a quantised weight holds beside its codes, tables that all share aside."""
    if (state := getattr(weight, "quant_state", None)) is not None:
        return [state.absmax, state.state2.absmax]
    return [scale for scale in [getattr(weight, "SCB", None)] if scale is not None]


@contextmanager
def _others(ranks: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of so many ranks, of which this one is there; collectives leave everything as it is."""
    if ranks == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)  # type: ignore[no-untyped-call]
    mesh = init_device_mesh("cpu", (ranks,))
    monkeypatch.setattr(sharded, "init_device_mesh", lambda *_: mesh)  # which is made of tensors with numbers
    monkeypatch.setattr("simpo_cli.distributed.ranks.world_size", lambda: ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _make_fake(model: nn.Module) -> None:
    """Fake tensors for those without memory; tied ones stay tied."""
    made: dict[Tensor, Any] = {}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor not in made:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(fake, tensor.requires_grad) if is_weight else fake
                held[name] = None if tensor is None else made[tensor]
