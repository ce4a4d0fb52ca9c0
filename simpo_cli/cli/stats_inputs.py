"""What `simpo stats` is asked to read: which pairs, which evaluation data, and how they become tokens."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from simpo_cli.errors import UserError

if TYPE_CHECKING:
    from simpo_cli.audit.duplicates import Prompts
    from simpo_cli.audit.examine import Tokens
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
    from simpo_cli.recipe.composition import compose

    recipe = compose(name).recipe
    if model in (None, "recipe"):
        return recipe
    return replace(recipe, model=replace(recipe.model, path=model, revision=None))


@dataclass(frozen=True)
class Inputs:
    """What is audited: sources that are named, or else the recipe's.

    Attributes:
        data, evaluation: files, folders or hub ids that are named.
        mapping: `columns`, `labels` and `direction` as typed; they go over what a recipe says of each source.
        on_bad_record: as typed; None leaves it to the recipe.
    """

    data: list[str]
    evaluation: list[str]
    recipe: "Recipe | None"
    mapping: Mapping[str, str | None]
    on_bad_record: OnBadRecord | None

    def sources(self, role: Literal["train", "eval"] = "train") -> "list[DataSource]":
        """The sources of training or evaluation data; UserError where the mapping is none, or names an unknown part."""
        sources = self._named(role)
        typed = {name: _parsed(name, text) for name, text in self.mapping.items() if text is not None}
        columns = typed.get("columns", {})
        return [replace(source, **{**typed, "columns": {**source.columns, **columns}}) for source in sources]

    def open(self, role: Literal["train", "eval"] = "train", sources: "list[DataSource] | None" = None) -> "PairReader":
        """Opens sources for one reading; pairs without signal are kept, to be looked at."""
        from simpo_cli.data.load import PairReader

        policy = self.on_bad_record or (self.recipe.data.on_bad_record if self.recipe else "error")
        sources = self.sources(role) if sources is None else sources
        return PairReader(sources, role=role, on_bad_record=policy, on_no_signal="keep")

    def evaluation_prompts(self) -> "Prompts | None":
        """The prompts of the evaluation data; None where there are none."""
        sources = self.sources("eval")
        if not self.evaluation:  # evaluation data that are audited themselves are not compared with themselves
            sources = [one for one in sources if one.path not in self.data or one.path.startswith("builtin:")]
        if not sources:
            return None
        from simpo_cli.audit.duplicates import read_prompts

        return read_prompts(self.open("eval", sources))

    def tokens(self, tokenizer: str | None, max_length: int | None) -> "Tokens | None":
        """How pairs become tokens: as the recipe says, or by a tokenizer that is named; None where neither is."""
        if self.recipe is None and tokenizer is None:
            return None
        from simpo_cli.audit.examine import NO_LIMIT, Tokens
        from simpo_cli.data.prepare import prepare_tokenizer, require_end_token
        from simpo_cli.data.tokenizer import load_tokenizer

        if self.recipe is not None:
            tokens = Tokens(prepare_tokenizer(self.recipe), self.recipe.data)
        else:
            assert tokenizer is not None
            read = load_tokenizer(tokenizer)
            require_end_token(read)
            tokens = Tokens(read, cut_at(NO_LIMIT if max_length is None else max_length))
        if self.on_bad_record is None:
            return tokens
        return replace(tokens, data=replace(tokens.data, on_bad_record=self.on_bad_record))

    def _named(self, role: Literal["train", "eval"]) -> "list[DataSource]":
        from simpo_cli.data.load import source_named

        paths = self.data if role == "train" else self.evaluation
        if self.recipe is None:
            return [source_named(path) for path in paths]
        data = self.recipe.data
        listed = data.sources((data.train if role == "train" else data.eval) or [])
        mapped = {source.path: source for source in listed}
        return [mapped.get(path) or data.sources([source_named(path)])[0] for path in paths] or listed


def _parsed(name: str, text: str) -> Any:
    """The value of one option, checked as the key of a recipe with its name is."""
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


def cut_at(max_length: int) -> "DataRecipe":
    """The lengths of a recipe that says no more than its data.max_length."""
    from simpo_cli.recipe.schema import DataRecipe, DataSource

    return DataRecipe(train=[DataSource(path="-")], max_length=max_length, max_prompt_length=max_length * 7 // 8)
