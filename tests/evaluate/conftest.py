"""A folder with a tiny model in bfloat16, pairs with sources, and finished runs of it."""

import functools
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo_cli.evaluate import answers
from simpo_cli.evaluate.evaluation import Evaluator
from simpo_cli.evaluate.results import Evaluation, Failure, document_of
from simpo_cli.recipe.composition import compose
from simpo_cli.report.console import make_console
from simpo_cli.report.watch import Heartbeat
from simpo_cli.train.session import train
from tests.tiny import save_tiny_model

HELD_OUT = 60

RECIPE = """name: small
output_dir: {place}/{run}
model:
  path: {place}/tiny
data:
  train: {place}/train.jsonl
  eval: {place}/held.jsonl
  max_length: 64
  max_prompt_length: 40
train:
  pairs_per_step: 8
  learning_rate: 1e-3
  precision: fp32
loss:
  gamma: 0.7
"""


def ignore(*_: object) -> None:
    """Says nothing, keeps nothing."""


def rows(name: str, count: int, draw: random.Random) -> list[dict[str, Any]]:
    """Pairs whose chosen response is agreeable, two to a prompt for the last third."""
    made = []
    for i in range(count):
        number = i if i < 2 * count // 3 else 2 * count // 3 + (i - 2 * count // 3) // 2
        made.append(
            {
                "prompt": f"{name} question {number}?",
                "chosen": " ".join(draw.choice(["yes", "please", "open"]) for _ in range(draw.randint(2, 6))),
                "rejected": " ".join(draw.choice(["no", "never", "close"]) for _ in range(draw.randint(2, 6))),
                "source": "first" if i % 4 else "second",
                "metadata": {"score": i % 3},
            }
        )
    return made


@contextmanager
def short_answers() -> Iterator[None]:
    """A random model never stops."""
    length = answers._MAX_NEW_TOKENS
    answers._MAX_NEW_TOKENS = 3
    try:
        yield
    finally:
        answers._MAX_NEW_TOKENS = length


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder: tiny/, train.jsonl, held.jsonl, recipe.yaml, run/, again/ (another seed), lora/."""
    folder = tmp_path_factory.mktemp("place")
    save_tiny_model(folder / "tiny", dtype=torch.bfloat16)
    draw = random.Random(2)
    for name, count in (("train", 24), ("held", HELD_OUT)):
        text = "".join(json.dumps(row) + "\n" for row in rows(name, count, draw))
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(place=folder, run="run"), encoding="utf-8")
    quiet = Heartbeat(make_console((folder / "log").open("w", encoding="utf-8")))
    for overrides in (
        [],
        [f"output_dir={folder}/again", "seed=7"],
        [f"output_dir={folder}/lora", "model.lora.rank=4", "loss.beta=1.0"],
    ):
        with short_answers():
            train(compose(str(folder / "recipe.yaml"), overrides), observer=quiet)
    return folder


@pytest.fixture(scope="session")
def assess(place: Path) -> Callable[..., list[Evaluation]]:
    """Scores targets by their names within the folder; asked the same twice it says the same."""

    @functools.cache
    def scored(names: tuple[str, ...], overrides: tuple[str, ...], baseline: str | None, by: tuple[str, ...]) -> Any:
        return Evaluator(overrides, baseline, by, ignore).run(names, ignore)[0]

    def of(
        *targets: str, overrides: Sequence[str] = (), baseline: str | None = None, by: Sequence[str] = ()
    ) -> list[Evaluation]:
        names = tuple(str(place / target) for target in targets)
        found: list[Evaluation] = scored(names, tuple(overrides), baseline, tuple(by))
        return found

    return of


@pytest.fixture(scope="session")
def document(assess: Callable[..., list[Evaluation]]) -> Callable[..., dict[str, Any]]:
    """The document of targets by their names within the folder."""

    def of(*targets: str, **settings: Any) -> dict[str, Any]:
        failed: list[Failure] = []
        found = document_of(assess(*targets, **settings), failed, is_one=len(targets) == 1)
        loaded: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
        return loaded

    return of
