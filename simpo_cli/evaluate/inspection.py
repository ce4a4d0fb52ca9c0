"""The JSON document of `simpo inspect`: pairs as training sees them, and what the model and the objective say of them.

Nothing here needs torch: without log-probs the document is made in a moment.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from simpo_cli.data.tokenized_view import PairView, TokenView, tokens_in_words
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe, Recipe

SCHEMA_VERSION = 1


def inspection_document(
    name: str,
    recipe: Recipe,
    tokenizer: TextTokenizer,
    *,
    decision: str,
    views: Sequence[PairView],
    scores: Sequence[Mapping[str, Any] | None],
    packing: str | None,
    no_model: str | None,
) -> dict[str, Any]:
    """Everything that `simpo inspect` shows.

    Args:
        name: the recipe as it was asked for.
        decision: how the file was understood.
        scores: what `score_tokens` says of each of the views; None where the model was not asked.
        packing: how pairs went through the model, in words; None where it was not asked.
        no_model: why it was not asked; None where it was.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "recipe": name,
        "decision": decision,
        "tokenizer": {
            "path": tokenizer.where,
            "used": tokens_in_words(tokenizer, recipe.data),
            "max_length": recipe.data.max_length,
            "max_prompt_length": recipe.data.max_prompt_length,
        },
        "objective": Objective(recipe.loss).as_json(),
        "model": None if packing is None else {"path": recipe.model.path, "packing": packing},
        "no_model": no_model,
        "pairs": [_pair(view, score or {}, recipe.loss) for view, score in zip(views, scores, strict=True)],
    }


def _pair(view: PairView, scores: Mapping[str, Any], loss: LossRecipe) -> dict[str, Any]:
    margin = scores.get("margin")
    return {
        "number": view.number,
        "where": view.pair.where,
        "left_out": view.left_out or None,
        "remarks": list(view.remarks),
        "prompt": None if view.prompt is None else {**_part(view.prompt), "bos": view.bos or None},
        "chosen": None if view.chosen is None else _response(view.chosen, scores.get("chosen", {})),
        "rejected": None if view.rejected is None else _response(view.rejected, scores.get("rejected", {})),
        "margin": _number(margin),
        "past_target": None if margin is None else margin > loss.margin,
        "loss": _number(scores.get("loss")),
    }


def _part(part: TokenView, logps: Sequence[float] = ()) -> dict[str, Any]:
    known: list[dict[str, Any]] = [{"logp": _number(logp)} for logp in logps] if logps else [{} for _ in part.ids]
    each = zip(part.ids, part.pieces, known, strict=True)
    tokens = [{"id": token, "text": text, **logp} for token, text, logp in each]
    return {"num_tokens": len(part.ids), "num_cut": part.num_cut, "tokens": tokens}


def _response(part: TokenView, scores: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: _number(scores.get(name)) for name in ("logp_sum", "logp_mean", "reward")}
    return {**_part(part, scores.get("logps", ())), "end": part.end or None, **numbers}


def _number(value: float | None) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None
