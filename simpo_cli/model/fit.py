"""Whether data and recipe fit the model, known from its configuration."""

from collections.abc import Sequence
from pathlib import Path

from simpo_cli.data.pair import EncodedPair
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
    for pair in pairs:
        largest = max(int(part.max()) for part in (pair.prompt, pair.chosen, pair.rejected) if len(part))
        if largest > highest:
            raise UserError(
                f"the tokenizer gives id {largest}, and the model's vocabulary ends at {highest}.",
                "Tokenizer and weights belong to different models; fetch both from one place.",
                where=pair.where,
            )


def require_output_apart(recipe: Recipe, source: ModelSource) -> None:
    """Refuse a run folder inside the model's or the data's folder, where a later read would find it."""
    output = Path(recipe.output_dir).absolute()
    inside: list[tuple[str, Path]] = [("the model's folder", source.folder.absolute())]
    for name in (recipe.data.train, recipe.data.eval):
        if isinstance(name, str) and Path(name).is_dir():
            inside.append(("the data folder", Path(name).absolute()))
    for what, folder in inside:
        if output == folder or folder in output.parents:
            raise UserError(f"output_dir {recipe.output_dir} lies inside {what}.", "Set output_dir to another place.")
