"""A first recipe: what a beginner would have to know, decided by the pairs, the model, this machine and the time.

    pairs -> the audit, lengths -> what fits the memory -> a few micro-batches timed -> held-out pairs, steps -> YAML

Every number is written with its reason. Those that nothing here decides are the authors' own; `simpo tune` searches.
"""

import math
import shlex
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

import simpo_cli
from simpo_cli.audit.document import stats_document
from simpo_cli.audit.examine import NO_LIMIT, Examination, Tokens, examine
from simpo_cli.data.load import PairReader, source_named
from simpo_cli.data.plan import tokens_of_each
from simpo_cli.data.prepare import prepare_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.formatting import compact, duration, thousands
from simpo_cli.model.backend import available_bytes
from simpo_cli.model.device import device_name, open_accelerator
from simpo_cli.model.memory import choose_strategy
from simpo_cli.model.source import start_model
from simpo_cli.names import is_hub_id
from simpo_cli.recipe.checks import HIGHEST_FULL_LEARNING_RATE
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import Recipe
from simpo_cli.recipe.tree import unflat
from simpo_cli.recipe.validate import recipe_of
from simpo_cli.recipe.yaml_text import to_yaml
from simpo_cli.statistics import smallest_effect
from simpo_cli.train.forecast import Survey, survey
from simpo_cli.train.strategy import why_not_sharded
from simpo_cli.train.timing import measure
from simpo_cli.tune.purposes import BUILTIN, PURPOSES, Purpose, Wanted
from simpo_cli.tune.space import FOR_ADAPTERS, usual_rate
from simpo_cli.tune.study import LEAST_PROMPTS
from simpo_cli.versions import install_command

_UNCUT = 99  # per cent of the pairs that the lengths leave whole
_MOSTLY_WHOLE = 90  # per cent; fewer are told on the screen
_LENGTH_STEP = 64  # lengths are multiples of it
_LEAST_PAIRS = 8  # in a step; fewer are noisy (REC004)
_FEW_STEPS = 10
_FEW_PROMPTS = 30  # held out: under so many, intervals do not hold (docs/evaluation.md)
_FLIPPED = 0.1  # share of held-out pairs that training turns right, and the same again that it turns wrong
_EVALUATED = 0.25  # of the time, the most that scoring held-out pairs may take
_TIMED = 3  # micro-batches
_LEAST_ADAPTER_RATE = 1e-5  # under it adapters hardly move (REC009)
_FORWARD = {True: 1 / 2, False: 1 / 3}  # of a training pass, by whether the base under adapters has no gradients
_HEAD_WIDTH, LABEL_WIDTH = 96, 8


@dataclass(frozen=True)
class FirstRecipe:
    """The recipe as text, what `simpo init --json` prints of it, and the audit of its pairs."""

    text: str
    document: dict[str, Any]
    examination: Examination


class _Draft:
    """Values by their dotted keys, and the reasons that stand beside them."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}

    def set(self, key: str, value: Any, reason: str = "") -> None:
        self.values[key] = value
        if reason:
            self.reasons[f"{key}.0" if isinstance(value, list) else key] = reason

    def recipe(self) -> Recipe:
        return recipe_of(self.values)


def first_recipe(wanted: Wanted, *, num_cards: int) -> FirstRecipe:
    """Decide every number, for a run on all cards of this machine.

    Raises:
        UserError: model or pairs cannot be read, or no pair is left.
    """
    purpose, draft = PURPOSES[wanted.purpose], _Draft()
    draft.set("model.path", wanted.model)
    draft.set("data.train", wanted.pairs)
    shown = None  # the recipe that shows what the built-in model learns
    if wanted.model == BUILTIN:
        shown = compose("demo").recipe
        size, epochs = shown.train.pairs_per_step, max(shown.train.num_epochs, purpose.most_epochs)
        purpose = replace(purpose, most_pairs_per_step=size, steps=250, most_epochs=epochs, ends_there=False)
    recipe = draft.recipe()
    most_tokens = start_model(recipe.model, weights=not is_hub_id(wanted.model)).max_length or NO_LIMIT
    uncut = replace(recipe.data, max_length=NO_LIMIT, max_prompt_length=NO_LIMIT - 1)
    reader = PairReader([source_named(wanted.pairs)], role="train", on_bad_record="skip", on_no_signal="keep")
    examination = examine(reader, Tokens(prepare_tokenizer(recipe), uncut))
    audit = stats_document(examination, version=simpo_cli.__version__)
    if malformed := examination.refused.count:
        draft.set("data.on_bad_record", "skip", f"leaves malformed records out: {thousands(malformed)}")
    whole = _set_lengths(draft, examination, min(purpose.most_tokens, most_tokens))
    if wanted.pairs == BUILTIN:
        draft.set("data.eval", BUILTIN, "500 pairs whose questions are worded in ways that training never shows")
    else:
        most = examination.count // 5 if examination.num_prompts > 1 else 0
        draft.set("data.holdout", min(purpose.most_held_out, most))
    _set_loss(draft, shown, is_its_own=wanted.pairs == BUILTIN)
    memory, surveyed = _fit(draft, max(1, num_cards))
    is_timed = memory["fits"] and memory["devices"] == 1 and _are_weights_here(surveyed.inputs.recipe)
    timing = measure(surveyed, _TIMED) if is_timed else None
    steps = _set_steps(draft, purpose, surveyed, timing, 60 * wanted.minutes)
    _set_rate(draft, surveyed, shown)
    if steps["count"] < _FEW_STEPS:
        draft.set("train.warmup_ratio", 0, "so few steps leave none to warm up")
    for key, (value, reason) in purpose.more.items():
        if key not in draft.values:
            draft.set(key, value, reason)
    document = {
        "schema_version": 1,
        "tool": {"name": "simpo", "version": simpo_cli.__version__},
        "file": wanted.file,
        "command": wanted.own_command,
        "model": {"name": wanted.model, "parameters": surveyed.inputs.parameters.total},
        "pairs": {"path": wanted.pairs, "count": examination.count, **audit["input"]},
        "findings": audit["findings"],
        "memory": memory,
        "steps": steps,
        "time": timing and {key: timing[key] for key in ("device", "tokens_per_second", "seconds_per_update")},
        "recipe": draft.values,
    }
    document |= {"remarks": _remarks(document), "next": _next(wanted, document)}
    if whole < _MOSTLY_WHOLE:
        document["remarks"].append(f"{whole:.0f} % of the pairs stay whole: the model, or --for, takes no longer ones")
    return FirstRecipe(_text(wanted, document, draft.reasons), document, examination)


def _set_lengths(draft: _Draft, examination: Examination, most: int) -> float:
    """Limits that leave 99 % of the pairs whole, as far as model and purpose let them; the per cent that they do."""

    def limit_for(tokens: Any) -> int:
        return _LENGTH_STEP * math.ceil(int(np.percentile(tokens, _UNCUT, method="higher")) / _LENGTH_STEP)

    prompts = np.asarray(examination.prompt_len)
    tokens = prompts + np.maximum(examination.chosen_len, examination.rejected_len)
    length = min(limit_for(tokens), most)
    of_prompt = min(limit_for(prompts), length * 7 // 8)
    whole = 100 * float(np.mean((prompts <= of_prompt) & (tokens <= length)))
    draft.set("data.max_length", length, f"tokens of prompt and response: {whole:.3g} % of the pairs stay whole")
    draft.set("data.max_prompt_length", of_prompt, "of them for the prompt, whose oldest turns go first")
    return whole


def _set_loss(draft: _Draft, shown: Recipe | None, *, is_its_own: bool) -> None:
    if shown is None:
        draft.set("loss.beta", 2.0, "scale of the reward; the authors use 2 to 10")
        draft.set("loss.gamma_beta_ratio", 0.5, "the target margin, over beta; the authors use 0.1 to 0.8")
        return
    for key in ("beta", "gamma_beta_ratio", "label_smoothing", "sft_weight"):
        draft.set(f"loss.{key}", getattr(shown.loss, key), "as in the recipe demo, for a model this small")
    if not is_its_own:
        draft.set("loss.sft_weight", 1, "not in SimPO: this small model has never seen such responses, and learns them")


def _set_rate(draft: _Draft, surveyed: Survey, shown: Recipe | None) -> None:
    adapters = surveyed.inputs.recipe.model.lora is not None
    most = HIGHEST_FULL_LEARNING_RATE * (FOR_ADAPTERS if adapters else 1)
    least = _LEAST_ADAPTER_RATE if adapters else 0.0
    rate = max(least, min(most, usual_rate(surveyed.inputs.parameters.total, adapters=adapters)))
    reason = "1e-6 at 8 B, as the authors have it; more for smaller models, up to 5e-6"
    if shown is not None:
        rate, reason = shown.train.learning_rate, "as in the recipe demo: it would ruin a large model"
    elif adapters:
        reason = "ten times what full tuning of such a model takes"
    draft.set("train.learning_rate", float(f"{rate:.1g}"), reason)


# Memory and time


def _fit(draft: _Draft, devices: int) -> tuple[dict[str, Any], Survey]:
    """Set the first way to train that fits on this machine, or the one that needs least."""
    recipe = draft.recipe()
    accelerator, compute = open_accelerator(recipe)
    device, weights = accelerator.device, not is_hub_id(recipe.model.path)
    available, why_not = available_bytes(device), ""
    ways = ["all weights", "adapters", *(["adapters beside weights in 4 bits"] if device.type != "cpu" else [])]
    if start_model(recipe.model, weights=weights).quantization is not None:
        ways, why_not = ["adapters"], "the weights are stored quantised"
    for way in ways:
        if way == "all weights":
            draft.set("model.lora", None)
        elif way == "adapters":
            draft.values.pop("model.lora", None)
            draft.set("model.lora.rank", 16, f"adapters, since {why_not}")
        else:
            draft.set("model.quantization", "nf4", f"since {why_not}")
        surveyed = survey(draft.recipe(), weights=weights)
        work = replace(surveyed.workload(device, compute, available), ranks=devices)
        strategy = choose_strategy(work, longest=surveyed.longest, may_checkpoint=True)
        if strategy == "fsdp2" and why_not_sharded(surveyed.inputs.recipe, surveyed.inputs.source):
            strategy = "ddp"
        need, tokens, _ = surveyed.fitted(replace(work, strategy=strategy))
        if fits := need.fits(tokens):
            break
        why_not = f"{way} need {_gb(need.total(tokens))} of {_gb(available)} GB free"
    if way == "all weights":
        draft.set(
            "model.lora", None, f"all weights are trained, in {_gb(need.total(tokens))} of {_gb(available)} GB free"
        )
    return {
        "device": device_name(device),
        "devices": devices,
        "trained": way,
        "fits": fits,
        "bytes": need.total(tokens),
        "available_bytes": available,
    }, surveyed


def _are_weights_here(recipe: Recipe) -> bool:
    """Whether there is something to time: nothing is fetched for that."""
    try:
        start_model(recipe.model, fetch=False)
    except UserError:
        if is_hub_id(recipe.model.path):
            return False
        raise
    return True


def _set_steps(
    draft: _Draft, purpose: Purpose, surveyed: Survey, timing: Mapping[str, Any] | None, seconds: float
) -> dict[str, Any]:
    """Set held-out pairs, pairs of a step, and epochs or steps, such that the run is expected to end in time."""
    data, adapters = surveyed.inputs.data, surveyed.inputs.recipe.model.lora is not None
    tokens = float(tokens_of_each(data.scored, surveyed.packing).mean())
    pair = tokens / timing["tokens_per_second"]["median"] if timing else 0.0  # seconds, where they are known
    update = timing["seconds_per_update"] if timing else 0.0
    scored = (2 + purpose.evaluations) * _FORWARD[adapters] * pair  # seconds of a held-out pair
    held_out, num_pairs = len(data.held_out), len(data.train)
    if "data.holdout" in draft.values:
        usable, least = held_out + num_pairs, min(held_out, _FEW_PROMPTS)
        held_out = min(held_out, max(least, int(_EVALUATED * seconds / scored))) if scored else held_out
        num_pairs = usable - held_out
        draft.set("data.holdout", held_out, f"pairs to evaluate by: {_shown_by(held_out)}")
    seconds -= held_out * scored
    reach = min(num_pairs, int(seconds / pair)) if pair else num_pairs
    size = purpose.most_pairs_per_step
    while size > _LEAST_PAIRS and size * purpose.steps > reach * purpose.most_epochs:
        size //= 2
    per_epoch = math.ceil(num_pairs / size)
    whole = per_epoch * min(purpose.most_epochs, math.ceil(purpose.steps / per_epoch))
    count, reason = whole, ""
    if purpose.ends_there and count > purpose.steps:
        count, reason = purpose.steps, "enough to see it work"
    if pair and (in_time := max(1, int(seconds / (size * pair + update)))) < count:
        count, reason = in_time, "what the time is enough for, as predicted"
    smaller = "the authors use 128; smaller steps make more of them"
    draft.set("train.pairs_per_step", size, "as the authors have it" if size == 128 else smaller)
    if count < per_epoch:
        draft.set("train.max_steps", count, f"{reason}; null goes through all {thousands(num_pairs)} pairs once")
    else:
        count = count // per_epoch * per_epoch
        more = f": {reason}" if count < whole else ""
        draft.set("train.num_epochs", count // per_epoch, f"passes over the pairs, {thousands(count)} steps{more}")
    if purpose.evaluations and count > _FEW_STEPS:
        every = math.ceil(count / (purpose.evaluations + 1))
        draft.set("eval.every", every, "steps between evaluations: they show early what goes wrong")
    return {
        "count": count,
        "pairs_per_step": size,
        "pairs": num_pairs,
        "held_out_pairs": held_out,
        "expected_seconds": count * (size * pair + update) if timing else None,
        "expected_evaluation_seconds": held_out * scored if timing else None,
    }


def _shown_by(held_out: int) -> str:
    """What change in accuracy so many pairs would show in four of five samples."""
    if held_out < _FEW_PROMPTS:
        return "too few to show much"
    flipped, number = round(_FLIPPED * held_out), np.arange(held_out)
    change = smallest_effect(number < flipped, (number >= flipped) & (number < 2 * flipped))
    assert change is not None
    return f"a change of some {100 * change:.0f} points would show"


# What is said of it


def _remarks(document: Mapping[str, Any]) -> list[str]:
    """What a person should know before the run."""
    steps, held_out = document["steps"]["count"], document["steps"]["held_out_pairs"]
    told = {
        "it does not fit on this machine; simpo plan says which devices would do": not document["memory"]["fits"],
        f"steps: {steps}, which change next to nothing; give more time, or more pairs": steps < _FEW_STEPS,
        f"held-out pairs: {held_out}, too few to say whether the model got better": held_out < _FEW_PROMPTS,
    }
    return [*document["pairs"]["remarks"], *(remark for remark, holds in told.items() if holds)]


def _next(wanted: Wanted, document: Mapping[str, Any]) -> list[dict[str, str]]:
    """The commands to type next, first the one about what is wrong."""
    overrides, first = [], (wanted.command("inspect"), "real pairs, token by token")
    if not document["memory"]["fits"]:
        first = (wanted.command("plan"), "which devices would do")
    if errors := [found["code"] for found in document["findings"] if found["severity"] == "error"]:
        clean = f"{Path(wanted.pairs).name.split('.')[0]}-clean.jsonl"
        skip = ["--on-bad-record", "skip"] if "FMT001" in errors else []
        command = shlex.join(["simpo", "stats", wanted.pairs, *skip, "--write-clean", clean])
        overrides, first = [f"data.train={clean}"], (command, f"the pairs without {', '.join(errors)}")
    commands = {first[0]: first[1], wanted.command("train", *overrides): f"into runs/{Path(wanted.file).stem}"}
    steps, enough = document["steps"], 3 * LEAST_PROMPTS  # for both halves
    if steps["held_out_pairs"] < enough:
        overrides.append(f"data.holdout={enough}")
    if steps["held_out_pairs"] + steps["pairs"] >= 3 * enough:
        install = "" if find_spec("optuna") else f"; first {install_command('tune')}"
        commands[wanted.command("tune", *overrides)] = f"better numbers, given time{install}"
    return [{"command": command, "purpose": purpose} for command, purpose in commands.items()]


def lines(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a person is told of the recipe, a label and a text a line."""
    model, pairs, memory, steps, timing = (document[key] for key in ("model", "pairs", "memory", "steps", "time"))
    several = f" on each of {memory['devices']}" if memory["devices"] > 1 else ""
    time = f"no speed is known; simpo plan {shlex.quote(document['file'])} --time loads the model and predicts"
    if timing:
        time = (
            f"about {duration(steps['expected_seconds'])} for the steps and "
            f"{duration(steps['expected_evaluation_seconds'])} for evaluations, predicted at "
            f"{compact(timing['tokens_per_second']['median'])} tokens a second; answers, checks and saving come on top"
        )
    return [
        ("model", f"{model['name']} · {model['parameters'] / 1e6:,.1f} M parameters · trains {memory['trained']}"),
        ("pairs", f"{pairs['decision']} · {thousands(pairs['prompts'])} prompts"),
        (
            "steps",
            f"{thousands(steps['count'])} of {steps['pairs_per_step']} pairs, from {thousands(steps['pairs'])} pairs · "
            f"{thousands(steps['held_out_pairs'])} held out",
        ),
        (
            "memory",
            f"{_gb(memory['bytes'])} GB predicted{several}, {_gb(memory['available_bytes'])} GB free · "
            f"{memory['device']}",
        ),
        ("time", time),
        *(("note", remark) for remark in document["remarks"]),
    ]


def _text(wanted: Wanted, document: Mapping[str, Any], reasons: Mapping[str, str]) -> str:
    """The recipe with its reasons; at its head what made it, and of what."""
    said = [f"{label:<{LABEL_WIDTH}}{text}" for label, text in lines(document)]
    head = [
        PURPOSES[wanted.purpose].title,
        "",
        *(line for text in said for line in textwrap.wrap(text, _HEAD_WIDTH, subsequent_indent=" " * LABEL_WIDTH)),
        "",
        "What is not here has its default: simpo recipe schema. This file was made by:",
        wanted.own_command,
    ]
    # names and fields are foreign: what ends a line of YAML must not end a comment
    shown = ("".join(one if one.isprintable() else "\ufffd" for one in line) for line in head)
    return "".join(f"# {line}".rstrip() + "\n" for line in shown) + to_yaml(unflat(document["recipe"]), notes=reasons)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e8 else f"{size / 1e9:.2f}"
