"""What a scorer is: a number for an answer to a prompt, or the reason why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.evaluate.generate.prompts import Question

ScorerKind = Literal["rule", "reward_model", "judge"]


class Answered(NamedTuple):
    """An answer and what it answers; `record` holds what the file of prompts says of the prompt besides."""

    question: Question
    answer: Answer


@dataclass(frozen=True, slots=True)
class Score:
    """A finite number, the higher the better, or None with the reason, which is counted: `timed out`, `ValueError`."""

    value: float | None
    reason: str = ""


class Scorer(Protocol):
    """Scores answers; close it when done."""

    kind: ScorerKind
    identity: dict[str, Any]
    """What the scores depend on, as JSON; equal on resume, or the scores there are of something else."""
    batch_size: int
    """How many answers `score` is given at once; a fixed number, so that a resumed scoring meets the same batches."""

    has_scored: bool
    """Whether any answer has a score; a rule or judge that has given none to a whole batch ends the scoring."""

    def score(self, answers: Sequence[Answered]) -> list[Score]:
        """One score an answer, in order."""
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...
