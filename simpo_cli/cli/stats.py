"""`simpo stats`: preference pairs measured before anybody pays for a GPU."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simpo_cli import __version__
from simpo_cli.errors import ExitCode, UserError

if TYPE_CHECKING:
    from simpo_cli.audit.clean import CleanResult
    from simpo_cli.audit.examine import Examination, Tokens
    from simpo_cli.audit.leaks import Prompts
    from simpo_cli.data.load import PairReader
    from simpo_cli.recipe.schema import DataSource, Recipe


class FailOn(StrEnum):
    """The mildest severity that fails the command."""

    ERROR = "error"
    WARNING = "warning"


class BadRecords(StrEnum):
    """What to do with malformed records."""

    ERROR = "error"
    SKIP = "skip"


class Format(StrEnum):
    """What is printed for people."""

    TEXT = "text"
    GITHUB = "github"


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
    evaluation: Annotated[
        list[str] | None,
        typer.Option(
            "--eval", metavar="FILE", help="Look for its prompts among these; by default the recipe's data.eval."
        ),
    ] = None,
    on_bad_record: Annotated[
        BadRecords | None, typer.Option("--on-bad-record", help="Stop at malformed records, or count them.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    output: Annotated[Path | None, typer.Option("--output", help="Write the JSON document to this file.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with figures and examples.")
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="Leave all text of the data out of the page.")] = False,
    write_clean: Annotated[
        Path | None,
        typer.Option("--write-clean", metavar="FILE", help="Write the pairs without errors and duplicates."),
    ] = None,
    fmt: Annotated[
        Format, typer.Option("--format", help="Print for a terminal, or as annotations for GitHub Actions.")
    ] = Format.TEXT,
    fail_on: Annotated[
        FailOn | None, typer.Option("--fail-on", help="Exit with 3 if there is a finding this bad or worse.")
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="CODE", help="Tell what a finding means; all lists the codes.")
    ] = None,
) -> None:
    """Describe preference pairs: counts, lengths, and what in them could ruin a run."""
    if explain is not None:
        _explain(explain)
        return
    if redact and html is None:
        raise UserError("--redact is about the page, and none is written.", "Give --html FILE as well.")
    if as_json and fmt == Format.GITHUB:
        raise UserError("--json and --format github both say what is printed.", "Give one of them.")
    from simpo_cli.report.report_file import require_replaceable, require_replaceable_page, write_report

    if output is not None:
        require_replaceable(output)
    if html is not None:
        require_replaceable_page(html)
    composed = _recipe(recipe, tokenizer, model)
    if model is not None and composed is None:
        tokenizer = model
    audit = _audit(data or [], composed, tokenizer, max_length, evaluation or [], on_bad_record, write_clean)
    if model is not None:
        _add_model(audit, composed, model, model_pairs)
    if output is not None:
        write_report(output, audit.document)
    if html is not None:
        _write_page(html, audit, redact)
    cleaned = None
    if write_clean is not None:
        from simpo_cli.audit.clean import write_clean as write_clean_pairs

        cleaned = write_clean_pairs(write_clean, audit.examination, audit.read_again)
    _print(audit, as_json=as_json, fmt=fmt, is_asked=output is None)
    if html is not None:
        _say(f"page: {html}")
    if cleaned is not None:
        _say_cleaned(cleaned)
    if fail_on is not None:
        _gate(audit.document["findings"], fail_on)


def _explain(code: str) -> None:
    import difflib

    from simpo_cli.audit.catalogue import CATALOGUE
    from simpo_cli.report.console import out
    from simpo_cli.report.findings_view import print_codes, print_story

    if code.lower() == "all":
        print_codes(out)
        return
    entry = CATALOGUE.get(code.upper())
    if entry is None:
        near = difflib.get_close_matches(code.upper(), CATALOGUE, n=1)
        guess = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"{code} is not the code of a finding.", f"{guess}Codes are {', '.join(CATALOGUE)}.")
    print_story(out, entry)


@dataclass(frozen=True)
class _Audit:
    """What was found, and the way to read the same pairs once more."""

    examination: "Examination"
    document: dict[str, Any]
    read_again: "Callable[[], PairReader]"


def _audit(
    data: list[str],
    recipe: "Recipe | None",
    tokenizer: str | None,
    max_length: int | None,
    evaluation: list[str],
    on_bad_record: BadRecords | None,
    write_clean: Path | None,
) -> _Audit:
    if max_length is not None and tokenizer is None:
        raise UserError(
            "--max-length cuts tokens, and nothing says how to make them.", "Give --tokenizer or --model as well."
        )
    if not data and recipe is None:
        raise UserError("no data is named.", "Name a file: simpo stats prefs.jsonl; or try simpo stats builtin:guide.")
    from simpo_cli.audit.document import stats_document
    from simpo_cli.audit.examine import examine

    tokens = _tokens(recipe, tokenizer, max_length, on_bad_record)
    sources = _sources(data, recipe)
    if write_clean is not None:
        from simpo_cli.audit.clean import require_writable

        require_writable(write_clean, [source.path for source in sources])
    read = partial(_reader, sources, recipe, on_bad_record)
    prompts = _evaluation_prompts(evaluation, data, recipe, on_bad_record)
    examination = examine(read(), tokens, evaluation=prompts)
    return _Audit(examination, stats_document(examination, version=__version__), read)


def _recipe(name: str | None, tokenizer: str | None, model: str | None) -> "Recipe | None":
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

    from simpo_cli.recipe.compose import compose

    recipe = compose(name).recipe
    if model in (None, "recipe"):
        return recipe
    return replace(recipe, model=replace(recipe.model, path=model, revision=None))


def _add_model(audit: _Audit, recipe: "Recipe | None", model: str, most: int) -> None:
    """Score a sample of the pairs, and put what that says into the document."""
    from dataclasses import replace

    from simpo_cli.audit.catalogue import CATALOGUE
    from simpo_cli.audit.examine import NO_LIMIT
    from simpo_cli.cli.quiet import quiet_libraries
    from simpo_cli.data.load import PairReader
    from simpo_cli.data.sample import sample_by_prompt
    from simpo_cli.recipe.schema import ModelRecipe, Recipe

    document, tokens = audit.document, audit.examination.tokens
    assert tokens is not None, "a model brings its tokenizer"
    sources = audit.examination.reader.sources
    sample = sample_by_prompt(PairReader(sources, role="train", on_bad_record="skip"), most)
    if sys.stderr.isatty():  # it may take minutes
        name = model if recipe is None else recipe.model.path
        _say(f"scoring {len(sample):,} pairs with {name} ...")
    quiet_libraries()
    from simpo_cli.evaluate.start import fitting_lengths, measure_start

    if recipe is None:
        lengths = fitting_lengths(model) if tokens.data.max_length == NO_LIMIT else tokens.data
        recipe = Recipe(name="stats", model=ModelRecipe(path=model), data=replace(lengths, train="-"))
    start = measure_start(recipe, sample, tokens.tokenizer, of_pairs=document["count"])
    document["model"] = start.as_json()
    found = [one.as_json() for one in start.findings()]
    document["findings"] = sorted([*document["findings"], *found], key=lambda one: (one["severity"], one["code"]))
    looked_for = {code for code, entry in CATALOGUE.items() if entry.needs == "model"}
    document["passed"] = sorted({*document["passed"], *looked_for} - {one["code"] for one in found})


def _sources(data: list[str], recipe: "Recipe | None") -> "list[DataSource]":
    from simpo_cli.data.load import source_named

    listed = [] if recipe is None else _listed(recipe.data.train)
    mapped = {source.path: source for source in listed}
    return [mapped.get(path) or source_named(path) for path in data] or listed


def _reader(
    sources: "list[DataSource]",
    recipe: "Recipe | None",
    on_bad_record: BadRecords | None,
    role: Literal["train", "eval"] = "train",
) -> "PairReader":
    from simpo_cli.data.load import PairReader

    policy = on_bad_record.value if on_bad_record is not None else recipe.data.on_bad_record if recipe else "error"
    return PairReader(sources, role=role, on_bad_record=policy, on_no_signal="keep")


def _evaluation_prompts(
    named: list[str], data: list[str], recipe: "Recipe | None", on_bad_record: BadRecords | None
) -> "Prompts | None":
    """The prompts of the evaluation data that are named, or else of the recipe's."""
    from simpo_cli.data.load import source_named

    listed = [] if recipe is None or recipe.data.eval is None else _listed(recipe.data.eval)
    mapped = {source.path: source for source in listed}
    # evaluation data that are audited themselves are not compared with themselves
    others = [source for source in listed if source.path not in data or source.path.startswith("builtin:")]
    sources = [mapped.get(path) or source_named(path) for path in named] or others
    if not sources:
        return None
    from simpo_cli.audit.leaks import read_prompts

    return read_prompts(_reader(sources, recipe, on_bad_record, "eval"))


def _listed(sources: "str | list[DataSource]") -> "list[DataSource]":
    """The sources that a recipe trains on, or evaluates on."""
    from simpo_cli.recipe.schema import DataSource

    return [DataSource(path=sources)] if isinstance(sources, str) else sources


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


def _write_page(path: Path, audit: _Audit, redact: bool) -> None:
    from simpo_cli.audit.examples import collect_examples
    from simpo_cli.report.report_file import write_page
    from simpo_cli.report.stats_page import stats_page

    examples = None if redact else collect_examples(audit.examination, audit.read_again)
    write_page(path, stats_page(audit.document, audit.examination, examples))


def _print(audit: _Audit, *, as_json: bool, fmt: Format, is_asked: bool) -> None:
    """Print the result; for people only where it was not asked for in a file."""
    if as_json:
        from simpo_cli.report.report_file import json_text

        print(json_text(audit.document))
    elif fmt == Format.GITHUB:
        from simpo_cli.report.console import encodable
        from simpo_cli.report.github import annotations

        for command in annotations(audit.document, audit.examination.refused):
            print(encodable(command, sys.stdout.encoding or "utf-8"))  # the console lets none through
    elif is_asked:
        from simpo_cli.report.console import out
        from simpo_cli.report.stats_view import print_stats

        print_stats(out, audit.document, audit.examination)


def _say(text: str) -> None:
    from simpo_cli.report.console import err, printable

    err.print(printable(text), soft_wrap=True)


def _say_cleaned(cleaned: "CleanResult") -> None:
    from simpo_cli.report.text import thousands

    by_code = ", ".join(f"{code} {thousands(count)}" for code, count in cleaned.by_code.items())
    said = f"{cleaned.path}: {thousands(cleaned.kept)} pairs kept"
    listed = f", {thousands(cleaned.dropped)} dropped ({by_code}), listed in {cleaned.dropped_path}"
    _say(said + (listed if cleaned.dropped else ", none dropped"))


def _gate(findings: list[dict[str, Any]], fail_on: FailOn) -> None:
    """Fail where a finding is as bad as the person does not want it."""
    failing = [f for f in findings if f["severity"] == "error" or fail_on == FailOn.WARNING]
    if failing:
        raise UserError(
            f"--fail-on {fail_on.value}: {', '.join(f['code'] for f in failing)}.",
            "The findings above say what to do.",
            exit_code=ExitCode.GATE,
        )
