"""Frozen base weights in 4 or 8 bits under adapters (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

bitsandbytes quantises and stores the weights, as NF4 with double quantisation or as int8 with a scale for each row.
The products are ours: a layer's weights are dequantised to the type of the computation, multiplied as any others, and
let go; the backward pass dequantises them again. So what a layer computes is that of the dequantised weights, in
training and in evaluation, for a row whatever its neighbours are. The library's own products differ there:

    its 4-bit layer on a CPU    repacks weights in place at the first forward without gradients, after which adapters
                                get wrong gradients without an error
    its 4-bit layer on a card   goes through another kernel without gradients than with them
    its 8-bit layer             rounds each row of the input to 8 bits as well, but on a CPU in training
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from simpo_cli.data.model_files import Quantization
from simpo_cli.errors import UserError
from simpo_cli.model.widened import product_dtype

_INT8_STEPS = 127
_BLOCK, _NESTED_BLOCK = 64, 256  # weights of NF4 that share a scale, and scales that share one of their own


@cache
def bitsandbytes() -> Any:
    """The library, imported without a package `kernels`, by which it would fetch compiled code from the hub."""
    with _without("kernels"):
        return import_module("bitsandbytes")


@contextmanager
def _without(package: str) -> Iterator[None]:
    """A block in which a package cannot be imported, whether it was before or not."""
    hidden = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]  # which is how Python marks it
    try:
        yield
    finally:
        del sys.modules[package]
        if hidden is not None:
            sys.modules[package] = hidden


def import_before_peft() -> None:
    """Import bitsandbytes as it should be, where it is installed: peft imports it for adapters of any kind."""
    if find_spec("bitsandbytes") is not None:
        bitsandbytes()


def settings_of(quantization: Quantization) -> Any:
    """How transformers has bitsandbytes quantise the linear layers of a model, all but its head."""
    from transformers import BitsAndBytesConfig

    settings: dict[str, Any] = {"load_in_8bit": True, "llm_int8_threshold": 0.0}  # all of a weight, outliers as well
    if quantization == "nf4":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    bitsandbytes()
    return BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]


def adapted_layers() -> tuple[type, ...]:
    """Peft's layers of adapters beside quantised weights; none where bitsandbytes is not in use."""
    if "bitsandbytes" not in sys.modules:
        return ()
    from peft.tuners.lora.bnb import Linear4bit, Linear8bitLt

    return Linear4bit, Linear8bitLt


def use_own_products(model: nn.Module) -> None:
    """Have the quantised layers of a model, if it has any, multiply as this module says.

    Raises:
        UserError: the weights of such layers are not quantised.
    """
    layers = [module for module in model.modules() if is_quantised(module)]
    if not layers:
        return
    scales = [getattr(layer.weight, "SCB", getattr(layer.weight, "quant_state", None)) for layer in layers]
    if any(one is None for one in scales):
        raise UserError(
            "the configuration of the model says that its weights are quantised, and its files hold them whole.",
            "Take quantization_config out of config.json; model.quantization quantises them as they are loaded.",
            key="model.path",
        )
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and parameter.device.type == "cpu":
            # what lies in the mapped file keeps all of it resident, the weights that were quantised among it
            parameter.data = parameter.data.clone()
    for layer in layers:
        kind: Any = type(layer)
        if kind in _kinds():
            # as another class, and not by a function of the instance, which would go into copies
            layer.__class__ = _with_own_product(kind)


def _kinds() -> tuple[type, type]:
    """The library's layers of quantised weights."""
    layers = bitsandbytes().nn
    return layers.Linear4bit, layers.Linear8bitLt


@cache
def _with_own_product(kind: Any) -> Any:
    """A layer of the library with the product of this module; peft finds it by the class below."""

    def forward(layer: Any, states: Tensor) -> Tensor:
        return _product(states, layer.weight, layer.bias)

    return type(kind.__name__, (kind,), {"__module__": __name__, "forward": forward})


def _product(states: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
    """states W' + bias in the type of autocast, or of the states."""
    kind = states.device.type
    if torch.is_autocast_enabled(kind):
        states = states.to(torch.get_autocast_dtype(kind))
        product: Tensor = _FrozenProduct.apply(states, weight)  # type: ignore[no-untyped-call]
    else:
        wide = states.to(product_dtype(states.dtype, states.device))
        product = _FrozenProduct.apply(wide, weight).to(states.dtype)  # type: ignore[no-untyped-call]
    return product if bias is None else product + bias.to(product.dtype)


class _FrozenProduct(torch.autograd.Function):
    """states W', whose weights are whole only while they are multiplied."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Any) -> Tensor:
        ctx.weight = weight
        return linear(states, dequantised(weight, states.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ dequantised(ctx.weight, gradient.dtype), None


def dequantised(weight: Any, dtype: torch.dtype) -> Tensor:
    """The numbers that a quantised weight stands for, (out, in) in a type."""
    if isinstance(weight, bitsandbytes().nn.Int8Params):
        codes, scales = weight.data, weight.SCB[:, None] / _INT8_STEPS
        whole = torch.empty(codes.shape, dtype=dtype, device=codes.device)
        return torch.mul(codes, scales, out=whole)
    functional, state = bitsandbytes().functional, weight.quant_state
    scales = state.absmax
    if state.nested:
        scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
    # as rows of one block: rows that end within a block are read wrongly on a CPU (seen in 0.50)
    count = state.shape.numel()
    rows = (count // state.blocksize, state.blocksize) if count % state.blocksize == 0 else (1, count)
    plain = functional.QuantState(scales, rows, blocksize=state.blocksize, quant_type=state.quant_type, dtype=dtype)
    blocks: Tensor = functional.dequantize_4bit(weight.data, plain)
    return blocks.view(state.shape)


def bytes_held(quantization: Quantization, weights: int, rows: int) -> int:
    """What so many quantised weights in so many rows take: codes and scales."""
    if quantization == "int8":
        return weights + 4 * rows
    blocks = -(-weights // _BLOCK)
    return -(-weights // 2) + blocks + 4 * -(-blocks // _NESTED_BLOCK)


def bytes_in_product(quantization: Quantization, weights: int, compute: torch.dtype, device: torch.device) -> int:
    """What a layer of so many weights takes while it is multiplied in a type: its numbers, and what they come from."""
    if quantization == "int8":  # on a CPU both factors are widened before they are multiplied
        return weights * (compute.itemsize + (8 if device.type == "cpu" else 0))
    return weights * compute.itemsize + 2 * 4 * -(-weights // _BLOCK)


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a linear layer of quantised weights."""
    return "bitsandbytes" in sys.modules and isinstance(module, _kinds())


def dequantise(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the quantised layers of a model by plain ones of the numbers that they stand for."""
    for parent in model.modules():
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, child in children:
            if is_quantised(child):
                has_bias = child.bias is not None
                plain = nn.Linear(child.in_features, child.out_features, bias=has_bias, device="meta")
                plain.weight = nn.Parameter(dequantised(child.weight, dtype), requires_grad=False)
                if has_bias:
                    plain.bias = nn.Parameter(child.bias.to(dtype), requires_grad=False)
                setattr(parent, name, plain)
