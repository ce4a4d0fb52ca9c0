"""What a run tells whoever watches it. The loop calls an `Observer`; terminals and trackers implement it."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from simpo_cli.table import Table

LOOPING = 0.3
"""Share of repeated runs of four tokens from which on an answer counts as one that repeats itself."""


@dataclass(frozen=True, slots=True)
class StepRecord:
    """The numbers of one optimizer step: sums over counts of all its pairs, on all devices.

    Rewards are beta * m, log-probs are means per token in nats, shares lie in 0..1.
    """

    step: int  # steps done, the first is 1
    epoch: float  # passes over the data done, such as 0.25
    loss: float
    rewards_chosen: float
    rewards_rejected: float
    rewards_margins: float
    rewards_accuracies: float
    rewards_target_reached: float
    logps_chosen: float
    logps_rejected: float
    sft_loss: float | None  # None when sft_weight is 0
    grad_norm: float
    learning_rate: float
    pairs: int
    tokens: int
    pairs_per_second: float
    tokens_per_second: float
    memory_gb: float  # peak so far: device memory on CUDA, resident memory on a CPU
    seconds: float  # wall time of this step
    gradient_weight: float  # how hard its pairs pull on average, see objective.gradient_weight

    def as_metrics(self) -> dict[str, float | int]:
        """The line of metrics.jsonl: the field's names (`rewards/chosen`), sft_loss only when it is active."""
        row = {name.replace("rewards_", "rewards/").replace("logps_", "logps/"): v for name, v in asdict(self).items()}
        return {name: value for name, value in row.items() if value is not None}


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What the model said to a held-out prompt."""

    question: str
    text: str
    tokens: int
    repeated: float  # share of its runs of four tokens that occurred in it before
    ended: bool

    @property
    def loops(self) -> bool:
        """Whether it repeats itself beyond what lists and set phrases do."""
        return self.repeated >= LOOPING


@dataclass(frozen=True, slots=True)
class EvalRecord:
    """Held-out pairs scored after `step` steps (0: the start model); deltas are against step 0 on the fixed probe."""

    step: int
    pairs: int
    prompts: int
    loss: float
    accuracy: float
    accuracy_low: float  # 95 % interval
    accuracy_high: float
    margin: float
    target_reached: float
    logps_chosen: float
    logps_rejected: float
    logps_chosen_delta: float  # on the probe, nats per token
    logps_rejected_delta: float
    probe_pairs: int
    seconds: float
    export_kept_share: float | None = None  # of the change so far, in a save in a narrower export.dtype, estimated
    choosing_loss: float | None = None  # of the pairs that choose the best checkpoint, where one is kept
    answers: tuple[ProbeAnswer, ...] = ()

    def as_metrics(self) -> dict[str, float | int]:
        """The line of evals.jsonl; of the answers the shares of those that repeat themselves and that do not end."""
        row = {name.replace("logps_", "logps/"): value for name, value in asdict(self).items() if name != "answers"}
        row["export/kept_share"] = row.pop("export_kept_share")
        if self.answers:
            row["answers/looping"] = sum(answer.loops for answer in self.answers) / len(self.answers)
            row["answers/endless"] = sum(not answer.ended for answer in self.answers) / len(self.answers)
        return {name: value for name, value in row.items() if value is not None}

    def answer_rows(self) -> list[dict[str, Any]]:
        """The lines of answers.jsonl."""
        return [{"step": self.step, **asdict(answer)} for answer in self.answers]


class Note(NamedTuple):
    """A line that is worth reading once, and a line of notes.jsonl."""

    label: str  # "note", or that of a line of the first screen: loss, model, data, plan ...
    text: str
    code: str = ""  # of the finding or the alert that it is about, with which the text then begins

    def as_row(self) -> dict[str, str]:
        """The line of notes.jsonl."""
        return {name: value for name, value in self._asdict().items() if value or name != "code"}


@dataclass(frozen=True, slots=True)
class RunHeader:
    """What is known before the first step, as the lines a person reads."""

    title: str  # simpo 0.1.0 · train demo · cpu, 2 threads, float32
    lines: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a finished run leaves behind."""

    run_dir: str
    model_dir: str
    steps: int
    seconds: float
    answers: tuple[tuple[str, str, str], ...]  # (question, answer before, answer after) of the probe prompts
    table: Table  # before and after, of the final evaluation
    next_commands: tuple[tuple[str, str], ...]  # (command, what it does)


class Observer(Protocol):
    """Whoever watches a run."""

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        """The first screen is known; `num_steps` is 0 in a dry run."""

    def note(self, text: str, code: str = "", /) -> None:
        """A line worth reading once, such as a warning; `code` is that of an alert, with which the text then begins."""

    def step(self, record: StepRecord) -> None: ...

    def evaluated(self, record: EvalRecord) -> None: ...

    def finished(self, outcome: RunOutcome) -> None: ...

    def close(self) -> None:
        """Leave the terminal as it was found; called on every way out."""


class Unwatched:
    """Takes every event and shows none: for processes without a terminal, and for trials."""

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None: ...

    def note(self, text: str, code: str = "", /) -> None: ...

    def step(self, record: StepRecord) -> None: ...

    def evaluated(self, record: EvalRecord) -> None: ...

    def finished(self, outcome: RunOutcome) -> None: ...

    def close(self) -> None: ...
