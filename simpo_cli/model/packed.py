"""A micro-batch of pairs on the device: every prompt once, every token real, no padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simpo_cli.data.pair import EncodedPair
from simpo_cli.model.backend import backend_of


class PairSpan(NamedTuple):
    """Where one pair lies in the pack: prompt, chosen and rejected side by side from `start`.

    The last token of a response is predicted and never read, so it is not in the pack: `chosen` and `rejected` are one
    less than the responses' lengths, and may be 0.
    """

    start: int
    prompt: int
    chosen: int
    rejected: int

    @property
    def end(self) -> int:
        return self.start + self.prompt + self.chosen + self.rejected


class PackLayout(NamedTuple):
    """Where the pairs lie, as tensors: numbers would make every pack another graph to a compiler.

    Attributes:
        lengths: (3P,) int64 on the CPU, where reading them waits for no device: prompt, chosen and rejected of each
            pair as in `PairSpan`. Flat, because a compiler treats a dimension of 1 as a case of its own.
        sequences: int32 on the device: what `sequences_of` tells of them.
    """

    lengths: Tensor
    sequences: Tensor

    @property
    def spans(self) -> tuple[PairSpan, ...]:
        return spans_of(tuple(self.lengths.tolist()))


@dataclass(frozen=True, slots=True)
class PackedPairs:
    """Pairs laid end to end, each as prompt, chosen, rejected. All but `layout.lengths` came in one copy.

    Attributes:
        tokens: (T,) int64 ids that the model reads.
        positions: (T,) int64; a response's tokens stand where they would stand alone behind the prompt.
        predicting: (N,) int64 indices into `tokens`: the token before each response token, the prompt's last one for
            the first; chosen and rejected of the first pair, then of the second, and so on.
        targets: (N,) int64 ids of the response tokens, in the same order.
        response_lengths: (P, 2) int64: scored tokens of chosen and rejected, all above 0.
        layout: where each pair lies.
    """

    tokens: Tensor
    positions: Tensor
    predicting: Tensor
    targets: Tensor
    response_lengths: Tensor
    layout: PackLayout

    @property
    def spans(self) -> tuple[PairSpan, ...]:
        return self.layout.spans


def pack(pairs: Sequence[EncodedPair], device: torch.device) -> PackedPairs:
    """Lay pairs end to end and move them to the device, in one copy that nothing waits for."""
    lengths = [n for pair in pairs for n in (len(pair.prompt), len(pair.chosen) - 1, len(pair.rejected) - 1)]
    tokens: list[NDArray[Any]] = []
    positions: list[NDArray[Any]] = []
    predicting: list[NDArray[Any]] = []
    targets: list[NDArray[Any]] = []
    for pair, span in zip(pairs, spans_of(tuple(lengths)), strict=True):
        tokens += [pair.prompt, pair.chosen[:-1], pair.rejected[:-1]]
        positions.append(np.arange(span.prompt))
        first = span.start + span.prompt
        for length in (span.chosen, span.rejected):
            positions.append(np.arange(span.prompt, span.prompt + length))
            predicting += [np.array([span.start + span.prompt - 1]), np.arange(first, first + length)]
            first += length
        targets += [pair.chosen, pair.rejected]
    parts = [np.concatenate(part) for part in (tokens, positions, predicting, targets)]
    parts.append(np.array([len(response) for pair in pairs for response in (pair.chosen, pair.rejected)]))
    moved, sequences = _moved_at_once(parts, sequences_of(lengths), device)
    return PackedPairs(
        tokens=moved[0],
        positions=moved[1],
        predicting=moved[2],
        targets=moved[3],
        response_lengths=moved[4].view(-1, 2),
        layout=PackLayout(torch.tensor(lengths), sequences),
    )


def layout_of(spans: Sequence[PairSpan], device: torch.device) -> PackLayout:
    """The layout of a pack of such pairs."""
    lengths = [n for span in spans for n in (span.prompt, span.chosen, span.rejected)]
    return PackLayout(torch.tensor(lengths), torch.from_numpy(sequences_of(lengths)).to(device))


@lru_cache(maxsize=8)  # every layer of a micro-batch asks for the same
def spans_of(lengths: tuple[int, ...]) -> tuple[PairSpan, ...]:
    """The pairs of a pack from the (3P,) lengths of their parts."""
    spans, start = [], 0
    for first in range(0, len(lengths), 3):
        span = PairSpan(start, *lengths[first : first + 3])
        spans.append(span)
        start = span.end
    return tuple(spans)


class SequenceSizes(NamedTuple):
    """What a variable-length kernel and its inputs are sized by.

    Attributes:
        tokens: of the pack.
        keys: gathered rows, every prompt up to three times.
        sequences: up to three a pair.
        most_queries, most_keys: of a sequence.
    """

    tokens: int
    keys: int
    sequences: int
    most_queries: int
    most_keys: int


@lru_cache(maxsize=8)
def sizes_of(lengths: tuple[int, ...]) -> SequenceSizes:
    """The sizes of a pack from the (3P,) lengths of its parts."""
    spans = spans_of(lengths)
    return SequenceSizes(
        tokens=sum(lengths),
        keys=sum(lengths) + sum(span.prompt * ((span.chosen > 0) + (span.rejected > 0)) for span in spans),
        sequences=sum(length > 0 for length in lengths),
        most_queries=max(lengths),
        most_keys=max(span.prompt + max(span.chosen, span.rejected) for span in spans),
    )


def sequences_of(lengths: Sequence[int]) -> NDArray[np.int32]:
    """A pack as a variable-length kernel sees it.

    As (queries, keys) of different lengths a pair is three sequences, each causal and aligned at its end:
    (prompt, prompt), (chosen, prompt + chosen), (rejected, prompt + rejected). Sequences without queries are left out.
    So queries are the pack's own rows, and keys are gathered, every prompt up to three times.

    Args:
        lengths: (3P,) of prompt, chosen and rejected of each pair.

    Returns:
        One after the other, all int32: (K,) rows of the pack that are keys, sequence after sequence; (3, T) the places
        of each row of the pack among those keys, with K where it is there less than three times; (S + 1,) ends of the
        sequences among the queries, with a 0 in front; (S + 1,) ends among the keys.
    """
    sizes = sizes_of(tuple(lengths))
    keys = np.empty(sizes.keys, np.int32)
    copies = np.full((3, sizes.tokens), sizes.keys, np.int32)
    query_ends, key_ends = [0], [0]
    for span in spans_of(tuple(lengths)):
        prompt = np.arange(span.start, span.start + span.prompt)
        responses = np.split(np.arange(prompt[-1] + 1, span.end), [span.chosen])
        copy = 0
        for own in (prompt, *responses):
            if not len(own):
                continue
            at = key_ends[-1]
            rows = own if own is prompt else np.concatenate([prompt, own])
            keys[at : at + len(rows)] = rows
            copies[copy, prompt] = np.arange(at, at + span.prompt)
            if own is not prompt:
                copies[0, own] = np.arange(at + span.prompt, at + len(rows))
            copy += 1
            query_ends.append(query_ends[-1] + len(own))
            key_ends.append(at + len(rows))
    return np.concatenate([keys, copies.ravel(), np.array(query_ends, np.int32), np.array(key_ends, np.int32)])


def _moved_at_once(
    parts: Sequence[NDArray[Any]], last: NDArray[np.int32], device: torch.device
) -> tuple[list[Tensor], Tensor]:
    """Arrays as int64 tensors on a device, and one of int32, by a single copy to it."""
    sizes = [len(part) for part in parts] + [(len(last) + 1) // 2]
    host = torch.empty(sum(sizes), dtype=torch.int64, pin_memory=backend_of(device).pinned)
    *wide, narrow = torch.split(host, sizes)
    for tensor, part in zip(wide, parts, strict=True):
        tensor.numpy()[:] = part
    narrow.view(torch.int32).numpy()[: len(last)] = last
    *moved, narrow = torch.split(host.to(device, non_blocking=True), sizes)
    # on the device again, and no view: how a view lies in its buffer would make it another graph to a compiler
    return moved, narrow.view(torch.int32)[: len(last)].clone()
