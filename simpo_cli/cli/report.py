"""`simpo report`: the page that shows what a run did and what it is worth, or two runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

from simpo_cli.cli.options import print_json, say
from simpo_cli.errors import UserError


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN [OTHER]", help="One run, also while it trains; or two.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            metavar="FILE",
            help="Where the page goes; RUN/report.html or OTHER/against-RUN.html if not given.",
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file with what the run wrote; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --verify: one JSON document and nothing else.")] = False,
) -> None:
    """Write the page of a run, rounds or a study, or of two runs compared, from stored numbers; loads no model."""
    if verify:
        if len(runs) > 1 or output is not None:
            raise UserError("--verify looks at one run and writes nothing.", "Name one run, without --output.")
        _verify(runs[0], as_json)
        return
    if as_json:
        raise UserError("--json is how --verify answers, and the report is a page.", "Add --verify.")
    match runs:
        case [run]:
            from simpo_cli.report.rounds_page import holds_rounds, write_rounds_report
            from simpo_cli.report.run_page import write_run_report
            from simpo_cli.report.study_page import holds_study, write_study_report

            write = write_study_report if holds_study(run) else write_run_report
            written = (write_rounds_report if holds_rounds(run) else write)(run, output)
        case [first, second]:
            from simpo_cli.report.two_runs import comparison_lines, write_comparison

            written, compared = write_comparison(first, second, output)
            for label, text in comparison_lines(compared):
                say(f"{label:<7} {text}")
        case _:
            raise UserError(f"{len(runs)} runs are named.", "Name one run, or two to compare.")
    say(f"report  {written}")


def _verify(run: Path, as_json: bool) -> None:
    """A line for every file of the run; exit code 4 where one is not what was written."""
    from simpo_cli.report.console import out, printable
    from simpo_cli.run.verify import verify_run

    found = verify_run(run)
    if as_json:
        print_json(found.as_json())
    else:
        width = max(len(file.name) for file in found.seen)
        for file in found.seen:
            line = f"{'whole' if file.is_whole else 'damaged':<8} {file.name:<{width}}  {file.detail}"
            out.print(printable(line), soft_wrap=True)
    found.require_whole()
