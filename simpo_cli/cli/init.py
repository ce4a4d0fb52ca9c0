"""`simpo init`: a first recipe from four questions, asked on a terminal, or from four options."""

import io
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from simpo_cli.cli.options import AsJson, TrustRemoteCode, importing, num_cards, print_json, say, shows_work
from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.tune.first_recipe import FirstRecipe

_WARNINGS = 3  # that are shown; simpo stats shows them all
_SUFFIXES = (".yaml", ".yml")
_MOST_MINUTES = 1_000_000
_LOOKED_AT = 5  # files that may be the pairs


def init(
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="The recipe to write, which must be new.")] = (
        "recipe.yaml"
    ),
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="A folder, a hub id or builtin:guide.")
    ] = None,
    pairs: Annotated[
        str | None, typer.Option("--pairs", metavar="DATA", help="A file, a folder, a hub id or builtin:guide.")
    ] = None,
    purpose: Annotated[
        Literal["try", "assistant", "general"] | None,
        typer.Option(
            "--for",
            help="try: see it work. assistant: teach a behaviour by pairs of your own. "
            "general: a general preference dataset, as the authors train.",
        ),
    ] = None,
    minutes: Annotated[int | None, typer.Option("--minutes", metavar="N", help="Time that the run may take.")] = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write a first recipe: look at the pairs, the model and this machine, and give every number its reason.

    On a terminal you are asked for what no option says. The file is never one that exists.
    """
    _require_new(file)
    given = {"--model": model, "--pairs": pairs, "--for": purpose, "--minutes": minutes}
    with trusting(trust_remote_code):
        answers = _answers({option: str(value) for option, value in given.items() if value is not None})
        first = _composed(file, answers, trust_remote_code)
    _write(file, first.text)
    if as_json:
        print_json(first.document)
    else:
        _print(first)


def _require_new(file: str) -> None:
    """Refuse (UserError) a name under which nothing can be, or should be, written."""
    from simpo_cli.recipe.values import is_folder_name

    path = Path(file)
    if path.suffix not in _SUFFIXES or not is_folder_name(path.stem):
        fix = "Name a file such as recipe.yaml: its name without .yaml is that of the run."
        raise UserError(f"{file!r} is no name for a recipe.", fix)
    if os.path.lexists(path):
        fix = f"Name another file, or check this one: simpo recipe check {shlex.quote(file)}"
        raise UserError(f"{file} exists, and is not overwritten.", fix)
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist.", "Make it first, or name a file in another.")


# Questions


class _Question(NamedTuple):
    """What is asked where an option is missing: one line, what is taken for an empty answer, and the check of any."""

    text: str
    default: Callable[[Mapping[str, str]], str]  # by the answers before
    check: Callable[[str, Mapping[str, str]], None]  # UserError: what is wrong


def _answers(given: Mapping[str, str]) -> dict[str, str]:
    """The answer to each question, checked: what is given first, then what is asked for.

    Raises:
        UserError: what is given means nothing, or something is missing and there is nobody to ask.
    """
    answers: dict[str, str] = {}
    questions = _questions()
    missing = [option for option in questions if option not in given]
    if missing and not (sys.stdin.isatty() and sys.stderr.isatty()):
        problem = (
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing, and there is no terminal to ask."
        )
        raise UserError(problem, "Example: simpo init --model builtin:guide --pairs prefs.jsonl --for try --minutes 10")
    for option, question in questions.items():
        if option in given:
            try:
                question.check(given[option], answers)
            except UserError as error:
                where = ": ".join(filter(None, (option, error.where)))
                raise UserError(error.problem, error.fix, where=where, exit_code=error.exit_code) from error
            answers[option] = given[option]
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are a wrong answer
    for option in missing:
        answers[option] = _asked(questions[option], answers)
    return answers


def _asked(question: _Question, answers: Mapping[str, str]) -> str:
    from rich.text import Text

    from simpo_cli.report.console import err, print_wrapped, printable

    default = question.default(answers)
    for line in question.text.split("\n"):
        print_wrapped(err, Text(line[: len(line) - len(line.lstrip())]), line)
    while True:
        err.print(printable(f"[{default}] > "), end="", soft_wrap=True)
        line = sys.stdin.readline()
        if not line:  # Ctrl-D
            err.print()
            raise KeyboardInterrupt
        answer = line.strip() or default
        try:
            question.check(answer, answers)
        except UserError as error:
            say(str(error), "red")
        else:
            return answer


def _questions() -> dict[str, _Question]:
    """Every question by its option, in their order."""
    from simpo_cli.tune.purposes import PURPOSES

    listed = "\n".join(f"  {name:<10} {purpose.title}" for name, purpose in PURPOSES.items())
    return {
        "--model": _Question(
            "\nWhich model? A folder, a hub id, or builtin:guide, a small one inside simpo.",
            lambda _: "builtin:guide",
            _check_model,
        ),
        "--pairs": _Question(
            "\nWhich pairs? A file, a folder or a hub id of prompt, chosen and rejected.",
            lambda _: _pairs_here() or "builtin:guide",
            _check_pairs,
        ),
        "--for": _Question(f"\nWhat for?\n{listed}", lambda _: next(iter(PURPOSES)), _check_purpose),
        "--minutes": _Question(
            "\nHow many minutes may the run take on this machine?",
            lambda answers: str(PURPOSES[answers["--for"]].minutes),
            _check_minutes,
        ),
    }


def _check_model(answer: str, _: Mapping[str, str]) -> None:
    _check({"model.path": answer, "data.train": "builtin:guide"})


def _check_pairs(answer: str, answers: Mapping[str, str]) -> None:
    _check({"model.path": answers.get("--model", "builtin:guide"), "data.train": answer, "data.on_bad_record": "skip"})


def _check(values: Mapping[str, str]) -> None:
    """Look whether model and pairs are there, and read the first pairs."""
    from simpo_cli.data.prepare import faults_of_inputs, require_inputs
    from simpo_cli.recipe.validate import recipe_of

    recipe = recipe_of(values)
    try:
        require_inputs(recipe)
        for fault in faults_of_inputs(recipe):
            raise fault
    except UserError as error:
        problem = error.problem.removeprefix(f"{error.key}: ")  # nobody has written a key
        raise UserError(problem, error.fix, where=error.where, exit_code=error.exit_code) from error


def _check_purpose(answer: str, _: Mapping[str, str]) -> None:
    from simpo_cli.tune.purposes import PURPOSES

    if answer not in PURPOSES:
        raise UserError(f"{answer!r} is none of them.", f"Answer with one word: {', '.join(PURPOSES)}.")


def _check_minutes(answer: str, _: Mapping[str, str]) -> None:
    if not (answer.isascii() and answer.isdigit() and 0 < int(answer) <= _MOST_MINUTES):
        raise UserError(f"{answer!r} is no time.", f"Give whole minutes, from 1 to {_MOST_MINUTES:,}.")


def _pairs_here() -> str | None:
    """A file of pairs in the working directory: the first by name of those that can be read as such."""
    from simpo_cli.names import DATA_SUFFIXES, plain_suffix

    names = sorted(entry.name for entry in os.scandir() if plain_suffix(entry.name) in DATA_SUFFIXES)
    for name in names[:_LOOKED_AT]:
        try:
            _check_pairs(name, {})
        except UserError:
            continue
        return name
    return None


# The recipe


@shows_work
def _composed(file: str, answers: Mapping[str, str], trust_remote_code: bool) -> "FirstRecipe":
    from simpo_cli.tune.purposes import Wanted

    wanted = Wanted(
        file=file,
        model=answers["--model"],
        pairs=answers["--pairs"],
        purpose=answers["--for"],
        minutes=int(answers["--minutes"]),
        trust_remote_code=trust_remote_code,
    )
    with importing():
        from simpo_cli.tune.first_recipe import first_recipe
    return first_recipe(wanted, num_cards=num_cards())


def _write(file: str, text: str) -> None:
    """Write the recipe whole or not at all, and over nothing."""
    from simpo_cli.files import disk_faults, replacing

    with disk_faults(f"{file} cannot be written"):
        _require_new(file)  # looking at the pairs may have taken a while
        with replacing(Path(file)) as written:
            written.write(text)


def _print(first: "FirstRecipe") -> None:
    """Errors of the pairs, a few warnings, what was decided, and what to type next."""
    from rich.text import Text

    from simpo_cli.report.console import out, print_wrapped
    from simpo_cli.report.findings_view import print_findings
    from simpo_cli.report.live import print_next
    from simpo_cli.tune.first_recipe import LABEL_WIDTH, lines

    document = first.document
    found = sorted(document["findings"], key=lambda one: (one["severity"], -one["count"]))
    most = sum(one["severity"] == "error" for one in found) + _WARNINGS
    if found:
        audit = {"findings": found[:most], "passed": [], "input": document["pairs"]}
        print_findings(out, audit, first.examination.refused.first)
        if len(found) > most:
            hidden = f"and {len(found) - most} more: simpo stats {shlex.quote(document['pairs']['path'])}"
            print_wrapped(out, Text("  "), hidden, style="dim")
        out.print()
    for label, text in [("wrote", document["file"]), *lines(document)]:
        print_wrapped(out, Text(label.ljust(LABEL_WIDTH), "dim"), text)
    print_next(out, [(one["command"], one["purpose"]) for one in document["next"]])
