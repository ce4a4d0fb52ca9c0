"""The micro-batch before step 1: measured on a played card and on a CPU, lowered, refused, without a trace."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.activations import ActivationsOnHost
from simpo_cli.model.backend import BACKENDS
from simpo_cli.model.out_of_memory import OutOfMemoryError
from simpo_cli.model.packed import PackedPairs
from simpo_cli.model.policy import Policy
from simpo_cli.train import build, fit
from simpo_cli.train.loop import Training
from tests.train.runs import Runs, final_state

A_TOKEN = 1_000_000


class Card:
    """Played memory of a card: the state, and bytes for each token of a forward pass with gradient, padding counted.

    Args:
        room: bytes that there are beside the state.
        holds: tokens of a forward pass above which memory runs out; None for any number.
    """

    def __init__(self, patch: pytest.MonkeyPatch, room: int, *, holds: int | None = None) -> None:
        self.seen: list[int] = []
        self.room, self.state, self._peak = room, 0, 0
        answers = SimpleNamespace(
            memory_reserved=lambda _: self.state,
            max_memory_allocated=lambda _: self._peak,
            reset_peak_memory_stats=self._reset,
        )
        patch.setattr(fit, "backend_of", lambda _: BACKENDS["cuda"])
        patch.setattr(fit, "free_bytes", lambda _: room)
        patch.setattr(torch, "get_device_module", lambda _: answers)
        forward, measure = Policy.forward, fit._measure

        def counting(policy: Policy, packed: PackedPairs) -> Tensor:
            tokens = 2 * len(packed.spans) * max(span.prompt + max(span.chosen, span.rejected) for span in packed.spans)
            self.seen.append(tokens)
            if holds is not None and tokens > holds:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            self._peak = max(self._peak, self.state + A_TOKEN * tokens)
            return forward(policy, packed)

        def measured(training: Training, batches: Any) -> Any:
            self.state = training.run.need.state
            with pytest.MonkeyPatch.context() as here:
                here.setattr(Policy, "forward", counting)
                return measure(training, batches)

        patch.setattr(fit, "_measure", measured)

    def _reset(self, _: torch.device) -> None:
        self._peak = self.state


def test_a_budget_that_does_not_fit_is_lowered_before_step_1_and_the_run_is_that_of_the_lower_one(
    guide: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto = "train.tokens_per_microbatch=auto"
    with monkeypatch.context() as patch:
        card = Card(patch, room=500 * A_TOKEN)
        memory = guide.train("lowered", auto)
        [lowered] = memory.said("before step 1")
        budget = guide.receipt("lowered")["plan"]["tokens_per_microbatch"]
        longest, before, alone, after = card.seen  # each time the longest pair, then the fullest micro-batch
        assert longest == alone < after <= budget < before <= 1024
        state, room = card.state, card.state + card.room
        assert A_TOKEN * after + state <= 0.95 * room < A_TOKEN * before + state
        assert budget > 400  # and no lower than it has to be
        assert lowered == (
            f"before step 1 a micro-batch of 1,024 tokens is too much for the memory: one holds at most {budget:,}"
        )
        [said] = memory.said("memory measured")
        found = guide.receipt("lowered")["plan"]["memory"]
        tokens = found["microbatch_tokens"]
        assert after < tokens <= budget  # the last token of a response is of its budget, and is not computed
        sizes = f"{(state + A_TOKEN * after) / 1e9:.2f} GB"
        assert said.startswith(f"memory measured: {sizes} with a micro-batch of {tokens:,} tokens, ")
        assert found["measured_bytes"] == state + A_TOKEN * after
        assert found["available_bytes"] == room
        assert 0 < found["predicted_bytes"] < 10**9
        card.seen.clear()
        guide.cut("killed", auto, step=3)
        assert len(card.seen) == 4
        memory = guide.train("killed", auto, resume=True)
    assert len(card.seen) == 4  # a run that is resumed measures nothing, and keeps what was found
    assert memory.said("not bit-exact") == []
    assert guide.receipt("killed")["plan"]["memory"]["measured_bytes"] == found["measured_bytes"]
    guide.require_same("killed", "lowered")
    guide.train("explicit", f"train.tokens_per_microbatch={budget}")
    assert final_state(guide.folder / "explicit") == final_state(guide.folder / "lowered")


@pytest.mark.parametrize("given", ["auto", "512"])
def test_memory_that_runs_out_before_step_1_halves_any_budget(
    guide: Runs, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    card = Card(monkeypatch, room=10**12, holds=300)
    memory = guide.train("run", f"train.tokens_per_microbatch={given}", "train.max_steps=2")
    tried = [1024, 512] if given == "auto" else [512]
    assert memory.said("ran out of memory") == [
        f"before step 1 a micro-batch of {budget:,} tokens ran out of memory: one holds at most {budget // 2:,}"
        for budget in tried
    ]
    assert guide.receipt("run")["plan"]["tokens_per_microbatch"] == 256
    assert [tokens > 300 for tokens in card.seen[1::2]] == [True] * len(tried) + [False]


def test_a_number_of_the_recipe_is_kept_and_the_run_says_that_memory_may_run_out(
    guide: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    Card(monkeypatch, room=400 * A_TOKEN)
    memory = guide.train("run", "train.tokens_per_microbatch=512", "train.max_steps=1")
    [said] = memory.said("memory measured")
    assert said.endswith(" GB: memory may run out")
    assert guide.receipt("run")["plan"]["tokens_per_microbatch"] == 512


@pytest.mark.parametrize("runs_out", [True, False])
def test_a_longest_pair_that_does_not_fit_ends_the_run_before_step_1(
    guide: Runs, monkeypatch: pytest.MonkeyPatch, runs_out: bool
) -> None:
    Card(monkeypatch, room=10**12 if runs_out else 10 * A_TOKEN, holds=20 if runs_out else None)
    with pytest.raises(OutOfMemoryError) as caught:
        guide.train("run", "train.tokens_per_microbatch=auto")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert caught.value.problem == "the longest pair does not fit in memory."
    assert "data.max_length" in caught.value.fix
    assert not (guide.folder / "run" / "metrics.jsonl").exists()
    monkeypatch.undo()
    guide.train("run", "train.tokens_per_microbatch=auto", "train.max_steps=1", resume=True)


def test_the_smallest_budget_of_all_ranks_is_taken(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank whose card has less room: its number is what `smallest` returns."""
    card = Card(monkeypatch, room=10**12)
    smallest = fit.ranks.smallest
    theirs = iter([300])

    def with_another(number: int, what: str) -> int:
        if what == "measuring a micro-batch" and number > 1:
            number = min(number, next(theirs, number))
        return smallest(number, what)

    monkeypatch.setattr(fit.ranks, "smallest", with_another)
    guide.train("run", "train.tokens_per_microbatch=auto", "train.max_steps=1")
    assert guide.receipt("run")["plan"]["tokens_per_microbatch"] == 300
    assert len(card.seen) == 3  # of the whole step at once, then of the longest pair and of what it is cut into


@pytest.mark.parametrize(
    "more",
    [(), ("model.attention=shared_prefix", "model.gradient_checkpointing=true"), ("model.lora.dropout=0.3",)],
    ids=["padded", "shared, checkpointed", "dropout"],
)
def test_measuring_leaves_no_trace(guide: Runs, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]) -> None:
    """The run's bits and the state of the generators are those of a run that does not measure."""
    states: list[Tensor] = []
    lost = fit.fit_microbatch

    def watched(training: Training) -> Any:
        states.append(torch.get_rng_state())
        modes = [module.training for module in training.policy.modules()]
        found = lost(training)
        states.append(torch.get_rng_state())
        assert [module.training for module in training.policy.modules()] == modes
        assert not all(modes)
        assert all(parameter.grad is None for parameter in training.policy.parameters())
        return found

    monkeypatch.setattr(build, "fit_microbatch", watched)
    guide.train("measured", *more)
    assert torch.equal(*states)
    found = guide.receipt("measured")["plan"]["memory"]
    assert 0.5 < found["measured_bytes"] / found["predicted_bytes"] < 1.3  # which knows no dropout
    monkeypatch.setattr(build, "fit_microbatch", lambda _: None)
    guide.train("not measured", *more)
    guide.require_same("measured", "not measured")


def test_a_run_of_one_micro_batch_measures_no_other(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch, room=10**12)
    guide.train("run", "train.tokens_per_microbatch=auto", "train.max_steps=1", "train.pairs_per_step=2")
    assert len(card.seen) == 1


# On devices that are not here


def test_a_run_goes_through_with_what_an_apple_device_has(tiny: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row of such a device in the place of the CPU's: no wide type, no page-locked memory, and the same numbers."""
    tiny.train("cpu")
    monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["mps"])
    memory = tiny.train("apple", "train.tokens_per_microbatch=1024")
    assert len(memory.said("mps: not run by us")) == 1
    assert final_state(tiny.folder / "apple") == final_state(tiny.folder / "cpu")


def test_activations_are_moved_only_from_a_card(tiny: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    offload = "model.activation_offload=true"
    with pytest.raises(UserError, match="cpu shares its memory"):
        tiny.train("run", offload)
    tiny.train("whole", "train.tokens_per_microbatch=1024")
    moved: list[Any] = []
    monkeypatch.setattr("simpo_cli.model.activations._SMALLEST", 1024)
    to_host = ActivationsOnHost._to_host

    def counting(hooks: ActivationsOnHost, tensor: Tensor) -> Any:
        moved.append(tensor.nbytes)
        return to_host(hooks, tensor)

    monkeypatch.setattr(ActivationsOnHost, "_to_host", counting)
    monkeypatch.setattr("simpo_cli.train.run_plan.require_offloadable", lambda *_: None)
    tiny.train("offloaded", offload, "train.tokens_per_microbatch=1024")
    assert moved
    assert final_state(tiny.folder / "offloaded") == final_state(tiny.folder / "whole")
