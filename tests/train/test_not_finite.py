"""Something not finite in the loss, the gradient, a weight or the optimizer's state of a run: never saved or hidden.

The embedded model trains; at the third step one thing is spoilt. The first two steps stay as they were.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from simpo_cli.data.pair import EncodedPair
from simpo_cli.errors import ExitCode
from simpo_cli.model.not_finite import NotFiniteError, listed
from simpo_cli.model.policy import Policy
from simpo_cli.objective import Objective, PairTerms
from simpo_cli.train import build, loop, outcome
from simpo_cli.train.optimizer import start_moments
from tests.train.runs import Runs

STEP = 3


def _fails(guide: Runs) -> NotFiniteError:
    """The run stops with exit code 5, and nothing that it has written holds a number that is not finite."""
    with pytest.raises(NotFiniteError) as caught:
        guide.train("run")
    assert caught.value.exit_code == ExitCode.NUMBERS
    assert [row["step"] for row in guide.log("run", "metrics")] == [1, 2]
    assert guide.require_all_finite("run") == [1, 2]
    assert not (guide.folder / "run" / "model").exists()
    receipt = guide.receipt("run")
    assert (receipt["status"], receipt["step"]) == ("failed", 2)
    assert receipt["outcome"]["records"] == caught.value.records
    assert caught.value.problem in receipt["outcome"]["error"]
    return caught.value


def _at_step(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Policy, Sequence[EncodedPair]], None]) -> None:
    """Call something before the third step's forward pass, with the policy and the step's pairs."""
    real, calls = loop.accumulate, []

    def spoilt(policy: Policy, pairs: Sequence[EncodedPair], *rest: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == STEP:
            spoil(policy, pairs)
        return real(policy, pairs, *rest, **options)

    monkeypatch.setattr(loop, "accumulate", spoilt)


def test_in_the_loss_only(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    due: list[str] = []
    real, once = Objective.terms, iter([True])

    def spoilt(objective: Objective, chosen: Tensor, rejected: Tensor) -> PairTerms:
        terms = real(objective, chosen, rejected)
        if due and next(once, False):
            terms.losses.data[0] = math.nan
        return terms

    monkeypatch.setattr(Objective, "terms", spoilt)
    _at_step(monkeypatch, lambda _, pairs: due.extend(pair.where for pair in pairs))
    error = _fails(guide)
    [record] = error.records
    assert record in due
    assert record.startswith("builtin:guide")
    assert error.problem == f"step 3: the loss of 1 pair is not finite: {record}."


class _Poison(torch.autograd.Function):
    """Leaves values as they are and spoils the gradient where it is told to."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(where)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        [where] = ctx.saved_tensors
        return gradients[0].masked_fill(where.unsqueeze(-1), math.inf), None


def test_in_the_gradient_only_the_pair_that_makes_it_is_found(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    culprits: list[str] = []

    def poison(policy: Policy, pairs: Sequence[EncodedPair]) -> None:
        culprits.append(pairs[2].where)
        ids = torch.tensor(pairs[2].chosen[:-1].tolist())  # its last token is only predicted

        def poisoned(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            where = torch.zeros_like(inputs[0], dtype=torch.bool)
            if inputs[0].shape[-1] >= len(ids):
                found = (inputs[0].unfold(-1, len(ids), 1) == ids).all(-1)
                where[..., : found.shape[-1]] = found
            spoilt: Tensor = _Poison.apply(output, where)
            return spoilt

        policy.causal.get_input_embeddings().register_forward_hook(poisoned)

    _at_step(monkeypatch, poison)
    error = _fails(guide)
    assert error.records == culprits
    assert error.problem == f"step 3: the gradient is not finite; it comes from 1 pair: {culprits[0]}."


def test_in_a_weight_before_the_step(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    _at_step(monkeypatch, lambda policy, _: _spoil(next(policy.parameters())))
    error = _fails(guide)
    assert "of the weights is not finite, and so is the loss of" in error.problem
    assert error.records
    assert "damaged" in error.fix


def _spoil(weight: Tensor) -> None:
    weight.data.view(-1)[5:] = math.nan


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The optimizer's state of the run's first tensor, once it is made."""
    states: list[Any] = []

    def start(optimizer: optim.Optimizer) -> None:
        start_moments(optimizer)
        states.append(next(iter(optimizer.state.values())))

    monkeypatch.setattr(build, "start_moments", start)
    return states


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq"])
def test_in_the_optimizers_state(guide: Runs, monkeypatch: pytest.MonkeyPatch, state: list[Any], key: str) -> None:
    _at_step(monkeypatch, lambda *_: _spoil(state[0][key]))
    error = _fails(guide)
    assert error.problem.startswith("step 3: after the update ")
    assert f"so is {key} of " in error.problem
    assert len(error.records) == 4  # of its pairs: none is to blame, and they are named all the same


def test_a_moment_that_no_weight_shows_is_seen_by_the_save(
    guide: Runs, monkeypatch: pytest.MonkeyPatch, state: list[Any]
) -> None:
    _at_step(monkeypatch, lambda *_: state[0]["exp_avg_sq"].fill_(math.inf))
    with pytest.raises(NotFiniteError, match="the state after step 3 is not saved: exp_avg_sq of .* of the optimizer"):
        guide.train("run")
    assert guide.require_all_finite("run") == [1, 2]


def test_held_out_log_probs_that_are_not_finite_stop_the_run_and_are_named(
    guide: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.score_pairs

    def spoilt(policy: Any, pairs: Any, *rest: Any) -> Any:
        scores = real(policy, pairs, *rest)
        if spoilt.calls:  # type: ignore[attr-defined]
            scores.rejected[1] = -math.inf  # the loss of such a pair is a fine 0
        spoilt.calls += 1  # type: ignore[attr-defined]
        return scores

    spoilt.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(loop, "score_pairs", spoilt)
    with pytest.raises(NotFiniteError, match="evaluation at step 2: the log-prob of 1 pair is not finite: builtin"):
        guide.train("run")
    assert guide.require_all_finite("run") == [1]
    assert [row["step"] for row in guide.log("run", "evals")] == [0]


def test_a_model_that_its_export_type_cannot_hold_is_not_written(guide: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    real = outcome.save_model

    def large(folder: Path, model: nn.Module, *rest: Any) -> Any:
        next(model.parameters()).data.view(-1)[0] = 1e6  # float16 ends at 65,504
        return real(folder, model, *rest)

    monkeypatch.setattr(outcome, "save_model", large)
    with pytest.raises(NotFiniteError, match="model/ in export.dtype .* is not finite"):
        guide.train("run", "train.max_steps=1", "export.dtype=fp16")
    assert not (guide.folder / "run" / "model").exists()
    assert guide.require_all_finite("run") == [1]


def test_many_records_are_named_up_to_ten() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(n) for n in range(12)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"


def test_the_command_says_it_and_ends_with_5(
    guide: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simpo_cli.cli.main import run

    real, once = Objective.terms, iter([True])

    def spoilt(objective: Objective, chosen: Tensor, rejected: Tensor) -> PairTerms:
        terms = real(objective, chosen, rejected)
        if chosen.requires_grad and next(once, False):  # of a step, not of the evaluation before it
            terms.losses.data[0] = math.nan
        return terms

    monkeypatch.setattr(Objective, "terms", spoilt)
    monkeypatch.chdir(guide.folder)
    assert run(["train", "run.yaml", "eval.every=null"]) == ExitCode.NUMBERS
    said = capsys.readouterr().err
    assert "Error: step 1: the loss of 1 pair is not finite: builtin:guide" in said
    assert "Traceback" not in said
    assert "step 1: the loss of 1 pair is not finite" in (guide.folder / "runs" / "guide" / "report.html").read_text(
        encoding="utf-8"
    )
