"""What is told of one kind of finding."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
Needs = Literal["text", "tokens", "evaluation", "near", "model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One kind of finding.

    Attributes:
        code: three letters and three digits.
        title: what it is, in a few words.
        severity: `error` for what makes training wrong, `warning` for what a person should look at.
        short: what the line of passed checks calls it.
        meaning: what exactly is counted.
        harm: why it ruins runs.
        remedy: what to do, in a sentence or two.
        needs: what must be there for it to be looked for: `text` (any audit), `tokens` (a tokenizer or recipe),
            `evaluation` (the evaluation file), `near` (the search for near-duplicates) or `model` (a model that scores
            pairs).
        drops: whether --write-clean leaves such pairs out.
        mends: whether it writes them without the trouble.
    """

    code: str
    title: str
    severity: Severity
    short: str
    meaning: str
    harm: str
    remedy: str
    needs: Needs = "text"
    drops: bool = False
    mends: bool = False

    def __post_init__(self) -> None:
        assert self.drops or self.severity == "warning", f"{self.code}: what is cleaned passes --fail-on error"
