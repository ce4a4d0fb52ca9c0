"""What ships inside the package, so that a first run needs no download: a tiny model and its preference pairs."""

from pathlib import Path
from typing import Literal

_GUIDE = Path(__file__).parent / "guide"

PROBE_QUESTIONS = (
    "Could you show me how to bring a coworker aboard?",
    "Any idea how to rescue a deleted page?",
    "What steps does it take to silence push messages?",
)


def guide_model_dir() -> Path:
    """The folder of the model: weights, configuration, tokenizer and chat template, as transformers saves them."""
    return _GUIDE


def guide_pairs(which: Literal["train", "eval"]) -> Path:
    """The file of the preference pairs: 2,000 to train on, 500 held out with wordings that the former never use."""
    return _GUIDE / f"{which}.jsonl.gz"
