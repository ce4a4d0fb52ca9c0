"""The command `simpo`: which commands there are, and how every one of them ends.

Modules of commands import nothing heavy at their top, so `simpo --help` never loads torch. A `UserError` becomes two
lines on stderr and its exit code; anything else is our bug and keeps its traceback.
"""

import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from simpo_cli import __version__
from simpo_cli.cli.chat import chat
from simpo_cli.cli.eval import evaluate
from simpo_cli.cli.export import export
from simpo_cli.cli.init import init
from simpo_cli.cli.inspect import inspect
from simpo_cli.cli.options import GroupedCommand
from simpo_cli.cli.pairs import pairs_app
from simpo_cli.cli.plan import plan
from simpo_cli.cli.recipe import recipe_app
from simpo_cli.cli.report import report
from simpo_cli.cli.stats import stats
from simpo_cli.cli.surroundings import give_up_stdout, out_of_address_space, require_surroundings, take_streams
from simpo_cli.cli.train import train
from simpo_cli.cli.tune import tune
from simpo_cli.distributed.launch import follow_launcher, leave_word, to_tell
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.files import how_to_mend, is_of_the_disk
from simpo_cli.model.allocator import expand_segments
from simpo_cli.redaction import forget

_EPILOG = "No GPU, no network: simpo train demo   Your own pairs: simpo init"

app = typer.Typer(
    name="simpo",
    help="Align a language model with human preferences by SimPO.",
    epilog=_EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # names of files and keys hold brackets
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"simpo {__version__}")
        raise typer.Exit(ExitCode.DONE)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before the command."""


app.command("init", short_help="Write a first recipe, from four questions.")(init)
app.command("train", short_help="Train a model from a recipe.")(train)
app.command("plan", short_help="Say what a run will take, and which devices would do.")(plan)
app.command("eval", cls=GroupedCommand, short_help="Measure a model on held-out pairs.")(evaluate)
app.command("chat", short_help="Talk to a model, and note which answers are better.")(chat)
app.command("stats", short_help="Look at preference pairs before they train a model.")(stats)
app.command("inspect", short_help="Look at training pairs token by token.")(inspect)
app.command("report", short_help="Write the page that shows what a run did.")(report)
app.command("export", short_help="Write a run's model for other programs.")(export)
app.command("tune", cls=GroupedCommand, short_help="Search for better numbers, and confirm them.")(tune)
app.add_typer(pairs_app, name="pairs")
app.add_typer(recipe_app, name="recipe")


def main() -> None:
    """The entry point of the shell command."""
    follow_launcher()
    take_streams()
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line and return what the shell is told."""
    forget()  # a program may run one command after the other
    expand_segments()  # read when torch is loaded, which commands do when they need it
    try:
        code = _invoke(list(args))
        sys.stdout.flush()
        return code
    except UserError as error:
        if os.environ.get("SIMPO_DEBUG") == "1":
            _say(traceback.format_exc())
        return _end(error)
    except typer.TyperException as error:
        message = error.format_message().strip().replace(": Value error, ", ": ")  # pydantic's, which typer shows
        if message.startswith("Usage:"):  # nothing was typed after the command
            _say(message)
            return ExitCode.USAGE
        return _end(UserError(message, _usage(error)), is_shared=True)
    except (KeyboardInterrupt, typer.Abort):
        return _end(UserError("Interrupted.", "", exit_code=ExitCode.INTERRUPTED), is_shared=True)
    except BrokenPipeError:
        # The reader of a pipe has gone (`| head`): nothing more can be said, also not by the interpreter as it leaves.
        give_up_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:
        if not is_of_the_disk(error):
            return _crashed(error)
        place = f"{error.filename}: " if error.filename else ""
        return _end(UserError(f"{place}{error.strerror}.", f"{how_to_mend(error)}.", exit_code=ExitCode.ENVIRONMENT))
    except ModuleNotFoundError as error:
        from simpo_cli.versions import missing_package

        missing = missing_package(error)
        return _crashed(error) if missing is None else _end(missing)
    except Exception as error:
        return _crashed(error)


def _invoke(args: list[str]) -> int:
    # Not app(): that would turn a closed pipe into exit code 1, which is ours for a crash.
    command = typer.main.get_command(app)
    try:
        with command.make_context("simpo", args) as context:
            if not {"-h", "--help"} & set(args):
                require_surroundings(args)
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return ExitCode.DONE


def _crashed(error: Exception) -> int:
    """Our bug, unless the surroundings have made it."""
    limited = out_of_address_space(error)
    if limited is not None:
        return _end(limited)
    ours = "This is a bug in simpo. Please report it with the lines above and the command that you typed."
    return _end(UserError(f"{traceback.format_exc()}\n{ours}", "", exit_code=ExitCode.CRASH))


def _end(error: UserError, *, is_shared: bool = False) -> int:
    """Say what has ended the command, unless another process of the run says it, and return its exit code.

    Args:
        is_shared: all processes of the run end by it.
    """
    error.is_shared |= is_shared
    told = to_tell(error)
    if told is not None:
        is_mistake = told.exit_code not in (ExitCode.SAVED, ExitCode.INTERRUPTED, ExitCode.CRASH)
        _say(f"Error: {told}" if is_mistake else str(told))
    leave_word(error)
    return error.exit_code


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    if context is None:
        return "See: simpo --help"
    usage = " ".join(context.get_usage().split()).removeprefix("Usage: ")
    return f"Usage: {usage}   (more: {context.command_path} --help)"


def _say(text: str) -> None:
    """Write to stderr; control characters of foreign text are shown, not obeyed, and none of the environment."""
    from simpo_cli.report.console import printable, unobeyed  # what it is built on takes a while to import

    lines = list(map(printable, text.split("\n")))
    if sys.stderr.isatty():
        width = shutil.get_terminal_size().columns
        lines = [_broken(line, width) for line in lines]
    print(unobeyed("\n".join(lines)), file=sys.stderr, flush=True)


def _broken(line: str, width: int) -> str:
    """A line over several where a terminal would break it within words; names and paths are never broken."""
    if len(line) <= width:
        return line
    indent = " " * (len(line) - len(line.lstrip()))
    wrapper = textwrap.TextWrapper(width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(line)
