"""What the length limits take away, in words, with the limits that would take less."""

from collections import Counter
from collections.abc import Mapping

from simpo_cli.recipe.schema import DataRecipe

MANY = 0.05
"""Share of pairs above which a cut is worth a warning; the limit that is named leaves no more than this share cut."""
LIMITS = {"max_prompt_length": "their prompt", "max_length": "an answer"}


def cut_warnings(needed: Mapping[str, Counter[int]], data: DataRecipe, longest: int | None = None) -> dict[str, str]:
    """A sentence for each limit that is too low for more than a twentieth of the pairs; empty where none is.

    Args:
        needed: of `EncodedPairs`.
        data: the limits.
        longest: most tokens that the model takes; None where that is not known.
    """
    wanted = {name: limit for name in LIMITS if (limit := _limit(needed[name]))}
    typed = " ".join(f"data.{name}={value}" for name, value in _settings(wanted, data).items())
    fits = longest is None or _settings(wanted, data).get("max_length", 0) <= longest
    fix = (
        f"{typed} keeps 95 % whole"
        if fits
        else f"{typed} would keep 95 % whole, and the model takes {longest:,} tokens"
    )
    how = "cut at" if data.overlong == "truncate" else "over"
    shares = {name: 100 * (1 - needed[name][0] / needed[name].total()) for name in wanted}
    return {
        name: f"{share:.0f} % of pairs have {LIMITS[name]} {how} data.{name}={getattr(data, name)}: {fix}"
        for name, share in shares.items()
    }


def _settings(wanted: Mapping[str, int], data: DataRecipe) -> dict[str, int]:
    """The limits to set: longer prompts take room that the answers then lack."""
    if "max_prompt_length" not in wanted:
        return dict(wanted)
    more = wanted["max_prompt_length"] - data.max_prompt_length
    return {**wanted, "max_length": more + wanted.get("max_length", data.max_length)}


def _limit(needed: Counter[int]) -> int:
    """The smallest limit that leaves few pairs cut; 0 where few are."""
    above, most = 0, MANY * needed.total()
    for tokens in sorted(needed, reverse=True):
        above += needed[tokens]
        if above > most:
            return tokens
    return 0
