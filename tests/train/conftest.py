"""A tiny model folder, pairs for it, and an observer that remembers."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from simpo_cli.evaluate import answers
from simpo_cli.run.events import EvalRecord, RunHeader, RunOutcome, StepRecord
from simpo_cli.train import build
from simpo_cli.train.health import AnswerProbe
from tests.tiny import save_tiny_model


@pytest.fixture(autouse=True)
def _no_accelerator_of_another_test() -> None:
    """accelerate shares its precision in the process; a test that opens one by itself starts from none."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module", autouse=True)
def _short_answers() -> Iterator[None]:
    """A random model never stops; two probe answers, and all answers of three tokens, are enough for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "_MAX_NEW_TOKENS", 3)
        patch.setattr(build, "AnswerProbe", lambda questions, tokenizer, _: AnswerProbe(questions[:2], tokenizer, 3))
        yield


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights in float32."""
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def prefs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs over thirty prompts: the chosen answer is polite, the rejected one is not."""
    draw = random.Random(1)
    path = tmp_path_factory.mktemp("data") / "prefs.jsonl"
    words = ["open", "settings", "choose", "people", "press", "invite", "enter", "address", "save", "close"]
    rows = []
    for i in range(40):
        text = " ".join(draw.choice(words) for _ in range(draw.randint(2, 9)))
        question = f"How do I do thing {i % 30}?"
        rows.append({"prompt": question, "chosen": f"Please {text}.", "rejected": f"No {text[::-1]}!"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Memory:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.header: RunHeader | None = None
        self.first_step = 0
        self.notes: list[str] = []
        self.steps: list[StepRecord] = []
        self.evals: list[EvalRecord] = []
        self.outcome: RunOutcome | None = None

    def started(self, header: RunHeader, *, num_steps: int, first_step: int) -> None:
        assert num_steps >= first_step
        self.header, self.first_step = header, first_step

    def note(self, text: str, _code: str = "", /) -> None:
        self.notes.append(text)

    def step(self, record: StepRecord) -> None:
        self.steps.append(record)

    def evaluated(self, record: EvalRecord) -> None:
        self.evals.append(record)

    def finished(self, outcome: RunOutcome) -> None:
        self.outcome = outcome

    def close(self) -> None:
        pass


@pytest.fixture
def memory() -> Memory:
    return Memory()
