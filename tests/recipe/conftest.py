"""A folder of its own for each test, and a way to write recipes into it."""

from pathlib import Path

import pytest

from tests.recipe.recipe_texts import Write


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write NAME.yaml into the test's folder."""

    def write_file(name: str, content: str | bytes) -> Path:
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file
