"""What is being done, on the screen of every command: a line that is redrawn, or in a log a line now and then."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from rich.live import Live
from rich.text import Text

from simpo_cli import stages
from simpo_cli.report.console import Console, encodable, err, printable
from simpo_cli.stages import Stage

REFRESHES_PER_SECOND = 4
SECONDS_OF_SILENCE = 25.0
"""How long a log may say nothing."""


class Doing:
    """What is being done; where nobody says, such as between two stages, only since when."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._whole = Stage("working", clock=clock)

    def in_words(self) -> str:
        return stages.in_words() or self._whole.in_words()


class Pulse:
    """Breaks the silence of a log: says what is being done where nothing was said for a while.

    Args:
        say: writes a line.
        clock: seconds from any fixed moment.
    """

    def __init__(self, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._heard_at = clock()
        self._doing = Doing(clock)
        self._stopped = threading.Event()

    def heard(self) -> None:
        """A line was written."""
        self._heard_at = self._clock()

    def beat(self) -> None:
        """Say what is being done, if it is time to."""
        if self._clock() - self._heard_at >= SECONDS_OF_SILENCE:
            self.heard()
            self._say(self._doing.in_words())

    def start(self) -> None:
        """Beat from a thread of its own, which ends with the process."""
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(1.0):
            self.beat()


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
        live = live_stage_line(err)
        live.start(refresh=True)
        try:
            yield
        finally:
            live.stop()
        return
    pulse = Pulse(lambda text: err.print(f"{datetime.now():%H:%M:%S} {printable(text)}", soft_wrap=True))
    pulse.start()
    try:
        yield
    finally:
        pulse.stop()
