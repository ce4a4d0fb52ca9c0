"""The training loop. It reads as the method; what each line does is in the module of its name."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Plan, positions_of_part, probe, tokens_of_each
from simpo_cli.distributed import ranks
from simpo_cli.distributed.sharded import is_sharded
from simpo_cli.evaluate.answers import Question
from simpo_cli.evaluate.checked import CheckedAnswer
from simpo_cli.evaluate.metrics import PairScores, summarise
from simpo_cli.evaluate.scoring import score_pairs
from simpo_cli.model.backend import backend_of, release_memory
from simpo_cli.model.not_finite import require_finite_losses, require_finite_weights
from simpo_cli.model.out_of_memory import OutOfMemoryError, memory_for
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.model.rounding import WeightSample, loses_updates, step_counting_lost
from simpo_cli.model.shares import Share
from simpo_cli.recipe.schema import Recipe
from simpo_cli.run.events import EvalRecord, Observer, StepRecord
from simpo_cli.run.folder import leave_budget
from simpo_cli.run.receipt import command_to_resume
from simpo_cli.run.stop import StopRequest
from simpo_cli.stages import stage
from simpo_cli.train.health import AnswerProbe, Health
from simpo_cli.train.optimizer import learning_rate
from simpo_cli.train.run_plan import RunPlan
from simpo_cli.train.step import StepSums, accumulate, clip_gradients

_FEWER_ANSWERS = "Lower health.num_answers or health.answer_tokens."
_FREE_MEMORY = "Lower data.max_length: the longest held-out pair by itself is too long for the memory."

Result = TypeVar("Result")


@dataclass
class Training:
    """Everything that the loop works with, and how far it is."""

    run: RunPlan  # what was prepared, with the packing and the layers that are really used
    policy: Policy
    optimizer: torch.optim.Optimizer
    budget: int  # most tokens of a micro-batch; halved when memory runs out
    observer: Observer
    stop: StopRequest
    health: Health
    probe: AnswerProbe
    start_weights: WeightSample | None  # None where model/ holds as many digits as training
    export_dtype: torch.dtype  # of model/
    steps_done: int = 0
    memory: dict[str, Any] | None = None  # as measured before step 1; None for a run that is resumed
    start_scores: PairScores | None = None  # of the held-out pairs under the start model: drift is measured from them
    last_scores: PairScores | None = None  # of the latest evaluation
    evaluated_at: int = -1  # step of the latest evaluation; -1 before the first
    eval_losses: dict[int, float] = field(default_factory=dict)  # by step, of the pairs that choose a checkpoint
    answers_before: list[str] = field(default_factory=list)  # the start model's, to the probe questions
    checkable: Sequence[Question] = ()  # held-out prompts to which a rule can check the answers
    checked_before: list[CheckedAnswer] = field(default_factory=list)  # the start model's answers to them


def run_steps(training: Training, save: Callable[[], None]) -> None:
    """Train from the step that is due to the last, scoring held-out pairs and saving when the recipe says so.

    Raises:
        NotFiniteError: the loss, the gradient or a weight is not finite; the steps before are not harmed.
        OutOfMemoryError: a pair by itself does not fit in memory; the weights are those after `steps_done`.
        UnhealthyError: a code of `health.stop_on` was seen; everything is saved.
        Stopped: a signal came; the weights are those after `steps_done`.
    """
    recipe, plan = training.run.recipe, training.run.plan
    policy, optimizer = training.policy, training.optimizer
    policy.train()
    _stop_if_unhealthy(training, save)
    _evaluate_and_save(training, save)
    for step in range(training.steps_done, plan.num_steps):
        started = time.perf_counter()
        pairs = [training.run.data.train[i] for i in plan.pairs_of(step)]
        rate = learning_rate(step, plan.num_steps, recipe.train)
        sums = _accumulate(training, pairs, step)  # stops here if a loss or the gradient is not finite
        clip_gradients(policy, recipe.train.max_grad_norm, norm=sums.grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        lost_updates = _update(training)
        optimizer.zero_grad()
        require_finite_weights(policy, optimizer, pairs, step)
        training.steps_done = step + 1
        seconds = time.perf_counter() - started
        record = _step_record(sums, step + 1, plan, rate, seconds, training)
        training.observer.step(record)
        training.health.step(record, lost_updates)
        _evaluate_and_save(training, save)
        _stop_if_unhealthy(training, save)


def _accumulate(training: Training, pairs: Sequence[EncodedPair], step: int) -> StepSums:
    """The gradient and the sums of a step."""
    recipe, policy = training.run.recipe, training.policy

    def attempt(budget: int) -> StepSums:
        return accumulate(
            policy,
            pairs,
            Share.of(pairs, budget, policy.packing, is_sharded=is_sharded(policy)),
            loss=recipe.loss,
            accelerator=training.run.accelerator,
            step=step,
            reseed=recipe.seed if _has_dropout(recipe) else None,
            stop=training.stop,
            advancing=doing.advancing,
        )

    with stage(f"pairs of step {step + 1}", len(pairs)) as doing:
        return _within_memory(training, attempt, pairs, policy, f"step {step + 1}")


def _within_memory(
    training: Training, attempt: Callable[[int], Result], pairs: Sequence[EncodedPair], policy: Policy, what: str
) -> Result:
    """What `attempt` returns with the run's budget, which is halved for good whenever memory runs out.

    Args:
        attempt: called with a budget; it may be called again after an OutOfMemoryError.

    A rank of a sharded run cannot begin again alone: it leaves the smaller budget in the run folder for the next start.

    Raises:
        OutOfMemoryError: the longest pair by itself does not fit, or another start is needed.
    """
    longest, planned = int(tokens_of_each(pairs, policy.packing).max()), training.budget
    while True:
        try:
            return attempt(training.budget)
        except OutOfMemoryError:
            if training.budget <= longest:
                training.budget = planned  # smaller ones were no help, and the run may be resumed with more memory
                raise
            if is_sharded(policy) and ranks.world_size() > 1:  # the others wait in the middle of the same pairs
                leave_budget(Path(training.run.recipe.output_dir), max(training.budget // 2, longest))
                raise
        # out of the handler, so that nothing holds the tensors of the attempt
        before, training.budget = training.budget, max(training.budget // 2, longest)
        training.policy.zero_grad()
        release_memory()
        equal = (
            "but for what dropout leaves out" if _has_dropout(training.run.recipe) else "to rounding, not to the bit"
        )
        training.observer.note(
            f"{what} ran out of memory and begins again: from here on a micro-batch holds at most "
            f"{training.budget:,} tokens, not {before:,}; results are equal {equal}"
        )


def _has_dropout(recipe: Recipe) -> bool:
    return recipe.model.lora is not None and recipe.model.lora.dropout > 0


def _update(training: Training) -> float | None:
    """Take the optimizer's step; where it rounds weights to the nearest, return the share of updates that it lost."""
    weights = trainable(training.policy)
    if loses_updates(weights):
        return step_counting_lost(training.optimizer, weights)
    training.optimizer.step()
    return None


def _evaluate_and_save(training: Training, save: Callable[[], None]) -> None:
    """What is due after the steps done; the evaluation comes before the checkpoint of its step."""
    recipe, plan, done = training.run.recipe, training.run.plan, training.steps_done
    first, last = done == 0, done == plan.num_steps
    # after the last step the saved model is scored, so this one is only for choosing the best checkpoint
    due = recipe.checkpoint.best if last else first or plan.is_due(done, recipe.eval.every)
    if training.run.evaluated and due and training.evaluated_at != done:
        with stage("scoring the start model" if first else f"evaluation at step {done}"):
            record = evaluate(training, done)
            if record.choosing_loss is not None:
                training.eval_losses[done] = record.choosing_loss
    if first or last or plan.is_due(done, recipe.checkpoint.every):  # the first shows that saving works
        save()


def _stop_if_unhealthy(training: Training, save: Callable[[], None]) -> None:
    """Do what `health.stop_on` says; after the last step the model is written first, and the run ends with it."""
    if training.steps_done < training.run.plan.num_steps:
        training.health.require_well(save, command_to_resume())


def evaluate(training: Training, step: int, saved: Policy | None = None) -> EvalRecord:
    """Score the held-out pairs and tell the observer; the first call fixes what drift is measured from.

    Args:
        saved: the saved model instead, loaded again.

    Raises:
        Stopped: a signal came; nothing is recorded.
    """
    started = time.perf_counter()
    policy, held_out = saved or training.policy, training.run.evaluated
    moment = f"the evaluation at step {step}"

    def scores_of(pairs: Sequence[EncodedPair]) -> PairScores:
        def attempt(budget: int) -> PairScores:
            with memory_for(moment, _FREE_MEMORY):
                return score_pairs(policy, pairs, training.run.accelerator, budget, training.stop)

        scores = _within_memory(training, attempt, pairs, policy, moment)
        both = (torch.from_numpy(scores.chosen), torch.from_numpy(scores.rejected))
        require_finite_losses(policy, pairs, both, f"evaluation at step {step}", "the log-prob")
        return scores

    with training.stop.at_once():
        scores = scores_of(held_out)
        choosing = None if saved is not None else _choosing_scores(training, scores, scores_of)
    with training.stop.at_once(), memory_for(f"step {step}: answering the probe prompts", _FEWER_ANSWERS):
        answers = training.probe.ask(policy, training.run.accelerator)
    if training.start_scores is None:
        training.start_scores = scores
    training.last_scores = scores
    training.evaluated_at = step
    at = probe(held_out)
    now, then = scores.select(at), training.start_scores.select(at)
    summary = summarise(scores, training.run.recipe.loss)
    kept = None  # what a save in a narrower type would keep of the change so far
    if training.start_weights is not None and saved is None and step > 0:
        kept = training.start_weights.rounding(training.export_dtype).kept_share
    record = EvalRecord(
        step=step,
        pairs=summary.pairs,
        prompts=summary.prompts,
        loss=summary.loss.value,
        accuracy=summary.accuracy.value,
        accuracy_low=summary.accuracy.low,
        accuracy_high=summary.accuracy.high,
        margin=summary.margin.value,
        target_reached=summary.target_reached.value,
        logps_chosen=summary.logps_chosen.value,
        logps_rejected=summary.logps_rejected.value,
        logps_chosen_delta=float(np.mean(now.chosen - then.chosen)),
        logps_rejected_delta=float(np.mean(now.rejected - then.rejected)),
        probe_pairs=len(at),
        seconds=time.perf_counter() - started,
        export_kept_share=kept,
        choosing_loss=None if choosing is None else summarise(choosing, training.run.recipe.loss).loss.value,
        answers=answers,
    )
    training.observer.evaluated(record)
    training.health.evaluated(record)
    return record


def _choosing_scores(
    training: Training, scores: PairScores, scores_of: Callable[[Sequence[EncodedPair]], PairScores]
) -> PairScores | None:
    """Scores of the pairs by which the best checkpoint is chosen, from those of the evaluation where it holds them."""
    data = training.run.data
    if not training.run.recipe.checkpoint.best:
        return None
    if data.choosing:
        return scores_of(data.choosing)
    return scores.select(positions_of_part(data.held_out, "choosing").tolist())


def _step_record(sums: StepSums, done: int, plan: Plan, rate: float, seconds: float, training: Training) -> StepRecord:
    n = sums.pairs
    return StepRecord(
        step=done,
        epoch=plan.epoch_after(done),
        loss=sums.loss / n,
        rewards_chosen=sums.rewards_chosen / n,
        rewards_rejected=sums.rewards_rejected / n,
        rewards_margins=(sums.rewards_chosen - sums.rewards_rejected) / n,
        rewards_accuracies=sums.correct / n,
        rewards_target_reached=sums.past_target / n,
        logps_chosen=sums.logps_chosen / n,
        logps_rejected=sums.logps_rejected / n,
        sft_loss=-sums.logps_chosen / n if training.run.recipe.loss.sft_weight else None,
        grad_norm=sums.grad_norm,
        learning_rate=rate,
        pairs=n,
        tokens=sums.tokens,
        pairs_per_second=n / seconds,
        tokens_per_second=sums.tokens / seconds,
        memory_gb=peak_memory_gb(training.run.accelerator.device),
        seconds=seconds,
        gradient_weight=sums.gradient_weight / n,
    )


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held so far: on the card, or resident in this process."""
    if backend_of(device).counts_peak:
        return int(torch.get_device_module(device).max_memory_allocated(device)) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # of what the system counts in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
