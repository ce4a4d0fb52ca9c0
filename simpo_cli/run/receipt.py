"""What a run says of itself (run.json), and what makes it that run (identity.json), so that it can be done again.

The account of the records in run.json is complete: every one that was read is somewhere, and the numbers add up.

The identity holds what a resumed run must share with the one that saved. There are four kinds of change. Data, plan,
model and objective are the run's identity: with others it would be another run, so they are refused unless each is
allowed by name. The schedule may change, with a warning. The machine may change, and it is recorded from which step on
the bits may differ. Everything else, such as names and how often to save, is free.
"""

import hashlib
import json
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Literal

from simpo_cli.data.plan import Plan
from simpo_cli.data.prepare import PreparedData
from simpo_cli.data.store import EncodedSource
from simpo_cli.errors import UserError
from simpo_cli.recipe.composition import ComposedRecipe
from simpo_cli.recipe.schema import LossRecipe
from simpo_cli.redaction import redacted_values
from simpo_cli.run.documents import SCHEMA_VERSION
from simpo_cli.run.folder import REOPENED, RUN, SEAL, RunFolder, sealed

Kind = Literal["identity", "schedule", "machine"]

_SCHEDULE = {"num_epochs", "max_steps", "learning_rate", "lr_scheduler", "warmup_ratio"}
_SCHEDULE |= {"weight_decay", "max_grad_norm"}
_OPTIMIZER = "train.optimizer"
# Seen by what they lead to: the machine's part, the model's files, the tokenizer, the template, the pairs.
_SEEN_ELSEWHERE = {
    "train.tokens_per_microbatch",
    "train.precision",
    "train.deterministic",
    "model.attention",
    "model.compile",
    "model.gradient_checkpointing",
    "model.activation_offload",
    "model.path",
    "model.revision",
    "data.chat_template",
    "data.on_bad_record",
    "data.on_no_signal",
}
_LATER: dict[str, Any] = {
    "model.lora.use_rslora": False,
    "model.lora.init": "default",
    "eval.part": "all",
}
"""Keys that checkpoints of 0.1.0 lack, with what it did; of a key that is null by default nothing need be said."""
_NAMED_WHOLE = ("data.train", "data.eval", "model.path", "tokenizer", "data.chat_template")
"""Keys of changes beside those of a recipe."""
_MARGIN = ("loss.gamma", "loss.gamma_beta_ratio")
_FREE = {
    *("name", "output_dir", "eval.every", "checkpoint", "health", "export", "tracking", "distributed", "pairs", "tune")
}
"""Sections and keys that change nothing about what a run computes."""


def ledger(source: EncodedSource, *, trained: int = 0, held_out: int = 0, not_reached: int = 0) -> dict[str, Any]:
    """Where the records of one side of the data went; every one that was read is somewhere:

        read + repeated = trained + held_out + not_reached + refused + the sum of dropped

    Args:
        source: the records; `repeated` is how many more pairs there are because sources are repeated, `refused` counts
            malformed records, and `dropped` pairs without signal, by reason.
        trained: different pairs that a step was taken on so far.
        held_out: pairs that are scored and never trained on.
        not_reached: pairs that no step was taken on so far.
    """
    account, repeated = source.account, source.repeated
    dropped, refused = dict(sorted(account.dropped.items())), len(account.refused)
    read, found = account.records_read + repeated, trained + held_out + not_reached + refused + sum(dropped.values())
    assert read == found, f"{read} records read, repetitions counted, and {found} accounted for: {source.account}"
    assert min(repeated, trained, held_out, not_reached) >= 0, source.account
    return {
        "read": account.records_read,
        "repeated": repeated,
        "trained": trained,
        "held_out": held_out,
        "not_reached": not_reached,
        "refused": refused,
        "dropped": dropped,
    }


def ledgers(data: PreparedData, plan: Plan, steps_done: int) -> dict[str, Any]:
    """The accounts of both sides after so many steps; the records of data.eval are held out all of them."""
    trained = plan.num_pairs_after(steps_done)
    held_out = len(data.train_source.pairs) - len(data.train)  # of both halves
    train = ledger(data.train_source, trained=trained, held_out=held_out, not_reached=len(data.train) - trained)
    if data.eval_source is None:
        return {"train": train, "eval": None}
    return {"train": train, "eval": ledger(data.eval_source, held_out=len(data.eval_source.pairs))}


class RunReceipt:
    """run.json, written anew whenever there is something to say: at the start, at every save, at the end.

    Args:
        content: what does not change while this process trains.
    """

    def __init__(self, folder: RunFolder, data: PreparedData, plan: Plan, content: dict[str, Any]) -> None:
        self._folder, self._data, self._plan, self.content = folder, data, plan, content

    def write(self, status: str, steps_done: int, alerts: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Say how far the run is.

        Args:
            status: running, done, stopped (by a signal or for its health, everything saved) or failed.
            steps_done: steps that are saved; the account of the records is of these.
        """
        data, records = self._data, ledgers(self._data, self._plan, steps_done)
        sides = {"train": data.train_source, "eval": data.eval_source}
        document = {
            "schema_version": SCHEMA_VERSION,
            "status": status,
            "step": steps_done,
            **self.content,
            "data": {
                **{side: source and _source_receipt(source, records[side]) for side, source in sides.items()},
                "train_pairs_with_held_out_prompts": data.shared_prompts,
                "identity": data.identity,
            },
            "health": list(alerts),
            **more,
        }
        self._folder.write_json(RUN, sealed(redacted_values(document)))  # the hash is of what is written


def reopen(folder: RunFolder, document: Mapping[str, Any], composed: ComposedRecipe) -> None:
    """Say in run.json that the run is resumed, before anything changes that it vouches for.

    A process that is killed before it writes run.json anew leaves the recipe of before or that of now, and logs behind
    the end that run.json names: both are as they should be. The results so far stay in it.

    Args:
        document: run.json as it is; empty where there is none.
    """
    if document:
        kept = {name: value for name, value in document.items() if name != SEAL}
        reopened = [*document.get(REOPENED, []), recipe_sha256(composed)]
        folder.write_json(RUN, sealed(redacted_values({**kept, REOPENED: reopened})))


_MODES, _ALLOWED = ("--fresh", "--resume"), "--allow-changed"  # what of a command belongs to one run alone


def command_line() -> str:
    """The command as typed, with the program's name and not its path."""
    return shlex.join(["simpo", *sys.argv[1:]])


def command_to_resume() -> str:
    """The same command, to resume the run; those of pairs that resume unasked have no option for it."""
    asked = sys.argv[1:2] != ["pairs"] or sys.argv[1:3] == ["pairs", "round"]
    typed = [word for word in sys.argv[1:] if word not in _MODES]
    return shlex.join(["simpo", *typed, *(["--resume"] if asked else [])])


def command_with(*words: str) -> str:
    """The same command, for another run, with more words."""
    typed, before = [], ""
    for word in sys.argv[1:]:
        if before != _ALLOWED and word.partition("=")[0] not in (*_MODES, _ALLOWED):
            typed.append(word)
        before = word
    return shlex.join(["simpo", *typed, *words])


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def recipe_sha256(composed: ComposedRecipe) -> str:
    """Of the bytes of recipe.yaml."""
    return hashlib.sha256(composed.as_yaml().encode()).hexdigest()


def _source_receipt(source: EncodedSource, records: Mapping[str, Any]) -> dict[str, Any]:
    account = source.account
    return {
        "decision": account.decision,
        "files": [{"path": path, "identity": identity, "size": size} for path, identity, size in account.files],
        "records": records,
        "counts": dict(sorted(account.counts.items())),
        "warnings": dict(sorted(account.warnings.items())),
        "tokens": {**asdict(source.origin), "seconds_saved": source.origin.seconds_saved},
    }


# What a resumed run must share with the run that saved


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not as it was."""

    key: str  # the name that --allow-changed takes: a key of the recipe, or `tokenizer`
    kind: Kind
    sentence: str  # what it was and what it is, such as `loss.beta is 2.5, was 2.0`


@dataclass(frozen=True, slots=True)
class Identity:
    """identity.json: what a checkpoint says of the run that saved it; JSON values throughout."""

    recipe: Mapping[str, Any]  # every value by its dotted key
    data: Mapping[str, Any]  # of `train` and `eval`, the sha256 (or hub commit) of each file by name
    model: Mapping[str, Any]  # revision, sha256 of the weight files, and of the model's own code where that is run
    tokenizer: str  # sha256, as is that of the template
    template: str
    plan: Mapping[str, Any]  # numbers of pairs, a digest of their tokens, and the moment that a template takes for now
    machine: Mapping[str, Any]  # what equal bits depend on: versions, device, threads, precision, packing, budget

    @property
    def hashes(self) -> dict[str, str]:
        """For the manifest: sha256 of recipe, data, model and plan."""
        parts = {"recipe": self.recipe, "data": self.data, "model": self.model, "plan": self.plan}
        texts = {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}
        return {f"{name}_sha256": hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}

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


def require_known_keys(allowed: Collection[str], *recipes: Mapping[str, Any]) -> None:
    """Refuse to allow a change of what is a key of none of the recipes: nothing would be allowed by it."""
    known = {*_NAMED_WHOLE, *(key for recipe in recipes for key in recipe)}
    for key in allowed:
        if key not in known:
            near = get_close_matches(key, sorted(known), n=1)
            hint = f"Did you mean {near[0]}?" if near else "The refusal without --allow-changed names the keys."
            raise UserError(f"--allow-changed {key}: there is no such key.", hint)


def require_same_run(changes: Sequence[Change], allowed: Collection[str], run_dir: str) -> None:
    """Refuse to resume another run's checkpoint.

    Raises:
        UserError: an identity change is not allowed by name, and all of them are named; or the optimizer is another.
    """
    for change in changes:
        if change.key == _OPTIMIZER:
            raise UserError(
                f"{run_dir} cannot be resumed: {change.sentence}, and the state of one is of no use to the other.",
                "Put train.optimizer back, or start anew with --fresh.",
                key=_OPTIMIZER,
            )
    refused = [change for change in changes if change.kind == "identity" and change.key not in allowed]
    if refused:
        options = " ".join(f"--allow-changed {key}" for key in dict.fromkeys(change.key for change in refused))
        raise UserError(
            f"{run_dir} cannot be resumed: {'; '.join(change.sentence for change in refused)}.",
            f"Put back what changed, start anew with --fresh, or resume all the same with {options}.",
        )


def _recipe_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    changes = []
    before = {**{key: value for key, value in _LATER.items() if key in now}, **before}
    for key in [*now, *(key for key in before if key not in now)]:
        section = key.split(".")[0]
        is_path = section == "data" and key.endswith(".path")
        is_free = bool({section, key} & _FREE) or key in _SEEN_ELSEWHERE or is_path
        is_same_margin = key in _MARGIN and _margin(before) == _margin(now)
        is_same_state = key == _OPTIMIZER and all(
            str(recipe.get(key)).endswith("adamw_8bit") for recipe in (before, now)
        )
        if before.get(key) == now.get(key) or is_free or is_same_margin or is_same_state:
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
