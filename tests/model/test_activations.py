"""What is saved for the backward pass: counted against a count by hand, and moved without a change of any bit."""

import weakref
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from simpo_cli.data.plan import Packing
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model import activations
from simpo_cli.model.activations import ActivationsOnHost, SavedBytes, require_offloadable
from simpo_cli.model.backend import BACKENDS
from simpo_cli.model.packed import PackedPairs, pack
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe
from tests.model.live_bytes import LiveBytes
from tests.model.reference import adapted, gradients, random_pairs
from tests.tiny import tiny_model

CPU = torch.device("cpu")


class _Products(nn.Module):
    """Two products that share an input, and a view of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(64, 32)) for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        one, two = linear(states, self.first), linear(states, self.second)
        return (one[:, :10] * two.sigmoid()[:, :10]).sum()


@pytest.mark.parametrize("narrow", [False, True])
def test_bytes_are_those_of_activations_each_counted_once(narrow: bool) -> None:
    model, states = _Products(), torch.randn(100, 32, requires_grad=True) * 1
    saved = SavedBytes(model)
    with saved, torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        model(states).backward()
    # the input, which autocast copies for each product, one output and the sigmoid of the other; of no weight, and no
    # narrower copy of one
    inputs = 2 * 2 * 32 if narrow else 4 * 32
    assert saved.total == 100 * (inputs + (2 if narrow else 4) * (64 + 64))


@pytest.mark.parametrize("hooks", [SavedBytes, ActivationsOnHost])
@pytest.mark.parametrize("passes_back", [False, True])
def test_nothing_of_a_pass_is_held_after_it(hooks: type[Any], passes_back: bool) -> None:
    model, states = _Products(), torch.randn(100, 32, requires_grad=True) * 1
    with hooks(model):
        outcome = model(states)  # a sigmoid saves its own output
        if passes_back:
            outcome.backward()
    held = weakref.ref(states.untyped_storage())
    del outcome, states
    assert held() is None


@pytest.mark.parametrize("packing", get_args(Packing))
def test_bytes_are_about_those_that_are_alive_when_the_forward_pass_ends(packing: Packing) -> None:
    policy = Policy(tiny_model("llama", hidden_size=64, intermediate_size=256, num_hidden_layers=6), packing).train()
    packed = pack(random_pairs(40, seed=5), CPU)
    saved, live = SavedBytes(policy), LiveBytes()
    policy(packed)  # what is made when it is first wanted
    with live, saved:
        kept = policy(packed)
    assert 0.75 * live.peak < saved.total < live.peak
    assert kept.requires_grad


class _Watched(ActivationsOnHost):
    """Keeps what becomes of each tensor that is saved."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__(policy)
        self.stayed: list[Tensor] = []
        self.moved: list[Any] = []

    def _to_host(self, tensor: Tensor) -> Any:
        saved = super()._to_host(tensor)
        (self.stayed if isinstance(saved, Tensor) else self.moved).append(saved)
        return saved


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("packing", get_args(Packing))
@pytest.mark.parametrize("adapters", [False, True])
def test_no_bit_of_a_gradient_changes_and_no_weight_is_moved(
    packing: Packing, checkpointing: bool, adapters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_SMALLEST", 2048)
    model = tiny_model("llama", dtype=torch.float32)
    policy = Policy(adapted(model, LoraRecipe()) if adapters else model, packing).train()
    if checkpointing:
        policy.recompute_activations()
    packed = pack(random_pairs(12, seed=11), CPU)

    def gradient(packed: PackedPairs = packed) -> tuple[Tensor, dict[str, Tensor]]:
        policy.zero_grad()
        logps = policy(packed)
        (logps * torch.linspace(0.5, 1.0, len(logps))).sum().backward()
        return logps.detach(), gradients(policy)

    logps, expected = gradient()
    policy._saved = watched = _Watched(policy)
    there, found = gradient()
    assert torch.equal(there, logps)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    large = [one for one in watched.stayed if one.untyped_storage().nbytes() >= 2048]
    assert {one.untyped_storage().data_ptr() for one in large} <= weights  # nothing else stays on the device
    shapes = {tuple(sorted(parameter.shape)) for parameter in policy.parameters() if parameter.dim() > 1}
    assert watched.moved
    assert not [one for one in watched.moved if tuple(sorted(one.size)) in shapes]
    if not checkpointing:  # queries, keys and values share their input: one copy
        assert len({one.storage.data_ptr() for one in watched.moved}) < len(watched.moved)
    del packed, gradient  # whose tensors may be among those that were saved
    assert not watched._copies  # nothing else outlives the step


def test_how_a_tensor_lies_in_memory_comes_back_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_SMALLEST", 1)
    hooks = ActivationsOnHost(nn.Linear(2, 2))
    whole = torch.randn(6, 8, 4)
    for view in (whole, whole.transpose(0, 2), whole[2:, ::2], whole[1], whole.to(torch.bfloat16)[:, 3]):
        moved = hooks._to_host(view)
        back = hooks._from_host(moved)
        assert torch.equal(back, view)
        assert (back.stride(), back.storage_offset(), back.dtype) == (view.stride(), view.storage_offset(), view.dtype)
        assert back.data_ptr() != view.data_ptr()


@pytest.mark.parametrize("pinned", [False, True])
def test_copies_to_page_locked_memory_are_not_waited_for(pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    empty, copy = torch.empty, Tensor.copy_

    def make(*size: Any, pin_memory: bool | None = None, **options: Any) -> Tensor:
        if pin_memory is not None:
            asked.append(pin_memory)
        return empty(*size, **options)

    def copying(to: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        asked.append(non_blocking)
        return copy(to, source)

    row = BACKENDS["cuda" if pinned else "xpu"]
    monkeypatch.setattr(activations, "backend_of", lambda _: row)
    monkeypatch.setattr(torch, "empty", make)
    monkeypatch.setattr(Tensor, "copy_", copying)
    ActivationsOnHost(nn.Linear(2, 2))._to_host(torch.zeros(1 << 18))
    assert asked == [pinned, pinned]


def test_moving_is_refused_where_host_and_device_share_their_memory() -> None:
    recipe = ModelRecipe(path="m", activation_offload=True)
    for kind in ("cpu", "mps"):
        with pytest.raises(UserError, match=f"and {kind} shares its memory") as caught:
            require_offloadable(recipe, torch.device(kind))
        assert caught.value.exit_code == ExitCode.USAGE
    require_offloadable(recipe, torch.device("cuda"))
    require_offloadable(ModelRecipe(path="m"), CPU)
