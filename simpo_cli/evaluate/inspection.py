"""The JSON document of `simpo inspect`: pairs as training sees them, and what the model and the objective say of them.

Nothing here needs torch: without log-probs the document is made in a moment.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simpo_cli.data.tokenized_view import PairView, TokenView, tokens_in_words
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe, Recipe

if TYPE_CHECKING:
    from simpo_cli.evaluate.scoring import ResponseScores, TokenScores

SCHEMA_VERSION = 1


def inspection_document(
    name: str,
    recipe: Recipe,
    tokenizer: TextTokenizer,
    *,
    decision: str,
    views: Sequence[PairView],
    scores: Sequence["TokenScores | None"],
    packing: str | None,
    no_model: str | None,
) -> dict[str, Any]:
    """Everything that `simpo inspect` shows.

    Args:
        name: the recipe as it was asked for.
        recipe: the composed recipe.
        tokenizer: the tokenizer with the recipe's template.
        decision: how the file was understood.
        views: the pairs.
        scores: what the model says of each of them; None where it was not asked.
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
        "pairs": [_pair(view, score, recipe.loss) for view, score in zip(views, scores, strict=True)],
    }


def _pair(view: PairView, scores: "TokenScores | None", loss: LossRecipe) -> dict[str, Any]:
    chosen, rejected = (None, None) if scores is None else (scores.chosen, scores.rejected)
    return {
        "number": view.number,
        "where": view.pair.where,
        "left_out": view.left_out or None,
        "remarks": list(view.remarks),
        "prompt": None if view.prompt is None else {**_part(view.prompt, None), "bos": view.bos or None},
        "chosen": None if view.chosen is None else _response(view.chosen, chosen),
        "rejected": None if view.rejected is None else _response(view.rejected, rejected),
        "margin": None if scores is None else _number(scores.margin),
        "past_target": None if scores is None else scores.margin > loss.margin,
        "loss": None if scores is None else _number(scores.loss),
    }


def _part(part: TokenView, logps: Sequence[float] | None) -> dict[str, Any]:
    tokens: list[dict[str, Any]] = [
        {"id": token, "text": text} for token, text in zip(part.ids, part.pieces, strict=True)
    ]
    if logps is not None:
        for token, logp in zip(tokens, logps, strict=True):
            token["logp"] = _number(logp)
    return {"num_tokens": len(part.ids), "num_cut": part.num_cut, "tokens": tokens}


def _response(part: TokenView, scores: "ResponseScores | None") -> dict[str, Any]:
    return {
        **_part(part, None if scores is None else scores.logps),
        "end": part.end or None,
        "logp_sum": None if scores is None else _number(scores.total),
        "logp_mean": None if scores is None else _number(scores.mean),
        "reward": None if scores is None else _number(scores.reward),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
