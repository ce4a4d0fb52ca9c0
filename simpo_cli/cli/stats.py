"""`simpo stats`: preference pairs measured before anybody pays for a GPU."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simpo_cli import __version__
from simpo_cli.cli.options import (
    AsJson,
    Output,
    TrustRemoteCode,
    print_json,
    quiet_libraries,
    require_model,
    say,
    shows_work,
)
from simpo_cli.cli.stats_inputs import Inputs, OnBadRecord, cut_at, named_recipe
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.audit.clean import CleanResult
    from simpo_cli.audit.examine import Examination, Tokens
    from simpo_cli.data.load import PairReader, PromptSample
    from simpo_cli.recipe.schema import Recipe


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
    by: Annotated[
        str | None,
        typer.Option("--by", metavar="FIELD", help="Also tell pairs apart by this field of their records."),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="MAPPING",
            help="Which column plays which part, as data.columns says it: 'prompt: question, answers: [a, b]'.",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="MAPPING",
            help="What the values of the label mean, as data.labels says it: 'first: [0], second: [1]'.",
        ),
    ] = None,
    direction: Annotated[
        str | None,
        typer.Option("--direction", metavar="first", help="The first of the two responses is the better one."),
    ] = None,
    on_bad_record: Annotated[
        OnBadRecord | None, typer.Option("--on-bad-record", help="Stop at malformed records, or count them.")
    ] = None,
    as_json: AsJson = False,
    output: Output = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with figures and examples.")
    ] = None,
    redact: Annotated[bool, typer.Option("--redact", help="Leave all text of the data out of the page.")] = False,
    write_clean: Annotated[
        Path | None,
        typer.Option("--write-clean", metavar="FILE", help="Write the pairs without errors and duplicates."),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="CODE", help="With --write-clean: leave out pairs with this finding as well."),
    ] = None,
    fmt: Annotated[
        Literal["text", "github"],
        typer.Option("--format", help="Print for a terminal, or as annotations for GitHub Actions."),
    ] = "text",
    fail_on: Annotated[
        Literal["error", "warning"] | None,
        typer.Option("--fail-on", help="Exit with 3 if there is a finding this bad or worse."),
    ] = None,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="CODE", help="Tell what a finding means; all lists the codes.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Describe preference pairs: counts, lengths, and what in them could ruin a run."""
    if explain is not None:
        _explain(explain)
        return
    if redact and html is None:
        raise UserError("--redact is about the page, and none is written.", "Give --html FILE as well.")
    if drop and write_clean is None:
        raise UserError("--drop is about the clean file, and none is written.", "Give --write-clean FILE as well.")
    if as_json and fmt == "github":
        raise UserError("--json and --format github both say what is printed.", "Give one of them.")
    require_model(trust_remote_code, loads_one=model is not None, fix="Give --model as well, or leave it out.")
    from simpo_cli.report.page import require_replaceable, require_replaceable_page, write_report

    also = [code.upper() for code in drop or ()]
    if also:
        from simpo_cli.audit.clean import require_droppable

        require_droppable(also)
    if output is not None:
        require_replaceable(output)
    if html is not None:
        require_replaceable_page(html)
    composed = named_recipe(recipe, tokenizer, model)
    if model is not None and composed is None:
        tokenizer = model
    if max_length is not None and tokenizer is None:
        raise UserError(
            "--max-length cuts tokens, and nothing says how to make them.", "Give --tokenizer or --model as well."
        )
    if not data and composed is None:
        raise UserError("no data is named.", "Name a file: simpo stats prefs.jsonl; or try simpo stats builtin:guide.")
    mapping = {"columns": columns, "labels": labels, "direction": direction}
    inputs = Inputs(data or [], evaluation or [], composed, mapping, on_bad_record)
    tokens = inputs.tokens(tokenizer, max_length)
    scored_by = sample = None
    if model is not None:
        from simpo_cli.data.load import PromptSample

        with trusting(trust_remote_code):
            scored_by, sample = _start_recipe(composed, model, max_length), PromptSample(model_pairs)
    audit = _audit(inputs, tokens, by, write_clean, sample)
    if scored_by is not None and sample is not None:
        with trusting(trust_remote_code):
            _add_model(audit, scored_by, sample)
    if output is not None:
        write_report(output, audit.document)
    if html is not None:
        _write_page(html, audit, redact)
    cleaned = None
    if write_clean is not None:
        from simpo_cli.audit.clean import write_clean as write_clean_pairs

        cleaned = write_clean_pairs(write_clean, audit.examination, audit.read_again, also)
    _print(audit, as_json=as_json, fmt=fmt, is_asked=output is None)
    if html is not None:
        say(f"page: {html}")
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
    if code.upper() not in CATALOGUE:
        near = difflib.get_close_matches(code.upper(), CATALOGUE, n=1)
        guess = f"Did you mean {near[0]}? " if near else ""
        raise UserError(f"{code} is not the code of a finding.", f"{guess}Codes are {', '.join(CATALOGUE)}.")
    print_story(out, code.upper())


@dataclass(frozen=True)
class _Audit:
    """What was found, and the way to read the same pairs once more."""

    examination: "Examination"
    document: dict[str, Any]
    read_again: "Callable[[], PairReader]"


@shows_work
def _audit(
    inputs: Inputs, tokens: "Tokens | None", by: str | None, write_clean: Path | None, sample: "PromptSample | None"
) -> _Audit:
    from simpo_cli.audit.examine import examine
    from simpo_cli.audit.reading import Groups

    sources = inputs.sources()
    if write_clean is not None:
        from simpo_cli.audit.clean import require_writable

        require_writable(write_clean, [source.path for source in sources])
    read = partial(inputs.open, sources=sources)
    prompts, groups = inputs.evaluation_prompts(), None if by is None else Groups(by)
    examination = examine(read(), tokens, evaluation=prompts, groups=groups, sample=sample)
    from simpo_cli.audit.document import stats_document  # with scipy, when what the search held is given back

    return _Audit(examination, stats_document(examination, version=__version__), read)


@shows_work
def _start_recipe(recipe: "Recipe | None", model: str, max_length: int | None) -> "Recipe":
    """What pairs are scored by; a model or lengths that do not fit are refused before anything is read."""
    quiet_libraries()

    from simpo_cli.evaluate.start import fitting_lengths, require_fitting
    from simpo_cli.recipe.schema import ModelRecipe, Recipe

    if recipe is None:
        lengths = fitting_lengths(model) if max_length is None else cut_at(max_length)
        recipe = Recipe(name="stats", model=ModelRecipe(path=model), data=lengths)
    require_fitting(recipe)
    return recipe


@shows_work
def _add_model(audit: _Audit, recipe: "Recipe", sample: "PromptSample") -> None:
    """Score a sample of the pairs, and put what that says into the document."""
    from simpo_cli.audit.catalogue import CATALOGUE
    from simpo_cli.evaluate.metrics import summarise
    from simpo_cli.evaluate.start import score_start, start_document, start_findings

    document, tokens = audit.document, audit.examination.tokens
    assert tokens is not None, "a model brings its tokenizer"
    scores = score_start(recipe, sample.pairs, tokens.tokenizer)
    document["model"] = start_document(scores, recipe, document["count"])
    found = [one.as_json() for one in start_findings(summarise(scores, recipe.loss))]
    document["findings"] = sorted([*document["findings"], *found], key=lambda one: (one["severity"], one["code"]))
    looked_for = {code for code, entry in CATALOGUE.items() if entry.needs == "model"}
    document["passed"] = sorted({*document["passed"], *looked_for} - {one["code"] for one in found})


@shows_work
def _write_page(path: Path, audit: _Audit, redact: bool) -> None:
    from simpo_cli.audit.examine import collect_examples
    from simpo_cli.report.page import write_page
    from simpo_cli.report.stats_page import stats_page

    examples = None if redact else collect_examples(audit.examination, audit.read_again)
    write_page(path, stats_page(audit.document, audit.examination, examples))


def _print(audit: _Audit, *, as_json: bool, fmt: str, is_asked: bool) -> None:
    """Print the result; for people only where it was not asked for in a file."""
    if as_json:
        print_json(audit.document)
    elif fmt == "github":
        from simpo_cli.report.console import encodable
        from simpo_cli.report.findings_view import annotations

        for command in annotations(audit.document, audit.examination.refused.first):
            print(encodable(command, sys.stdout.encoding or "utf-8"))  # the console lets none through
    elif is_asked:
        from simpo_cli.report.console import out
        from simpo_cli.report.stats_view import print_stats

        print_stats(out, audit.document, audit.examination)


def _say_cleaned(cleaned: "CleanResult") -> None:
    from simpo_cli.formatting import thousands

    by_code = ", ".join(f"{code} {thousands(count)}" for code, count in cleaned.by_code.items())
    text = f"{cleaned.path}: {thousands(cleaned.kept)} pairs kept"
    text += f", {thousands(cleaned.mended)} of them without the prompt in their answers" if cleaned.mended else ""
    listed = f", {thousands(cleaned.dropped)} dropped ({by_code}), listed in {cleaned.dropped_path}"
    say(text + (listed if cleaned.dropped else ", none dropped"))


def _gate(findings: list[dict[str, Any]], fail_on: str) -> None:
    """Fail where a finding is as bad as the person does not want it."""
    failing = [f for f in findings if f["severity"] == "error" or fail_on == "warning"]
    if failing:
        raise UserError(
            f"--fail-on {fail_on}: {', '.join(f['code'] for f in failing)}.",
            "The findings above say what to do.",
            exit_code=ExitCode.GATE,
        )
