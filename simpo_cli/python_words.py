"""Messages for people who call the library: there is no recipe at hand, and no option of a command."""

import re

from simpo_cli.errors import UserError

# what messages call a thing, and what to say in Python
_WORDS = {
    r"Mend the record, or set data\.on_bad_record[^.]*\.": "Mend the record, or leave it out.",
    r"Set data\.on_bad_record[^.]*\.": "Mend the record, or leave it out.",
    r", or set data\.on_no_signal[^.]*": ", or leave it out",
    r"\bdata\.(max_length|max_prompt_length)\b": r"\1",
    r"\bloss\.type\b": "loss_type",
    r"\bloss\.(beta|gamma|label_smoothing|sft_weight)\b": r"\1",
    r"\btrain\.tokens_per_microbatch\b": "batch_size",
    r"\btrain\.(max_grad_norm|precision)\b": r"\1",
    r"(\btrain\.|\b)learning_rate\b": "lr",
}


def in_python(text: str) -> str:
    """A text that names keys of a recipe, with the names of `SimPOConfig` in their place."""
    for pattern, replacement in _WORDS.items():
        text = re.sub(pattern, replacement, text)
    return text


def for_python(error: UserError) -> UserError:
    """An error as a caller of the library can act on it."""
    problem, fix = in_python(error.problem), in_python(error.fix)
    return UserError(problem, fix, where=error.where, exit_code=error.exit_code)
