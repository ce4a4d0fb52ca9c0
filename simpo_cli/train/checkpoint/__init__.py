"""Checkpoints that are whole or absent. Knows files and manifests; what is in the files is the caller's; no torch."""

from simpo_cli.train.checkpoint.commit import CheckpointWriter, HashedFile, commit, reap, rotate
from simpo_cli.train.checkpoint.hashing import FileFacts
from simpo_cli.train.checkpoint.manifest import (
    MANIFEST,
    Checkpoint,
    DamagedCheckpointError,
    HashedReader,
    Manifest,
    find_checkpoints,
    open_checkpoint,
)

__all__ = [
    "MANIFEST",
    "Checkpoint",
    "CheckpointWriter",
    "DamagedCheckpointError",
    "FileFacts",
    "HashedFile",
    "HashedReader",
    "Manifest",
    "commit",
    "find_checkpoints",
    "open_checkpoint",
    "reap",
    "rotate",
]
