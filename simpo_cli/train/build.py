"""From a prepared run to one that can take its next step: weights, self-check, optimizer, and what was saved."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import AutocastKwargs

from simpo_cli.data.plan import tokens_of_each
from simpo_cli.distributed import ranks
from simpo_cli.errors import about
from simpo_cli.evaluate.answers import (
    Question,
    answer,
    builtin_questions,
    check_answers,
    checkable_questions,
    held_out_questions,
)
from simpo_cli.evaluate.checked import CheckedAnswer
from simpo_cli.evaluate.metrics import PairScores
from simpo_cli.evaluate.scoring import score_pairs
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.compile_check import choose_compiling, compile_for_training, is_worth_compiling
from simpo_cli.model.fused_layers import liger_version
from simpo_cli.model.load import load_start
from simpo_cli.model.load_sharded import Read, distribute, filled_first_layers, outline, reader, unread
from simpo_cli.model.policy import Policy, trainable
from simpo_cli.model.rounding import WeightSample, export_dtype, sampled
from simpo_cli.model.self_check import CheckPairs, SelfCheck, choose_packing
from simpo_cli.publish.export import keeps_merged, save_merged, try_saving
from simpo_cli.run.events import Observer
from simpo_cli.run.receipt import Change
from simpo_cli.run.stop import StopRequest
from simpo_cli.train.fit import fit_microbatch
from simpo_cli.train.health import AnswerProbe, Health
from simpo_cli.train.loop import Training
from simpo_cli.train.optimizer import make_optimizer, start_moments
from simpo_cli.train.run_plan import RunPlan, identifying_values
from simpo_cli.train.saving import ResumeState, Saved

_CHECKED_ON = {"torch", "transformers", "peft", "liger", "device"}  # with others the self-check is made again


def build(
    run: RunPlan, observer: Observer, stop: StopRequest, state: ResumeState, changes: Sequence[Change]
) -> tuple[Training, SelfCheck, Saved | None]:
    """Read the weights, check how pairs may go through them, make the optimizer, and load what was saved.

    Args:
        state: what was saved of the run, if it is resumed; `changes` are what is not as it was then.
    """
    recipe, accelerator, data, plan = run.recipe, run.accelerator, run.data, run.plan
    is_another_run = any(change.kind == "identity" for change in changes)
    begins = state.latest is None
    # made when they are first wanted: a resumed run mostly checks nothing again
    pairs = cache(lambda: CheckPairs.of(data.scored, plan.fullest_microbatch(data.train, run.budget, run.packing)))
    checked_as_before = not (begins or is_another_run or any(change.key in _CHECKED_ON for change in changes))
    before = SelfCheck.from_json(state.latest.progress.self_check) if state.latest and checked_as_before else None
    start = _sharded_start if run.strategy == "fsdp2" else _whole_start
    policy, check = start(run, pairs, before, begins=begins, replace_base=begins or is_another_run)
    if before is None:
        observer.note(str(check))
    if run.strategy != "fsdp2":
        compile_as_before = before is not None and (
            state.latest is not None
            and state.latest.identity.recipe.get("model.compile", "auto") == recipe.model.compile
        )
        if not compile_as_before:
            tokens = int(tokens_of_each(data.train, "shared_prefix").mean() * plan.num_steps * plan.pairs_per_step)
            worth = run.source.quantization is None and is_worth_compiling(
                accelerator.device, run.parameters.total, tokens
            )
            if note := choose_compiling(policy, recipe.model.compile, pairs(), accelerator.autocast, is_worth_it=worth):
                observer.note(note)
        elif run.compiled:
            compile_for_training(policy, pairs(), accelerator.autocast)
    if policy.packing == "shared_prefix" and (fused := policy.num_liger_layers):
        observer.note(f"Liger {liger_version()} computes {fused} of the model's norms and feed-forwards")
    if recipe.model.activation_offload:
        policy.offload_activations()
    budget = run.budget
    if check.packing != run.packing:  # rows take more of the budget than was planned for
        budget = max(budget, int(tokens_of_each(data.scored, check.packing).max()))
    optimizer = make_optimizer(policy, recipe.train, recipe.seed)
    start_moments(optimizer)
    stored = export_dtype(recipe, run.source)
    narrows = recipe.model.lora is None and stored.itemsize < run.weights.itemsize
    training = Training(
        run=run,
        policy=policy,
        optimizer=optimizer,
        budget=budget,
        observer=observer,
        stop=stop,
        health=Health(recipe, plan.num_steps, observer.note),
        probe=AnswerProbe(
            held_out_questions(run.evaluated, data.texts, recipe.health.num_answers),
            data.tokenizer,
            recipe.health.answer_tokens,
        ),
        start_weights=WeightSample.of(trainable(policy)) if narrows else None,
        export_dtype=stored,
        checkable=checkable_questions(data, recipe.data) if run.evaluated else [],
    )
    if state.latest is None:
        training.memory = fit_microbatch(training)
        return training, check, None
    if is_another_run:  # scores of other pairs, or of another start model, are of no use here
        training.start_scores = score_pairs(policy, run.evaluated, accelerator, budget) if run.evaluated else None
        training.answers_before = answer(policy, questions_of(run), data.tokenizer, accelerator)
    checked = [one.progress.checked_before for one in state.saved]
    checks_anew = is_another_run or None in checked  # a version that checked none has saved one of them
    if checks_anew:
        training.checked_before = check_answers(policy, training.checkable, data.tokenizer, accelerator)
    saved = state.load(policy, optimizer)
    if not checks_anew:
        assert saved.progress.checked_before is not None
        training.checked_before = [CheckedAnswer(**one) for one in saved.progress.checked_before]
    if not is_another_run:
        chosen, rejected = saved.progress.chosen_before, saved.progress.rejected_before
        if chosen is not None and rejected is not None:
            training.start_scores = PairScores.of(data.held_out, np.array(chosen), np.array(rejected))
        training.answers_before = [] if run.quick else list(saved.progress.answers_before)
    training.steps_done, training.evaluated_at = saved.step, saved.progress.evaluated_at
    recipe_changed = saved.identity.recipe != identifying_values(recipe)
    training.health.restore(saved.progress.health, recipe_changed=recipe_changed)
    return training, check, saved


def _whole_start(
    run: RunPlan, pairs: Callable[[], CheckPairs], before: SelfCheck | None, *, begins: bool, replace_base: bool
) -> tuple[Policy, SelfCheck]:
    """The policy whole on this device, and how pairs go through it.

    Args:
        pairs: what the self-check compares.
        before: its outcome in the run that is resumed; None makes it now.
        begins: whether nothing of the run is there yet.
        replace_base: whether RUN/base is written though it may be there.
    """
    recipe, device = run.recipe, run.accelerator.device

    def load() -> Policy:
        with about("model.path"):
            model = load_start(recipe.model, run.source, run.weights, device)
        if keeps_merged(recipe.model) and ranks.is_first():
            save_merged(Path(recipe.output_dir), model, run.source, replace=replace_base)
        if recipe.model.lora is not None and recipe.model.adapter != "continue":
            model = add_adapters(model, recipe.model.lora, recipe.seed)
        if begins and ranks.is_first():
            try_saving(Path(recipe.output_dir), model, recipe, run.source)
        return Policy(model)

    policy = ranks.together(load, "loading the model")
    if ranks.world_size() > 1:
        ranks.require_same({"model (its weights differ)": _weights_digest(policy)}, "comparing the weights")
    if run.checkpointing:
        policy.recompute_activations()
    if before is not None:
        policy.flex, policy.packing = before.why_by_segment is None, before.packing
        return policy, before
    check = ranks.together(
        lambda: choose_packing(policy, recipe.model.attention, run.why_padded, pairs()), "the self-check"
    )
    # where another rank has a card on which prompts cannot be shared, none shares them
    outcomes = [SelfCheck.from_json(said) for said in ranks.exchange(check.as_json(), "the self-check")]
    check = next((one for one in outcomes if one.packing == "padded" or one.why_by_segment), outcomes[0])
    policy.flex, policy.packing = check.why_by_segment is None, check.packing
    return policy, check


def _weights_digest(policy: Policy) -> str:
    """Of evenly spread weights of every tensor: ranks with equal ones have read the same model."""
    digest = hashlib.sha256()
    for parameter in policy.parameters():
        digest.update(sampled(parameter).cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _sharded_start(
    run: RunPlan, pairs: Callable[[], CheckPairs], before: SelfCheck | None, *, begins: bool, replace_base: bool
) -> tuple[Policy, SelfCheck]:
    """The policy sharded over the ranks; the first of them checks with its first layers how pairs go through it."""
    recipe, device, folder = run.recipe, run.accelerator.device, Path(run.recipe.output_dir)

    def outlined() -> tuple[Policy, Read]:
        with about("model.path"):
            policy = Policy(outline(recipe.model, run.source, run.weights, recipe.seed))
            if not ranks.is_first():
                return policy, unread
            read, built = reader(recipe.model, run.source, run.weights, policy)
        if keeps_merged(recipe.model) and built is not None:
            save_merged(folder, built, run.source, replace=replace_base)
        if begins:
            try_saving(folder, policy.model, recipe, run.source)
        return policy, read

    policy, read = ranks.together(outlined, "loading the model")

    def checked() -> dict[str, Any]:
        layers = filled_first_layers(policy, read, device)
        return choose_packing(layers, recipe.model.attention, run.why_padded, pairs()).as_json()

    check = before or SelfCheck.from_json(ranks.from_first(checked, "the self-check"))
    if run.checkpointing:
        policy.recompute_activations()
    # what is gathered anew is cast anew: copies that stay would be those of the whole model on every rank
    run.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    distribute(policy, read, device, run.data.train[0], offload=recipe.distributed.cpu_offload)
    policy.flex, policy.packing = check.why_by_segment is None, check.packing
    return policy, check


def questions_of(run: RunPlan) -> list[Question]:
    """What the model is asked before and after; nothing in a smoke run."""
    data = run.data
    if run.quick:
        return []
    sources = run.recipe.data.eval or run.recipe.data.train
    is_its_own = run.recipe.model.path == "builtin:guide" and any(one.path == "builtin:guide" for one in sources)
    if is_its_own and data.tokenizer.has_template:
        return builtin_questions(data.tokenizer)
    return held_out_questions(data.held_out, data.texts)
