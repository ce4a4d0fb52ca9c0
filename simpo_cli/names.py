"""What a name on the command line means: a recipe here or a shipped one, a run, a model, a file of pairs.

A path at which another kind of thing lies is answered with the command that fits it.
"""

import difflib
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from simpo_cli.errors import UserError
from simpo_cli.files import MalformedError, object_in

HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?")
"""Its parts are named with one slash; behind @ stands a branch, tag or commit, which may have more."""

Kind = Literal["run", "model", "pairs", "recipe"]

_YAML = (".yaml", ".yml")
DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Files that a folder is searched for; each may also end in .gz or .zst."""
_PACKED = (".gz", ".zst", ".zstd")
_MODEL_KEYS = {"model_type", "architectures", "peft_type"}
_MOST_BYTES = 1 << 20  # of a JSON file that is looked into

_CALLED = {
    "run": "the folder of a run",
    "model": "a model folder",
    "pairs": "a file of pairs",
    "recipe": "a recipe",
}
# (what is wanted, what is there): what fits the thing that is there
_FITTING: dict[tuple[Kind, Kind], str] = {
    ("recipe", "pairs"): "Look at them with: simpo stats {name}   train on them: simpo train RECIPE data.train={name}",
    ("recipe", "run"): "Its recipe is {name}/recipe.yaml   score it: simpo eval {name}   its page: simpo report {name}",
    ("recipe", "model"): "Train it: simpo train RECIPE model.path={name}   score it: simpo eval {name} --data FILE",
    ("pairs", "recipe"): "Look at its pairs with: simpo stats --recipe {name}   check it: simpo recipe check {name}",
    ("pairs", "run"): "Look at its pairs with: simpo stats --recipe {name}/recipe.yaml   its page: simpo report {name}",
    ("pairs", "model"): "Score pairs with it: simpo eval {name} --data FILE   or: simpo stats FILE --model {name}",
    ("run", "recipe"): "A run is made by: simpo train {name}",
    ("run", "pairs"): "Look at the pairs with: simpo stats {name}",
    ("run", "model"): "Score it with: simpo eval {name} --data FILE",
    ("model", "pairs"): "Score a model on them: simpo eval MODEL --data {name}   look at them: simpo stats {name}",
    ("model", "run"): "Its model is {name}/model.",
    ("model", "recipe"): "Name the folder of a model, an id of the hub or builtin:guide.",
}


def kind_of(name: str) -> Kind | None:
    """What lies at a path, by names and by a look at small JSON files; None where that does not tell."""
    path = Path(name).expanduser()
    try:
        if path.is_dir():
            if (path / "run.json").is_file():
                return "run"
            configs = (path / "config.json", path / "adapter_config.json")
            return "model" if any(_object(config).keys() & _MODEL_KEYS for config in configs) else None
        if not path.is_file():
            return None
    except (OSError, ValueError):
        return None
    if path.suffix in _YAML:
        return "recipe"
    if path.suffix == ".json":  # YAML reads JSON, so a recipe may be written in it
        content = _object(path)
        model = content.get("model")
        return "recipe" if "defaults" in content or (isinstance(model, dict) and "path" in model) else "pairs"
    return "pairs" if plain_suffix(name) in DATA_SUFFIXES else None


def plain_suffix(name: str) -> str:
    """The suffix that tells the kind of a file, in lower case, behind any .gz or .zst."""
    stem, suffix = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if suffix in _PACKED else suffix


def wrong_kind(name: str, wanted: Kind) -> UserError | None:
    """The error for a path at which something else lies than is wanted; None where that is not known."""
    kind = kind_of(name)
    if kind is None or kind == wanted:
        return None
    return misfit(name, kind, wanted)


def misfit(name: str, kind: Kind, wanted: Kind) -> UserError:
    """The error for a file or folder of one kind where another is wanted."""
    problem = f"is {_CALLED[kind]}, and {_CALLED[wanted]} is wanted."
    return UserError(problem, _FITTING[wanted, kind].format(name=shlex.quote(name)), where=name)


def is_hub_id(name: str) -> bool:
    """Whether a name may be the id of a model on the hub: it is not here, and does not lie where runs lie."""
    path = Path(name).expanduser()
    if path.exists() or name.endswith(_YAML) or not HUB_ID.fullmatch(name):
        return False
    return path.parent.name != "runs" and not any(path.parent.glob("*/run.json"))


def no_such_target(name: str) -> UserError:
    """The error for a name behind `simpo eval` that means nothing."""
    if wrong := wrong_kind(name, "model"):
        return wrong
    if near := runs_near(name):
        return UserError(f"there is no run {name}.", f"Did you mean {' or '.join(near)}?")
    return UserError(
        f"{name} is neither a run, nor a model folder, nor a recipe.",
        "Name one that is there; simpo recipe list shows the shipped recipes.",
    )


def not_a_run(name: str) -> UserError:
    """The error for what is no run where one is wanted."""
    if wrong := wrong_kind(name, "run"):
        return wrong
    near = "" if Path(name).expanduser().exists() else " or ".join(runs_near(name))
    fix = f"Did you mean {near}?" if near else "Name the folder of a run: it holds run.json."
    return UserError(f"{name} is not a run.", fix)


def runs_near(name: str) -> list[str]:
    """Run folders beside a path and in runs/ whose names are like it, the likeliest first."""
    path = Path(name).expanduser()
    found: dict[str, Path] = {}
    for folder in (path.parent, Path("runs")):
        try:
            found |= {entry.name: entry for entry in folder.iterdir() if (entry / "run.json").is_file()}
        except OSError:
            continue
    near = difflib.get_close_matches(path.name, found, n=3, cutoff=0.4) or sorted(found)[:3]
    return [str(found[one]) for one in near]


def _object(path: Path) -> dict[str, object]:
    """A JSON object; an empty one where there is no such file, or it is large or something else."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:  # reading a pipe would never end
            return {}
        return object_in(path.read_bytes(), finite=False)
    except (OSError, MalformedError):
        return {}


@dataclass(frozen=True)
class RecipeFile:
    """Where a recipe lies and what to call it in messages."""

    path: Path
    display: str  # `run.yaml`, or `shipped:paper/gemma2-9b-it.yaml`
    shipped: bool = False
    note: str = ""  # said when a name could also have meant something else


def shipped_root() -> Path:
    """The folder of the shipped recipes: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
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
        hides = shipped is not None and not name.endswith(_YAML)
        return RecipeFile(path, name, note=f"{name} is the file here, not the shipped recipe" if hides else "")
    if shipped is not None:
        if _is_there(path):
            return replace(shipped, note=f"{name} is the shipped recipe, not the folder of that name")
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
    for candidate in (name, *(name + suffix for suffix in _YAML)):
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
    return any(_is_there(folder / (name + suffix)) for suffix in _YAML)


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
    for suffix in _YAML:
        if _is_there(Path(str(path) + suffix)):
            return f"Did you mean {name}{suffix}?"
    known = shipped_names()
    try:
        here = {entry.stem: entry for entry in path.parent.iterdir() if entry.suffix in _YAML and _is_there(entry)}
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
