"""`simpo report`: the page that shows what a run did and what it is worth."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, also while it trains.")],
) -> None:
    """Write RUN/report.html anew from the numbers that the run has stored; no model is loaded."""
    from simpo_cli.report.console import err, printable
    from simpo_cli.report.run_page import write_run_report

    err.print(f"report  {printable(str(write_run_report(run)))}", soft_wrap=True)
