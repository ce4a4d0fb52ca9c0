"""Runs of the tiny model and of the embedded one, each test in a folder of its own."""

from pathlib import Path

import pytest

from tests.train.runs import Runs, guide_runs, tiny_runs


@pytest.fixture
def tiny(tmp_path: Path, tiny_folder: Path, prefs: Path) -> Runs:
    return tiny_runs(tmp_path, tiny_folder, prefs)


@pytest.fixture
def guide(tmp_path: Path) -> Runs:
    return guide_runs(tmp_path)
