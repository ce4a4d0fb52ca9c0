"""What `simpo stats` is asked to read: which pairs, which evaluation data, and how they become tokens."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from simpo_cli.errors import UserError

if TYPE_CHECKING:
    from simpo_cli.audit.examine import Tokens
    from simpo_cli.audit.near import Prompts
    from simpo_cli.data.load import PairReader
    from simpo_cli.recipe.schema import DataRecipe, DataSource, Recipe

OnBadRecord = Literal["error", "skip"]


def named_recipe(name: str | None, tokenizer: str | None, model: str | None) -> "Recipe | None":
    """The recipe that is named, with the model that is; None where none is named."""
    if tokenizer is not None and name is not None:
        raise UserError("--recipe and --tokenizer both say how to count tokens.", "Give one of them.")
    if tokenizer is not None and model is not None:
        raise UserError("--tokenizer and --model both say how to count tokens.", "Leave --tokenizer out.")
    if name is None:
        if model == "recipe":
            raise UserError("--model recipe means the model of a recipe, and none is given.", "Add --recipe RECIPE.")
        return None
    from dataclasses import replace

    from simpo_cli.recipe.composition import compose

    recipe = compose(name).recipe
    if model in (None, "recipe"):
        return recipe
    return replace(recipe, model=replace(recipe.model, path=model, revision=None))


@dataclass(frozen=True)
class Mapping:
    """How the command line says that files are read: `--columns`, `--labels` and `--direction`, as typed."""

    columns: str | None = None
    labels: str | None = None
    direction: str | None = None

    def over(self, sources: "list[DataSource]") -> "list[DataSource]":
        """The sources, with what the command line says over what a recipe says of each.

        Raises:
            UserError: it is no mapping, or names a part that there is not.
        """
        from dataclasses import replace

        typed = {name: text for name, text in vars(self).items() if text is not None}
        if not typed:
            return sources
        said = {name: _parsed(name, text) for name, text in typed.items()}
        return [
            replace(source, **(said | {"columns": {**source.columns, **said.get("columns", {})}})) for source in sources
        ]


def _parsed(name: str, text: str) -> Any:
    """What one option says, checked as the key of a recipe with its name is."""
    import tempfile
    from pathlib import Path

    from simpo_cli.recipe.composition import compose

    if name != "direction" and not text.lstrip().startswith("{"):
        text = f"{{{text}}}"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "stats.yaml")
        file.write_text("{name: stats, model: {path: '-'}, data: {train: '-'}}\n", encoding="utf-8")
        try:
            return getattr(compose(str(file), [f"data.{name}={text}"]).recipe.data, name)
        except UserError as error:
            raise UserError(error.problem, error.fix, where=f"--{name}") from error


def named_sources(data: list[str], recipe: "Recipe | None", mapping: Mapping) -> "list[DataSource]":
    """The sources to audit: those that are named, mapped as recipe and command line say, or else the recipe's."""
    return mapping.over(_named_or_listed(data, recipe, "train"))


def _named_or_listed(data: list[str], recipe: "Recipe | None", role: Literal["train", "eval"]) -> "list[DataSource]":
    from simpo_cli.data.load import source_named

    if recipe is None:
        return [source_named(path) for path in data]
    named = recipe.data.train if role == "train" else recipe.data.eval
    listed = recipe.data.sources(named or [])
    mapped = {source.path: source for source in listed}
    return [mapped.get(path) or recipe.data.sources([source_named(path)])[0] for path in data] or listed


def open_reader(
    sources: "list[DataSource]",
    recipe: "Recipe | None",
    on_bad_record: OnBadRecord | None,
    role: Literal["train", "eval"] = "train",
) -> "PairReader":
    """Opens sources for one reading; pairs without signal are kept, to be looked at."""
    from simpo_cli.data.load import PairReader

    policy = on_bad_record or (recipe.data.on_bad_record if recipe else "error")
    return PairReader(sources, role=role, on_bad_record=policy, on_no_signal="keep")


def evaluation_prompts(
    named: list[str], data: list[str], recipe: "Recipe | None", on_bad_record: OnBadRecord | None, mapping: Mapping
) -> "Prompts | None":
    """The prompts of the evaluation data that are named, or else of the recipe's."""
    sources = mapping.over(_named_or_listed(named, recipe, "eval"))
    if not named:  # evaluation data that are audited themselves are not compared with themselves
        sources = [source for source in sources if source.path not in data or source.path.startswith("builtin:")]
    if not sources:
        return None
    from simpo_cli.audit.near import read_prompts

    return read_prompts(open_reader(sources, recipe, on_bad_record, "eval"))


def named_tokens(
    recipe: "Recipe | None", tokenizer: str | None, max_length: int | None, on_bad_record: OnBadRecord | None
) -> "Tokens | None":
    if recipe is None and tokenizer is None:
        return None
    from dataclasses import replace

    from simpo_cli.audit.examine import NO_LIMIT, Tokens
    from simpo_cli.data.prepare import prepare_tokenizer, require_end_token
    from simpo_cli.data.tokenizer import load_tokenizer

    if recipe is not None:
        tokens = Tokens(prepare_tokenizer(recipe), recipe.data)
    else:
        assert tokenizer is not None
        data = cut_at(NO_LIMIT if max_length is None else max_length)
        read = load_tokenizer(tokenizer)
        require_end_token(read)
        tokens = Tokens(read, data)
    if on_bad_record is None:
        return tokens
    return replace(tokens, data=replace(tokens.data, on_bad_record=on_bad_record))


def cut_at(max_length: int) -> "DataRecipe":
    """The lengths of a recipe that says no more than its data.max_length."""
    from simpo_cli.recipe.schema import DataRecipe, DataSource

    return DataRecipe(train=[DataSource(path="-")], max_length=max_length, max_prompt_length=max_length * 7 // 8)
