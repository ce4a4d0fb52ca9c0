"""Finding a recipe by name: an existing path first, then one of those that ship with the package."""

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from simpo_cli.errors import UserError
from simpo_cli.recipe.named import wrong_kind

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RecipeFile:
    """Where a recipe lies and what to call it in messages."""

    path: Path
    display: str  # `run.yaml`, or `shipped:paper/gemma2-9b-it.yaml`
    shipped: bool = False
    note: str = ""  # said when a name could also have meant something else


def shipped_root() -> Path:
    """The folder of the shipped recipes: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "shipped_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def shipped_names() -> list[str]:
    """Names such as `demo` and `paper/llama3-8b-instruct`, sorted, those of the paper last."""
    root = shipped_root()
    names = [path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")]
    return sorted(names, key=lambda name: ("/" in name, name))


def title_of(name: str) -> str:
    """The first comment of a shipped recipe: what it is for, in one line."""
    first = (shipped_root() / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    return first.lstrip("# ").rstrip()


def shipped_recipe(name: str) -> RecipeFile | None:
    """The shipped recipe of that name, with or without .yaml; None when there is none."""
    bare = name.removesuffix(".yaml").removesuffix(".yml")
    if bare not in shipped_names():
        return None
    return RecipeFile(shipped_root() / f"{bare}.yaml", f"shipped:{bare}.yaml", shipped=True)


def find_recipe(name: str) -> RecipeFile:
    """The recipe that a name on the command line means.

    An existing file comes first, then a shipped recipe. A file that hides a shipped recipe, and a folder that a shipped
    recipe is preferred to, are mentioned in `note`.
    """
    if not name.strip() or "\0" in name:
        raise UserError("the name of the recipe is empty.", "Name a YAML file, or see: simpo recipe list")
    path, shipped = Path(os.path.expanduser(name)), shipped_recipe(name)
    if _is_there(path) and not (shipped and path.is_dir()):
        if wrong := wrong_kind(name, "recipe"):
            raise wrong
        hides = shipped is not None and not name.endswith(SUFFIXES)
        return RecipeFile(path, name, note=f"{name} is the file here, not the shipped recipe" if hides else "")
    if shipped is not None:
        if _is_there(path):
            shipped = RecipeFile(
                shipped.path, shipped.display, True, f"{name} is the shipped recipe, not the folder of that name"
            )
        return shipped
    if os.path.islink(path):
        raise UserError(f"{name} is a link to something that does not exist.", "Mend the link, or name another file.")
    shown = repr(name if len(name) <= 80 else name[:80] + "...")
    raise UserError(f"there is no recipe {shown}, neither as a file nor among the shipped ones.", _suggest(name, path))


def find_default(name: str, beside: RecipeFile) -> RecipeFile | None:
    """The recipe that an entry of `defaults:` means: beside the file that names it, then shipped; None when missing.

    A file cannot build on itself, so its own name means the shipped recipe: a `lora.yaml` may extend `lora`.
    """
    shipped = shipped_recipe(name)
    if beside.shipped and shipped is not None:
        return shipped
    folder = beside.path.parent
    for candidate in (name, *(name + suffix for suffix in SUFFIXES)):
        path = folder / os.path.expanduser(candidate)
        if not _is_there(path) or (path.is_dir() and candidate == name and _has_suffixed(folder, name)):
            continue
        if shipped is not None and (path.is_dir() or _same(path, beside.path)):
            return shipped
        display = str(Path(beside.display).parent / candidate) if not beside.shipped else str(path)
        note = f"{name} is {display}, not the shipped recipe of that name" if shipped else ""
        return RecipeFile(path, display, note=note)
    return shipped


def suggest_default(name: str) -> str:
    """What an entry of `defaults:` that names nothing was probably meant to be."""
    close = difflib.get_close_matches(name, shipped_names(), n=1, cutoff=0.5)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}Names are looked up beside this file, then among the shipped ones: simpo recipe list"


def _has_suffixed(folder: Path, name: str) -> bool:
    return any(_is_there(folder / (name + suffix)) for suffix in SUFFIXES)


def _is_there(path: Path) -> bool:
    """Whether something lies at the path, a dangling link and a name that is too long counted as nothing."""
    try:
        return path.exists()
    except OSError:
        return False


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _suggest(name: str, path: Path) -> str:
    for suffix in SUFFIXES:
        if _is_there(Path(str(path) + suffix)):
            return f"Did you mean {name}{suffix}?"
    known = shipped_names()
    try:
        here = {entry.stem: entry for entry in path.parent.iterdir() if entry.suffix in SUFFIXES and _is_there(entry)}
    except OSError:
        here = {}
    local = difflib.get_close_matches(path.stem, here, n=1)
    close = difflib.get_close_matches(name.removesuffix(".yaml"), known, n=1)
    tails = [full for full in known if name.removesuffix(".yaml").strip("/") in full.split("/")]
    if local:
        return f"Did you mean {here[local[0]]}?"
    if tails or close:
        return f"Did you mean {(tails or close)[0]}? All shipped recipes: simpo recipe list"
    return "See the shipped recipes with: simpo recipe list"
