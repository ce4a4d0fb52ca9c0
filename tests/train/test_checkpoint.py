"""Checkpoints are whole or absent, and rotation goes by the order in which they were saved."""

import json
from pathlib import Path

import pytest

from simpo_cli.train.checkpoint import MANIFEST, commit, rotate, sha256_of


def _save(parent: Path, step: int, loss: float | None = None) -> Path:
    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes([step]) * 100)
        (folder / "state.json").write_text(json.dumps({"step": step}), encoding="utf-8")

    return commit(parent, step, write, {"eval_loss": loss})


def test_the_manifest_names_every_file_with_its_hash(tmp_path: Path) -> None:
    folder = _save(tmp_path / "checkpoints", 7, 0.5)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    assert folder.name == "step-00000007"
    assert (manifest["step"], manifest["sequence"], manifest["eval_loss"]) == (7, 1, 0.5)
    assert manifest["files"].keys() == {"weights", "state.json"}
    assert manifest["files"]["weights"] == {"size": 100, "sha256": sha256_of(folder / "weights")}


def test_a_failed_save_leaves_nothing_and_harms_nothing(tmp_path: Path) -> None:
    good = _save(tmp_path, 1)
    before = (good / MANIFEST).read_bytes()

    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        commit(tmp_path, 2, write, {})
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert (good / MANIFEST).read_bytes() == before


def test_rotation_keeps_the_newest_by_sequence_and_the_best_by_loss(tmp_path: Path) -> None:
    for step, loss in ((10, 0.9), (20, 0.2), (30, None), (5, 0.8), (6, 0.7)):
        _save(tmp_path, step, loss)
    rotate(tmp_path, 2, best=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000006", "step-00000020"]
    rotate(tmp_path, 1, best=False)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000006"]
