"""`simpo stats`: preference pairs measured before anybody pays for a GPU."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simpo_cli import __version__
from simpo_cli.errors import ExitCode, UserError

if TYPE_CHECKING:
    from simpo_cli.audit.examine import Examination, Tokens
    from simpo_cli.data.load import PairReader
    from simpo_cli.recipe.schema import DataRecipe, DataSource, Recipe


class FailOn(StrEnum):
    """The mildest severity that fails the command."""

    ERROR = "error"
    WARNING = "warning"


class BadRecords(StrEnum):
    """What to do with malformed records."""

    ERROR = "error"
    SKIP = "skip"


def stats(
    data: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DATA]...", help="Files, folders or hub ids of pairs, or builtin:guide."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Count tokens, as this recipe would train.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", metavar="MODEL", help="Count tokens of this model folder or hub id.")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", min=8, help="Cut as training with this data.max_length would.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Also score the pairs with this model before any training: margins, accuracy, what a run could learn. "
            "A folder, a hub id or builtin:guide; or `recipe`, the model of --recipe.",
        ),
    ] = None,
    model_pairs: Annotated[
        int, typer.Option("--model-pairs", min=1, help="Pairs that --model scores, the first by hash of the prompt.")
    ] = 256,
    on_bad_record: Annotated[
        BadRecords | None, typer.Option("--on-bad-record", help="Stop at malformed records, or count them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the JSON document to this file.")] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option("--fail-on", help="Exit with 3 if there is a finding this bad or worse.")
    ] = None,
) -> None:
    """Describe preference pairs: counts, lengths, and what in them could ruin a run."""
    from simpo_cli.report.report_file import require_replaceable, write_report

    if output is not None:
        require_replaceable(output)
    if model is not None and tokenizer is not None:
        raise UserError("--tokenizer and --model both say how to count tokens.", "Leave --tokenizer out.")
    if recipe is not None and tokenizer is not None:
        raise UserError("--recipe and --tokenizer both say how to count tokens.", "Give one of them.")
    composed = None if recipe is None else _composed(recipe)
    if model is not None:
        composed, tokenizer = _with_tokenizer_of(model, composed)
    examination, document = _measured(data or [], composed, tokenizer, max_length, on_bad_record)
    document["model"] = None
    if model is not None:
        reader = _reader(data or [], composed, BadRecords.SKIP, in_tokens=True)
        _add_model(document, examination, reader, composed, model, model_pairs)
    if output is not None:
        write_report(output, document)
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
    elif output is None:
        from simpo_cli.report.console import out
        from simpo_cli.report.stats_view import print_stats

        print_stats(out, document, examination)
    if fail_on is not None:
        _gate(document["findings"], fail_on)


def _measured(
    data: list[str],
    recipe: "Recipe | None",
    tokenizer: str | None,
    max_length: int | None,
    on_bad_record: BadRecords | None,
) -> "tuple[Examination, dict[str, Any]]":
    if max_length is not None and tokenizer is None:
        raise UserError(
            "--max-length cuts tokens, and nothing says how to make them.", "Give --tokenizer or --model as well."
        )
    if not data and recipe is None:
        raise UserError("no data is named.", "Name a file: simpo stats prefs.jsonl; or try simpo stats builtin:guide.")
    from simpo_cli.audit.document import stats_document
    from simpo_cli.audit.examine import examine

    tokens = _tokens(recipe, tokenizer, max_length, on_bad_record)
    examination = examine(_reader(data, recipe, on_bad_record, in_tokens=tokens is not None), tokens)

    from simpo_cli.evaluate.statistics import longer_wins, mean

    chosen, rejected, prompts = examination.chosen_len, examination.rejected_len, examination.prompts.tolist()
    return examination, stats_document(
        examination,
        version=__version__,
        longer_wins=longer_wins(chosen, rejected, prompts).as_json(),
        mean_difference=mean(chosen - rejected, prompts).as_json(),
    )


def _composed(recipe_name: str) -> "Recipe":
    from simpo_cli.recipe.compose import compose

    return compose(recipe_name).recipe


def _with_tokenizer_of(model: str, recipe: "Recipe | None") -> "tuple[Recipe | None, str | None]":
    """The recipe with this model, or the model as what tokenizes where there is no recipe."""
    from dataclasses import replace

    if recipe is None:
        if model == "recipe":
            raise UserError("--model recipe means the model of a recipe, and none is given.", "Add --recipe RECIPE.")
        return None, model
    if model == "recipe":
        return recipe, None
    return replace(recipe, model=replace(recipe.model, path=model, revision=None)), None


def _add_model(
    document: dict[str, Any],
    examination: "Examination",
    reader: "PairReader",
    recipe: "Recipe | None",
    model: str,
    most: int,
) -> None:
    """Score a sample of the pairs, and put what that says into the document."""
    from dataclasses import replace

    from simpo_cli.audit.examine import NO_LIMIT
    from simpo_cli.cli.quiet import quiet_libraries
    from simpo_cli.data.sample import sample_by_prompt
    from simpo_cli.recipe.schema import ModelRecipe, Recipe

    assert examination.tokens is not None
    sample = sample_by_prompt(reader, most)
    if sys.stderr.isatty():  # it may take minutes
        print(f"scoring {len(sample):,} pairs with {model} ...", file=sys.stderr, flush=True)
    quiet_libraries()
    from simpo_cli.evaluate.start import fitting_lengths, measure_start

    if recipe is None:
        data = examination.tokens.data
        lengths = fitting_lengths(model) if data.max_length == NO_LIMIT else data
        recipe = Recipe(name="stats", model=ModelRecipe(path=model), data=replace(lengths, train="-"))
    start = measure_start(recipe, sample, examination.tokens.tokenizer, of_pairs=document["count"])
    document["model"] = start.as_json()
    document["findings"] += [finding.as_json() for finding in start.findings()]
    document["findings"].sort(key=lambda finding: (finding["severity"], finding["code"]))


def _reader(
    data: list[str], recipe: "Recipe | None", on_bad_record: BadRecords | None, *, in_tokens: bool
) -> "PairReader":
    from simpo_cli.data.load import PairReader, source_named

    listed = [] if recipe is None else _listed(recipe.data)
    mapped = {source.path: source for source in listed}
    sources = [mapped.get(path) or source_named(path) for path in data] or listed
    policy = on_bad_record.value if on_bad_record is not None else recipe.data.on_bad_record if recipe else "error"
    keep: Literal["keep", "drop"] = "drop" if in_tokens else "keep"
    return PairReader(sources, role="train", on_bad_record=policy, on_no_signal=keep)


def _listed(data: "DataRecipe") -> "list[DataSource]":
    """The sources that a recipe trains on."""
    from simpo_cli.recipe.schema import DataSource

    return [DataSource(path=data.train)] if isinstance(data.train, str) else data.train


def _tokens(
    recipe: "Recipe | None", tokenizer: str | None, max_length: int | None, on_bad_record: BadRecords | None
) -> "Tokens | None":
    if recipe is None and tokenizer is None:
        return None
    from dataclasses import replace

    from simpo_cli.audit.examine import NO_LIMIT, Tokens
    from simpo_cli.data.prepare import prepare_tokenizer
    from simpo_cli.data.tokenizer import load_tokenizer
    from simpo_cli.recipe.schema import DataRecipe

    if recipe is not None:
        tokens = Tokens(prepare_tokenizer(recipe), recipe.data)
    else:
        assert tokenizer is not None
        length = NO_LIMIT if max_length is None else max_length
        data = DataRecipe(train="-", max_length=length, max_prompt_length=length * 7 // 8)
        tokens = Tokens(load_tokenizer(tokenizer), data)
    if on_bad_record is None:
        return tokens
    return replace(tokens, data=replace(tokens.data, on_bad_record=on_bad_record.value))


def _gate(findings: list[dict[str, Any]], fail_on: FailOn) -> None:
    """Fail where a finding is as bad as the person does not want it."""
    failing = [f for f in findings if f["severity"] == "error" or fail_on == FailOn.WARNING]
    if failing:
        raise UserError(
            f"--fail-on {fail_on.value}: {', '.join(f['code'] for f in failing)}.",
            "The findings above say what to do.",
            exit_code=ExitCode.GATE,
        )
