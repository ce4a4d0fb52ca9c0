"""Names to files: an existing path, a pattern, the embedded pairs, then a hub id. Missing names get a suggestion."""

import difflib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from simpo_cli.errors import UserError
from simpo_cli.names import DATA_SUFFIXES, HUB_ID, plain_suffix, wrong_kind
from simpo_cli.recipe.schema import DataSource
from simpo_cli.redaction import redacted

Role = Literal["train", "eval"]

_SHARD = re.compile(
    r"(?P<split>.+?)[-_](?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]{8,})?\."
)  # older files of the hub bear a hash
_ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
"""What `datasets`, the hub and LLaMA-Factory write beside the data."""
_SPLIT_WORDS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_LOOK_DEEP = 3  # folders inside one another that are searched for data files, to name them


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to read: its path, and the name that messages use."""

    path: str
    name: str


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set on the hub, by its id."""

    name: str
    split: str | None


def locate(source: DataSource, role: Role) -> list[LocalFile] | HubData:
    """What a source names. Raises UserError: nothing of that name, with what it may have meant."""
    path = os.path.expanduser(source.path)
    if wrong := wrong_kind(source.path, "pairs"):
        raise wrong
    if os.path.lexists(path):
        if os.path.isdir(path):
            return _folder(path, redacted(source.path), source.split)
        if source.split is not None:
            problem = f"{source.path} is a file and has no split {source.split}."
            raise UserError(problem, "Splits belong to folders and hub data sets; leave `split` out.")
        return [LocalFile(path, redacted(source.path))]
    if glob.has_magic(path):
        return _matching(path, source)
    if source.path.startswith("builtin:"):
        if source.path != "builtin:guide":
            raise UserError(f"{source.path} is not embedded here.", "The embedded pairs are builtin:guide.")
        from simpo_cli.builtin import guide_pairs

        return [LocalFile(str(guide_pairs(role)), f"{source.path} ({role})")]
    named = HUB_ID.fullmatch(source.path)
    if named and named[2] is None and plain_suffix(source.path) not in DATA_SUFFIXES:
        return HubData(source.path, source.split)
    raise UserError("does not exist.", _nearby(path), where=source.path)


def _matching(pattern: str, source: DataSource) -> list[LocalFile]:
    """The files that a pattern names, by name; of those that hold data, if any does."""
    found = sorted(path for path in glob.glob(pattern, recursive=True) if not os.path.isdir(path))
    found = [path for path in found if os.path.basename(path) not in _ABOUT_DATA]
    found = [path for path in found if plain_suffix(path) in DATA_SUFFIXES] or found
    if not found:
        raise UserError("matches no file.", _nearby(pattern), where=source.path)
    if source.split is not None:
        problem = f"{source.path} names files and has no split {source.split}."
        raise UserError(problem, "Splits belong to folders and hub data sets; leave `split` out.")
    return [LocalFile(path, redacted(path)) for path in found]


def _nearby(path: str) -> str:
    """A sentence with what the person may have meant."""
    parent, base = os.path.split(path)
    while parent and not os.path.isdir(parent):
        parent, base = os.path.split(parent)
    try:
        names = sorted(os.listdir(parent or "."))
    except OSError:
        names = []
    lower = {name.lower(): name for name in reversed(names)}
    stem = base.lower().split(".")[0]
    near = [lower[n] for n in difflib.get_close_matches(base.lower(), lower, n=3, cutoff=0.6)]
    near += [name for name in names if stem and name.lower().split(".")[0] == stem and name not in near]
    if near:
        return f"Did you mean {' or '.join(os.path.join(parent, name) for name in near[:3])}?"
    files = [name for name in names if plain_suffix(name) in DATA_SUFFIXES]
    if files:
        return f"Data files in {parent or 'this folder'}: {', '.join(files[:5])}{' ...' if len(files) > 5 else ''}."
    return "Check the path; a hub data set has the form organisation/name."


def _folder(path: str, name: str, split: str | None) -> list[LocalFile]:
    """The data files of a folder, by name; of one split where the folder has several."""
    name = name.rstrip("/")
    names = _data_files(path, name)
    if not names:
        folders = [entry for entry in sorted(_entries(path, name)) if os.path.isdir(os.path.join(path, entry))]
        inner = split if split in folders else "data" if "data" in folders else None
        if inner is not None:
            left = None if inner == split else split
            return _folder(os.path.join(path, inner), f"{name}/{inner}", left)
        below = _folders_with_data(path, name)
        fix = f"Data files end in {', '.join(DATA_SUFFIXES)}."
        fix = f"Name one of its folders: {', '.join(below)}." if below else fix
        raise UserError("is a folder without data files.", fix, where=name)
    of_split = _splits(names)
    if split is not None:
        if split not in of_split:
            has = f"it has {', '.join(sorted(of_split))}" if of_split else "its files name no splits"
            raise UserError(f"has no split {split}: {has}.", "Check `split`, or name a file.", where=name)
        names = of_split[split]
    elif len(of_split) > 1:
        likely = next((one for one in of_split if one.startswith("train")), min(of_split))
        raise UserError(
            f"holds several splits: {', '.join(sorted(of_split))}.",
            f"Say which in the recipe: data.train: [{{path: {name}, split: {likely}}}], or name the files.",
            where=name,
        )
    return [LocalFile(os.path.join(path, file), f"{name}/{file}") for file in names]


def _folders_with_data(path: str, name: str, depth: int = _LOOK_DEEP) -> list[str]:
    """The folders below a folder that have data files, as paths from there."""
    found = []
    for entry in sorted(_entries(path, name)):
        folder = os.path.join(path, entry)
        if os.path.isdir(folder) and not os.path.islink(folder):
            found += [entry] if _data_files(folder, name) else []
            found += [f"{entry}/{inner}" for inner in _folders_with_data(folder, name, depth - 1)] if depth > 1 else []
    return found


def _entries(path: str, name: str) -> Iterator[str]:
    try:
        yield from (entry for entry in os.listdir(path) if not entry.startswith((".", "_")))
    except OSError as error:
        fix = "Give yourself permission to read the folder."
        raise UserError(f"cannot be listed: {error.strerror}.", fix, where=name) from error


def _data_files(path: str, name: str) -> list[str]:
    names = sorted(e for e in _entries(path, name) if plain_suffix(e) in DATA_SUFFIXES)
    return [n for n in names if n not in _ABOUT_DATA and not os.path.isdir(os.path.join(path, n))]


def missing_shards(names: Iterable[str]) -> list[str]:
    """Of which splits files are missing that the names of the others count; one file alone may be meant."""
    found: dict[tuple[str, int], set[int]] = {}
    for name in names:
        if shard := _SHARD.match(name):
            found.setdefault((shard["split"], int(shard["count"])), set()).add(int(shard["number"]))
    sentences = []
    for (split, count), numbers in found.items():
        missing = sorted(set(range(count)) - numbers)
        if missing and len(numbers) > 1:
            first = f"{split}-{missing[0]:05}-of-{count:05}"
            sentences.append(f"{split} is missing {len(missing):,} of its {count:,} files, such as {first}")
    return sentences


def _splits(names: list[str]) -> dict[str, list[str]]:
    """Files by the split that their names tell: train-00000-of-00002.parquet, train_prefs.jsonl, pairs-train.jsonl."""
    splits: dict[str, list[str]] = {}
    for name in names:
        shard = _SHARD.match(name)
        stem = shard["split"] if shard else name.split(".")[0]
        words = re.split(r"[-_ ]", stem.lower())
        named = [word for word in words if word in _SPLIT_WORDS]
        if shard or words[0] in _SPLIT_WORDS:
            splits.setdefault(stem, []).append(name)
        elif len(named) == 1:
            splits.setdefault(named[0], []).append(name)
    return splits
