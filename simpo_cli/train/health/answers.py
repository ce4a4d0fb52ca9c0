"""Probe answers: what the model says to a few held-out prompts at every evaluation.

A preference loss looks at given responses only, so a model can get better at telling them apart while what it writes
itself falls to pieces. Two signs need no judge: an answer that repeats itself, and one that does not end.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.evaluate.answers import Question, generate
from simpo_cli.model.policy import Policy
from simpo_cli.train.events import ProbeAnswer

_GRAM = 4  # tokens


@dataclass(frozen=True)
class AnswerProbe:
    """A few prompts, the same ones through the whole run.

    Attributes:
        questions: the prompts; none where nothing is held out.
        most_tokens: an answer is cut there.
    """

    questions: Sequence[Question]
    tokenizer: TextTokenizer
    most_tokens: int

    def ask(self, policy: Policy, accelerator: Accelerator) -> tuple[ProbeAnswer, ...]:
        """The likeliest answer to each prompt, word by word."""
        answers = generate(policy, self.questions, self.tokenizer, accelerator, most_tokens=self.most_tokens)
        return tuple(
            ProbeAnswer(question.text, answer.text, len(answer.ids), repeated_share(answer.ids), answer.ended)
            for question, answer in zip(self.questions, answers, strict=True)
        )


def repeated_share(ids: Sequence[Hashable]) -> float:
    """Share of the runs of four tokens that occurred before in the same answer, 0 where there are none.

    This is seq-rep-4 of Welleck et al. (2020, arXiv:1908.04319): 1 - distinct / all.
    """
    grams = [tuple(ids[start : start + _GRAM]) for start in range(len(ids) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
