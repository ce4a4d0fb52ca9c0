"""The numbers of the house, of a made-up package and of ours."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.house import ROOT, floors, report
from tests.routes import BETA, WORD, Routes, follow

TOY = {
    "__init__.py": "from toy.cli import train\n",
    "cli.py": (
        "from toy.recipe.compose import compose\nfrom toy.train import loop\n\n"
        "def train(beta, line):\n    return loop(compose(beta), line)\n"
    ),
    "recipe/compose.py": (
        "from toy.recipe.schema import Loss, Recipe\n\n\ndef compose(beta):\n    return Recipe(Loss(beta))\n"
    ),
    "recipe/schema.py": (
        "class Loss:\n    def __init__(self, beta):\n        self.beta = beta\n\n\n"
        "class Recipe:\n    def __init__(self, loss):\n        self.loss = loss\n"
    ),
    "train.py": (
        "import torch\nfrom toy.data import ids\nfrom toy.objective import loss_of\n"
        "from toy.unrelated import look\n\n\n"
        "def loop(recipe, line):\n    look(recipe)\n"
        "    loss_of(recipe.loss, ids(line), torch.ones(1, requires_grad=True)).backward()\n"
    ),
    "data.py": "def ids(line):\n    return [7, 8, 9] if line else []\n",
    "objective.py": "def loss_of(loss, ids, logp):\n    return loss.beta * len(ids) * logp.sum()\n",
    "unrelated.py": "def look(recipe):\n    return None\n",
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    for name, text in TOY.items():
        (tmp_path / "toy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "toy" / name).write_text(text)
    return tmp_path / "toy"


def test_lines_files_and_floors_are_counted(toy: Path) -> None:
    (toy / "data.py").write_text("x = 1\n" * 451)
    assert list(report(toy)) == [
        "toy: 483 lines, 8 files, 88% of them under 100 lines",
        "  (top)           470 lines    6 files",
        "  recipe           13 lines    2 files",
        "longest files",
        "    451 data.py   over 450",
        "      9 train.py",
        "      8 recipe/schema.py",
        "      5 cli.py",
        "      5 recipe/compose.py",
        "      2 objective.py",
        "      2 unrelated.py",
        "      1 __init__.py",
    ]
    assert list(floors(toy)) == [
        "3 floors, no arrow upwards; from the top:",
        "   3  cli",
        "   2  train",
        "   1  data, objective, recipe, unrelated",
    ]
    (toy / "unrelated.py").write_text("def look(recipe):\n    import toy.cli\n")
    (told,) = floors(toy)
    assert told.startswith("an arrow upwards: ")
    assert "unrelated -> cli -> train -> unrelated" in f"{told} -> {told.split(': ')[1].partition(' -> ')[2]}"


def test_a_file_counts_when_beta_or_the_pair_goes_through_it(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(toy.parent)
    train: Any = importlib.import_module("toy").train
    routes = Routes(toy, [8, 9])
    sys.setprofile(routes.look)
    try:
        train(BETA, f"A {WORD}.")
    finally:
        sys.setprofile(None)
    assert routes.beta == {"cli.py", "recipe/compose.py", "recipe/schema.py", "train.py", "objective.py"}
    assert routes.pair == {"cli.py", "train.py", "data.py", "objective.py"}


def test_our_routes_lead_from_the_files_to_the_gradient() -> None:
    routes = follow(ROOT / "simpo_cli")
    assert {"recipe/composition.py", "objective.py"} <= routes.beta
    assert {"data/pair.py", "model/packed.py"} <= routes.pair
