"""Whether data and recipe fit the model, known from its configuration."""

from collections.abc import Sequence

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import highest_ids_of
from simpo_cli.errors import UserError
from simpo_cli.model.load import ModelSource
from simpo_cli.recipe.schema import Recipe


def require_lengths(recipe: Recipe, source: ModelSource) -> None:
    """Refuse a length limit beyond the positions that the model knows."""
    if source.max_length is not None and recipe.data.max_length > source.max_length:
        raise UserError(
            f"data.max_length is {recipe.data.max_length}, and {source.name} knows {source.max_length} positions.",
            f"Set data.max_length={source.max_length} or less (and data.max_prompt_length below it).",
        )


def require_known_ids(pairs: Sequence[EncodedPair], source: ModelSource) -> None:
    """Refuse ids beyond the model's vocabulary, which would read past its embedding."""
    highest = int(source.text_config.vocab_size) - 1
    largest = highest_ids_of(pairs)
    if (largest > highest).any():
        first = int((largest > highest).argmax())
        raise UserError(
            f"the tokenizer gives id {largest[first]}, and the model's vocabulary ends at {highest}.",
            "Tokenizer and weights belong to different models; fetch both from one place.",
            where=pairs[first].where,
        )
