"""Folders of answers made up for tests, as `simpo pairs sample` and `score` leave them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from simpo_cli.data.pair import Message
from simpo_cli.evaluate.generate.folder import write_lines
from simpo_cli.evaluate.generate.prompts import Question, key_of
from simpo_cli.pairs.samples import SampleFolder


class Made(NamedTuple):
    """An answer and its score; None has none."""

    text: str
    score: float | None = None
    ended: bool = True


def write_answers(path: Path, answers: Mapping[str, Sequence[Made]], model: str = "some", kind: str = "rule") -> Path:
    """A folder with these answers to these questions, equally many to each, scored where the first one has a score."""
    numbers = {len(made) for made in answers.values()}
    assert len(numbers) == 1, "equally many answers to each prompt"
    questions = []
    for place, text in enumerate(answers):
        turns = (Message("user", text),)
        questions.append(Question(key_of(turns), turns, (1, 2, 3), f"prompts.jsonl:{place + 1}"))
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "kind": "samples",
        "model": {"name": model, "sha256": {"model.safetensors": hashlib.sha256(model.encode()).hexdigest()}},
        "decoding": {"answers_per_prompt": numbers.pop()},
        "prompts": {"count": len(questions)},
        "batch_rows": 4,
    }
    folder = SampleFolder.make(path, manifest, questions)
    rows, scores = [], []
    for question, made in zip(questions, answers.values(), strict=True):
        for number, one in enumerate(made):
            place = {"key": question.key, "number": number}
            rows.append(
                {
                    **place,
                    "output": one.text,
                    "ended": one.ended,
                    "ids": [sum(word.encode()) for word in one.text.split()],
                }
            )
            scores.append({**place, "score": one.score, **({} if one.score is not None else {"reason": "timed out"})})
    write_lines(path / "answers.jsonl", rows)
    if any(row["score"] is not None for row in scores):
        heading = {"kind": kind, kind: "some", "answers_sha256": folder.answers_sha256()}
        write_lines(folder.scores_file(kind), [heading, *scores])  # type: ignore[arg-type]
    return path
