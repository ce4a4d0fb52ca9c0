"""What is being done, on the screen of every command: a line that is redrawn, or in a log a line now and then."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.live import Live
from rich.text import Text

from simpo_cli.report.console import Console, encodable, err, printable
from simpo_cli.stages import Doing, Pulse

REFRESHES_PER_SECOND = 4


def live_stage_line(console: Console) -> Live:
    """What is being done in one line, redrawn in place until it is stopped, which wipes it away."""
    doing = Doing()

    def line() -> Text:
        text = Text(encodable(printable(doing.in_words()), console.encoding), "dim", no_wrap=True, overflow="crop")
        text.truncate(console.width, overflow="crop")
        return text

    return Live(
        console=console,
        get_renderable=line,
        refresh_per_second=REFRESHES_PER_SECOND,
        redirect_stdout=sys.stdout.isatty(),  # data on its way to a file stays on its way
        transient=True,
    )


@contextmanager
def working() -> Iterator[None]:
    """Show on stderr what is being done within the block."""
    if sys.stderr.isatty() and err.is_interactive:
        with live_stage_line(err) as live:
            live.refresh()
            yield
        return
    with Pulse(lambda text: err.print(f"{datetime.now():%H:%M:%S} {printable(text)}", soft_wrap=True)):
        yield
