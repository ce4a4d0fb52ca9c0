"""What the length limits take away, in words, with the limits that would take less."""

from collections import Counter
from collections.abc import Mapping

from simpo_cli.recipe.schema import DataRecipe

MANY = 0.05
"""Share of pairs above which a cut is worth a warning; the limit that is named leaves no more than this share cut."""


def cut_warnings(
    needed: Mapping[str, Counter[int]], num_pairs: int, data: DataRecipe, longest: int | None = None
) -> dict[str, str]:
    """A sentence for each limit that cuts more than a twentieth of the pairs, by its name; empty where none does.

    Args:
        needed: of `EncodedPairs`.
        num_pairs: pairs that are trained on, scored or measured, cut or not.
        data: the limits.
        longest: most tokens that the model takes; None where that is not known.
    """
    wanted = {name: _limit(needed[name], num_pairs) for name in ("max_prompt_length", "max_length")}
    more = max(0, (wanted["max_prompt_length"] or 0) - data.max_prompt_length)  # room that longer prompts take
    settings = {}
    if wanted["max_prompt_length"] is not None:
        settings["max_prompt_length"] = wanted["max_prompt_length"]
    if settings or wanted["max_length"] is not None:
        settings["max_length"] = more + (wanted["max_length"] or data.max_length)
    typed = " ".join(f"data.{name}={value}" for name, value in settings.items())
    fits = longest is None or settings.get("max_length", 0) <= longest
    fix = (
        f"{typed} keeps 95 % whole"
        if fits
        else f"{typed} would keep 95 % whole, and the model takes {longest:,} tokens"
    )
    shares = {name: 100 * needed[name].total() / num_pairs for name in wanted if wanted[name] is not None}
    return {
        name: f"{shares[name]:.0f} % of pairs have {what} cut at data.{name}={getattr(data, name)}: {fix}"
        for name, what in (("max_prompt_length", "their prompt"), ("max_length", "an answer"))
        if name in shares
    }


def _limit(needed: Counter[int], num_pairs: int) -> int | None:
    """The smallest limit that leaves few pairs cut; None where few are."""
    if needed.total() <= MANY * num_pairs:
        return None
    above = 0
    for tokens in sorted(needed, reverse=True):
        above += needed[tokens]
        if above > MANY * num_pairs:
            return tokens
    raise AssertionError("more than the share are cut, so one of them is reached")
