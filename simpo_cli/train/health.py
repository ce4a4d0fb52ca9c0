"""What a run watches itself for. Every code never changes its meaning; scripts and `health.stop_on` go by it.

Readings are judged as they come: each code is said once, and what a run should stop for is kept. All that is remembered
goes into the checkpoint, so a resumed run says and does what an unbroken one would.
docs/health.md is the page for users.

A preference loss looks at given responses only, so a model can get better at telling them apart while what it writes
itself falls to pieces. Two signs need no judge: an answer that repeats itself, and one that does not end.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any

from accelerate import Accelerator

from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.answers import Question, generate
from simpo_cli.evaluate.generate.measures import repeated_share
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import HealthRecipe, Recipe
from simpo_cli.run.events import EvalRecord, ProbeAnswer, StepRecord


@dataclass(frozen=True, slots=True)
class Watch:
    """One thing that a run is watched for."""

    code: str  # three letters and three digits
    key: str  # the threshold in `health`
    remedy: str  # what to do, in the end of a sentence, without its full stop
    is_least: bool = False  # the threshold is the least healthy value; otherwise it is the first unhealthy one

    def is_beyond(self, value: float, recipe: HealthRecipe) -> bool:
        """Whether a reading is unhealthy; none is where the recipe sets no threshold."""
        limit: float | None = getattr(recipe, self.key)
        return limit is not None and (value <= limit if self.is_least else value >= limit)


_GENTLER = "try loss.sft_weight=1, or a third of train.learning_rate"  # what helped: train/advice.py
CHOSEN_FALLS = Watch("HEA001", "chosen_fall", _GENTLER)
BOTH_FALL = Watch("HEA002", "both_fall", _GENTLER)
SATURATED = Watch("HEA003", "gradient_weight", "a shorter run or a higher loss.gamma_beta_ratio", is_least=True)
GRADIENT_SPIKE = Watch(
    "HEA004", "gradient_spike", "if more follow, lower train.learning_rate or raise train.pairs_per_step"
)
UPDATES_LOST = Watch("HEA005", "lost_updates", "set model.weights_dtype=fp32")
CHANGE_LOST = Watch("HEA006", "kept_change", "set export.dtype=fp32, which keeps all of it", is_least=True)
ANSWERS_LOOP = Watch("HEA007", "looping_answers", _GENTLER)
ANSWERS_ENDLESS = Watch("HEA008", "endless_answers", _GENTLER)
_LOSS = (CHOSEN_FALLS, BOTH_FALL, SATURATED, GRADIENT_SPIKE)
_MODEL = (UPDATES_LOST, CHANGE_LOST, ANSWERS_LOOP, ANSWERS_ENDLESS)
WATCHES = {watch.code: watch for watch in (*_LOSS, *_MODEL)}

WINDOW = 32
"""Steps that a step is compared with."""
LEAST_STEPS = 16
"""Steps that must have been seen before one is judged."""


class UnhealthyError(UserError):
    """A code of `health.stop_on` was seen, by every rank, as all read the same numbers; all is saved (exit code 5)."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix, exit_code=ExitCode.NUMBERS)
        self.is_shared = True


@dataclass(frozen=True, slots=True)
class Alert:
    """What was seen of one code."""

    code: str  # this and the next two are of the watch
    key: str
    limit: float
    step: int  # the first at which it was beyond the threshold
    value: float  # the reading there
    sentence: str  # what was seen, with its numbers
    last_step: int  # the latest such step
    times: int  # how many readings were beyond the threshold
    worst: float  # of them

    @property
    def line(self) -> str:
        """The alert in one line: what is seen, the threshold and its key, what to do."""
        return f"{self.code} step {self.step}: {self.sentence} (health.{self.key} {self.limit:g}); {self.remedy}"

    @property
    def remedy(self) -> str:
        """What to do."""
        return WATCHES[self.code].remedy


@dataclass(frozen=True)
class AnswerProbe:
    """A few prompts, the same ones through the whole run."""

    questions: Sequence[Question]  # the prompts; none where nothing is held out
    tokenizer: TextTokenizer
    most_tokens: int  # an answer is cut there

    def ask(self, policy: Policy, accelerator: Accelerator) -> tuple[ProbeAnswer, ...]:
        """The greedy answer to each prompt."""
        answers = generate(policy, self.questions, self.tokenizer, accelerator, most_tokens=self.most_tokens)
        return tuple(
            ProbeAnswer(question.text, answer.text, len(answer.ids), repeated_share(answer.ids), answer.ended)
            for question, answer in zip(self.questions, answers, strict=True)
        )


class Health:
    """Watches one run."""

    def __init__(self, recipe: Recipe, num_steps: int, note: Callable[[str, str], None]) -> None:
        self._recipe, self._num_steps, self._note = recipe, num_steps, note
        # readings of the latest steps
        self._latest: dict[str, list[float]] = {"grad_norms": [], "gradient_weights": [], "lost_updates": []}
        self._answers_before: list[tuple[bool, bool]] | None = None  # of each answer, whether it looped and ended
        self._alerts: dict[str, Alert] = {}
        self._stop: Alert | None = None

    @property
    def alerts(self) -> list[Alert]:
        """What was seen so far, by code."""
        return [self._alerts[code] for code in sorted(self._alerts)]

    def alerts_as_json(self) -> list[dict[str, Any]]:
        """What run.json says of them."""
        return [{**asdict(alert), "remedy": alert.remedy} for alert in self.alerts]

    def step(self, record: StepRecord, lost_updates: float | None) -> None:
        """Judge a step.

        Args:
            lost_updates: share of its updates that rounding undid; None where the weights are float32.
        """
        norms, weights, lost = self._latest.values()
        norm = record.grad_norm
        if len(norms) >= LEAST_STEPS and (usual := median(norms)) > 0:
            seen = f"the gradient norm is {norm:.3g}, {norm / usual:.0f} times the {usual:.3g} of the steps before"
            self._judge(GRADIENT_SPIKE, record.step, norm / usual, seen)
        _remember(norms, norm)

        _remember(weights, record.gradient_weight)
        if len(weights) >= LEAST_STEPS:
            weight = fmean(weights)
            seen = (
                f"the loss is saturated: its mean gradient weight is {weight:.2g} (last {len(weights)} steps), and "
                f"{100 * record.rewards_target_reached:.0f} % of this step's pairs are past gamma, by "
                f"{record.rewards_margins - self._recipe.loss.margin:.2g} on average"
            )
            self._judge(SATURATED, record.step, weight, seen)

        # in the warm-up, and at the end of most schedules, nearly every update is lost, and that is meant so
        if lost_updates is not None and record.learning_rate >= 0.9 * self._recipe.train.learning_rate:
            _remember(lost, lost_updates)
            share = fmean(lost)
            seen = (
                f"{100 * share:.0f} % of the updates are lost: at learning rate {record.learning_rate:.2g} they are "
                "smaller than the rounding of the weights"
            )
            self._judge(UPDATES_LOST, record.step, share, seen)

    def evaluated(self, record: EvalRecord) -> None:
        """Judge an evaluation; the first fixes what later answers are compared with."""
        fall, fall_rejected = -record.logps_chosen_delta, -record.logps_rejected_delta
        if fall < fall_rejected:
            seen = (
                f"chosen responses fell by {fall:.2f} nats/token while the margin rose (rejected fell by "
                f"{fall_rejected:.2f}, probe of {record.probe_pairs} pairs)"
            )
            self._judge(CHOSEN_FALLS, record.step, fall, seen)
        seen = (
            f"chosen and rejected responses fell by {fall:.2f} and {fall_rejected:.2f} nats/token (probe of "
            f"{record.probe_pairs} pairs): the model forgets how to write"
        )
        self._judge(BOTH_FALL, record.step, min(fall, fall_rejected), seen)
        # the change grows as long as the run: early on a save loses nearly all of it, and that passes
        if record.export_kept_share is not None and 2 * record.step >= self._num_steps:
            self.judge_export(record.step, record.export_kept_share, "would keep")
        self._judge_answers(record.step, record.answers)

    def judge_export(self, step: int, kept_share: float, verb: str = "keeps") -> None:
        """Judge what a save in export.dtype keeps of the change."""
        seen = f"model/ in its export type {verb} {100 * kept_share:.0f} % of the change that training made"
        self._judge(CHANGE_LOST, step, kept_share, seen)

    def _judge_answers(self, step: int, answers: Sequence[ProbeAnswer]) -> None:
        before = self._answers_before
        if before is None or len(before) != len(answers):  # the first time, or other pairs were held out then
            self._answers_before = [(answer.loops, answer.ended) for answer in answers]
            return
        both = list(zip(answers, before, strict=True))
        loop = [answer for answer, (looped, _) in both if answer.loops and not looped]
        endless = [answer for answer, (_, ended) in both if ended and not answer.ended]
        if loop:
            seen = f'{len(loop)} of {len(answers)} probe answers repeat themselves, such as "{_refrain(loop[0].text)}"'
            self._judge(ANSWERS_LOOP, step, len(loop) / len(answers), seen)
        if endless:
            most = max(answer.tokens for answer in endless)
            seen = f"{len(endless)} of {len(answers)} probe answers do not end any more within {most} tokens"
            self._judge(ANSWERS_ENDLESS, step, len(endless) / len(answers), seen)

    def _judge(self, watch: Watch, step: int, value: float, seen: str) -> None:
        if not watch.is_beyond(value, self._recipe.health):
            return
        limit = getattr(self._recipe.health, watch.key)
        alert = Alert(watch.code, watch.key, limit, step, value, seen, step, 1, value)
        if watch.code in self._recipe.health.stop_on and self._stop is None:
            self._stop = alert
        known = self._alerts.get(watch.code)
        if known is None:
            self._note(alert.line, alert.code)
        else:
            worst = min(known.worst, value) if watch.is_least else max(known.worst, value)
            alert = replace(known, last_step=step, times=known.times + 1, worst=worst)
        self._alerts[watch.code] = alert

    def require_well(self, save: Callable[[], None], command: str) -> None:
        """Stop here if a code of `health.stop_on` was seen, once everything is saved."""
        if self._stop is not None:
            save()
            raise UnhealthyError(
                f"stopped by health.stop_on, with everything saved: {self._stop.line}.",
                f"To go on all the same, change health.{self._stop.key} or health.stop_on, and resume with: {command}",
            )

    def require_well_at_the_end(self) -> None:
        """The same where the run is complete, and nothing is left to resume."""
        if self._stop is not None:
            raise UnhealthyError(
                f"the run is complete and model/ is saved, and health.stop_on names {self._stop.line}.",
                "Change the recipe and train again with --fresh, or take the model as it is.",
            )

    def as_json(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            **self._latest,
            "answers_before": self._answers_before,
            "alerts": [asdict(alert) for alert in self.alerts],
            "stop": None if self._stop is None else asdict(self._stop),
        }

    def restore(self, saved: Mapping[str, Any], *, recipe_changed: bool) -> None:
        """Remember what a checkpoint holds.

        Args:
            saved: of `as_json`; empty in checkpoints of a version that did not watch.
            recipe_changed: whether any value is another one: only then a run that was stopped continues.
        """
        if not saved:
            return
        self._latest = {name: list(saved[name]) for name in self._latest}
        before = saved["answers_before"]
        self._answers_before = None if before is None else [(looped, ended) for looped, ended in before]
        self._alerts = {alert["code"]: Alert(**alert) for alert in saved["alerts"]}
        self._stop = None if saved["stop"] is None or recipe_changed else Alert(**saved["stop"])


def _remember(values: list[float], value: float) -> None:
    """Add to the latest values, of which so many are kept."""
    values.append(value)
    del values[:-WINDOW]


def _refrain(text: str) -> str:
    """What an answer says again and again: its most frequent run of four words, or its end where it has none."""
    words = text.split()
    runs = Counter(" ".join(words[start : start + 4]) for start in range(len(words) - 3))
    refrain, count = max(runs.items(), key=lambda item: item[1], default=("", 0))
    return (refrain if count > 1 else " ".join(words))[-40:]
