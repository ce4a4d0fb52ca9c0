"""What `simpo eval` does with answers: `--generate`, `--judge`, and folders of answers or of other tools' results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpo_cli.cli.options import importing, shows_work
from simpo_cli.errors import UserError

if TYPE_CHECKING:
    from simpo_cli.evaluate.generate.run import Wanted
    from simpo_cli.evaluate.judge_client import Judge

TEMPERATURE = 0.7


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The options of `simpo eval` that are about answers, by their names, None where they were not typed.

    Attributes:
        making: how answers are made; they need `generate`.
        judging: who compares them.
        of_pairs: the options that were typed and are about scored pairs.
    """

    generate: bool
    making: Mapping[str, Any]
    judging: Mapping[str, str | None]
    of_pairs: tuple[str, ...]

    def require_use(self, *, of_answers: bool) -> None:
        """Refuse (UserError) options that would do nothing; `of_answers`: the target is a folder of answers."""
        if self.generate and of_answers:
            raise UserError(
                "the folder holds answers already, and --generate makes them from a model.",
                "Name the run again to continue it, or leave --generate out to see what there is.",
            )
        if not self.generate and (unused := _typed(self.making)):
            raise UserError(f"{unused[0]} says how answers are made.", "Add --generate.")
        if self.judging["judge"] is None:
            if unused := _typed(self.judging):
                raise UserError(f"{unused[0]} needs a judge.", "Add --judge URL.")
        elif not self.generate and not of_answers:
            raise UserError(
                "a judge compares answers, and none are named.", "Add --generate, or name a folder of answers."
            )
        elif self.judging["judge_model"] is None:
            raise UserError("--judge does not say which model judges.", "Add --judge-model NAME.")

    def wanted(self) -> "Wanted":
        """How answers are to be made."""
        from simpo_cli.evaluate.generate.run import Wanted

        making = {**self.making}
        if making["temperature"] is None:
            making["temperature"] = TEMPERATURE
        return Wanted(folder=making.pop("answers"), **making)


def _typed(options: Mapping[str, Any]) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]


@shows_work
def answers_of(
    names: Sequence[str],
    overrides: Sequence[str],
    baseline: str | None,
    options: AnswerOptions,
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Do what the options ask of answers, and return the document; None where pairs are to be scored.

    Args:
        names: what is named: with `--generate` one model, else perhaps one folder of answers or folders of results.
        overrides, baseline: as for scoring.
        options: what was typed.
        say: writes a line of progress.

    Raises:
        UserError: an option does nothing here, or what it asks cannot be done.
    """
    from simpo_cli.evaluate.generate.folder import is_answers

    folder = Path(names[0])
    options.require_use(of_answers=is_answers(folder))
    if not options.generate and not is_answers(folder):
        results = _results_of_others(names)
        if results is not None:
            _require_nothing_else([*options.of_pairs, *overrides, *([baseline] if baseline else [])])
        return results
    if len(names) > 1:
        raise UserError("answers are of one model and what it is compared with.", "Name one at a time.")
    of_scores = [] if options.generate else [*overrides, *([baseline] if baseline else [])]
    _require_nothing_else([*options.of_pairs, *of_scores])
    judge = _judge(options.judging)  # before anything is generated: it may lack a package or a key
    if options.generate:
        with importing():
            from simpo_cli.evaluate.generate.run import answer_prompts
        folder = answer_prompts(names[0], overrides, baseline, options.wanted(), say)
    if judge is not None:
        from simpo_cli.evaluate.judge import judge_answers

        judge_answers(folder, judge, lambda done, wanted: say(f"judged: {done:,} of {wanted:,}"))
    from simpo_cli.evaluate.generate.measures import answers_document

    return answers_document(folder)


def _require_nothing_else(given: Sequence[str]) -> None:
    """Refuse (UserError) what would be left unused: what is there already is not scored."""
    if given:
        raise UserError(f"{given[0]} is for scoring pairs, and none are scored here.", f"Leave {given[0]} out.")


def _judge(judging: Mapping[str, str | None]) -> "Judge | None":
    url, model = judging["judge"], judging["judge_model"]
    if url is None or model is None:
        return None
    from simpo_cli.evaluate.judge_client import KEY_VARIABLE, Judge

    return Judge(url, model, key_variable=judging["judge_key"] or KEY_VARIABLE)


def _results_of_others(names: Sequence[str]) -> dict[str, Any] | None:
    """Results of lm-evaluation-harness, where that is what all names are; None where none is."""
    from simpo_cli.evaluate.harness import harness_document, is_harness, read_harness

    are_results = [is_harness(Path(name)) for name in names]
    if not any(are_results):
        return None
    if not all(are_results):
        raise UserError(
            f"{names[are_results.index(False)]} is no folder of results, and {names[are_results.index(True)]} is one.",
            "Name models, or results, not both.",
        )
    return harness_document([model for name in names for model in read_harness(Path(name))])


def print_answers_or_results(document: dict[str, Any]) -> None:
    """The document on the screen."""
    from simpo_cli.report.console import out
    from simpo_cli.report.eval_view import print_answers, print_harness

    show = print_answers if document["kind"] == "answers" else print_harness
    show(out, document)
