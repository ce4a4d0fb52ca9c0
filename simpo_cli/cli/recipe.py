"""`simpo recipe`: list, show, copy, check and schema."""

import json
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpo_cli.cli.options import AsJson, Overrides, RecipeName, print_json, say, shows_work
from simpo_cli.errors import ExitCode, UserError

if TYPE_CHECKING:
    from simpo_cli.recipe.checks import Finding
    from simpo_cli.recipe.schema import Recipe

SCHEMA_FILE = "simpo-recipe.schema.json"

recipe_app = typer.Typer(help="Look at, copy and check recipes.", no_args_is_help=True, rich_markup_mode=None)


@recipe_app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes that ship with simpo."""
    from simpo_cli.names import shipped_names, title_of
    from simpo_cli.recipe.composition import examine

    names = shipped_names()
    if as_json:
        rows = [{"name": name, "title": title_of(name), "piece": examine(name).is_piece} for name in names]
        print_json(rows)
        return
    width = max(map(len, names), default=0)
    for name in names:
        _print_wrapped(f"{name.ljust(width)}  ", title_of(name))
    say("To look at one:     simpo recipe show NAME")
    say("To make it yours:   simpo recipe copy NAME")


@recipe_app.command("show")
def show(
    name: RecipeName,
    overrides: Overrides = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value was set.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the composed recipe, every value written out."""
    from simpo_cli.recipe.composition import examine
    from simpo_cli.recipe.tree import plain_value, scalars, without_defaults
    from simpo_cli.recipe.yaml_text import to_yaml

    found = examine(name, overrides or [])
    if found.faults:
        raise found.first_error()
    for remark in found.notes:
        say(f"{remark}.")
    tree = found.tree
    if found.composed is None:
        say(f"{found.piece_name} is a piece to compose; this is what it sets.")
        tree = without_defaults(tree)
    if as_json:
        document: dict[str, Any] = {"recipe": plain_value(tree)}
        if origin:
            document["origins"] = {".".join(path): str(node.origin) for path, node in scalars(tree)}
        print_json(document)
        return
    sys.stdout.write(to_yaml(tree, origins=origin))


@recipe_app.command("copy")
def copy(
    name: RecipeName,
    dest: Annotated[Path | None, typer.Argument(metavar="DEST", help="A file or folder; NAME.yaml here.")] = None,
) -> None:
    """Copy a recipe, to change it: it is named after its file, and editors know its keys."""
    from simpo_cli.files import disk_faults, replacing
    from simpo_cli.names import find_recipe
    from simpo_cli.recipe.composition import examine
    from simpo_cli.recipe.yaml_text import read_text

    source, is_piece = find_recipe(name), examine(name).is_piece
    target = dest if dest is not None else Path(source.path.name)
    if target.is_dir():
        target = target / source.path.name
    text = read_text(source.path, source.display)
    modeline = f"# yaml-language-server: $schema={SCHEMA_FILE}\n"
    if not text.startswith("# yaml-language-server:"):
        text = modeline + text
    text = _renamed(text, target.stem)
    with disk_faults(f"{target} cannot be written"):
        if os.path.lexists(target):
            raise UserError(f"{target} exists.", "Name another file: simpo recipe copy NAME DEST")
        with replacing(target) as file:
            file.write(text)
    schema = _write_schema(target.with_name(SCHEMA_FILE))
    say(f"Wrote {target}{schema}.")
    use = f"name {target.stem} in the defaults: of a recipe" if is_piece else f"simpo train {target}"
    say(f"Next: simpo recipe check {target}   then: {use}")


def _renamed(text: str, name: str) -> str:
    """The recipe with the file's name as the name of its runs, so that two copies do not share a run folder."""
    import yaml

    from simpo_cli.recipe.values import is_folder_name

    if not is_folder_name(name):
        return text
    plain = re.fullmatch(r"[A-Za-z][\w.-]*", name) is not None and yaml.safe_load(name) == name  # not `no`, `null`
    quoted = name if plain else json.dumps(name)
    named = re.compile(r"^name:[ \t]+[\w.-]+(?=[ \t]*(?:#.*)?$)", re.MULTILINE)
    return named.sub(lambda _: f"name: {quoted}", text, count=1)


def _write_schema(path: Path) -> str:
    """Put the JSON Schema beside a recipe, unless a file there is not ours; returns what to say about it."""
    from simpo_cli.files import replacing
    from simpo_cli.recipe.fields import TITLE, json_schema

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    try:
        if path.is_symlink() or (path.exists() and f'"title": "{TITLE}"' not in path.read_text(encoding="utf-8")):
            return f" ({path} is not ours and was left as it is: editors will not know the keys)"
        with replacing(path) as file:
            file.write(text)
    except (OSError, UnicodeDecodeError):
        return f" ({path} could not be written: editors will not know the keys)"
    return f" and {path} for your editor"


@recipe_app.command("check")
def check(name: RecipeName, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Find mistakes (errors, exit 2) and unwise values (warnings)."""
    from simpo_cli.recipe.checks import Finding
    from simpo_cli.recipe.composition import examine

    try:
        found = examine(name, overrides or [])
        errors = list(found.faults)
    except UserError as error:
        if not as_json:
            raise
        found, errors = None, [error]
    warnings: list[Finding] = []
    if found is not None and (composed := found.composed) is not None:
        warnings += composed.warnings
        faults = [composed.located(error) for error in _faults_of_inputs(composed.recipe)]
        if found.display.startswith("shipped:"):  # its files are the reader's, who has not named them yet
            warnings += [Finding("REC013", "warning", fault.where, fault.problem, fault.fix) for fault in faults]
        else:
            errors += faults
    if as_json:
        findings = [Finding("REC000", "error", error.where, error.problem, error.fix) for error in errors] + warnings
        is_piece = found is not None and found.is_piece
        print_json({"recipe": name, "piece": is_piece, "findings": [vars(finding) for finding in findings]})
    else:
        _print_findings(warnings)
        for mistake in errors:
            say(f"Error: {mistake}")
        if not errors and found is not None:
            if found.composed is None:
                piece = f"{found.piece_name} is a piece to compose into another recipe"
                _print_wrapped("", f"{piece}; what it sets is valid.")
            elif not warnings:
                _print_wrapped("", f"{name}: no remarks.")
    if errors:
        raise typer.Exit(ExitCode.USAGE)


@shows_work
def _faults_of_inputs(recipe: "Recipe") -> list[UserError]:
    from simpo_cli.data.prepare import faults_of_inputs

    return list(faults_of_inputs(recipe))


@recipe_app.command("schema")
def schema(
    section: Annotated[
        str, typer.Argument(metavar="SECTION", help="Such as loss or model.lora; all keys if absent.")
    ] = "",
) -> None:
    """Print every key with its type, default and use (JSON Schema)."""
    from simpo_cli.recipe.fields import json_schema

    print_json(json_schema(section))


def _print_findings(findings: "list[Finding]") -> None:
    def file_and_line(finding: "Finding") -> tuple[str, int]:
        file, _, line = finding.where.replace("override ", ":").rpartition(":")
        return file, int(line) if line.isdigit() else 0

    width = max((len(finding.where) for finding in findings), default=0)
    for finding in sorted(findings, key=file_and_line):
        _print_wrapped(f"{finding.where.ljust(width)}  {finding.severity:<7}  {finding.code}  ", finding.sentence)


def _print_wrapped(head: str, text: str) -> None:
    """One line; on a terminal that is too narrow for it the text continues under itself."""
    from simpo_cli.report.console import printable

    head, text = printable(head), printable(text)
    if not sys.stdout.isatty():
        print(head + text)
        return
    columns = shutil.get_terminal_size().columns
    indent = len(head) if columns - len(head) >= 30 else 4
    print(textwrap.fill(head + text, max(columns, 40), subsequent_indent=" " * indent, break_on_hyphens=False))
