"""What a model says of training pairs before the first step, and what that means for the run: `simpo stats --model`.

A run can only learn from pairs whose loss still has a gradient, and only what the labels mean. Both can be seen before
any step is taken: where the margins lie, how many are past the target already, and whether the model prefers the
rejected responses so clearly that the columns may be swapped.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from simpo_cli import statistics
from simpo_cli.audit.columns import histogram
from simpo_cli.audit.findings import Finding, finding
from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError, about
from simpo_cli.evaluate.metrics import EvalSummary, PairScores, summarise
from simpo_cli.evaluate.scoring import open_model
from simpo_cli.formatting import percent
from simpo_cli.model.source import find_model, require_lengths, start_model
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import DataRecipe, DataSource, Recipe

CLEARLY = 0.05
"""How far below one half the whole interval of the accuracy lies before labels are said to look swapped.

The same goes for the accuracy freed of length, where there are pairs enough to tell.
"""
_RATIO_STEP = 0.05


def score_start(recipe: Recipe, pairs: Sequence[PreferencePair], tokenizer: TextTokenizer) -> PairScores:
    """Score pairs with the recipe's model as training would score them in its first step, were that all of them.

    The pairs are a sample of the training pairs, as text; what carries no signal is left out.

    Raises:
        UserError: the model cannot be loaded, no pair is left, or a log-prob is not finite.
    """
    with about("model.path"):
        source = start_model(recipe.model)
    data = replace(recipe.data, on_bad_record="skip", on_no_signal="drop")
    encoded = encode_pairs(pairs, tokenizer, data).pairs
    if not encoded:
        raise UserError("no pair is left to score.", "The findings say what becomes of the pairs.")
    return open_model(recipe, source, encoded).score(encoded, recipe.model.path)


def start_document(scores: PairScores, recipe: Recipe, of_pairs: int) -> dict[str, Any]:
    """The key `model` of the document of `simpo stats`: what scores of some of the pairs say under the objective."""
    objective, summary = Objective(recipe.loss), summarise(scores, recipe.loss)
    gaps = scores.chosen - scores.rejected
    margins = objective.reward(gaps)
    weights = objective.gradient_weight(torch.from_numpy(margins)).numpy()
    p5, median, p95 = np.percentile(margins, [5, 50, 95]).tolist()
    shape = margin_histogram(margins, recipe.loss.margin)
    return {
        "model": recipe.model.path,
        "pairs": summary.pairs,
        "prompts": summary.prompts,
        "of_pairs": of_pairs,
        "max_length": recipe.data.max_length,
        "objective": objective.as_json(),
        "accuracy": summary.accuracy.as_json(),
        "ties": summary.ties,
        "margin": {**summary.margin.as_json(), "p5": p5, "median": median, "p95": p95, "histogram": shape},
        "target_reached": summary.target_reached.as_json(),
        "loss": summary.loss.as_json(),
        "gradient_weight": statistics.mean(weights, scores.groups.tolist()).as_json(),
        "logps/chosen": summary.logps_chosen.as_json(),
        "logps/rejected": summary.logps_rejected.as_json(),
        "gap": dict(zip(("p5", "median", "p95"), np.percentile(gaps, [5, 50, 95]).tolist(), strict=True)),
        "suggestions": suggestions(scores, summary),
    }


def start_findings(summary: EvalSummary) -> list[Finding]:
    """What should be looked at before a run."""
    accuracy, reached = summary.accuracy, summary.target_reached
    found = []
    # long responses are often likelier a token, so labels that prefer short ones may only look swapped
    freed_of_length = summary.length["balanced"] or accuracy
    if max(accuracy.high, freed_of_length.high) < 0.5 - CLEARLY:
        wrong = round((1 - accuracy.value) * accuracy.n)
        detail = f"The model finds the rejected response the likelier one in {wrong:,} of {accuracy.n:,} pairs."
        found.append(finding("LBL005", wrong, detail=detail))
    if reached.low > 0.5:
        past = round(reached.value * reached.n)
        detail = f"{past:,} of {reached.n:,} scored pairs have a margin over gamma at step 0."
        found.append(finding("MOD001", past, detail=detail))
    return found


def require_fitting(recipe: Recipe) -> None:
    """Refuse a model that is not there or is none to be trained, or lengths beyond its positions, before any reading.

    Raises:
        UserError: says which.
    """
    with about("model.path"):
        require_lengths(recipe, start_model(recipe.model))


def fitting_lengths(path: str, revision: str | None = None) -> DataRecipe:
    """The recipe's default lengths, or what the model knows where that is less, for a model without a recipe."""
    defaults = DataRecipe(train=[DataSource(path="-")])
    longest = find_model(path, revision).max_length
    if longest is None or longest >= defaults.max_length:
        return defaults
    return replace(defaults, max_length=longest, max_prompt_length=longest * 7 // 8)


def margin_histogram(margins: NDArray[np.float64], gamma: float) -> dict[str, Any]:
    """Counts of margins around 0; the range holds gamma and 99 % of the pairs, the outermost bins what lies beyond."""
    reach = max(float(np.percentile(np.abs(margins), 99)), 1.25 * gamma) or 1.0
    return histogram(margins, low=-reach, high=reach)


def suggestions(scores: PairScores, summary: EvalSummary) -> list[dict[str, Any]]:
    """What to change of the recipe, as overrides with the reason, where these pairs show it.

    That is one case: a target that most pairs are past already leaves them little to learn, and half of them are below
    the median of their gaps. Nothing else that can be seen before a run told good settings from bad ones in 80 trials
    (docs/tuning.md): those are found by search.
    """
    if summary.target_reached.low <= 0.5:
        return []
    gaps = scores.chosen - scores.rejected
    ratio = round(float(np.ceil(np.median(gaps) / _RATIO_STEP)) * _RATIO_STEP, 2)
    below = statistics.proportion((gaps <= ratio).astype(np.float64), scores.groups.tolist())
    before = 1 - summary.target_reached.value
    why = f"{percent(below.value)} of the scored pairs are then below the target, now {percent(before)}"
    return [{"overrides": [f"loss.gamma_beta_ratio={ratio:g}"], "why": f"{why} (n = {below.n:,})"}]
