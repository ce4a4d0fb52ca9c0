"""Gradients over all ranks: whole ones added up in buckets, and their norm, wherever they are kept.

Every rank accumulates the gradient of its own pairs, in as many micro-batches as these take, or none. What is whole
on every rank is added up once a step, before it is clipped. What is sharded has been reduced by torch's FSDP2 as each
micro-batch's backward pass went along.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from simpo_cli.distributed import ranks
from simpo_cli.distributed.sharded import is_sharded, local

BUCKET_BYTES = 256 * 2**20
"""What is flattened and added up at once."""


def reduce_gradients(parameters: Sequence[nn.Parameter], has_gradient: Sequence[bool]) -> None:
    """Add up the gradients of parameters that are whole on every rank.

    Args:
        parameters: the trainable ones, in the same order on every rank; sharded ones are left as they are.
        has_gradient: of each, whether some rank has a gradient for it; else it stays without one on all.
    """
    if ranks.world_size() == 1:
        return
    wanted = [p for p, has in zip(parameters, has_gradient, strict=True) if has and not is_sharded(p)]
    for bucket in _buckets(wanted):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket])
        ranks.sum_over_ranks(flat)
        for parameter, summed in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(summed.view_as(parameter))


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type, as many as a bucket holds; one that is larger is a bucket of its own."""
    bucket: list[nn.Parameter] = []
    held = 0
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if bucket and (held + size > BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(parameter)
        held += size
    if bucket:
        yield bucket


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The norm of tensors together, over all their shards: a collective where some are sharded."""
    if ranks.world_size() == 1 or not any(map(is_sharded, tensors)):
        return torch.nn.utils.get_total_norm(list(map(local, tensors)))  # the only shard is all of it
    shards = [part for tensor in tensors if is_sharded(tensor) and (part := local(tensor)).numel()]
    whole = [tensor for tensor in tensors if not is_sharded(tensor)]
    squares = torch.nn.utils.get_total_norm(shards).square() if shards else local(tensors[0]).new_zeros(())
    ranks.sum_over_ranks(squares)
    return (squares + torch.nn.utils.get_total_norm(whole).square()).sqrt() if whole else squares.sqrt()
