"""`simpo report`: the page that shows what a run did and what it is worth."""

from pathlib import Path
from typing import Annotated

import typer

from simpo_cli.errors import UserError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, also while it trains.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file with what the run wrote; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --verify: one JSON document and nothing else.")] = False,
) -> None:
    """Write RUN/report.html anew from the numbers that the run has stored; no model is loaded."""
    if verify:
        _verify(run, as_json)
        return
    if as_json:
        raise UserError("--json is how --verify answers, and the report is a page.", "Add --verify.")
    from simpo_cli.report.console import err, printable
    from simpo_cli.report.run_page import write_run_report

    err.print(f"report  {printable(str(write_run_report(run)))}", soft_wrap=True)


def _verify(run: Path, as_json: bool) -> None:
    """A line for every file of the run; exit code 4 where one is not what was written."""
    from simpo_cli.report.console import out, printable
    from simpo_cli.report.report_file import json_text
    from simpo_cli.train.verify import verify_run

    found = verify_run(run)
    if as_json:
        print(json_text(found.as_json()))
    else:
        width = max(len(file.name) for file in found.seen)
        for file in found.seen:
            line = f"{'whole' if file.is_whole else 'damaged':<8} {file.name:<{width}}  {file.detail}"
            out.print(printable(line), soft_wrap=True)
    found.require_whole()
