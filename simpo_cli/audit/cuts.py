"""What the length limits cut, and the limits that would cut little, from the lengths before any cut."""

import numpy as np
from numpy.typing import NDArray

from simpo_cli.recipe.schema import DataRecipe

MANY = 0.05
"""Share of prompts or of responses that are cut from which on it is said which limit would help."""
_WHOLE = (0.95, 0.99)  # shares that a limit would keep


def cut_details(lengths: NDArray[np.int32], data: DataRecipe) -> dict[str, str]:
    """A sentence for each finding about cuts, by its code, where more than 5 % are cut.

    Args:
        lengths: (pairs, 3) tokens of the prompt and of the two responses before any cut.
        data: the limits.
    """
    asked, answered = lengths[:, 0], lengths[:, 1:]
    kept = np.minimum(asked, data.max_prompt_length)
    prompt_share = _share(asked > data.max_prompt_length)
    response_share = _share(answered + kept[:, None] > data.max_length)
    prompts = responses = ""
    if prompt_share > MANY:
        low, high = (_with_room(_least(asked, whole), whole, lengths, data.max_length) for whole in _WHOLE)
        prompts = (
            f"{100 * prompt_share:.1f} % of prompts are cut: data.max_prompt_length={low} keeps 95 % of them whole, "
            f"{high} keeps 99 %."
        )
    if response_share > MANY:
        low, high = (str(_needed(kept, answered, whole)) for whole in _WHOLE)
        responses = (
            f"{100 * response_share:.1f} % of responses are cut: data.max_length={low} keeps both whole in 95 % of "
            f"pairs, {high} in 99 %."
        )
    both = f"{prompts} {responses}".strip()
    return {"TRU001": responses, "TRU002": responses, "TRU003": prompts, "TRU005": both}


def _share(is_cut: NDArray[np.bool_]) -> float:
    return float(is_cut.mean()) if is_cut.size else 0.0


def _least(values: NDArray[np.int32], whole: float) -> int:
    """The least limit under which this share of the values stays whole."""
    return int(np.quantile(values, whole, method="inverted_cdf"))


def _needed(kept: NDArray[np.int32], answered: NDArray[np.int32], whole: float) -> int:
    """The least data.max_length that leaves both responses of this share of the pairs whole."""
    return _least(kept + answered.max(axis=1), whole)


def _with_room(limit: int, whole: float, lengths: NDArray[np.int32], max_length: int) -> str:
    """A limit of prompts, with the data.max_length that keeps the responses behind such prompts whole."""
    most = _needed(np.minimum(lengths[:, 0], limit), lengths[:, 1:], whole)
    return f"{limit} (with data.max_length={most})" if most > max_length else str(limit)
