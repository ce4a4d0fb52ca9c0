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


class NewCheckpoint:
    """A checkpoint on its way: `begin`, its files, and `finish`; where one of them fails, `abandon`.

    Args:
        step: steps done. A checkpoint of this step that is there already, which can only be a damaged one, is replaced.
    """

    def __init__(self, parent: Path, step: int) -> None:
        self._parent, self._step = parent, step
        self._temporary = parent / f".tmp-{step}-{os.getpid()}"
        self._aside = parent / f".tmp-replaced-{step}-{os.getpid()}"
        self._target = parent / folder_name(step)

    def begin(self) -> Path:
        """Make the folder for its files, and the parent if that is missing, in a folder that is there."""
        if not self._parent.is_dir():
            os.mkdir(self._parent)  # and not what is above it: a run folder that is gone does not come back as a part
            sync(self._parent.parent)
        os.mkdir(self._temporary)
        return self._temporary

    def finish(self, files: CheckpointWriter, facts: Mapping[str, Any]) -> Checkpoint:
        """Write the manifest and make the checkpoint valid.

        Args:
            files: what was written to the folder.
            facts: what else the manifest says, such as hashes of recipe, data and plan; JSON values.
        """
        manifest = Manifest(self._step, highest_sequence(self._parent) + 1, facts, dict(files.files))
        with files.open(MANIFEST) as file:
            file.write(manifest.as_bytes())
        sync(self._temporary)
        if os.path.lexists(self._target):
            os.rename(self._target, self._aside)
        os.rename(self._temporary, self._target)
        sync(self._parent)
        if self._aside.is_symlink():
            self._aside.unlink()  # and not what it leads to
        elif self._aside.exists():
            shutil.rmtree(self._aside, ignore_errors=True)  # what stays is removed when the run is resumed
        return Checkpoint(self._target, manifest)

    def abandon(self) -> None:
        """Leave everything as it was before."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        if os.path.lexists(self._aside) and not os.path.lexists(self._target):
            os.rename(self._aside, self._target)


def commit(parent: Path, step: int, write: Callable[[CheckpointWriter], None], facts: Mapping[str, Any]) -> Checkpoint:
    """Write one checkpoint, all of it or nothing; the arguments are those of `NewCheckpoint` and its `finish`.

    Raises:
        OSError: the disk did not take it; what was there before is as it was.
    """
    new = NewCheckpoint(parent, step)
    try:
        files = CheckpointWriter(new.begin())
        write(files)
        return new.finish(files, facts)
    except BaseException:
        new.abandon()
        raise


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
