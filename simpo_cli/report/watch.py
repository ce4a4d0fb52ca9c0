"""Who watches a run: the live panel where there is a terminal, lines of a log everywhere else."""

import os
import sys
from typing import TextIO

from simpo_cli.report.console import err, make_console
from simpo_cli.report.heartbeat import Heartbeat
from simpo_cli.report.live import LivePanel

LOG_WIDTH = 120


def watch(stream: TextIO | None = None) -> LivePanel | Heartbeat:
    """An observer on `stream` (stderr): a live panel if it is a terminal that can move its cursor, else a heartbeat.

    On stderr the panel shares the console `err`, so what others print there appears above it.
    """
    console = err if stream is None else make_console(stream)
    if (stream or sys.stderr).isatty() and console.is_interactive:
        return LivePanel(console)
    # a log has no width of its own: COLUMNS, or wide enough for the table of results
    width = None if "COLUMNS" in os.environ else LOG_WIDTH
    return Heartbeat(make_console(stream, stderr=stream is None, width=width))
