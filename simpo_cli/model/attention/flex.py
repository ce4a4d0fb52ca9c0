"""Soft-capped attention over packed pairs on a CUDA device: torch's FlexAttention, one kernel for the whole pack.

The variable-length kernel has no soft cap. FlexAttention compiles one with it; a block mask names the blocks of
128 queries by 128 keys that hold anything to compute. Everything about pairs is in one picture: a token sees a run of
its prompt and a run of its own segment, the latter up to itself. A window shortens both runs, so that one compiled
kernel serves layers with and without one, and every pack.

Where a pair lies in the pack shifts it against the blocks, so its result depends on that in the rounding. The plan
fixes it, so a resumed run still has equal bits.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from simpo_cli.model.packed import PairSpan

_BLOCK = 128
_FIRST_CAPABILITY = (8, 0)  # Ampere: bf16


def fits_flex(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel is for this type, width and device. In float32 attention goes segment by segment."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and key.shape[-1] == value.shape[-1]
        and _has_kernel(query.device)
    )


@lru_cache(maxsize=8)
def _has_kernel(device: torch.device) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= _FIRST_CAPABILITY


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Sequence[PairSpan],
    scale: float,
    window: int | None,
    softcap: float,
) -> Tensor:
    """Soft-capped attention of every pair; see `interface.shared_prefix_attention`. Returns (1, T, H, V)."""

    cap, inner = _constants(softcap, scale, query.device, torch.promote_types(query.dtype, torch.float32))

    def capped(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return cap * torch.tanh(score * inner)

    compute = _compiled() if query.device.type == "cuda" else _flex
    return compute(query, key, value, capped, block_mask(tuple(spans), window, query.device)).transpose(1, 2)


@lru_cache(maxsize=4)
def _constants(softcap: float, scale: float, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The cap, and what a score is multiplied by before it is capped.

    As tensors: numbers would either be part of what is compiled, or make it fail with lengths that are not.
    """
    cap, inner = (torch.full((), number, dtype=dtype, device=device) for number in (softcap, scale / softcap))
    return cap, inner


def _flex(query: Tensor, key: Tensor, value: Tensor, capped: Callable[..., Tensor], mask: BlockMask) -> Tensor:
    """(1, H, T, V); not compiled, it holds all scores."""
    attended = flex_attention(
        query,
        key,
        value,
        score_mod=capped,
        block_mask=mask,
        scale=1.0,
        enable_gqa=True,
        kernel_options={"BACKEND": "TRITON"},  # not the one for short queries, which splits the sum over the keys
    )
    assert isinstance(attended, Tensor)
    return attended


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    """One kernel for every pack, window, cap and scale; where it cannot be, an error and not all scores in memory."""
    return torch.compile(_flex, dynamic=True, fullgraph=True)


@lru_cache(maxsize=4)  # every layer of a micro-batch with this window asks for the same
def block_mask(spans: tuple[PairSpan, ...], window: int | None, device: torch.device) -> BlockMask:
    """The block mask of a pack, without ever holding a (T, T) mask, and without waiting for the device."""
    runs = torch.from_numpy(_runs(spans, window))
    if device.type == "cuda":
        runs = runs.pin_memory()
    prompt_first, prompt_end, own_first = runs.to(device, non_blocking=True).unbind()

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        of_prompt = (key >= prompt_first[query]) & (key < prompt_end[query])
        return of_prompt | ((key >= own_first[query]) & (key <= query))

    length = runs.shape[1]
    rows = torch.arange(length, dtype=torch.int32, device=device)
    blocks = torch.arange(0, length, _BLOCK, dtype=torch.int32, device=device)

    def keys_in_blocks(first: Tensor, end: Tensor) -> Tensor:
        """(T, blocks): how many keys of each query's run lie in each block."""
        return (torch.minimum(end[:, None], blocks + _BLOCK) - torch.maximum(first[:, None], blocks)).clamp_min(0)

    seen = keys_in_blocks(prompt_first, prompt_end) + keys_in_blocks(own_first, rows + 1)
    seen = torch.nn.functional.pad(seen, (0, 0, 0, len(blocks) * _BLOCK - length))
    seen = seen.view(len(blocks), _BLOCK, -1).sum(1)
    whole = seen == _BLOCK * _BLOCK
    return BlockMask.from_kv_blocks(
        *_ordered((seen > 0) & ~whole),
        *_ordered(whole),
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees,
        seq_lengths=(length, length),
    )


def _runs(spans: Sequence[PairSpan], window: int | None) -> NDArray[np.int32]:
    """(3, T): the first key of its prompt that a query sees, the end of those, and the first of its own segment."""
    back = spans[-1].end if window is None else window - 1
    pieces = []
    for span in spans:
        chosen = span.start + span.prompt
        for own, length, before in (
            (span.start, span.prompt, 0),  # the prompt has no prompt before it
            (chosen, span.chosen, span.prompt),
            (chosen + span.chosen, span.rejected, span.prompt),
        ):
            at = np.arange(length)  # in the segment
            prompt_first = np.maximum(span.start + before + at - back, span.start)
            pieces.append([prompt_first, np.full(length, span.start + before), own + np.maximum(at - back, 0)])
    runs: NDArray[np.int32] = np.concatenate(pieces, axis=1).astype(np.int32)
    return runs


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are set, (1, 1, blocks), and which, those first, (1, 1, blocks, blocks)."""
    which = torch.argsort(blocks.to(torch.int32), dim=1, descending=True, stable=True)
    return blocks.sum(1, dtype=torch.int32)[None, None], which.to(torch.int32)[None, None]
