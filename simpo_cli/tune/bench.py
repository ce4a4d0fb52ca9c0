"""What the trials of a study share: tokens, the start model's weights, scores and answers. Each trial trains anew.

A trial is a run without a folder: the steps that `simpo train` would take, from the same weights, and then its scores
of held-out pairs and its greedy answers. Nothing of one trial reaches the next, so each is what it would be by itself,
bit for bit.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from simpo_cli.data.plan import positions_of_part
from simpo_cli.data.prepare import make_plan
from simpo_cli.data.sources import Role
from simpo_cli.data.store import StoredPairs
from simpo_cli.evaluate.answers import Question, generate
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.evaluate.generate.prompts import Question as Prompt
from simpo_cli.evaluate.generate.prompts import questions_of_pairs
from simpo_cli.evaluate.metrics import PairScores
from simpo_cli.evaluate.scoring import score_pairs
from simpo_cli.model.not_finite import NotFiniteError, require_finite_losses
from simpo_cli.model.policy import trainable
from simpo_cli.model.shares import Share
from simpo_cli.recipe.schema import HeldOutPart, Recipe
from simpo_cli.run.events import Observer
from simpo_cli.run.stop import StopRequest
from simpo_cli.stages import stage
from simpo_cli.train.build import build
from simpo_cli.train.health import Health
from simpo_cli.train.loop import Training, run_steps
from simpo_cli.train.optimizer import make_optimizer
from simpo_cli.train.run_plan import prepare
from simpo_cli.train.saving import ResumeState
from simpo_cli.train.step import accumulate, clip_gradients

ANSWER_TOKENS = 64
"""Most tokens of a greedy answer by which trials are judged."""
_MOST_TOGETHER = 64  # answers that go through the model at once
_OF_A_TRIAL = ("learning_rate", "lr_scheduler", "warmup_ratio", "weight_decay", "max_grad_norm", "num_epochs")
"""Keys of `train` that change nothing about what is loaded and prepared; `pairs_per_step` is measured with."""


@dataclass(frozen=True)
class Trained:
    """What came of a trial.

    Attributes:
        scores: of the held-out pairs of a part; None where training ended on numbers.
        answers: greedy ones to that part's prompts, in their order.
        problem: why training ended early.
    """

    scores: PairScores | None
    answers: Sequence[Answer]
    problem: str = ""


class Bench:
    """A start model and its pairs, ready for one trial after the other.

    Args:
        recipe: of the first trial.
        scratch: a folder for what preparing a run writes; nothing that is wanted later stays in it.
        num_answers: prompts of each part that are answered.
        observer: takes what a person should read.
        stop: signals, which leave a trial anywhere.
    """

    def __init__(self, recipe: Recipe, scratch: Path, num_answers: int, observer: Observer, stop: StopRequest) -> None:
        self._common = _common(recipe)
        self._observer, self._stop, self._num_answers = observer, stop, num_answers
        run = prepare(
            replace(
                recipe,
                output_dir=str(scratch),
                checkpoint=replace(recipe.checkpoint, best=False, every=None),
                eval=replace(recipe.eval, part="all", every=None),
                health=replace(recipe.health, stop_on=[]),
            ),
            quick=True,
            saves=False,
        )
        with stop.at_once():
            self._training, self.check, _ = build(run, observer, stop, ResumeState(), [])
        self.prompts = cache(self._prompts_of)  # every trial answers them
        policy = self._training.policy
        self._start = {name: weight.detach().to("cpu", copy=True) for name, weight in trainable(policy).items()}

    def serves(self, recipe: Recipe) -> bool:
        """Whether a trial of this recipe can begin here: nothing that it reads or loads is another one."""
        return _common(recipe) == self._common

    def pairs(self, part: HeldOutPart) -> StoredPairs:
        """The held-out pairs of a part."""
        held_out = self._training.run.data.held_out
        return held_out.select(positions_of_part(held_out, part))

    def _prompts_of(self, part: HeldOutPart) -> Sequence[Prompt]:
        """The prompts of a part that are answered, the first by hash; their texts are read from the sources."""
        pairs, data = self.pairs(part), self._training.run.recipe.data
        role: Role = "train" if data.eval is None else "eval"
        sources = data.train if data.eval is None else data.eval
        return questions_of_pairs(pairs, sources, role, data, self._num_answers).asked

    @property
    def num_parameters(self) -> int:
        """Of the whole model."""
        return self._training.run.parameters.total

    @property
    def num_steps(self) -> int:
        """That a run of the recipe would take."""
        return self._training.run.plan.num_steps

    @property
    def end_ids(self) -> Collection[int]:
        """Tokens that end an answer."""
        return self._training.run.data.tokenizer.end_ids

    def start(self, part: HeldOutPart) -> Trained:
        """The start model on a part."""
        self._begin(self._training.run.recipe, 1)
        return Trained(self.scores(self.pairs(part)), self.answers(self.prompts(part)))

    def train(self, recipe: Recipe, num_steps: int, part: HeldOutPart, observer: Observer | None = None) -> Trained:
        """Take so many steps, with the recipe's schedule over them, and look at a part.

        Raises:
            OutOfMemoryError: a pair does not fit in memory.
            Stopped: a signal came.
        """
        training = self._begin(recipe, num_steps, observer)
        try:
            run_steps(training, lambda: None)
            return Trained(self.scores(self.pairs(part)), self.answers(self.prompts(part)))
        except NotFiniteError as error:
            training.policy.zero_grad()
            return Trained(None, (), error.problem)
        finally:
            self._training.budget = training.budget  # halved where memory ran out

    def sweep(self, recipe: Recipe, rates: Sequence[float]) -> list[float]:
        """The loss of a step's pairs before each update, while the learning rate takes these values in turn.

        It ends early where a number is not finite.
        """
        training = self._begin(recipe, len(rates))
        policy, run, losses = training.policy, training.run, list[float]()
        policy.train()
        try:
            for step, rate in enumerate(rates):
                pairs = [run.data.train[i] for i in run.plan.pairs_of(step)]
                share = Share.of(pairs, training.budget, policy.packing, is_sharded=False)
                sums = accumulate(
                    policy, pairs, share, loss=recipe.loss, accelerator=run.accelerator, step=step, stop=self._stop
                )
                losses.append(sums.loss / sums.pairs)
                clip_gradients(policy, recipe.train.max_grad_norm, norm=sums.grad_norm)
                for group in training.optimizer.param_groups:
                    group["lr"] = rate
                training.optimizer.step()
                training.optimizer.zero_grad()
        except NotFiniteError:
            policy.zero_grad()
        return losses

    def scores(self, pairs: StoredPairs) -> PairScores:
        """Scores of pairs under the weights as they are.

        Raises:
            NotFiniteError: one is not finite.
        """
        shared = self._training
        with self._stop.at_once():
            scores = score_pairs(shared.policy, pairs, shared.run.accelerator, shared.budget, self._stop)
        both = (torch.from_numpy(scores.chosen), torch.from_numpy(scores.rejected))
        require_finite_losses(shared.policy, pairs, both, "scoring held-out pairs", "the log-prob")
        return scores

    def answers(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Greedy answers under the weights as they are."""
        shared, answers = self._training, list[Answer]()
        tokenizer, accelerator = shared.run.data.tokenizer, shared.run.accelerator
        with stage("answering prompts", len(prompts)) as shown:
            for start in range(0, len(prompts), _MOST_TOGETHER):
                some = [Question(prompt.key, prompt.ids) for prompt in prompts[start : start + _MOST_TOGETHER]]
                with self._stop.at_once():
                    answers += generate(shared.policy, some, tokenizer, accelerator, most_tokens=ANSWER_TOKENS)
                shown.advance(len(some))
        return answers

    def _begin(self, recipe: Recipe, num_steps: int, observer: Observer | None = None) -> Training:
        """A training at its first step, with the start model's weights."""
        shared = self._training
        num_pairs = len(shared.run.data.train)
        epochs = -(-num_steps * recipe.train.pairs_per_step // num_pairs)
        train = replace(recipe.train, max_steps=num_steps, num_epochs=max(recipe.train.num_epochs, epochs))
        recipe = replace(shared.run.recipe, seed=recipe.seed, loss=recipe.loss, train=train)
        with torch.no_grad():
            for name, weight in trainable(shared.policy).items():
                weight.copy_(self._start[name])
        shared.policy.zero_grad()
        return replace(
            shared,
            run=replace(shared.run, recipe=recipe, plan=make_plan(recipe, num_pairs)),
            optimizer=make_optimizer(shared.policy, train, recipe.seed),
            observer=observer or self._observer,
            health=Health(recipe, num_steps, lambda _text, _code: None),
            start_weights=None,
        )


def _common(recipe: Recipe) -> Recipe:
    """What trials of one bench have in common; adapters begin with the seed."""
    defaults = {name: getattr(type(recipe.train)(), name) for name in (*_OF_A_TRIAL, "max_steps")}
    plain = replace(recipe, name="common", output_dir="common", loss=type(recipe.loss)())
    plain = replace(plain, train=replace(recipe.train, **defaults))
    return plain if recipe.model.lora is not None else replace(plain, seed=0)
