"""`simpo eval`: models measured on held-out pairs, against where they started and against one another."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simpo_cli.cli.eval_answers import TEMPERATURE, AnswerOptions, answers_of, print_answers_or_results
from simpo_cli.cli.options import AsJson, Output, TrustRemoteCode, importing, print_json, require_here, say, shows_work
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.evaluate.results import Evaluation, Failure


_say = partial(say, style="dim")
_ANSWERS = "Answers to prompts, in place of scores (TARGET may also be their folder)"
_JUDGE = "Answers compared by a judge, with --generate or of a folder of answers"


def evaluate(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET... [KEY=VALUE]...",
            help="Runs, models, checkpoints, adapters or recipes; then values that replace those of their recipes.",
        ),
    ],
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="FILE", help="Score these pairs instead of the held-out ones; may be repeated."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="What to compare with; if absent a run's start model; none for nothing."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="COLUMN", help="Also by the values of a column of the records; may be repeated."),
    ] = None,
    as_json: AsJson = False,
    output: Output = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page to this file.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option("--pairs", metavar="FILE", help="Write every pair's scores to this file: .jsonl or .parquet."),
    ] = None,
    generate: Annotated[
        bool,
        typer.Option("--generate", rich_help_panel=_ANSWERS, help="Let model and baseline answer prompts."),
    ] = False,
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_ANSWERS,
            help="Prompts, as JSON; if absent 100 of the held-out pairs'.",
            show_default=False,
        ),
    ] = None,
    num_prompts: Annotated[
        int | None, typer.Option("--num-prompts", metavar="N", rich_help_panel=_ANSWERS, help="Ask only so many.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", rich_help_panel=_ANSWERS, help="Most tokens of an answer; if absent 512, or what fits."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", rich_help_panel=_ANSWERS, help=f"Of the sampled answers; if absent {TEMPERATURE}."),
    ] = None,
    engine: Annotated[
        Literal["transformers", "vllm"] | None,
        typer.Option(rich_help_panel=_ANSWERS, help="What runs the models; if absent vllm where it is installed."),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", rich_help_panel=_ANSWERS, help="Where they go; if absent RUN/answers."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar="URL", rich_help_panel=_JUDGE, help="An OpenAI-compatible address."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=_JUDGE, help="The model there that judges.")
    ] = None,
    judge_key: Annotated[
        str | None,
        typer.Option(
            metavar="VARIABLE",
            rich_help_panel=_JUDGE,
            help="The environment variable with its key; if absent OPENAI_API_KEY.",
        ),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score held-out pairs: accuracy, margins, length and drift, with intervals and tests against the start model."""
    from simpo_cli.report.page import require_replaceable, require_replaceable_page, write_report

    if output is not None:
        require_replaceable(output)
    if html is not None:
        require_replaceable_page(html)
    names, overrides = _split(arguments)
    if data:
        sources = ", ".join(f"{{path: {json.dumps(file, ensure_ascii=False)}}}" for file in data)
        overrides.insert(0, f"data.eval=[{sources}]")
    options = AnswerOptions(
        generate=generate,
        making={
            "prompts": prompts,
            "num_prompts": num_prompts,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "engine": engine,
            "answers": answers,
        },
        judging={"judge": judge, "judge_model": judge_model, "judge_key": judge_key},
        of_pairs=tuple(name for name, given in (("--html", html), ("--pairs", pairs), ("--by", by)) if given),
    )
    require_here([*names, *([baseline] if baseline else [])])
    with trusting(trust_remote_code):
        document = answers_of(names, overrides, baseline, options, _say)
    if document is not None:
        if output is not None:
            write_report(output, document)
        if as_json:
            print_json(document)
        elif output is None:
            print_answers_or_results(document)
        return
    if pairs is not None:
        from simpo_cli.evaluate.pair_files import require_pairs_file

        require_pairs_file(pairs)
    write = partial(_write, output, html, pairs, len(names) == 1)
    with trusting(trust_remote_code):
        document = _assessed(names, overrides, baseline, by or [], write)
    if as_json:
        print_json(document)
    elif output is None:
        from simpo_cli.report.console import out
        from simpo_cli.report.eval_view import print_eval

        print_eval(out, document)
    for path in (html, pairs):
        if path is not None:
            _say(f"written: {path}")
    _require_all(document, len(names))


def _require_all(document: dict[str, Any], num_named: int) -> None:
    """End with an error (UserError) where models were not scored or compared; what was measured is shown by now."""
    failed = document.get("failed", [])
    missing = [one["not_compared"] for one in document.get("evaluations", [document]) if one["not_compared"]]
    if failed:
        what, first = f"{len(failed)} of {num_named} models could not be scored", failed[0]
    elif missing:
        whose = "the model was" if num_named == 1 else f"{len(missing)} of {num_named} models were"
        what, first = f"{whose} scored, but not compared with the baseline", missing[0]
    else:
        return
    from simpo_cli.evaluate.tables import failure_in_words

    raise UserError(f"{what}: {failure_in_words(first)}", first["fix"], exit_code=ExitCode(first["exit_code"]))


def _write(
    output: Path | None,
    html: Path | None,
    pairs: Path | None,
    is_one: bool,
    assessed: "Sequence[Evaluation]",
    failed: "Sequence[Failure]",
) -> dict[str, Any]:
    """Write what there is, anew after each model, so that nothing is lost with a later one; return the document."""
    from simpo_cli.evaluate.pair_files import write_pairs_file
    from simpo_cli.evaluate.results import document_of
    from simpo_cli.report.page import write_page, write_report

    document = document_of(assessed, failed, is_one=is_one)
    if output is not None:
        write_report(output, document)
    if pairs is not None:
        write_pairs_file(pairs, assessed)
    if html is not None:
        from simpo_cli.report.eval_page import eval_page

        write_page(html, eval_page(document))
    return document


@shows_work
def _assessed(
    names: list[str], overrides: list[str], baseline: str | None, by: list[str], write: Callable[..., dict[str, Any]]
) -> dict[str, Any]:
    with importing():
        from simpo_cli.evaluate.evaluation import Evaluator

    try:
        found = Evaluator(overrides, baseline, by, _say).run(names, write)
    except UserError as error:
        raise _located(error, names[0], overrides) from error
    return write(*found)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Names, and KEY=VALUE; a name may hold an equals sign where something of that name is there."""
    names = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    if not names:
        raise UserError("nothing is named to score.", "Name a run, a model folder or a recipe: simpo eval runs/my-run")
    return names, [argument for argument in arguments if argument not in names]


def _located(error: UserError, target: str, overrides: list[str]) -> UserError:
    """The error with the line of the recipe that it is about, where the target is a recipe."""
    from simpo_cli.recipe.composition import compose

    if Path(target).is_dir():
        return error  # a run or a model: there is no recipe that the person edits
    try:
        return compose(target, overrides).located(error)
    except UserError:
        return error
