"""From a settled run to one that can take its next step: weights, self-check, optimizer, and what was saved."""

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch

from simpo_cli.data.plan import tokens_of_each
from simpo_cli.errors import about
from simpo_cli.evaluate.answers import Question, answer, builtin_questions, held_out_questions
from simpo_cli.evaluate.metrics import PairScores
from simpo_cli.evaluate.scoring import score_pairs
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.compile_check import choose_compiling, compile_for_training, is_worth_compiling
from simpo_cli.model.fused_layers import liger_version
from simpo_cli.model.load import load_start
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.model.rounding import export_dtype
from simpo_cli.model.self_check import CheckPairs, SelfCheck, choose_packing
from simpo_cli.publish.export import keeps_merged, save_merged, try_saving
from simpo_cli.run.events import Observer
from simpo_cli.run.identity import Change, recipe_values
from simpo_cli.run.stop import StopRequest
from simpo_cli.train.health.probes import AnswerProbe, WeightSample
from simpo_cli.train.health.watch import Health
from simpo_cli.train.loop import Training
from simpo_cli.train.optimizer import make_optimizer, start_moments
from simpo_cli.train.resume import ResumeState, Saved
from simpo_cli.train.run_plan import RunPlan

_CHECKED_ON = {"torch", "transformers", "peft", "liger", "device"}  # with others the self-check is made again


def build(
    setting: RunPlan, observer: Observer, stop: StopRequest, past: ResumeState, changes: Sequence[Change]
) -> tuple[Training, SelfCheck, Saved | None]:
    """Read the weights, check how pairs may go through them, make the optimizer, and load what was saved.

    Args:
        setting: the run.
        observer: the terminal and the logs.
        stop: the signals.
        past: what was saved of the run, if it is gone on with.
        changes: what is not as it was then.

    Returns:
        The training, the self-check's outcome, and the checkpoint that the training goes on from, if there is one.
    """
    recipe, accelerator, data = setting.recipe, setting.accelerator, setting.data
    is_another_run = any(change.kind == "identity" for change in changes)
    with about("model.path"):
        model = load_start(recipe.model, setting.source, setting.weights, accelerator.device)
    if keeps_merged(recipe.model):
        save_merged(Path(recipe.output_dir), model, setting.source, replace=past.latest is None or is_another_run)
    if recipe.model.lora is not None and recipe.model.adapter != "continue":
        torch.manual_seed(recipe.seed)  # the adapters' start must not depend on what ran before
        model = add_adapters(model, recipe.model.lora)
    if past.latest is None:
        try_saving(Path(recipe.output_dir), model, recipe, setting.source)
    policy = Policy(model)
    if setting.checkpointing:
        policy.recompute_activations()
    pairs = cache(partial(_check_pairs, setting))  # a resumed run mostly checks nothing again
    if past.latest is None or is_another_run or any(change.key in _CHECKED_ON for change in changes):
        check = choose_packing(policy, recipe.model.attention, setting.why_padded, pairs())
        observer.note(str(check))
        compile_as_before = False
    else:
        check = SelfCheck.from_json(past.latest.progress.self_check)
        policy.flex, policy.packing = check.why_by_segment is None, check.packing
        compile_as_before = past.latest.identity.recipe.get("model.compile", "auto") == recipe.model.compile
    if not compile_as_before:
        worth = is_worth_compiling(accelerator.device, setting.parameters.total, _training_tokens(setting))
        if told := choose_compiling(policy, recipe.model.compile, pairs(), accelerator.autocast, is_worth_it=worth):
            observer.note(told)
    elif setting.compiled:
        compile_for_training(policy, pairs(), accelerator.autocast)
    if policy.packing == "shared_prefix" and (fused := policy.num_liger_layers):
        observer.note(f"Liger {liger_version()} computes {fused} of the model's norms and feed-forwards")
    budget = setting.budget
    if check.packing != setting.packing:  # rows take more of the budget than was planned for
        budget = max(budget, int(tokens_of_each(data.scored, check.packing).max()))
    optimizer = make_optimizer(policy, weight_decay=recipe.train.weight_decay)
    start_moments(optimizer)
    stored = export_dtype(recipe, setting.source)
    narrows = recipe.model.lora is None and stored.itemsize < setting.weights.itemsize
    training = Training(
        recipe=recipe,
        plan=setting.plan,
        train=data.train,
        held_out=setting.evaluated,
        policy=policy,
        optimizer=optimizer,
        accelerator=accelerator,
        budget=budget,
        observer=observer,
        stop=stop,
        health=Health(recipe, setting.plan.num_steps, observer.note),
        probe=AnswerProbe(
            held_out_questions(setting.evaluated, data.texts, recipe.health.num_answers),
            data.tokenizer,
            recipe.health.answer_tokens,
        ),
        start_weights=WeightSample.of(trainable(policy)) if narrows else None,
        export_dtype=stored,
    )
    if past.latest is None:
        return training, check, None
    if is_another_run:  # what was said of other pairs, or by another start model, is of no use here
        held_out = training.held_out
        training.start_scores = score_pairs(policy, held_out, accelerator, budget) if held_out else None
        training.answers_before = answer(policy, questions_of(setting), data.tokenizer, accelerator)
    saved = past.load(policy, optimizer)
    if not is_another_run:
        training.start_scores = _scores_before(saved, setting)
        training.answers_before = [] if setting.quick else list(saved.progress.answers_before)
    training.steps_done, training.evaluated_at = saved.step, saved.progress.evaluated_at
    recipe_changed = saved.identity.recipe != recipe_values(recipe)
    training.health.take_up(saved.progress.health, recipe_changed=recipe_changed)
    return training, check, saved


def _check_pairs(setting: RunPlan) -> CheckPairs:
    """What the checks before the first step compare."""
    fullest = setting.plan.fullest_microbatch(setting.data.train, setting.budget, setting.packing)
    return CheckPairs.of(setting.data.scored, fullest)


def _training_tokens(setting: RunPlan) -> int:
    """Tokens that the run trains on, every prompt counted once a pair."""
    plan, train = setting.plan, setting.data.train
    return int(tokens_of_each(train, "shared_prefix").mean() * plan.num_steps * plan.pairs_per_step)


def questions_of(setting: RunPlan) -> list[Question]:
    """What the model is asked before and after; nothing in a smoke run."""
    data = setting.data
    if setting.quick:
        return []
    if setting.recipe.model.path == "builtin:guide" and data.tokenizer.has_template:
        return builtin_questions(data.tokenizer)
    return held_out_questions(data.held_out, data.texts)


def _scores_before(saved: Saved, setting: RunPlan) -> PairScores | None:
    """The start model's scores as they were saved."""
    chosen, rejected, held_out = saved.progress.chosen_before, saved.progress.rejected_before, setting.data.held_out
    if chosen is None or rejected is None:
        return None
    return PairScores.of(held_out, np.array(chosen), np.array(rejected))
