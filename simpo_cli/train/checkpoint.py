"""Checkpoints that are complete or absent. Knows files and manifests; what is in the files is the caller's.

A checkpoint is written to `.tmp-<step>-<pid>/`, every file is synced to the disk, the manifest with the size and sha256
of each follows, then the folder is synced and renamed, and its parent synced. Whoever finds `step-00000100/` with a
manifest finds all of it. Only after that are older ones removed, in the order in which they were saved.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def folder_name(step: int) -> str:
    """Name of the checkpoint taken after `step` steps."""
    return f"step-{step:08d}"


def commit(parent: Path, step: int, write: Callable[[Path], None], facts: Mapping[str, Any]) -> Path:
    """Write one checkpoint, all of it or nothing.

    Args:
        parent: the folder of the checkpoints; made if missing.
        step: steps done.
        write: fills the folder it is given.
        facts: what else the manifest says, such as hashes of the recipe and the held-out loss; JSON values.

    Returns:
        The checkpoint's folder.
    """
    parent.mkdir(parents=True, exist_ok=True)
    temporary = parent / f".tmp-{step}-{os.getpid()}"
    temporary.mkdir()
    try:
        write(temporary)
        files = {}
        for file in sorted(path for path in temporary.rglob("*") if path.is_file()):
            _sync(file)
            files[str(file.relative_to(temporary))] = {"size": file.stat().st_size, "sha256": sha256_of(file)}
        manifest = {"step": step, "sequence": _next_sequence(parent), **facts, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _sync(temporary / MANIFEST)
        _sync(temporary)
        target = parent / folder_name(step)
        temporary.rename(target)
        _sync(parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def rotate(parent: Path, keep: int, *, best: bool) -> None:
    """Remove all but the newest `keep` checkpoints, by sequence number, and with `best` the one of lowest loss."""
    manifests = sorted(_manifests(parent).items(), key=lambda item: item[1]["sequence"])
    stay = {folder for folder, _ in manifests[-keep:]}
    scored = [(m["eval_loss"], -m["sequence"], folder) for folder, m in manifests if m.get("eval_loss") is not None]
    if best and scored:
        stay.add(min(scored)[2])
    for folder, _ in manifests:
        if folder not in stay:
            shutil.rmtree(folder)


def sha256_of(file: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifests(parent: Path) -> dict[Path, dict[str, Any]]:
    return {
        file.parent: json.loads(file.read_text(encoding="utf-8")) for file in sorted(parent.glob(f"step-*/{MANIFEST}"))
    }


def _next_sequence(parent: Path) -> int:
    return 1 + max((manifest["sequence"] for manifest in _manifests(parent).values()), default=0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
