"""`simpo train`: from a composed recipe to a run folder with a model in it."""

import time
from pathlib import Path

import torch

from simpo_cli.data.plan import tokens_of_each
from simpo_cli.errors import UserError
from simpo_cli.evaluate.answers import answer, builtin_questions, held_out_questions
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import find_model, load_model
from simpo_cli.model.policy import Policy
from simpo_cli.model.self_check import CheckPairs, SelfCheck, settle_packing
from simpo_cli.recipe import ComposedRecipe
from simpo_cli.train import checkpoint
from simpo_cli.train.events import Observer, RunOutcome
from simpo_cli.train.export import model_card, save_model
from simpo_cli.train.header import header
from simpo_cli.train.loop import Training, run_steps
from simpo_cli.train.outcome import conclude
from simpo_cli.train.receipt import command_line, receipt
from simpo_cli.train.recorder import Recorder
from simpo_cli.train.run_folder import RunFolder, require_usable
from simpo_cli.train.setting import Setting, settle
from simpo_cli.train.state import make_optimizer, save_state
from simpo_cli.train.trackers import open_trackers


def train(composed: ComposedRecipe, *, fresh: bool, dry_run: bool, observer: Observer) -> RunOutcome | None:
    """Run a recipe to its end.

    Args:
        composed: the recipe.
        fresh: set an existing run of this name aside.
        dry_run: check everything that can be checked without the weights, say what would happen, and write nothing.
        observer: the terminal.

    Returns:
        What the run left behind; None for a dry run.

    Raises:
        UserError: anything that the person can mend; see the exit codes in `errors`.
    """
    recipe = composed.recipe
    run_dir = Path(recipe.output_dir)
    if not dry_run:
        require_usable(run_dir, fresh=fresh)
    setting = settle(recipe)
    if dry_run:
        announce(composed, setting, observer)
        observer.note("dry run: no run was written, no weight was read")
        return None
    folder = RunFolder.create(run_dir, fresh=fresh)
    try:
        return _train_in(folder, composed, setting, observer)
    finally:
        folder.close()


def _train_in(folder: RunFolder, composed: ComposedRecipe, setting: Setting, watcher: Observer) -> RunOutcome:
    recipe, accelerator = setting.recipe, setting.accelerator
    started = time.perf_counter()
    recipe_text = composed.as_yaml()
    folder.write_text("recipe.yaml", recipe_text)
    run_json = receipt(setting, recipe_text, command_line())
    folder.write_json("run.json", run_json)
    for source in setting.data.sources:
        for refused in source.account.refused:
            folder.append(
                "rejected.jsonl", {"where": refused.where, "problem": refused.problem, "record": refused.text}
            )
    open_trackers(accelerator, recipe)
    observer = Recorder(folder, accelerator, recipe.tracking.log_every, watcher)
    announce(composed, setting, observer)

    training, check = build(setting, observer)
    run_json["self_check"] = check.as_json()
    folder.write_json("run.json", run_json)
    tokenizer = setting.data.tokenizer
    questions = (
        builtin_questions(tokenizer)
        if recipe.model.path == "builtin:guide" and tokenizer.has_template
        else held_out_questions(setting.data.held_out, setting.data.texts)
    )
    before = answer(training.policy, questions, tokenizer, accelerator)

    def save_checkpoint(done: int, eval_loss: float | None) -> None:
        checkpoint.commit(
            folder.path / "checkpoints",
            done,
            lambda target: save_state(target, training.policy, training.optimizer, done),
            {"recipe_sha256": run_json["recipe_sha256"], "eval_loss": eval_loss},
        )
        checkpoint.rotate(folder.path / "checkpoints", recipe.checkpoint.keep, best=recipe.checkpoint.best)

    try:
        run_steps(training, save_checkpoint)
    except UserError as error:
        folder.write_json("run.json", {**run_json, "status": "failed", "outcome": {"error": str(error)}})
        raise

    model_dir = folder.path / "model"
    training.optimizer.state.clear()  # the moments are in the checkpoint; the export needs the room
    with training.policy.untouched():
        rounding = save_model(
            model_dir, training.policy.model, recipe, setting.source, model_card(recipe, run_json["command"])
        )
    saved = Policy(load_model(find_model(str(model_dir)), setting.weights)).to(accelerator.device)
    saved.packing = check.packing
    after = answer(saved, questions, tokenizer, accelerator)
    outcome, measured = conclude(
        training,
        saved,
        setting,
        run_dir=folder.path,
        rounding=rounding,
        answers=tuple((q.text, b, a) for q, b, a in zip(questions, before, after, strict=True)),
        seconds=time.perf_counter() - started,
    )
    folder.write_json("run.json", {**run_json, "status": "done", "outcome": measured})
    accelerator.end_training()
    observer.finished(outcome)
    return outcome


def announce(composed: ComposedRecipe, setting: Setting, observer: Observer) -> None:
    """Show what is about to run, then what is unusual about it."""
    observer.started(header(setting), num_steps=setting.plan.num_steps, first_step=0)
    for warning in composed.warnings:
        observer.note(f"{warning.where}: {warning.code} {warning.sentence}")
    for note in setting.notes:
        observer.note(note)


def build(setting: Setting, observer: Observer) -> tuple[Training, SelfCheck]:
    """Read the weights, check how pairs may go through them, and make the optimizer."""
    recipe, accelerator = setting.recipe, setting.accelerator
    model = load_model(setting.source, setting.weights)
    if recipe.model.lora is not None:
        torch.manual_seed(recipe.seed)  # the adapters' start must not depend on what ran before
        model = add_adapters(model, recipe.model.lora)
    policy = Policy(model).to(accelerator.device)
    if recipe.model.gradient_checkpointing:
        policy.recompute_activations()
    data, budget = setting.data, setting.budget
    fullest = setting.plan.fullest_microbatch(data.train, budget, setting.packing)
    check = settle_packing(policy, recipe.model.attention, setting.why_padded, CheckPairs.of(data.scored, fullest))
    observer.note(str(check))
    if check.packing != setting.packing:  # rows take more of the budget than was planned for
        budget = max(budget, int(tokens_of_each(data.scored, check.packing).max()))
    optimizer = make_optimizer(policy, weight_decay=recipe.train.weight_decay)
    training = Training(
        recipe=recipe,
        plan=setting.plan,
        train=data.train,
        held_out=data.held_out,
        policy=policy,
        optimizer=optimizer,
        accelerator=accelerator,
        budget=budget,
        observer=observer,
    )
    return training, check
