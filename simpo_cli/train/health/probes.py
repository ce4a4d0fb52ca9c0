"""What the watch over a run reads beside its numbers: answers to a few prompts, and a sample of the weights.

A preference loss looks at given responses only, so a model can get better at telling them apart while what it writes
itself falls to pieces. Two signs need no judge: an answer that repeats itself, and one that does not end.

A bfloat16 number has eight significant bits, so next to a weight of 0.02 the nearest other one is 0.0001 away, and an
update of 1e-6 leads back to the same number. Where weights are trained in such a type, that update is lost for good.
Where they are trained in float32 and saved in bfloat16, updates add up first, and the save loses what has not added up
to enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn, optim

from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.evaluate.answers import Question, generate
from simpo_cli.evaluate.generate.measures import repeated_share
from simpo_cli.model.policy import Policy
from simpo_cli.model.rounding import Rounding, RoundingSums
from simpo_cli.run.events import ProbeAnswer


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
        """The greedy answer to each prompt."""
        answers = generate(policy, self.questions, self.tokenizer, accelerator, most_tokens=self.most_tokens)
        return tuple(
            ProbeAnswer(question.text, answer.text, len(answer.ids), repeated_share(answer.ids), answer.ended)
            for question, answer in zip(self.questions, answers, strict=True)
        )


_SAMPLED = 4096  # of each tensor


@dataclass(frozen=True)
class WeightSample:
    """Evenly spread weights of every trained tensor, and what they were when the sample was taken.

    Attributes:
        parameters: the tensors.
        before: of each, the sampled weights as they were, in their own type.
    """

    parameters: Sequence[nn.Parameter]
    before: Sequence[Tensor]

    @classmethod
    def of(cls, parameters: Mapping[str, nn.Parameter]) -> "WeightSample":
        """Take a sample now."""
        tensors = list(parameters.values())
        return cls(tensors, [sampled(tensor) for tensor in tensors])

    def rounding(self, dtype: torch.dtype) -> Rounding:
        """What a save in `dtype` would now do to the change since the sample was taken, estimated for all weights."""
        sums = RoundingSums()
        for parameter, before in zip(self.parameters, self.before, strict=True):
            sums.add(before, sampled(parameter), dtype, weight=parameter.numel() / before.numel())
        return sums.rounding


def step_counting_lost(optimizer: optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> float:
    """Take the optimizer's step, and return the share of the updates that led back to the same weight.

    An update is what AdamW moves a weight by: it is there where the weight's first moment is not 0.
    """
    sample = WeightSample.of(parameters)
    optimizer.step()
    counts = []
    for parameter, before in zip(sample.parameters, sample.before, strict=True):
        is_updated = sampled(optimizer.state[parameter]["exp_avg"]) != 0
        counts.append(torch.stack([is_updated.sum(), (is_updated & (sampled(parameter) == before)).sum()]))
    updates = lost = 0.0
    for parameter, before, (moved, back) in zip(
        sample.parameters,
        sample.before,
        torch.stack(counts).tolist(),
        strict=True,  # read at once: a read is a wait
    ):
        weight = parameter.numel() / before.numel()
        updates += weight * moved
        lost += weight * back
    return lost / updates if updates else 0.0


def sampled(tensor: Tensor) -> Tensor:
    """A copy of at most 4,096 evenly spread values of a tensor."""
    flat = tensor.detach().reshape(-1)
    return flat[:: -(-len(flat) // _SAMPLED)].clone()
