"""What lies at a path that somebody named; a wrong kind of thing is answered with the command that fits it."""

import difflib
import os
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Literal

from simpo_cli.errors import UserError
from simpo_cli.json_documents import MalformedError, object_in
from simpo_cli.recipe.schema import Recipe

HUB_ID = re.compile(r"([^./~@][^/@]*/[^/@]+)(?:@(.+))?")
"""Its parts are named with one slash; behind @ stands a branch, tag or commit, which may have more."""

Kind = Literal["run", "model", "pairs", "recipe"]

_RECIPE_SUFFIXES = (".yaml", ".yml")
DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""Files that a folder is searched for; each may also end in .gz or .zst."""
_PACKED = (".gz", ".zst", ".zstd")
SECTIONS = frozenset(field.name for field in fields(Recipe))
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
    if path.suffix in _RECIPE_SUFFIXES:
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
    if path.exists() or name.endswith(_RECIPE_SUFFIXES) or not HUB_ID.fullmatch(name):
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
    """A JSON object; an empty one where the file is missing, large, or something else."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return {}
        return object_in(path.read_bytes(), finite=False)
    except (OSError, MalformedError):
        return {}
