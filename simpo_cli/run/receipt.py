"""run.json: what ran, on what, with what, so that the run can be identified and done again.

Its account of the records is complete: every one that was read is somewhere, and the numbers add up.
"""

import hashlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from simpo_cli.data.plan import Plan
from simpo_cli.data.prepare import PreparedData
from simpo_cli.data.store import EncodedSource
from simpo_cli.recipe import ComposedRecipe
from simpo_cli.recipe.schema import Recipe
from simpo_cli.redaction import redacted_values, told_apart
from simpo_cli.run.documents import SCHEMA_VERSION
from simpo_cli.run.folder import REOPENED, RUN, SEAL, RunFolder, sealed
from simpo_cli.run.identity import Identity, recipe_values
from simpo_cli.versions import installed_version

_PACKAGES = (
    *("simpo-cli", "torch", "transformers", "tokenizers", "accelerate"),
    *("peft", "liger-kernel", "datasets", "omegaconf"),
)


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
    held_out = len(data.held_out) if data.eval_source is None else 0
    train = ledger(data.train_source, trained=trained, held_out=held_out, not_reached=len(data.train) - trained)
    if data.eval_source is None:
        return {"train": train, "eval": None}
    return {"train": train, "eval": ledger(data.eval_source, held_out=len(data.eval_source.pairs))}


class RunReceipt:
    """run.json, written anew whenever there is something to say: at the start, at every save, at the end.

    Args:
        folder: the run's folder.
        data: its pairs, with the account of their records.
        plan: which of them a step takes.
        content: what does not change while this process trains.
    """

    def __init__(self, folder: RunFolder, data: PreparedData, plan: Plan, content: dict[str, Any]) -> None:
        self._folder, self._data, self._plan, self.content = folder, data, plan, content

    def write(self, status: str, steps_done: int, alerts: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """Say how far the run is.

        Args:
            status: running, done, stopped (by a signal or for its health, everything saved) or failed.
            steps_done: steps that are saved; the account of the records is of these.
            alerts: what was seen of the run's health, as JSON.
            more: such as outcome, and the files of a run that is done.
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
        folder: the run's folder.
        document: run.json as it is; empty where there is none.
        composed: the recipe of now.
    """
    if document:
        kept = {name: value for name, value in document.items() if name != SEAL}
        reopened = [*document.get(REOPENED, []), _recipe_sha256(composed)]
        folder.write_json(RUN, sealed(redacted_values({**kept, REOPENED: reopened})))


def receipt(
    composed: ComposedRecipe,
    data: PreparedData,
    plan: Plan,
    earlier: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    hardware: Mapping[str, Any],
    tokens_per_microbatch: int,
    quick: bool,
) -> dict[str, Any]:
    """What run.json says from the start on.

    Args:
        composed: the recipe with the origin of every value.
        data, plan: of the run.
        earlier: run.json of a run that is resumed: when and how it began stays as it was; else empty.
        model, hardware: those parts of run.json.
        tokens_per_microbatch: most tokens of a micro-batch.
        quick: whether this is a smoke run.
    """
    return {
        "started": earlier.get("started", now()),
        "command": earlier.get("command", command_line()),
        "versions": _versions(),
        "recipe_sha256": _recipe_sha256(composed),
        "recipe_origins": {  # where each value was set; what is not here is a default
            key: str(origin) for key, origin in composed.origins.items() if not origin.is_default
        },
        "seed": composed.recipe.seed,
        "quick": quick,
        "model": dict(model),
        "tokenizer_sha256": data.tokenizer.sha256,
        "template_sha256": hashlib.sha256(data.tokenizer.template_source.encode()).hexdigest(),
        "template_dates": data.tokenizer.dates,
        "plan": {
            "steps": plan.num_steps,
            "pairs_per_step": plan.pairs_per_step,
            "tokens_per_microbatch": tokens_per_microbatch,
        },
        "hardware": dict(hardware),
        "resumed": list(earlier.get("resumed", [])),
    }


def identity(recipe: Recipe, data: PreparedData, content: Mapping[str, Any], machine: Mapping[str, Any]) -> Identity:
    """What a later process must share with this run, drawn from its receipt.

    Args:
        recipe, data: of the run.
        content: of `receipt`.
        machine: what equal bits depend on beside versions and hardware.
    """
    model = {name: content["model"][name] for name in ("revision", "files", "code")}
    if not model["code"]:
        del model["code"]  # as in checkpoints of before there was any
    plan: dict[str, Any] = {
        "train_pairs": len(data.train),
        "held_out_pairs": len(data.held_out),
        "tokens": data.identity,
    }
    if data.tokenizer.dates:
        plan["rendered_at"] = data.tokenizer.moment.isoformat()
    return Identity(
        recipe={key: told_apart(v) if isinstance(v, str) else v for key, v in recipe_values(recipe).items()},
        data={
            "train": _files(data.train_source),
            "eval": None if data.eval_source is None else _files(data.eval_source),
        },
        model=model,
        tokenizer=content["tokenizer_sha256"],
        template=content["template_sha256"],
        plan=plan,
        machine={
            **{name: content["versions"][name] for name in ("simpo-cli", "torch", "transformers", "peft")},
            **{name: content["hardware"][name] for name in ("device", "threads", "cpu_capability", "compute")},
            **machine,
        },
    )


def command_line() -> str:
    """The command as typed, with the program's name and not its path."""
    return shlex.join(["simpo", *sys.argv[1:]])


def command_to_resume() -> str:
    """The same command, to resume the run."""
    typed = [word for word in sys.argv[1:] if word not in ("--fresh", "--resume")]
    return shlex.join(["simpo", *typed, "--resume"])


def now() -> str:
    """This moment, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _recipe_sha256(composed: ComposedRecipe) -> str:
    """Of the bytes of recipe.yaml."""
    return hashlib.sha256(composed.as_yaml().encode()).hexdigest()


def _versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: installed_version(name) for name in _PACKAGES}}


def _files(source: EncodedSource) -> list[tuple[str, str]]:
    return [(path, content) for path, content, _ in source.account.files]


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
