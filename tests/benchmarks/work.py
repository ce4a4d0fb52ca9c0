"""What a side is given to do: the same pairs and settings for both, as a file. Standard library only."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Entry:
    """Who takes part, and how it is set."""

    who: Literal["ours", "peer"]
    microbatch: int = 0  # the peer's, in pairs
    precision: Precision = "fp32"

    @property
    def name(self) -> str:
        return f"{self.who}{self.microbatch or ''}-{self.precision}"


OURS = Entry("ours")


@dataclass(frozen=True, kw_only=True)
class WorkPair:
    """A pair as token ids, and as the texts that these ids spell; texts are None for made-up ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    texts: tuple[str, str, str] | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def scored(self) -> dict[str, list[int]]:
        """What a side tells of the tokens that it scores: each response, and the prompt that it stands behind."""
        prompts = {"chosen_prompt": self.prompt, "rejected_prompt": self.prompt}
        return {**prompts, "chosen": self.chosen, "rejected": self.rejected}

    @property
    def row(self) -> int:
        """Tokens of the longer of the two sequences that prompt and response make."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@dataclass(frozen=True, kw_only=True)
class Work:
    """Steps to run, one after another, each over the next `pairs_per_step` pairs.

    Attributes:
        model: folder.
        pairs: of all steps, in order.
        pairs_per_step: pairs of one optimizer step.
        microbatch: pairs of a micro-batch, where the side cuts by pairs.
        tokens_per_microbatch: tokens of a micro-batch, where the side cuts by tokens; a longer pair raises it.
        precision: float32, or bf16 autocast over float32 weights.
        beta, gamma: of the loss; gamma in units of the reward.
        learning_rate: the same at every step.
        max_length: most tokens of prompt and response.
        threads: of the matrix products.
    """

    model: str
    pairs: list[WorkPair]
    pairs_per_step: int
    microbatch: int = 1
    tokens_per_microbatch: int = 1024
    precision: Precision = "fp32"
    beta: float = 2.0
    gamma: float = 1.0
    learning_rate: float = 1e-6
    max_length: int = 1024
    threads: int = 2

    def __post_init__(self) -> None:
        if self.pairs_per_step % self.microbatch:
            raise ValueError(f"{self.pairs_per_step} pairs cannot be cut into micro-batches of {self.microbatch}")

    @property
    def num_steps(self) -> int:
        return len(self.pairs) // self.pairs_per_step

    def step(self, number: int) -> list[WorkPair]:
        """The pairs of a step; 0 is the first."""
        return self.pairs[number * self.pairs_per_step : (number + 1) * self.pairs_per_step]

    def save(self, file: Path) -> Path:
        """Write the file that `load` reads."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return file

    @classmethod
    def load(cls, file: Path) -> "Work":
        """What `save` wrote."""
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        pairs = [WorkPair(**{**pair, "texts": pair["texts"] and tuple(pair["texts"])}) for pair in fields.pop("pairs")]
        return cls(pairs=pairs, **fields)
