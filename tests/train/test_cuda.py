"""The same run on a CUDA device; skipped where there is none."""

from pathlib import Path

import pytest
import torch

from simpo_cli.recipe import compose
from simpo_cli.train.run import train
from tests.train.conftest import Memory

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _losses(tmp_path: Path, tiny_folder: Path, prefs: Path, precision: str) -> list[float]:
    recipe = tmp_path / "run.yaml"
    recipe.write_text("name: cuda\n", encoding="utf-8")
    composed = compose(
        str(recipe),
        [
            f"model.path={tiny_folder}",
            f"data.train={prefs}",
            "data.max_length=64",
            "data.max_prompt_length=40",
            "data.holdout=10",
            "train.pairs_per_step=8",
            "train.learning_rate=1e-3",
            f"train.precision={precision}",
            f"output_dir={tmp_path / precision}",
        ],
    )
    memory = Memory()
    train(composed, fresh=False, dry_run=False, observer=memory)
    return [record.loss for record in memory.steps]


def test_a_run_on_cuda_in_float32_follows_the_run_on_a_cpu(
    tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda", "cpu"):
        (tmp_path / name).mkdir()
    on_cuda = _losses(tmp_path / "cuda", tiny_folder, prefs, "fp32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_cuda == pytest.approx(_losses(tmp_path / "cpu", tiny_folder, prefs, "fp32"), rel=1e-2)


def test_bf16_autocast_learns_on_cuda(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    losses = _losses(tmp_path, tiny_folder, prefs, "bf16")
    assert losses[-1] < losses[0]
