"""What a run is: the things that a resumed run must share with the one that saved, and what to say where it does not.

Four kinds of change. Data, plan, model and objective are the run's identity: with others it would be another run, so
they are refused unless each is allowed by name. The schedule may change, with a warning. The machine may change, and it
is recorded from which step on the bits may differ. Everything else, such as names and how often to save, is free.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Literal

from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import LossRecipe, Recipe
from simpo_cli.recipe.tree import flat

Kind = Literal["identity", "schedule", "machine"]

_SCHEDULE = {"num_epochs", "max_steps", "learning_rate", "lr_scheduler", "warmup_ratio"}
_SCHEDULE |= {"optimizer", "weight_decay", "max_grad_norm"}
# Seen by what they lead to: the machine's part, the model's files, the tokenizer, the template, the pairs.
_SEEN_ELSEWHERE = {
    "train.tokens_per_microbatch",
    "train.precision",
    "train.deterministic",
    "model.attention",
    "model.compile",
    "model.gradient_checkpointing",
    "model.path",
    "model.revision",
    "data.chat_template",
    "data.on_bad_record",
    "data.on_no_signal",
}
_NAMED_WHOLE = ("data.train", "data.eval", "model.path", "tokenizer", "data.chat_template")
"""Keys of changes beside those of a recipe."""
_MARGIN = ("loss.gamma", "loss.gamma_beta_ratio")
_FREE = {"name", "output_dir", "eval", "checkpoint", "health", "export", "tracking"}


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was.

    Attributes:
        key: the name that --allow-changed takes: a key of the recipe, or `tokenizer`.
        sentence: what it was and what it is, such as `loss.beta is 2.5, was 2.0`.
    """

    key: str
    kind: Kind
    sentence: str


@dataclass(frozen=True, slots=True)
class Identity:
    """What a checkpoint says of the run that saved it; JSON values throughout.

    Attributes:
        recipe: every value by its dotted key.
        data: of `train` and `eval`, the sha256 (or hub commit) of each file by name.
        model: revision, sha256 of the weight files, and of the model's own code where that is run.
        tokenizer, template: sha256.
        plan: training pairs, held-out pairs, and a digest of their tokens; where the template writes the date also the
            moment that it takes for now.
        machine: what equal bits depend on: versions, device, threads, instruction set, precision, packing, budget.
    """

    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    model: Mapping[str, Any]
    tokenizer: str
    template: str
    plan: Mapping[str, Any]
    machine: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The content of identity.json."""
        return asdict(self)

    @property
    def hashes(self) -> dict[str, str]:
        """For the manifest: sha256 of recipe, data, model and plan."""
        return {f"{name}_sha256": _digest(getattr(self, name)) for name in ("recipe", "data", "model", "plan")}

    @property
    def rendered_at(self) -> datetime | None:
        """What the chat template took for now; None where it writes no date, and in checkpoints that do not say."""
        written = self.plan.get("rendered_at")
        return None if written is None else datetime.fromisoformat(written)

    def changes_since(self, before: "Identity") -> list[Change]:
        """What has changed, identity first."""
        changes = _recipe_changes(before.recipe, self.recipe)
        for side in ("train", "eval"):
            then, now = before.data[side], self.data[side]
            if _contents(then) != _contents(now):
                key = f"data.{side}"
                changes.append(Change(key, "identity", f"the pairs of {key} are others ({_files(then, now)})"))
        if any(before.model[name] != self.model[name] for name in ("revision", "files")):
            changes.append(Change("model.path", "identity", "the weights of model.path are others"))
        if sentence := _code_change(before.model.get("code", {}), self.model.get("code", {})):
            changes.append(Change("model.path", "identity", sentence))
        if before.tokenizer != self.tokenizer:
            changes.append(Change("tokenizer", "identity", "the model's tokenizer.json is another"))
        if before.template != self.template:
            changes.append(Change("data.chat_template", "identity", "the chat template is another"))
        if not any(change.kind == "identity" for change in changes):
            changes += _plan_changes(before.plan, self.plan)
        for key in sorted(before.machine.keys() | self.machine.keys()):
            then, now = before.machine.get(key), self.machine.get(key)
            if then != now:
                changes.append(Change(key, "machine", f"{key} {_in_words(now)}, was {_in_words(then)}"))
        return sorted(changes, key=lambda change: ("identity", "schedule", "machine").index(change.kind))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Every value of a recipe by its dotted key; those of a source as data.train.0.path."""
    plain: dict[str, Any] = json.loads(json.dumps(flat(asdict(recipe), items=True)))
    return plain


def require_known_keys(allowed: Collection[str], *recipes: Mapping[str, Any]) -> None:
    """Refuse to allow a change of what is no key: nothing would be allowed by it.

    Args:
        allowed: the keys of --allow-changed.
        recipes: values by key of the recipe now, and as it was.

    Raises:
        UserError: a key is none; names the nearest.
    """
    known = {*_NAMED_WHOLE, *(key for recipe in recipes for key in recipe)}
    for key in allowed:
        if key not in known:
            near = get_close_matches(key, sorted(known), n=1)
            hint = f"Did you mean {near[0]}?" if near else "The refusal without --allow-changed names the keys."
            raise UserError(f"--allow-changed {key}: there is no such key.", hint)


def require_same_run(changes: Sequence[Change], allowed: Collection[str], run_dir: str) -> None:
    """Refuse to resume another run's checkpoint.

    Raises:
        UserError: an identity change is not allowed by name; all of them are named.
    """
    refused = [change for change in changes if change.kind == "identity" and change.key not in allowed]
    if refused:
        options = " ".join(f"--allow-changed {key}" for key in dict.fromkeys(change.key for change in refused))
        raise UserError(
            f"{run_dir} cannot be resumed: {'; '.join(change.sentence for change in refused)}.",
            f"Put back what changed, start anew with --fresh, or resume all the same with {options}.",
        )


def _recipe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    changes = []
    for key in [*now, *(key for key in before if key not in now)]:
        section = key.split(".")[0]
        is_path = section == "data" and key.endswith(".path")
        is_free = section in _FREE or key in _SEEN_ELSEWHERE or is_path
        is_same_margin = key in _MARGIN and _margin(before) == _margin(now)
        if before.get(key) == now.get(key) or is_free or is_same_margin:
            continue
        kind: Kind = "schedule" if key.removeprefix("train.") in _SCHEDULE else "identity"
        changes.append(Change(key, kind, f"{key} is {_in_words(now.get(key))}, was {_in_words(before.get(key))}"))
    return changes


def _plan_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What came of files and settings that are as they were."""
    counts = [(plan["train_pairs"], plan["held_out_pairs"]) for plan in (before, now)]
    if counts[0] != counts[1]:
        (then_train, then_held_out), (train, held_out) = counts
        came_of_them = (
            f"the same files give {train:,} pairs to train and {held_out:,} held out, and gave {then_train:,} and "
            f"{then_held_out:,}"
        )
    elif "tokens" in before and before["tokens"] != now["tokens"]:  # checkpoints of before 0.2 do not say them
        came_of_them = "the same files give other tokens, as they do when the library of the tokenizer is another"
    else:
        return []
    return [Change("data.train", "identity", came_of_them)]


def _code_change(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What has become of the code that the model brings with it; empty where it is as it was."""
    if before == now:
        return ""
    if not now:
        return f"the model's own code ({', '.join(before)}) was run before and is not now (--trust-remote-code)"
    if not before:
        return f"the model's own code ({', '.join(now)}) is run now and was not before (--trust-remote-code)"
    named = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    return f"the model's own code is another ({', '.join(named)})"


def _margin(values: Mapping[str, Any]) -> float:
    """gamma, whichever of the two ways it was given."""
    loss = LossRecipe(beta=values["loss.beta"], **{key.split(".")[1]: values[key] for key in _MARGIN})
    return loss.margin


def _contents(files: Sequence[Sequence[str]] | None) -> list[str] | None:
    """What the files hold, in their order, whatever they are called."""
    return None if files is None else [identity for _, identity in files]


def _files(before: Sequence[Sequence[str]] | None, now: Sequence[Sequence[str]] | None) -> str:
    """The names of the files that differ, for a message."""
    then, there = ({str(name): content for name, content in files or ()} for files in (before, now))
    names = [name for name in there if then.get(name) != there[name]] + [name for name in then if name not in there]
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "in another order"


def _in_words(value: Any) -> str:
    return "not set" if value is None else str(value)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
