"""`simpo report`: the page that shows what a run did and what it is worth, or two runs side by side."""

from pathlib import Path
from typing import Annotated

import typer

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
) -> None:
    """Write the page of a run, or of two runs compared, from the numbers that they have stored; no model is loaded."""
    from simpo_cli.report.console import err, printable

    match runs:
        case [run]:
            from simpo_cli.report.run_page import write_run_report

            written = write_run_report(run, output)
        case [first, second]:
            from simpo_cli.report.two_runs_page import comparison_lines, write_comparison

            written, compared = write_comparison(first, second, output)
            for label, text in comparison_lines(compared):
                err.print(f"{label:<7} {printable(text)}", soft_wrap=True)
        case _:
            raise UserError(f"{len(runs)} runs are named.", "Name one run, or two to compare.")
    err.print(f"report  {printable(str(written))}", soft_wrap=True)
