"""Questions and answers for tests of generation."""

import random

from simpo_cli.data.pair import Message
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.evaluate.generate.prompts import Question


def random_questions(count: int, *, seed: int) -> list[Question]:
    """Prompts of random tokens and random lengths."""
    draw = random.Random(seed)
    return [
        Question(
            key=f"{seed * 1000 + i:016x}",
            turns=(Message("user", f"question {i}?"),),
            ids=tuple(draw.randrange(3, 400) for _ in range(draw.randint(1, 20))),
            where=f"random:{i}",
        )
        for i in range(count)
    ]


def answer_of(question: Question, text: str) -> Answer:
    """An answer whose tokens are its words, numbered by their letters."""
    return Answer(question.key, text, tuple(sum(word.encode()) for word in text.split()), ended=True)
