"""Writing checkpoints: all of one or nothing, whatever happens on the way.

A checkpoint is written to `.tmp-<step>-<pid>/`. Every file is hashed on its way and synced to the disk, the manifest
comes last, then the folder is synced and renamed, and its parent synced. Whoever finds `step-00000100/` with a manifest
finds all of it. Only after that are older ones removed, in the order in which they were saved; a folder that goes is
renamed first, so that no half of it is ever taken for a checkpoint.

The calls are those of `os`, unbuffered: each of them can fail by itself, and tests make each of them fail.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from simpo_cli.files import sync
from simpo_cli.run.manifest import (
    MANIFEST,
    Checkpoint,
    FileFacts,
    HashBeside,
    Manifest,
    find_checkpoints,
    folder_name,
    highest_sequence,
)

_WRITE = 2**20


class HashedFile:
    """A new file that is hashed while it is written."""

    def __init__(self, descriptor: int, hashing: HashBeside) -> None:
        self._descriptor, self._hashing = descriptor, hashing

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes, all of them; afterwards their memory may be used for others."""
        left = memoryview(data)
        self._hashing.update(left)
        while left:
            written = os.write(self._descriptor, left[:_WRITE])
            left = left[written:]
        self._hashing.wait()


class CheckpointWriter:
    """The files of a checkpoint that is being written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.files: dict[str, FileFacts] = {}

    @contextmanager
    def open(self, name: str) -> Iterator[HashedFile]:
        """Write a file; leaving the block syncs it to the disk."""
        descriptor = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
        try:
            with closing(HashBeside()) as hashing:
                yield HashedFile(descriptor, hashing)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.files[name] = hashing.facts()


def commit(parent: Path, step: int, write: Callable[[CheckpointWriter], None], facts: Mapping[str, Any]) -> Checkpoint:
    """Write one checkpoint, all of it or nothing.

    Args:
        parent: the folder of the checkpoints; made if missing, in a folder that is there.
        step: steps done. A checkpoint of this step that is there already, which can only be a damaged one, is replaced.
        facts: what else the manifest says, such as hashes of recipe, data and plan; JSON values.

    Raises:
        OSError: the disk did not take it; what was there before is as it was.
    """
    temporary = parent / f".tmp-{step}-{os.getpid()}"
    aside = parent / f".tmp-replaced-{step}-{os.getpid()}"
    target = parent / folder_name(step)
    try:
        if not parent.is_dir():
            os.mkdir(parent)  # and not what is above it: a run folder that is gone does not come back as a part of one
            sync(parent.parent)
        os.mkdir(temporary)
        writer = CheckpointWriter(temporary)
        write(writer)
        manifest = Manifest(step, highest_sequence(parent) + 1, facts, dict(writer.files))
        with writer.open(MANIFEST) as file:
            file.write(manifest.as_bytes())
        sync(temporary)
        if os.path.lexists(target):
            os.rename(target, aside)
        os.rename(temporary, target)
        sync(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.lexists(aside) and not os.path.lexists(target):
            os.rename(aside, target)
        raise
    if aside.is_symlink():
        aside.unlink()  # and not what it leads to
    elif aside.exists():
        shutil.rmtree(aside, ignore_errors=True)  # what stays is removed when the run is resumed
    return Checkpoint(target, manifest)


def rotate(parent: Path, keep: int, *, losses: Mapping[int, float] = MappingProxyType({})) -> None:
    """Remove all but the checkpoints saved last, and the one of the lowest loss.

    The checkpoint of step 0, which proves that the disk takes one and holds nothing that the start model does not, goes
    with the first one after it.

    Args:
        keep: how many stay, at least 1, by sequence number; damaged ones are neither counted nor removed.
        losses: held-out loss by step; empty where the best one is not wanted.
    """
    saved, _ = find_checkpoints(parent)
    trained = [checkpoint for checkpoint in saved if checkpoint.step > 0] or saved
    scored = [(losses[checkpoint.step], -checkpoint.step) for checkpoint in trained if checkpoint.step in losses]
    stay = {checkpoint.step for checkpoint in trained[:keep]} | {-step for _, step in sorted(scored)[:1]}
    for checkpoint in saved:
        if checkpoint.step not in stay:
            leaving = parent / f".tmp-removed-{checkpoint.step}-{os.getpid()}"
            os.rename(checkpoint.folder, leaving)
            shutil.rmtree(leaving)


def reap(parent: Path) -> int:
    """Remove what dead processes left behind, as far as it goes, and return how many folders that were.

    Only the process that holds the run folder's lock may ask for it: then every temporary folder is a dead one's.
    """
    left = list(parent.glob(".tmp-*"))
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return len(left)
