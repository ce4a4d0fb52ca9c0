"""Short runs of a tiny model and of the embedded one, and what two runs must share to be the same run."""

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simpo_cli.evaluate import answers
from simpo_cli.recipe.composition import compose
from simpo_cli.run.events import EvalRecord, RunHeader, RunOutcome, StepRecord
from simpo_cli.run.folder import LOGS
from simpo_cli.train import build
from simpo_cli.train.health import AnswerProbe
from simpo_cli.train.session import train

EVERY = ("checkpoint.every=1", "checkpoint.keep=3", "eval.every=2", "train.num_epochs=2")  # 8 steps
TIMING = {"seconds", "pairs_per_second", "tokens_per_second", "memory_gb"}
_WORDS = ["open", "settings", "choose", "people", "press", "invite", "enter", "address", "save", "close"]


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

    def said(self, part: str) -> list[str]:
        """The notes that hold these words."""
        return [note for note in self.notes if part in note]

    @property
    def lines(self) -> Mapping[str, str]:
        """The first screen by its labels; of lines without one the first is `below <label>`."""
        assert self.header is not None
        labelled: dict[str, str] = {}
        last = ""
        for line in self.header.lines:
            labelled.setdefault(line.label or f"below {last}", line.text)
            last = line.label or last
        return labelled


class PowerCutError(Exception):
    """The process is gone; nothing of ours expects this one."""


def power_cut(*_: object, **__: object) -> None:
    raise PowerCutError


class Cutting(Memory):
    """An observer under which the power fails at a step, or at an evaluation."""

    def __init__(self, *, step: int | None = None, evaluation: int | None = None) -> None:
        super().__init__()
        self._step, self._evaluation = step, evaluation

    def step(self, record: StepRecord) -> None:
        super().step(record)
        if record.step == self._step:
            raise PowerCutError

    def evaluated(self, record: EvalRecord) -> None:
        super().evaluated(record)
        if record.step == self._evaluation:
            raise PowerCutError


class Runs:
    """A folder with a recipe, and runs of it by name, all of them with the overrides `always`.

    Attributes:
        short_answers: two probe answers, and all answers of three tokens; a random model never stops by itself.
    """

    short_answers = True

    def __init__(self, folder: Path, recipe: str, *always: str) -> None:
        self.folder, self.recipe, self._always = folder, folder / "run.yaml", always
        self.recipe.write_text(recipe, encoding="utf-8")

    def train(self, run: str, *more: str, observer: Memory | None = None, **options: Any) -> Memory:
        """Train, and return what was told of it; its outcome is None where nothing was trained."""
        composed = compose(str(self.recipe), [f"output_dir={self.folder / run}", *self._always, *more])
        memory = observer or Memory()
        with pytest.MonkeyPatch.context() as patch:
            if self.short_answers:
                patch.setattr(answers, "_MAX_NEW_TOKENS", 3)
                patch.setattr(build, "AnswerProbe", lambda asked, tokenizer, _: AnswerProbe(asked[:2], tokenizer, 3))
            outcome = train(composed, observer=memory, **options)
        assert outcome in (None, memory.outcome) or options["dry_run"]
        return memory

    def cut(
        self, run: str, *more: str, step: int | None = None, evaluation: int | None = None, **options: Any
    ) -> Memory:
        """Train until the power fails: before the checkpoint of that step, or where the test has it fail."""
        memory = Cutting(step=step, evaluation=evaluation)
        with pytest.raises(PowerCutError):
            self.train(run, *more, observer=memory, **options)
        return memory

    def receipt(self, run: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.folder / run / "run.json").read_text(encoding="utf-8"))
        return document

    def log(self, run: str, name: str) -> list[dict[str, Any]]:
        return rows(self.folder / run / f"{name}.jsonl")

    def checkpoints(self, run: str) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in (self.folder / run / "checkpoints").iterdir())

    def weights(self, run: str) -> dict[str, torch.Tensor]:
        """Those of the last checkpoint."""
        files = max((self.folder / run / "checkpoints").glob("step-*")).glob("weights*.safetensors")
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    def require_same(self, run: str, other: str) -> None:
        """Two finished runs have the same bits, lines and measured numbers."""
        one, two = self.folder / run, self.folder / other
        assert final_state(one) == final_state(two)
        for name in LOGS:
            assert timeless(one / name) == timeless(two / name)
        measured = [self.receipt(run), self.receipt(other)]
        for document in measured:
            document["data"]["train"].pop("tokens")  # whether they were cached, and how long that took
            for summary in ("before", "after"):
                document["outcome"][summary].pop("model")
        assert measured[0]["status"] == measured[1]["status"] == "done"
        for part in ("before", "after", "checked"):
            assert measured[0]["outcome"].get(part) == measured[1]["outcome"].get(part)
        assert measured[0]["data"] == measured[1]["data"]

    def require_all_finite(self, run: str) -> list[int]:
        """Look through every file of numbers that a run has written; return the steps of its checkpoints."""
        folder = self.folder / run
        for file in folder.rglob("*.safetensors"):
            assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(file).values()), file
        for name in ("metrics.jsonl", "evals.jsonl", "run.json"):
            text = (folder / name).read_text(encoding="utf-8")
            assert "NaN" not in text
            assert "Infinity" not in text
        return self.checkpoints(run)


def tiny_runs(folder: Path, model: Path, prefs: Path, *always: str) -> Runs:
    """Runs of a model of `save_tiny_model`: an epoch of 30 of 40 pairs in steps of 8."""
    return Runs(
        folder,
        f"name: tiny\nmodel: {{path: {model}}}\n"
        f"data: {{train: {prefs}, holdout: 10, max_length: 64, max_prompt_length: 40}}\n"
        "train: {pairs_per_step: 8, learning_rate: 1e-3, precision: fp32}\n",  # whatever the machine multiplies fast in
        *always,
    )


def guide_runs(folder: Path) -> Runs:
    """Runs of the embedded model: 20 pairs, 5 steps of 4, a checkpoint after each, 4 held out."""
    return Runs(
        folder,
        "name: guide\nmodel: {path: builtin:guide, attention: padded}\n"
        "data:\n  train: [{path: builtin:guide, max_pairs: 24}]\n"
        "  holdout: 4\n  max_length: 128\n  max_prompt_length: 64\n"
        "train: {pairs_per_step: 4, learning_rate: 7e-4, precision: fp32, tokens_per_microbatch: 256}\n"
        "eval: {every: 2}\ncheckpoint: {every: 1, keep: 9}\n",
    )


def write_prefs(file: Path, *, pairs: int, prompts: int) -> Path:
    """Write pairs of which the chosen answer is polite, and the rejected one is not."""
    draw = random.Random(1)
    lines = []
    for i in range(pairs):
        text = " ".join(draw.choice(_WORDS) for _ in range(draw.randint(2, 9)))
        question = f"How do I do thing {i % prompts}?"
        lines.append(json.dumps({"prompt": question, "chosen": f"Please {text}.", "rejected": f"No {text[::-1]}!"}))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def rows(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; each must be whole."""
    text = file.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def timeless(file: Path) -> list[dict[str, Any]]:
    """The lines of a log without what a clock or the memory says; none where there is no log."""
    if not file.is_file():
        return []
    return [{name: value for name, value in row.items() if name not in TIMING} for row in rows(file)]


def final_state(run: Path) -> dict[str, str]:
    """sha256 of weights and moments in the last checkpoint, and of the weights of the model."""
    checkpoint = max((run / "checkpoints").glob("step-*"))
    files = [*sorted(checkpoint.glob("*.safetensors")), *sorted((run / "model").glob("*.safetensors"))]
    assert len(files) >= 3
    return {"/".join(file.parts[-2:]): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
