"""What a run will take, for a person: steps, disk and time a line each, memory and devices as tables."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from simpo_cli.formatting import Cell, compact, duration, thousands, weights_in_words
from simpo_cli.report.console import Console, print_table, print_wrapped
from simpo_cli.table import Remark, Row, Table

_LABEL_WIDTH = 9
_STRATEGIES = {"none": "one device", "ddp": "ddp", "fsdp2": "fsdp2"}
_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "copies": "copies",
    "gathered": "gathered",
    "activations": "activations",
    "logits": "logits",
    "total": "in all",
    "on_host": "on the host",
}


def print_plan(console: Console, document: Mapping[str, Any]) -> None:
    """Print the document that `simpo plan --json` prints."""
    for label, text in plan_lines(document):
        print_wrapped(console, Text(label.ljust(_LABEL_WIDTH), "dim"), text)
    for table in (memory_table(document), devices_table(document)):
        console.print()
        print_table(console, table, right=True)


def plan_lines(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What needs no table: a label and a text a line."""
    model, run, disk, timing = (document[key] for key in ("model", "run", "disk", "time"))
    total, trained = model["parameters"], model["trainable_parameters"]
    saved = "in padded rows"
    if run["packing"] == "shared_prefix":
        saved = f"every prompt once: {100 * run['saved_share']:.0f} % fewer than in padded rows"
    time = "not measured: simpo plan --time loads the model and times some micro-batches here"
    if timing is not None:
        speed = timing["tokens_per_second"]
        time = (
            f"{duration(timing['expected_seconds'])} for the steps on {timing['device']}: {compact(speed['median'])} "
            f"tokens a second, median of {speed['n']} micro-batches ({compact(speed['low'])} to "
            f"{compact(speed['high'])}); evaluations, answers and checkpoints come on top"
        )
    return [
        (
            "model",
            f"{model['name']} · {total / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M trained · weights "
            f"{weights_in_words(model['weights_dtype'], model['quantization'])}",
        ),
        (
            "steps",
            f"{thousands(run['steps'])} of {run['pairs_per_step']} pairs, {run['epochs']:.3g} "
            f"{'epoch' if run['epochs'] == 1 else 'epochs'} of {thousands(run['pairs'])} pairs",
        ),
        ("tokens", f"{compact(run['tokens'])}, {saved} · longest pair {thousands(run['longest_pair_tokens'])}"),
        (
            "disk",
            f"{_size(disk['total_bytes'])}: {disk['checkpoints']} checkpoints of {_size(disk['checkpoint_bytes'])}, "
            f"model {_size(disk['model_bytes'])}",
        ),
        ("time", time),
    ]


def memory_table(document: Mapping[str, Any]) -> Table:
    """The least that each device has to have, by part; that of replicas does not depend on their number."""
    shown: dict[str, Mapping[str, Any]] = {}
    for found in document["memory"]:
        count = f" × {found['devices']}" if found["strategy"] == "fsdp2" else ""
        shown.setdefault(_STRATEGIES[found["strategy"]] + count, found)
    unit, scale = ("GB", 1e9) if max(found["bytes"]["total"] for found in shown.values()) >= 1e9 else ("MB", 1e6)
    rows = []
    for part, label in _PARTS.items():
        sizes = [found["bytes"][part] / scale for found in shown.values()]
        if any(sizes):
            rows.append(Row(label, tuple(Cell(f"{size:,.1f}" if size else "-") for size in sizes)))
    alone = shown[_STRATEGIES["none"]]
    remarks = [
        f"At the peak of a step: micro-batches of {thousands(alone['tokens_per_microbatch'])} tokens, gradient "
        f"checkpointing {_switch(alone)}.",
        "copies: of weights in bf16, and the head's gradient · gathered: layers that are whole while they are used, "
        "gradients on their way to other devices",
    ]
    return Table(tuple(shown), rows, f"Memory of a device, {unit}", [Remark("setting", text) for text in remarks])


def devices_table(document: Mapping[str, Any]) -> Table:
    """The smallest number of devices of each size that would do, by strategy, and what the run would be there."""
    rows = []
    for size in dict.fromkeys(found["size_gb"] for found in document["devices"]):
        cells = []
        for strategy in _STRATEGIES:
            fitting = [
                Cell(str(found["devices"]), f"{_switch(found)}, {thousands(found['tokens_per_microbatch'])}")
                for found in document["devices"]
                if (found["size_gb"], found["strategy"]) == (size, strategy) and found["fits"]
            ]
            cells.append(fitting[0] if fitting else Cell("-"))
        rows.append(Row(f"{size} GB", tuple(cells)))
    most = max(found["devices"] for found in document["devices"])
    reasons = "; ".join(f"{key}: {why}" for key, why in document["not_sharded"].items())
    remarks = [
        f"The smallest number that fits, of up to {most}; in brackets gradient checkpointing, and the tokens of a "
        "micro-batch.",
        f"No fsdp2 ({reasons})." if reasons else "distributed.strategy: auto takes ddp where it fits, else fsdp2.",
    ]
    return Table(
        tuple(_STRATEGIES.values()), rows, "Which devices would do?", [Remark("setting", text) for text in remarks]
    )


def _switch(found: Mapping[str, Any]) -> str:
    """Whether layers are computed again, in words."""
    return "on" if found["gradient_checkpointing"] else "off"


def _size(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
