"""`simpo inspect`: real pairs token by token, as training sees them, and how their log-probs become a loss."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpo_cli.cli.options import AsJson, Overrides, TrustRemoteCode, importing, print_json, require_model, shows_work
from simpo_cli.errors import ExitCode, UserError, about
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.data.tokenized_view import PairView
    from simpo_cli.data.tokenizer import TextTokenizer
    from simpo_cli.recipe.composition import ComposedRecipe
    from simpo_cli.recipe.schema import Recipe

NUM_PAIRS = 3


def inspect(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, the name of a shipped recipe, or a run folder.")
    ],
    overrides: Overrides = None,
    num_pairs: Annotated[
        int | None, typer.Option("-n", min=1, help=f"Show the first N pairs that training uses; {NUM_PAIRS} if absent.")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair", metavar="PAIR", help="Show this pair: its number, or its place, such as prefs.jsonl:17."
        ),
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Show tokens only, and load no model.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Show every token of long prompts and responses.")] = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Show training pairs token by token: prompt, scored tokens, what is cut, log-probs, reward and loss.

    The log-probs are those of the recipe's start model, of a run folder those of its saved model. Where the model's
    weights are not on this machine, only the tokens are shown.
    """
    if pair and num_pairs is not None:
        raise UserError("-n and --pair both say which pairs to show.", "Give one of them.")
    require_model(trust_remote_code, loads_one=not no_model, fix="Leave it out, or --no-model.")
    composed = _composed(recipe, overrides or [])
    try:
        with trusting(trust_remote_code):
            document = _inspected(recipe, composed.recipe, pair or [], num_pairs or NUM_PAIRS, no_model=no_model)
    except UserError as error:
        raise composed.located(error) from error
    if as_json:
        print_json(document)
        return
    from simpo_cli.report.console import out
    from simpo_cli.report.inspect_view import print_inspection

    print_inspection(out, document, full=full)


def _composed(target: str, overrides: list[str]) -> "ComposedRecipe":
    """The recipe; that of a run starts from the model that the run saved, if it has got so far."""
    from simpo_cli.recipe.composition import compose

    run = Path(target)
    if not (run / "run.json").is_file():
        return compose(target, overrides)
    saved = [f"model.path={run / 'model'}"] if (run / "model").is_dir() else []
    return compose(str(run / "recipe.yaml"), [*saved, *overrides])


@shows_work
def _inspected(name: str, recipe: "Recipe", places: list[str], count: int, *, no_model: bool) -> dict[str, Any]:
    from simpo_cli.data.prepare import prepare_tokenizer, require_end_token, require_inputs
    from simpo_cli.evaluate.inspection import inspection_document

    require_inputs(recipe)
    tokenizer = prepare_tokenizer(recipe)
    require_end_token(tokenizer)
    decision, views = _views(recipe, tokenizer, places, count)
    seen = _Scored({}) if no_model else _scored(recipe, views)
    return inspection_document(
        name,
        recipe,
        tokenizer,
        decision=decision,
        views=views,
        scores=[seen.scores.get(view.number) for view in views],
        packing=seen.packing,
        no_model=seen.why_not,
    )


def _views(recipe: "Recipe", tokenizer: "TextTokenizer", places: list[str], count: int) -> "tuple[str, list[PairView]]":
    """How the training pairs are understood, and those to show; nothing is read behind the last of them."""
    from simpo_cli.data.load import PairReader, named_pairs
    from simpo_cli.data.tokenized_view import view_pair

    sources = recipe.data.sources(recipe.data.train)
    reader = PairReader(sources, role="train", on_bad_record=recipe.data.on_bad_record, on_no_signal="keep")
    views: list[PairView] = []
    for number, pair in named_pairs(reader, places) if places else enumerate(reader, start=1):
        view = view_pair(number, pair, tokenizer, recipe.data)
        if places or view.encoded is not None:
            views.append(view)
        if not places and len(views) == count:
            break
    if not views:
        raise UserError("no training pair is left to show.", "simpo stats says what becomes of the pairs.")
    layout = reader.layout
    return "" if layout is None else f"{layout.described()}, response = {layout.response}", views


@dataclass(frozen=True)
class _Scored:
    """Scores of pairs by their numbers, or why there are none."""

    scores: dict[int, dict[str, Any]]
    packing: str | None = None
    why_not: str | None = None


def _scored(recipe: "Recipe", views: "list[PairView]") -> _Scored:
    """Score the pairs with the model, if its weights are here and fit."""
    encoded = {view.number: view.encoded for view in views if view.encoded is not None}
    if not encoded:
        return _Scored({})
    with importing():
        from simpo_cli.evaluate.scoring import open_model, score_tokens
        from simpo_cli.model.folder import NoWeightsError
        from simpo_cli.model.source import require_lengths, start_model

    try:
        with about("model.path"):
            source = start_model(recipe.model, fetch=False)
    except UserError as error:
        if error.exit_code != ExitCode.ENVIRONMENT and not isinstance(error, NoWeightsError):
            raise  # the model is here, and cannot be used as it is
        return _Scored({}, why_not=error.problem)
    require_lengths(recipe, source)
    try:
        opened = open_model(recipe, source, list(encoded.values()))
    except UserError as error:
        if error.exit_code != ExitCode.ENVIRONMENT:
            raise
        return _Scored({}, why_not=error.problem)  # it does not fit in memory
    scores = score_tokens(opened, list(encoded.values()), recipe.loss)
    return _Scored(dict(zip(encoded, scores, strict=True)), packing=str(opened.check))
