"""`simpo tune`: from a recipe to the numbers that held-out evidence prefers, or to the sentence that none is better.

The search goes in the order that the authors advise: learning rate, then gamma/beta, then beta, then what else the
recipe names. Every trial follows by arithmetic from the recipe's seed and the trials before it, so a study that was
killed finds the same winner. It chooses on one half of the held-out pairs; winner and recipe are then trained again,
with seeds that the search did not use, and compared once on the other half.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simpo_cli.data.plan import positions_of_part
from simpo_cli.data.prepare import prepare_data
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.errors import UserError
from simpo_cli.formatting import duration
from simpo_cli.pairs.scorer import Scorer
from simpo_cli.recipe.composition import ComposedRecipe
from simpo_cli.recipe.schema import HeldOutPart, Recipe
from simpo_cli.run.events import Unwatched
from simpo_cli.run.stop import StopRequest
from simpo_cli.stages import stage
from simpo_cli.train.run_plan import model_of
from simpo_cli.tune.bench import Bench
from simpo_cli.tune.folder import RANGE, SCRATCH, Document, Spec, StudyFolder, study_path
from simpo_cli.tune.judging import Judge
from simpo_cli.tune.space import (
    NUM_RATES,
    RATE,
    SWEEP_STEPS,
    rate_beyond,
    rates_around,
    rates_from,
    recipe_with,
    said_of,
    space_of,
    sweep_rates,
)

LEAST_STEPS = 10
"""Fewer steps tell nothing of a setting."""
_TIMED_STEPS = 3  # where no range test is there to go by
LEAST_PROMPTS = 30
"""Fewer prompts to choose or to confirm with show nothing but very large effects."""
_SECONDS_BETWEEN_LOOKS = 1.0
_HALVES: tuple[HeldOutPart, ...] = ("choosing", "confirming")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuning:
    """What is tuned.

    Attributes:
        composed: the recipe, and the overrides that it was composed with.
        scorer: whose scores of answers choose; None goes by the held-out pairs.
    """

    composed: ComposedRecipe
    overrides: Sequence[str]
    scorer: Scorer | None

    @property
    def path(self) -> Path:
        """The folder of the study."""
        return study_path(self.composed.recipe)


def _lowest(rates: Sequence[float]) -> Sequence[float]:
    """The two lowest, or all of fewer: an objective that is far off hides that the others would not hold."""
    return sorted(rates)[:2]


class _Notes(Unwatched):
    """Shows of a trial what a person should read once."""

    def __init__(self, say: Say) -> None:
        self._say, self._said = say, set[str]()

    def note(self, text: str, _code: str = "", /) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(f"note: {text}")


class Study:
    """A study at work in this process.

    Args:
        say: takes what is done, a line at a time.

    Attributes:
        advanced: called when a trial is finished.
    """

    def __init__(
        self,
        tuning: Tuning,
        stop: StopRequest | None = None,
        say: Say = lambda _line: None,
    ) -> None:
        self.tuning, self._stop, self._say = tuning, stop or StopRequest(), say
        self.advanced: Callable[[], object] = lambda: None
        self.space = space_of(tuning.composed, tuning.overrides)
        listed = {key: [self.space.current[key], *values] for key, values in self.space.others.items()}
        choices = {key: list(dict.fromkeys(values)) for key, values in listed.items()}
        self.folder = StudyFolder(tuning.path, choices)
        self.judge = Judge(tuning.composed.recipe.tune, tuning.scorer)
        self.seen: dict[str, Spec] = {}  # by id, in the order of the search
        self._bench: Bench | None = None

    @property
    def recipe(self) -> Recipe:
        """As it was given."""
        return self.tuning.composed.recipe

    # The search

    def search(self) -> Document:
        """The best of all trials on the choosing half, the recipe as it is among them.

        One key after the other finds the best of each beside the others as they are. Where those are far off, the best
        rate is one that hardly learns, and no next key helps: so two other objectives are tried at low rates before.
        What was ruled out and is better than the best but for that has often only too high a rate.
        """
        found, space = self.range(), self.space
        steps, rates = found["trial_steps"], found["rates"]
        self._say(self._plan(found))
        tried = self.outcomes([self._spec("untuned", space.current, steps)])

        def best_with(stage: str, settings: Sequence[Mapping[str, Any]]) -> Document:
            """The best of all so far and these."""
            known = [one["values"] for one in tried]
            tried.extend(self.outcomes([self._spec(stage, one, steps) for one in settings if one not in known]))
            return self.judge.best(tried)

        best = best_with(RATE, [{**space.current, RATE: rate} for rate in rates])
        starts = [{RATE: rate} for rate in _lowest(rates)] or [{}]
        corners = [{**space.current, **corner, **start} for corner in space.corners for start in starts]
        best = best_with("corners", corners)
        for key, values in space.others.items():
            best = best_with(key, [{**best["values"], key: value} for value in values])
        if space.rates is None:
            hot = self.judge.best_ruled_out(tried, best)
            if hot is not None and len(tried) + 2 < found["trials"]:
                best = best_with(RATE, [{**hot["values"], RATE: rates_around(hot["values"][RATE])[1]}])
            rate, known = best["values"][RATE], len(tried)
            best = best_with(RATE, [{**best["values"], RATE: near} for near in rates_around(rate)])
            # from the edge further on, as long as it helps and trials are left that the budget was shared among
            while any(best is one for one in tried[known:]) and len(tried) < found["trials"]:
                further, rate, known = rate_beyond(rate, best["values"][RATE]), best["values"][RATE], len(tried)
                best = best_with(RATE, [{**best["values"], RATE: further}])
        return best

    def confirm(self, best: Document) -> tuple[list[Document], list[Document]]:
        """The recipe and the winner, trained with each new seed and measured on the confirming half."""
        seeds = [(self.recipe.seed + number) % 2**32 for number in range(1, self.recipe.tune.seeds + 1)]
        both = [
            [Spec("confirming", values, best["steps"], seed, "confirming") for seed in seeds]
            for values in (self.space.current, best["values"])
        ]
        found = self.outcomes([spec for specs in zip(*both, strict=True) for spec in specs])
        return found[0::2], found[1::2]

    def _spec(self, stage: str, values: Mapping[str, Any], steps: int) -> Spec:
        return Spec(stage, dict(values), steps, self.recipe.seed, "choosing")

    def _plan(self, found: Document) -> str:
        """How many trainings there will be, and how long they take."""
        each = found["trial_steps"] * found["seconds_per_step"] + found["seconds_to_measure"]
        trials, new = found["trials"], 2 * self.recipe.tune.seeds
        done = self.folder.num_finished
        there = f"; {done} of them are there" if done else ""
        return (
            f"search  at most {trials} trials of {found['trial_steps']:,} steps, about {duration(trials * each)}; then "
            f"{new} to confirm what is found, about {duration(new * each)}{there}"
        )

    # How long, and which rates

    def range(self) -> Document:
        """The learning rates to try, and how many steps a trial takes; found once, by the process that leads.

        Raises:
            UserError: too few prompts are held out, or the budget is below one trial.
        """

        def found() -> Document:
            self._require_held_out()
            self._require_layers()
            bench = self.bench(self.recipe)
            trials, steps_of_recipe, steps = self._num_trials(), bench.num_steps, None
            if self.recipe.tune.budget.minutes is None:
                steps = self._trial_steps(trials, steps_of_recipe)
            start = self.start("choosing")
            rates, losses, seconds = list[float](), list[float](), None
            if self.space.rates is None:
                rates = sweep_rates(self.recipe, bench.num_parameters)
                started = time.monotonic()
                with stage("range test"):
                    losses = bench.sweep(self.recipe, rates)
                seconds = (time.monotonic() - started) / len(losses)
                self._say(f"range test  {len(losses)} steps, {rates[0]:.1e} to {rates[len(losses) - 1]:.1e}")
            tried = rates_from(rates, losses) if rates else list(self.space.rates or ())
            if seconds is None:
                started = time.monotonic()
                with stage("timing a few steps"):
                    bench.sweep(self.recipe, [self.recipe.train.learning_rate] * _TIMED_STEPS)
                seconds = (time.monotonic() - started) / _TIMED_STEPS
            if steps is None:
                steps = self._trial_steps(trials, steps_of_recipe, seconds, start["seconds"])
            return {
                "sweep": {"rates": rates[: len(losses)], "losses": losses},
                "rates": tried,
                "trial_steps": steps,
                "recipe_steps": steps_of_recipe,
                "seconds_per_step": seconds,
                "seconds_to_measure": start["seconds"],
                "trials": trials,
            }

        return self.folder.once(RANGE, found)

    def _require_held_out(self) -> None:
        """Refuse now, before weights are loaded, what has too few prompts."""
        recipe = self.recipe
        pairs = prepare_data(replace(recipe, eval=replace(recipe.eval, part="all"))).held_out
        for part in _HALVES:
            keys = prompt_keys_of(pairs)[positions_of_part(pairs, part)]
            self._require_prompts(part, len(set(keys.tolist())))

    def _require_layers(self) -> None:
        """Refuse now what only the layers of the model refuse, such as a target that none of them is."""
        for key, values in self.space.others.items():
            for value in values if key.startswith("model.") else ():
                with said_of(key, value):
                    model_of(recipe_with(self.tuning.composed, self.tuning.overrides, {key: value}).recipe)

    def _num_trials(self) -> int:
        """At most so many trials."""
        rates = range(NUM_RATES) if self.space.rates is None else self.space.rates
        others = sum(len(values) for values in self.space.others.values())
        corners = len(self.space.corners) * max(1, len(_lowest(rates)))
        return 1 + len(rates) + corners + others + (2 if self.space.rates is None else 0)

    def _trial_steps(self, trials: int, recipe_steps: int, seconds: float = 0.0, to_measure: float = 0.0) -> int:
        """How many steps each trial may take within the budget, at most those of the recipe.

        Args:
            seconds: of a step; only a budget in minutes needs it.
            to_measure: seconds to score and answer.
        """
        budget = self.recipe.tune.budget
        swept = SWEEP_STEPS if self.space.rates is None else 0
        if budget.minutes is not None:
            fixed = (trials + 1) * to_measure + swept * seconds
            affordable = (budget.minutes * 60 - fixed) / seconds / trials
            least = (fixed + trials * LEAST_STEPS * seconds) / 60
            given, needed, key = f"{budget.minutes:g}", f"{math.ceil(10 * least) / 10:g}", "minutes"
        elif budget.steps is not None:
            affordable = (budget.steps - swept) / trials
            given, needed, key = f"{budget.steps:,}", f"{trials * LEAST_STEPS + swept:,}", "steps"
        else:
            return max(min(LEAST_STEPS, recipe_steps), recipe_steps // 2)
        if affordable < LEAST_STEPS and affordable < recipe_steps:
            raise UserError(
                f"tune.budget.{key} is {given}, and the {trials} trials of this space take {needed} at least.",
                "Raise it, or name fewer values in tune.space.",
                key=f"tune.budget.{key}",
            )
        return min(int(affordable), recipe_steps)

    # What a trial is

    def bench(self, recipe: Recipe) -> Bench:
        """A bench on which a recipe can be tried: the one that is there, or another."""
        if self._bench is None or not self._bench.serves(recipe):
            self._bench = None  # its weights go before others come
            scratch = self.tuning.path / SCRATCH
            scratch.mkdir(parents=True, exist_ok=True)
            self._bench = Bench(recipe, scratch, self.recipe.tune.answers, _Notes(self._say), self._stop)
        return self._bench

    def start(self, part: HeldOutPart) -> Document:
        """The start model on a part, measured once for all trials, with what is known of its pairs.

        Raises:
            UserError: it has too few prompts.
        """

        def measured() -> Document:
            bench = self.bench(self.recipe)
            pairs = bench.pairs(part)
            self._require_prompts(part, len(bench.prompts(part)))
            started = time.monotonic()
            found = self.judge.outcome(bench.start(part), bench, part, None)
            return {
                **found,
                "prompts": [f"{key:016x}" for key in prompt_keys_of(pairs).tolist()],
                "seconds": time.monotonic() - started,
            }

        return self.folder.once(f"start-{part}.json", measured)

    def _require_prompts(self, part: HeldOutPart, count: int) -> None:
        if count >= LEAST_PROMPTS:
            return
        # of shares near one half that differ on half of the prompts, as settings that matter do
        effect = (1.96 + 0.84) * math.sqrt(0.5 / LEAST_PROMPTS)
        prompts = "1 prompt" if count == 1 else f"{count} prompts"
        raise UserError(
            f"the {part} half of the held-out pairs has {prompts}, and {LEAST_PROMPTS} are the fewest to "
            f"choose with: even they show only differences of some {100 * effect:.0f} points.",
            f"Hold out more, 400 to see 10 points: data.holdout={3 * LEAST_PROMPTS} at least, or a file in data.eval.",
            key="data.eval" if self.recipe.data.eval is not None else "data.holdout",
        )

    def run(self, spec: Spec) -> Document:
        """Run a trial, here and now."""
        # all of them: a ratio that stays has to be said where beta does not, if the recipe gives gamma
        values = {} if spec.values == self.space.current else spec.values
        composed = recipe_with(self.tuning.composed, self.tuning.overrides, {**values, "seed": spec.seed})
        start = self.start(spec.part)
        self.judge.has_scored(start)
        bench, started = self.bench(composed.recipe), time.monotonic()
        with stage(f"trial {self._number(spec)}"):
            trained = bench.train(composed.recipe, spec.steps, spec.part)
            found = self.judge.outcome(trained, bench, spec.part, start)
        return {**found, "seconds": time.monotonic() - started}

    def outcomes(self, specs: Sequence[Spec]) -> list[Document]:
        """What came of these trials, in their order, when all are finished, here or by others that joined."""
        is_waiting = False
        self.seen |= {spec.id: spec for spec in specs if spec.id not in self.seen}
        while True:
            self._stop.check()
            with self.folder.taking(specs) as spec:
                if spec is not None:
                    outcome = self.run(spec)
                    self.folder.finish(spec, outcome)
            if spec is not None:
                is_waiting = False
                self._say(self._line(spec, outcome["measures"]))
                self.advanced()
                continue
            found = [one for one in map(self.folder.outcome, specs) if one is not None]
            if len(found) == len(specs):
                return found
            if not is_waiting:
                self._say("waiting for trials of other processes")
            is_waiting = True
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _line(self, spec: Spec, measures: Document) -> str:
        """A finished trial in a line."""
        values = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in spec.values.items())
        name = "your recipe" if spec.stage == "untuned" else spec.stage.rpartition(".")[2]
        seed = f", seed {spec.seed}" if spec.part == "confirming" else ""
        return f"{self._number(spec):>2} {name}: {values}{seed} · {self.judge.in_words(measures)}"

    def _number(self, spec: Spec) -> int:
        """Which trial it is, in the order of the search."""
        return 1 + list(self.seen).index(spec.id)
