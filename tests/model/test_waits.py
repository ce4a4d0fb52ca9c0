"""Nothing between a micro-batch and its gradient waits for the device.

Checked on torch's device without data, which stands for a card: what reads a value there raises, and what moves data
to or from it is counted.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from simpo_cli.data.plan import Packing
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.packed import PackedPairs, PackLayout, pack
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import LoraRecipe
from tests.model.reference import random_pairs
from tests.tiny import tiny_model

PACKINGS: tuple[Packing, ...] = get_args(Packing)
CPU, CARD = torch.device("cpu"), torch.device("meta")


class _Waits(TorchDispatchMode):
    """Counts what moves data between devices; numbers without a dimension are the host's own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves([args, kwargs, result]) if isinstance(leaf, Tensor) and leaf.dim()]
        if len({tensor.device for tensor in tensors}) > 1 and func.namespace != "simpo":
            self.seen[str(func)] += 1
        return result


def _imagined(packed: PackedPairs) -> PackedPairs:
    """The same on a card, as `pack` leaves it there."""
    tensors = (packed.tokens, packed.positions, packed.predicting, packed.targets, packed.response_lengths)
    layout = PackLayout(packed.layout.lengths, packed.layout.sequences.to(CARD))
    return PackedPairs(*(tensor.to(CARD) for tensor in tensors), layout)


def _step(policy: Policy, packed: PackedPairs) -> Counter[str]:
    with _Waits() as waits:
        chosen, rejected = policy.response_means(packed)
        torch.autograd.backward((chosen - rejected).sum())
    return waits.seen


@pytest.mark.parametrize("with_adapters", [False, True])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize(
    ("name", "changes"), [("llama", {}), ("mistral", {"sliding_window": 5}), ("gemma3_text", {"sliding_window": 6})]
)
def test_forward_and_backward_read_nothing_from_the_card(
    name: str, changes: dict[str, Any], packing: Packing, with_adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simpo_cli.model.attention.interface.fits_varlen", lambda _: True)
    monkeypatch.setattr("torch.is_autocast_enabled", lambda *_: False)  # this device has none
    monkeypatch.setattr("torch.autocast", lambda *_, **__: nullcontext())
    if packing == "padded":  # one look at the positions that transformers takes itself, whatever it is given
        monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda _: None)
    with CARD:
        model = tiny_model(name, dtype=torch.bfloat16, **changes)
        if with_adapters:
            model = add_adapters(model, LoraRecipe(rank=4))
    policy = Policy(model, packing).train()
    policy.recompute_activations()
    assert _step(policy, _imagined(pack(random_pairs(4, seed=1), CPU))) == {}
    assert any(p.grad is not None for p in policy.parameters())


def test_what_waits_is_seen() -> None:
    numbers = torch.empty(3, device=CARD)
    with _Waits() as waits:
        numbers + torch.empty(3).to(CARD)
    assert waits.seen == {"aten._to_copy.default": 1}
    for wait in (lambda: bool((numbers > 0).all()), lambda: numbers.sum().item(), numbers.nonzero, numbers.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()


def test_a_micro_batch_is_moved_by_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one pinned buffer to one on the card, and what the model reads are views of the latter."""
    asked: list[tuple[Any, ...]] = []
    empty = torch.empty

    def unpinned(*args: Any, pin_memory: bool, **options: Any) -> Tensor:
        asked.append(("pinned", pin_memory))
        return empty(*args, **options)

    def moved(tensor: Tensor, device: torch.device, *, non_blocking: bool) -> Tensor:
        asked.append(("moved", device.type, non_blocking))
        return tensor.clone()

    monkeypatch.setattr(torch, "empty", unpinned)
    monkeypatch.setattr(Tensor, "to", moved)
    packed = pack(random_pairs(3, seed=2), torch.device("cuda"))
    monkeypatch.undo()
    assert asked == [("pinned", True), ("moved", "cuda", True)]
    on_card = [packed.tokens, packed.positions, packed.predicting, packed.targets, packed.response_lengths]
    assert len({tensor.untyped_storage().data_ptr() for tensor in on_card}) == 1
    assert packed.layout.sequences._base is None
    expected = pack(random_pairs(3, seed=2), CPU)
    for ours, own in zip(on_card, [expected.tokens, expected.positions, expected.predicting], strict=False):
        assert torch.equal(ours, own)
    assert torch.equal(packed.layout.sequences, expected.layout.sequences)
