"""What `simpo init` asks, and what each purpose decides; without torch, for the questions come before it is loaded."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from simpo_cli.model.remote_code import FLAG

BUILTIN = "builtin:guide"


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """What a run is for, as far as that decides numbers."""

    title: str
    minutes: int  # that it may take, where nothing is said
    most_tokens: int  # of a prompt and a response
    most_held_out: int  # pairs
    most_pairs_per_step: int
    steps: int  # that the run should have: steps are made smaller, and pairs used again, to reach them
    most_epochs: int = 1
    ends_there: bool = False  # whether it has no more steps than those
    evaluations: int = 0  # between the first and the last
    more: Mapping[str, tuple[Any, str]] = field(default_factory=dict)  # other keys, with their reasons


PURPOSES: Mapping[str, Purpose] = {
    "try": Purpose(
        title="See it work: a short run of small steps",
        minutes=10,
        most_tokens=1024,
        most_held_out=100,
        most_pairs_per_step=8,
        steps=30,
        most_epochs=3,
        ends_there=True,
    ),
    "assistant": Purpose(
        title="Teach an assistant a behaviour, by pairs of your own",
        minutes=60,
        most_tokens=4096,
        most_held_out=200,
        most_pairs_per_step=32,
        steps=60,
        most_epochs=3,
        evaluations=3,
        more={
            "loss.sft_weight": (0.1, "not in SimPO: keeps the chosen responses likely (docs/health.md)"),
            "health.stop_on": (["HEA002", "HEA007", "HEA008"], "stops where the model forgets, loops or does not end"),
        },
    ),
    "general": Purpose(
        title="Train on a general preference dataset, as SimPO's authors do",
        minutes=480,
        most_tokens=2048,
        most_held_out=500,
        most_pairs_per_step=128,
        steps=30,
        evaluations=3,
    ),
}


@dataclass(frozen=True)
class Wanted:
    """What a person answered."""

    file: str
    model: str
    pairs: str
    purpose: str
    minutes: int
    trust_remote_code: bool

    def command(self, name: str, *words: str) -> str:
        """A command about the recipe, as it is typed."""
        return shlex.join(["simpo", name, self.file, *words, *([FLAG] if self.trust_remote_code else [])])

    @property
    def own_command(self) -> str:
        """The command that makes the same recipe without asking."""
        options = {"--model": self.model, "--pairs": self.pairs, "--for": self.purpose, "--minutes": str(self.minutes)}
        return self.command("init", *(word for option in options.items() for word in option))
