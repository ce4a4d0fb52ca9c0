"""The training loop. It reads as the method; what each line does is in the module of its name."""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator

from simpo_cli.data.holdout import probe
from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Plan, microbatches
from simpo_cli.evaluate.score import PairScores, score_pairs
from simpo_cli.evaluate.summary import summarise
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import Recipe
from simpo_cli.train.events import EvalRecord, Observer, StepRecord
from simpo_cli.train.schedule import learning_rate
from simpo_cli.train.step import StepSums, accumulate, clip_gradients
from simpo_cli.train.stop import StopRequest


@dataclass
class Training:
    """Everything that the loop works with, and how far it is.

    Attributes:
        budget: tokens of a micro-batch.
        steps_done: optimizer steps so far.
        start_scores: the held-out pairs under the start model, once they have been scored; drift is measured from it.
        last_scores: the same of the latest evaluation.
        evaluated_at: step of the latest evaluation; -1 before the first.
        eval_losses: held-out loss by step.
        answers_before: the start model's answers to the probe questions.
    """

    recipe: Recipe
    plan: Plan
    train: Sequence[EncodedPair]
    held_out: Sequence[EncodedPair]
    policy: Policy
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    budget: int
    observer: Observer
    stop: StopRequest
    steps_done: int = 0
    start_scores: PairScores | None = None
    last_scores: PairScores | None = None
    evaluated_at: int = -1
    eval_losses: dict[int, float] = field(default_factory=dict)
    answers_before: list[str] = field(default_factory=list)


def run_steps(training: Training, save: Callable[[], None]) -> None:
    """Train from the step that is due to the last, scoring held-out pairs and saving when the recipe says so.

    Args:
        training: the run; `steps_done` says which step is due.
        save: saves the state after the steps done, if that has not been done.

    Raises:
        UserError: the loss or the gradient is not finite; the weights are those before the step.
        Stopped: a signal asked for it; the weights are those after `steps_done`.
    """
    recipe, plan, policy, optimizer = training.recipe, training.plan, training.policy, training.optimizer
    policy.train()
    _evaluate_and_save(training, save)
    for step in range(training.steps_done, plan.num_steps):
        started = time.perf_counter()
        pairs = [training.train[i] for i in plan.pairs_of(step)]
        rate = _rate(recipe, plan, step)
        sums = accumulate(
            policy,
            pairs,
            training.stop.between(microbatches(pairs, training.budget, policy.packing)),
            loss=recipe.loss,
            accelerator=training.accelerator,
            step=step,
            reseed=recipe.seed if recipe.model.lora is not None and recipe.model.lora.dropout else None,
        )
        grad_norm = clip_gradients(policy, recipe.train.max_grad_norm, step)  # stops here if not finite
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        training.steps_done = step + 1
        seconds = time.perf_counter() - started
        training.observer.step(_step_record(sums, step + 1, plan, rate, grad_norm, seconds, training))
        _evaluate_and_save(training, save)


def _evaluate_and_save(training: Training, save: Callable[[], None]) -> None:
    """What is due after the steps done; the evaluation comes before the checkpoint of its step."""
    recipe, plan, done = training.recipe, training.plan, training.steps_done
    first, last = done == 0, done == plan.num_steps
    # after the last step the saved model is scored, so this one is only for choosing the best checkpoint
    due = recipe.checkpoint.best if last else first or plan.is_due(done, recipe.eval.every)
    if training.held_out and due and training.evaluated_at != done:
        training.eval_losses[done] = evaluate(training, done).loss
    if first or last or plan.is_due(done, recipe.checkpoint.every):  # the first shows that saving works
        save()


def evaluate(training: Training, step: int, saved: Policy | None = None) -> EvalRecord:
    """Score the held-out pairs and tell the observer; the first call fixes what drift is measured from.

    Args:
        training: the run; its policy is scored, and the scores are kept in it.
        step: steps done.
        saved: the saved model instead, loaded again.

    Raises:
        Stopped: a signal asked for it; nothing is recorded.
    """
    started = time.perf_counter()
    with training.stop.at_once():
        scores = score_pairs(saved or training.policy, training.held_out, training.accelerator, training.budget)
    if training.start_scores is None:
        training.start_scores = scores
    training.last_scores = scores
    training.evaluated_at = step
    at = probe(training.held_out)
    now, then = scores.select(at), training.start_scores.select(at)
    summary = summarise(scores, training.recipe.loss)
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
    )
    training.observer.evaluated(record)
    return record


def _rate(recipe: Recipe, plan: Plan, step: int) -> float:
    return learning_rate(
        step,
        highest=recipe.train.learning_rate,
        num_steps=plan.num_steps,
        warmup_ratio=recipe.train.warmup_ratio,
        kind=recipe.train.lr_scheduler,
    )


def _step_record(
    sums: StepSums, done: int, plan: Plan, rate: float, grad_norm: float, seconds: float, training: Training
) -> StepRecord:
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
        sft_loss=-sums.logps_chosen / n if training.recipe.loss.sft_weight else None,
        grad_norm=grad_norm,
        learning_rate=rate,
        pairs=n,
        tokens=sums.tokens,
        pairs_per_second=n / seconds,
        tokens_per_second=sums.tokens / seconds,
        memory_gb=peak_memory_gb(training.accelerator.device),
        seconds=seconds,
    )


def peak_memory_gb(device: torch.device) -> float:
    """Most memory held so far: on the card, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
