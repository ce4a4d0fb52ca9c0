"""`simpo pairs`: preference pairs out of a model's own answers: sample, score, make, and round."""

import math
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from simpo_cli.cli.options import (
    AsJson,
    GroupedCommand,
    Overrides,
    RecipeName,
    TrustRemoteCode,
    importing,
    num_cards,
    print_json,
    require_here,
    say,
    shows_work,
    take_card,
)
from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.distributed.place import Place
    from simpo_cli.pairs.make import MadePairs
    from simpo_cli.pairs.samples import SampleFolder
    from simpo_cli.pairs.scorer import Scorer, ScorerKind

pairs_app = typer.Typer(
    help="Make preference pairs out of a model's own answers.", no_args_is_help=True, rich_markup_mode=None
)
_say = partial(say, style="dim")
_WHO = "Who scores, one of these"

Rule = Annotated[
    str | None,
    typer.Option(
        "--rule",
        metavar="FILE.py:FUNCTION",
        rich_help_panel=_WHO,
        help="A function of prompt and answer in a Python file, or builtin:guide; it runs with all your rights.",
    ),
]
RuleTimeout = Annotated[
    float,
    typer.Option(
        min=0.1,
        max=86_400,
        metavar="SECONDS",
        rich_help_panel=_WHO,
        help="After which the rule has no score for an answer.",
    ),
]
RewardModel = Annotated[
    str | None,
    typer.Option(metavar="MODEL", rich_help_panel=_WHO, help="A sequence classifier with one output and a template."),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option("--judge", metavar="URL", rich_help_panel=_WHO, help="An OpenAI-compatible address that grades."),
]
JudgeModel = Annotated[
    str | None, typer.Option(metavar="NAME", rich_help_panel=_WHO, help="The model there that grades.")
]
JudgeKey = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE",
        rich_help_panel=_WHO,
        help="The environment variable with its key; if absent OPENAI_API_KEY.",
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", rich_help_panel=_WHO, help="Do not ask before texts are sent to the judge.")
]


@pairs_app.command("sample", short_help="Let a model answer prompts, several times each.")
def sample(
    prompts: Annotated[
        str, typer.Argument(metavar="PROMPTS", help="A file of prompts, JSON or JSON lines, or builtin:guide.")
    ],
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="A run, a model, a checkpoint, an adapter or a recipe's model."),
    ],
    answers_per_prompt: Annotated[int, typer.Option("-n", metavar="N", help="Answers to each prompt.")] = 5,
    temperature: Annotated[float, typer.Option(metavar="T", help="Of the sampling; 0 is greedy, with -n 1.")] = 0.8,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the answers.")] = 1,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Most tokens of an answer; if absent 512, or what fits.")
    ] = None,
    num_prompts: Annotated[int | None, typer.Option(metavar="N", help="Ask only the first so many.")] = None,
    of_pairs: Annotated[
        bool, typer.Option("--of-pairs", help="PROMPTS is a file of pairs: ask their prompts.")
    ] = False,
    engine: Annotated[
        Literal["transformers", "vllm"] | None,
        typer.Option(help="What runs the model; if absent vllm where it is installed."),
    ] = None,
    num_processes: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Processes that share the work; if absent one a card.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FOLDER", help="Where they go; if absent answers/MODEL.")
    ] = None,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Let a model answer every prompt several times; the same command resumes what was broken off."""
    from simpo_cli.distributed.launch import launch, same_command
    from simpo_cli.distributed.place import place_in

    place = place_in()
    if place is None:
        require_here([model])
        wanted = num_processes or (1 if engine == "vllm" else max(1, num_cards()))
        if wanted > 1:
            code = launch(same_command(), wanted, lambda: False)
            raise typer.Exit(code)
    else:
        take_card(place.local_rank)
    options = {
        "of_pairs": of_pairs,
        "num_prompts": num_prompts,
        "answers_per_prompt": answers_per_prompt,
        "temperature": temperature,
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "engine": engine,
    }
    with trusting(trust_remote_code):
        folder = _sampled(prompts, model, options, output, place)
    if place is not None and not place.is_first:
        return
    if as_json:
        print_json(dict(folder.manifest))
    else:
        _say_next(f"simpo pairs score {folder.path} --rule FILE.py:function   (or --reward-model, --judge)")


@shows_work
def _sampled(
    prompts: str, model: str, options: dict[str, Any], output: Path | None, place: "Place | None"
) -> "SampleFolder":
    with importing():
        from simpo_cli.pairs.sample import Sampling, sample

    return sample(prompts, model, Sampling(**options), output, _say, place)


@pairs_app.command("score", cls=GroupedCommand, short_help="Score the answers: a rule, a reward model or a judge.")
def score(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="A folder that simpo pairs sample has made.")],
    rule: Rule = None,
    rule_timeout: RuleTimeout = 30.0,
    reward_model: RewardModel = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key: JudgeKey = None,
    yes: Yes = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score every answer by a rule, a reward model or a judge; the same command resumes what was broken off."""
    from simpo_cli.pairs.samples import SampleFolder

    who = _Who(rule, rule_timeout, reward_model, judge, judge_model, judge_key, yes)
    who.require_one()
    folder = SampleFolder.open(answers)
    folder.answers()
    who.confirm(f"{len(folder.questions) * folder.answers_per_prompt:,} answers with their prompts")
    with trusting(trust_remote_code):
        document = _scored(folder, who)
    if as_json:
        print_json(document)
    else:
        from simpo_cli.report.console import out
        from simpo_cli.report.pairs_view import print_scores

        print_scores(out, document)
        _say_next(f"simpo pairs make {folder.path} -o prefs.jsonl")


def _say_next(command: str) -> None:
    """What to type next, unless this command is a part of another."""
    from simpo_cli.distributed.launch import is_followed

    if not is_followed():
        _say(f"next: {command}")


@dataclass(frozen=True)
class _Who:
    """Who scores, as it was typed."""

    rule: str | None
    rule_timeout: float
    reward_model: str | None
    judge: str | None
    judge_model: str | None
    judge_key: str | None
    yes: bool

    def require_one(self) -> "ScorerKind":
        """The kind of scorer that is named; UserError where none or several are, or one lacks something."""
        kinds: dict[ScorerKind, str | None] = {
            "rule": self.rule,
            "reward_model": self.reward_model,
            "judge": self.judge,
        }
        named = [kind for kind, name in kinds.items() if name is not None]
        if len(named) != 1:
            what = "nothing says who scores" if not named else "several are to score"
            raise UserError(f"{what}.", "Give one of --rule, --reward-model and --judge.")
        if self.judge is None and (self.judge_model or self.judge_key or self.yes):
            raise UserError("--judge-model, --judge-key and --yes are about a judge.", "Add --judge URL.")
        if self.judge is not None and self.judge_model is None:
            raise UserError("--judge does not say which model grades.", "Add --judge-model NAME.")
        return named[0]

    def words(self) -> list[str]:
        """The same as options of `simpo pairs score`; a judge was confirmed before."""
        given = {
            "--rule": self.rule,
            "--reward-model": self.reward_model,
            "--judge": self.judge,
            "--judge-model": self.judge_model,
            "--judge-key": self.judge_key,
        }
        words = [word for name, value in given.items() if value is not None for word in (name, value)]
        if self.rule is not None:
            words += ["--rule-timeout", str(self.rule_timeout)]
        return [*words, "--yes"] if self.judge is not None else words

    def confirm(self, texts: str) -> None:
        """Ask before texts are sent to a judge, wherever it is, unless that was said already."""
        if self.judge is None or self.yes:
            return
        from simpo_cli.pairs.judged import host_of

        host = host_of(self.judge)
        try:
            agreed = typer.confirm(f"{texts} would be sent to {host}. Send them?", err=True)
        except typer.Abort:
            if sys.stdin.isatty():  # Ctrl-C; else there is nobody to ask
                raise
            agreed = False
        if not agreed:
            raise UserError("nothing was sent.", "Answer y, or add --yes.")

    def open(self) -> "Scorer":
        """The scorer."""
        if self.rule is not None:
            from simpo_cli.pairs.rule import Rule

            return Rule(self.rule, timeout=self.rule_timeout)
        if self.reward_model is not None:
            with importing():
                from simpo_cli.pairs.reward_model import RewardModel

            return RewardModel(self.reward_model)
        from simpo_cli.evaluate.judge_client import KEY_VARIABLE, Judge
        from simpo_cli.pairs.judged import JudgeScorer

        assert self.judge is not None
        assert self.judge_model is not None
        key = self.judge_key or KEY_VARIABLE
        return JudgeScorer(Judge(self.judge, self.judge_model, key_variable=key))


@shows_work
def _scored(folder: "SampleFolder", who: _Who) -> dict[str, Any]:
    from simpo_cli.pairs.score import score

    with closing(who.open()) as scorer:
        return score(folder, scorer, _say)


@pairs_app.command("make", short_help="Make pairs of scored answers, and audit them.")
def make(
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="A folder of answers, scored.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.jsonl", help="Where the pairs go.")],
    rejected: Annotated[
        Literal["worst", "low"],
        typer.Option(help="The best answer against the worst, or the one nearest to the mean less two deviations."),
    ] = "worst",
    weaker: Annotated[
        Path | None,
        typer.Option(
            metavar="ANSWERS", help="Answers of a weaker model: they are the rejected ones, and no score is read."
        ),
    ] = None,
    by: Annotated[
        Literal["rule", "reward_model", "judge"] | None,
        typer.Option("--by", help="Whose scores count, where there are several."),
    ] = None,
    min_margin: Annotated[float, typer.Option(metavar="X", help="Scores must differ by more than this.")] = 0.0,
    min_score: Annotated[
        float | None, typer.Option(metavar="X", help="The chosen answer must score this much.")
    ] = None,
    match_lengths: Annotated[
        bool,
        typer.Option("--match-lengths", help="Leave out pairs until the chosen answer is as often shorter."),
    ] = False,
    evaluation: Annotated[
        list[str] | None,
        typer.Option("--eval", metavar="FILE", help="Leave out prompts of these pairs; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make preference pairs of scored answers; what was left out is counted, and what is left is audited."""
    making = {
        "rejected": rejected,
        "min_margin": min_margin,
        "min_score": min_score,
        "match_lengths": match_lengths,
        "evaluation": tuple(evaluation or ()),
    }
    made = _made(answers, output, weaker, by, making)
    if as_json:
        print_json(made.document)
        return
    from simpo_cli.report.console import out
    from simpo_cli.report.pairs_view import print_made

    print_made(out, made.document, made.examination)
    _say_next(f"simpo train RECIPE data.train={output}")


@shows_work
def _made(
    answers: Path, output: Path, weaker: Path | None, by: "ScorerKind | None", options: dict[str, Any]
) -> "MadePairs":
    from simpo_cli.pairs.make import Making, make_pairs
    from simpo_cli.pairs.samples import SampleFolder

    for name in ("min_margin", "min_score"):
        value, option = options[name], f"--{name.replace('_', '-')}"
        if value is not None and not math.isfinite(value):
            raise UserError(f"{option} is {value}, must be a finite number.", "Leave it out, or give a number.")
    making = Making(**options)
    if weaker is not None and (by is not None or replace(making, match_lengths=False, evaluation=()) != Making()):
        raise UserError(
            "--weaker makes pairs without scores.", "Leave --by, --rejected, --min-margin and --min-score out."
        )
    other = None if weaker is None else SampleFolder.open(weaker)
    return make_pairs(SampleFolder.open(answers), other, by, making, output)


@pairs_app.command("round", cls=GroupedCommand, short_help="All of it and training, round after round.")
def rounds(
    recipe: RecipeName,
    overrides: Overrides = None,
    num_rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Rounds to make.")] = 3,
    resume: Annotated[bool, typer.Option("--resume", help="Continue rounds of this name, or start them.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Set rounds of this name aside, and start anew.")] = False,
    rule: Rule = None,
    rule_timeout: RuleTimeout = 30.0,
    reward_model: RewardModel = None,
    judge: JudgeUrl = None,
    judge_model: JudgeModel = None,
    judge_key: JudgeKey = None,
    yes: Yes = False,
    as_json: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Sample, score, make pairs, train, measure, and again from the model that came out, while it gets better."""
    from simpo_cli.model.remote_code import FLAG
    from simpo_cli.pairs.rounds import Rounds, require_good_end, run_rounds
    from simpo_cli.recipe.composition import compose

    if fresh and resume:
        raise UserError("--resume continues rounds and --fresh sets them aside.", "Give one of the two.")
    who = _Who(rule, rule_timeout, reward_model, judge, judge_model, judge_key, yes)
    kind = who.require_one()
    if reward_model is None:  # a judge's address is written down, and a rule may fail: said before anything is sampled
        who.open().close()
    given = [*(overrides or []), "data.train=pairs.jsonl"]  # of each round
    composed = compose(recipe, given)
    wanted = composed.recipe.pairs
    most = num_rounds * wanted.prompts_per_round * wanted.answers_per_prompt
    most += (num_rounds + 1) * wanted.held_out_prompts
    who.confirm(f"up to {most:,} answers with their prompts")
    flag = [FLAG] if trust_remote_code else []
    asked = Rounds(recipe, given, composed, who.words(), kind, flag)
    try:
        document = run_rounds(asked, num_rounds, resume=resume, fresh=fresh, say=_say)
    except UserError as error:
        raise composed.located(error) from error
    if as_json:
        print_json(document)
    else:
        from simpo_cli.report.console import out
        from simpo_cli.report.pairs_view import print_rounds

        print_rounds(out, document)
    from simpo_cli.report.rounds_page import write_rounds_report

    say(f"report  {write_rounds_report(asked.path)}")
    require_good_end(document, asked.path)
