"""From names to what was measured: every model is loaded as others load it, and scored on the code path of training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from simpo_cli.errors import UserError
from simpo_cli.evaluate.held_out import HeldOut, column_of, files_of, held_out_of, surface_accuracy, training_pairs
from simpo_cli.evaluate.metrics import PairScores, align, compare_scores, slices_of
from simpo_cli.evaluate.results import BaselineComparison, Evaluation, Failure
from simpo_cli.evaluate.scoring import Noise, OpenModel, measure_noise, open_model
from simpo_cli.evaluate.start import require_fitting
from simpo_cli.evaluate.targets import Target, baseline_of, find_targets
from simpo_cli.model.load import load_model
from simpo_cli.model.source import ModelSource, weights_dtype
from simpo_cli.objective import Objective

FILE = "file"
"""The column of the slices by file, where several files are scored."""


@dataclass(frozen=True)
class Scored:
    """A model's scores with what is known of how they came about."""

    scores: PairScores
    packing: str
    noise: Noise | None


@dataclass
class Evaluator:
    """Scores models one after the other; each is in memory alone.

    Args:
        overrides: `KEY=VALUE`, for every recipe.
        baseline: what models are compared with: a name, `none`, or None for each run's start model.
        by: columns of the records to slice by.
        say: called with what is being done, a line at a time.
    """

    overrides: Sequence[str]
    baseline: str | None
    by: Sequence[str]
    say: Callable[[str], None]
    _moment: datetime = field(default_factory=datetime.now)  # one for all: a template may write it
    _known: dict[tuple[object, ...], Scored] = field(default_factory=dict)

    def run(
        self, names: Sequence[str], keep: Callable[[list[Evaluation], list[Failure]], object]
    ) -> tuple[list[Evaluation], list[Failure]]:
        """Score the models; `keep` is called after each but the last, so that nothing is lost with a later one.

        Raises:
            UserError: a name means nothing, or no model could be scored.
        """
        targets = find_targets(names, self.overrides)
        baselines = [self._baseline_of(target, is_alone=len(targets) == 1) for target in targets]
        evaluations: list[Evaluation] = []
        failed: list[Failure] = []
        for number, (target, baseline) in enumerate(zip(targets, baselines, strict=True), start=1):
            try:
                evaluations.append(self._evaluate(target, baseline))
            except UserError as error:
                if len(targets) == 1:
                    raise
                self.say(f"not scored: {target.name}: {error}")
                failed.append(Failure(target.name, error))
            if evaluations and number < len(targets):
                keep(evaluations, failed)
        if not evaluations:
            raise failed[0].error
        return evaluations, failed

    def _baseline_of(self, target: Target, *, is_alone: bool) -> Target | None:
        """What a model is compared with; None for nothing, as for one of several that is itself the baseline."""
        found = baseline_of(target, self.baseline, self.overrides)
        if found is None or found.identity != target.identity:
            return found
        if is_alone:
            raise UserError(
                f"the baseline {found.name} is the model itself: every difference would be 0.",
                "Name another one, or --baseline none.",
            )
        return None

    def _evaluate(self, target: Target, baseline: Target | None) -> Evaluation:
        not_compared = None
        require_fitting(target.recipe)  # seen before anything takes time
        if baseline is not None:
            try:
                require_fitting(baseline.recipe)
            except UserError as error:
                not_compared, baseline = self._not_compared(baseline, error), None
        held_out = held_out_of(target.recipe, self._moment)
        self.say(f"tokens of {held_out.name}: {held_out.origin}")
        values: dict[str, list[str | None]] = {}
        if len(held_out.sources) > 1 and len(set(files := files_of(held_out))) > 1:
            values[FILE] = files
        values |= {column: column_of(held_out, column, target.recipe) for column in self.by}
        scored = self._score(target, held_out, with_noise=baseline is None)
        comparison, noise = None, scored.noise
        if baseline is not None:
            try:
                comparison, noise = self._compare(baseline, target, held_out, scored.scores)
            except UserError as error:  # the model's own numbers stand without it
                not_compared, objective = self._not_compared(baseline, error), Objective(target.recipe.loss)
                opened = _opened(target, target.source(), held_out)
                noise = measure_noise(opened, held_out.pairs, scored.scores, objective)
        assert noise is not None, "one of the two was scored again"
        base = None if comparison is None else comparison.scores
        save = self._save(target, held_out, scored.scores)
        train = training_pairs(target.recipe, held_out) if target.has_training_pairs else None
        return Evaluation(
            target=target,
            held_out=held_out,
            scores=scored.scores,
            packing=scored.packing,
            noise=noise,
            baseline=comparison,
            not_compared=not_compared,
            save=save,
            surface=surface_accuracy(train, held_out.pairs, held_out.tokenizer) if train else None,
            slices={column: slices_of(column, one, scored.scores, base) for column, one in values.items()},
            values=values,
        )

    def _not_compared(self, baseline: Target, error: UserError) -> Failure:
        self.say(f"not compared with {baseline.name}: {error}")
        return Failure(baseline.name, error)

    def _score(self, target: Target, held_out: HeldOut, *, with_noise: bool) -> Scored:
        recipe = target.recipe
        settings = (recipe.train.precision, recipe.model.attention, recipe.loss.beta)
        key = (*target.identity, held_out.key, settings, with_noise)
        if key not in self._known:
            source = target.source()
            if source.code:
                self.say(f"code of {target.name} is run: {', '.join(source.code)}")
            self.say(f"scoring {len(held_out.pairs):,} pairs with {target.name}")
            opened = _opened(target, source, held_out)
            scores = opened.score(held_out.pairs, target.name)
            noise = measure_noise(opened, held_out.pairs, scores, Objective(recipe.loss)) if with_noise else None
            self._known[key] = Scored(scores, str(opened.check), noise)
        return self._known[key]

    def _compare(
        self, baseline: Target, target: Target, held_out: HeldOut, scores: PairScores
    ) -> tuple[BaselineComparison, Noise | None]:
        theirs = held_out_of(baseline.recipe, self._moment)
        base = self._score(baseline, theirs, with_noise=True)
        before, same_tokens = base.scores, True
        if theirs.key != held_out.key:
            shared, same_tokens = align(held_out.pairs, theirs.pairs)
            num_shared, num_pairs = len(shared.positions), len(held_out.pairs)
            if num_shared < num_pairs:
                raise UserError(
                    f"{baseline.name} has tokens for only {num_shared:,} of the {num_pairs:,} pairs.",
                    "Its tokenizer or template leaves some out; raise data.max_length, or use --baseline none.",
                    key="data.max_length",
                )
            before = before.select([their_place for _, their_place in shared.positions])
        comparison = compare_scores(before, scores, target.recipe.loss if same_tokens else None)
        return BaselineComparison(baseline.name, before, comparison, same_tokens), base.noise

    def _save(self, target: Target, held_out: HeldOut, saved: PairScores) -> BaselineComparison | None:
        """The run's float32 weights on the same pairs, where the saved ones are narrower."""
        if target.master is None or target.of_run is None:
            return None
        recipe = replace(target.recipe, model=target.of_run.model)
        master = Target(str(target.master), recipe, checkpoint=target.master)
        try:
            trained = weights_dtype(recipe.model, master.source())
            if target.source().stored_dtype.itemsize >= trained.itemsize:
                return None
            before = self._score(master, held_out, with_noise=False).scores
        except UserError as error:
            self.say(f"not scored, and left out: {master.name}: {error}")
            return None
        return BaselineComparison(master.name, before, compare_scores(before, saved, recipe.loss), same_tokens=True)


def _opened(target: Target, source: ModelSource, held_out: HeldOut) -> OpenModel:
    load = load_model if target.checkpoint is None else target.load_checkpoint
    return open_model(target.recipe, source, held_out.pairs, load)
