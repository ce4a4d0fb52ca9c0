"""`simpo pairs round`: sample, score, make, train, measure, and again from the model that came out.

    RUN/rounds.json               what each round did, and what its model's answers are worth
    RUN/held-out.jsonl            prompts that no round trains on; every model answers them greedily
    RUN/round-0/held-out/         the answers of the start model, scored
    RUN/round-N/prompts.jsonl     what the round asks
    RUN/round-N/answers/          the answers, scored
    RUN/round-N/pairs.jsonl       the pairs
    RUN/round-N/run/              an ordinary run, from the model of the round before
    RUN/round-N/held-out/         the answers of its model, scored

Each part is a command of its own, run as a process of its own, so that a part can be typed by hand, has the memory to
itself and can be killed at any moment: every one resumes what it has begun, and what is done is known by its file.
Nothing here imports torch.

A round is judged by answers to held-out prompts, never by how many pairs the model gets right: a model may tell better
from worse ever more surely while what it writes gets worse.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from simpo_cli import __version__
from simpo_cli.distributed.launch import run_alone
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import differing, write_json, write_text
from simpo_cli.evaluate.generate.prompts import Prompted
from simpo_cli.files import disk_faults, object_in
from simpo_cli.pairs.held_out import best_of, fallen, measured_round, on_pairs, round_folder
from simpo_cli.pairs.make import Making, NoPairsError, make_pairs
from simpo_cli.pairs.prompts import prompts_of_round, split_prompts, write_prompts
from simpo_cli.pairs.samples import SampleFolder, locked
from simpo_cli.pairs.scorer import ScorerKind
from simpo_cli.recipe.composition import ComposedRecipe, compose
from simpo_cli.run.folder import ROUNDS

SCHEMA_VERSION = 1
Say = Callable[[str], None]


class StoppedRoundError(UserError):
    """A child process ended without having done its part; it has said why."""


@dataclass(frozen=True)
class Rounds:
    """How rounds are made.

    Attributes:
        recipe: file or name of the recipe, and the overrides.
        composed: what they come to.
        scoring: the words of `simpo pairs score` that say who scores.
        kind: what kind of scorer that is.
        trusting: the flag that allows remote code, or nothing.
    """

    recipe: str
    overrides: Sequence[str]
    composed: ComposedRecipe
    scoring: Sequence[str]
    kind: ScorerKind
    trusting: Sequence[str]

    @property
    def path(self) -> Path:
        """The folder of all rounds."""
        return Path(self.composed.recipe.output_dir)

    def folder(self, number: int) -> Path:
        """The folder of one."""
        return round_folder(self.path, number)


def run_rounds(
    rounds: Rounds, num_rounds: int, *, resume: bool = False, fresh: bool = False, say: Say
) -> dict[str, Any]:
    """Make rounds until there are so many or a guard falls, and return what rounds.json holds.

    Args:
        resume: continue rounds of this name that were begun alike.
        fresh: set rounds of this name aside, as NAME.old-TIME.

    Raises:
        UserError: the recipe names no prompts, the folder holds something else, or a part of a round ended in an error.
    """
    recipe = rounds.composed.recipe
    if num_rounds < 1:
        raise UserError(f"--rounds is {num_rounds}, must be at least 1.", "3 is a beginning.")
    if recipe.pairs.prompts is None:
        raise UserError(
            "the recipe names no prompts to ask.",
            "Add pairs.prompts=FILE, a file of prompts; of pairs with pairs.of_pairs=true.",
            key="pairs.prompts",
        )
    identity = {
        "recipe_sha256": hashlib.sha256(rounds.composed.as_yaml().encode()).hexdigest(),
        "scoring": list(rounds.scoring),
    }
    if fresh and (rounds.path / ROUNDS).is_file():
        aside = rounds.path.with_name(f"{rounds.path.name}.old-{datetime.now():%Y%m%d-%H%M%S}")
        with locked(rounds.path), disk_faults(f"{rounds.path} cannot be set aside"):
            rounds.path.rename(aside)
    _require_usable(rounds.path, identity, resume=resume)
    with locked(rounds.path):
        before = len(read_rounds(rounds.path)["rounds"]) if (rounds.path / ROUNDS).is_file() else 0
        num_rounds = max(num_rounds, before - 1)  # what is known of rounds stays known
        write_text(rounds.path / "recipe.yaml", rounds.composed.as_yaml())
        held_out, asked = split_prompts(recipe)
        write_prompts(rounds.path / "held-out.jsonl", held_out)
        made: list[dict[str, Any]] = []
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "kind": "rounds",
            "tool": f"simpo {__version__}",
            "name": recipe.name,
            "model": recipe.model.path,
            **identity,
            "held_out_prompts": len(held_out),
            "prompts": len(asked),
            "rounds": made,
            "best": 0,
            "stopped": None,
        }
        if not before:
            write_json(rounds.path / ROUNDS, document)
        if recipe.pairs.min_score is None:
            say("note: pairs.min_score sets no bar, so of two bad answers the less bad one is chosen")
        for number in range(num_rounds + 1):
            say(f"round {number} of {num_rounds}" if number else "the start model")
            try:
                _make_round(rounds, number, asked, say)
            except NoPairsError as error:
                if number == 1:
                    raise
                document["stopped"] = {"round": number, "reason": error.problem.rstrip("."), "guard": "pairs"}
                break
            made.append(measured_round(rounds.path, number, rounds.kind, recipe))
            if number == 1:  # its run has scored the start model, too
                made[0]["on_pairs"] = on_pairs(rounds.path, 1, "before")
            document["best"] = best_of(made)
            document["stopped"] = fallen(made)
            if len(made) >= before:
                write_json(rounds.path / ROUNDS, document)
            if document["stopped"] is not None:
                break
        write_json(rounds.path / ROUNDS, document)
    return document


def require_good_end(document: Mapping[str, Any], path: Path) -> None:
    """End with an error (exit code 5) where a guard has stopped the rounds."""
    stopped = document["stopped"]
    if stopped is None or stopped["guard"] == "pairs":
        return
    best = document["rounds"][document["best"]]
    raise UserError(
        f"round {stopped['round']} stopped the rounds: {stopped['reason']}.",
        f"The best model is that of round {best['round']}: {best['model']}   "
        "Lower train.learning_rate, or raise pairs.min_score.",
        where=str(path),
        exit_code=ExitCode.NUMBERS,
    )


def _require_usable(path: Path, identity: Mapping[str, Any], *, resume: bool) -> None:
    """Refuse a folder that holds something else, or rounds that are not to be resumed or were begun otherwise."""
    file = path / ROUNDS
    if not file.is_file():
        if path.exists() and (not path.is_dir() or any(one.name[0] != "." for one in path.iterdir())):
            if {one.name for one in path.iterdir()} <= {"recipe.yaml", "held-out.jsonl", ".lock"}:  # killed there
                return
            raise UserError(f"{path} exists and holds no rounds.", "Set another name=NAME, or move it away.")
        return
    if not resume:
        raise UserError(
            f"{path} holds rounds already.",
            f"Add --resume to continue them, or --fresh to set them aside as {path.name}.old-TIME.",
        )
    before = read_rounds(path)
    if words := differing({key: before.get(key) for key in identity}, identity):
        raise UserError(
            f"{path} holds rounds that were begun otherwise: {words}.",
            "Set another name=NAME, or run the command as it was.",
        )


def read_rounds(path: Path) -> dict[str, Any]:
    """What rounds.json holds.

    Raises:
        UserError: it is damaged.
    """
    try:
        document = object_in((path / ROUNDS).read_bytes())
        if document["schema_version"] != SCHEMA_VERSION or document["kind"] != "rounds":
            raise ValueError("another version wrote it")
        len(document["rounds"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot be read: {error}.", "Move the folder away.", where=str(path / ROUNDS)) from error
    return document


# Parts of a round


def _make_round(rounds: Rounds, number: int, asked: Sequence[Prompted], say: Say) -> None:
    """Do what is not done yet of a round; round 0 only answers the held-out prompts."""
    folder, wanted = rounds.folder(number), rounds.composed.recipe.pairs
    recipe = folder / "recipe.yaml"
    write_text(recipe, _recipe_of(rounds, number).as_yaml())
    if number:
        prompts = folder / "prompts.jsonl"
        write_prompts(prompts, prompts_of_round(asked, number, wanted.prompts_per_round))
        drawn = ["-n", str(wanted.answers_per_prompt), "--temperature", str(wanted.temperature)]
        _answer(rounds, prompts, recipe, folder / "answers", [*drawn, "--seed", str(_seed(rounds, number))], say)
        _make(rounds, folder, say)
        _run(["train", str(recipe), "--resume", *rounds.trusting], say)
    model = folder / "run" if number else recipe
    greedy = ["-n", "1", "--temperature", "0"]
    _answer(rounds, rounds.path / "held-out.jsonl", model, folder / "held-out", greedy, say)


def _seed(rounds: Rounds, number: int) -> int:
    """Other random numbers in every round: one may ask the prompts of an earlier one."""
    return int((1000 * rounds.composed.recipe.seed + number) % 2**32)


def _recipe_of(rounds: Rounds, number: int) -> ComposedRecipe:
    """The recipe of a round's run."""
    folder, recipe = rounds.folder(number), rounds.composed.recipe
    source = {"path": str(folder / "pairs.jsonl"), "columns": {one: one for one in ("prompt", "chosen", "rejected")}}
    overrides = [
        f"name={recipe.name}-{number}",
        f"output_dir={json.dumps(str(folder / 'run'))}",
        f"data.train={json.dumps([source])}",
        f"train.learning_rate={recipe.train.learning_rate * recipe.pairs.rate_factor ** max(0, number - 1)!r}",
    ]
    if number > 1:
        before = rounds.folder(number - 1) / "run" / "model"
        overrides += [f"model.path={json.dumps(str(before))}", "model.revision=null", "model.adapter=null"]
    return compose(rounds.recipe, [*rounds.overrides, *overrides])


def _answer(rounds: Rounds, prompts: Path, model: Path, to: Path, drawn: Sequence[str], say: Say) -> None:
    """Sample and score."""
    if not (to / "answers.jsonl").is_file():
        most = rounds.composed.recipe.pairs.max_new_tokens
        longest = [] if most is None else ["--max-new-tokens", str(most)]
        words = ["pairs", "sample", str(prompts), "--model", str(model), "-o", str(to), *drawn, *longest]
        _run([*words, *rounds.trusting], say)
    if not SampleFolder.open(to).scores_file(rounds.kind).is_file():
        _run(["pairs", "score", str(to), *rounds.scoring, *rounds.trusting], say)
    _require_same_scorer(rounds, to)


def _require_same_scorer(rounds: Rounds, to: Path) -> None:
    """Refuse (UserError) scores by another scorer than the start model's: a rule may be edited between rounds."""
    first, later = SampleFolder.open(rounds.folder(0) / "held-out"), SampleFolder.open(to)
    before, found = (folder.scores(rounds.kind)[0] for folder in (first, later))
    if words := differing({**before, "answers_sha256": ""}, {**found, "answers_sha256": ""}):
        raise UserError(
            f"holds scores by another scorer than the start model's: {words}.",
            "Put back what scored then and move this file away, or begin anew with --fresh.",
            where=str(later.scores_file(rounds.kind)),
        )


def _make(rounds: Rounds, folder: Path, say: Say) -> None:
    """Make the pairs of a round, in this process: it takes a moment."""
    output = folder / "pairs.jsonl"
    if output.is_file():
        return
    wanted = rounds.composed.recipe.pairs
    making = Making(
        rejected=wanted.rejected,
        min_margin=wanted.min_margin,
        min_score=wanted.min_score,
        match_lengths=wanted.match_lengths,
    )
    made = make_pairs(SampleFolder.open(folder / "answers"), None, rounds.kind, making, output).document
    say(f"{made['pairs']:,} pairs of {made['prompts']:,} prompts into {output}")


def _run(words: Sequence[str], say: Say) -> None:
    """Run a command of ours and wait for it.

    Raises:
        StoppedRoundError: it ended without having done its part.
    """
    say(f"$ simpo {' '.join(words)}")
    code = run_alone([sys.executable, "-P", "-m", "simpo_cli", *words])
    if code != ExitCode.DONE:
        from simpo_cli.run.receipt import command_to_resume  # what it is built on takes a while to import

        raise StoppedRoundError(
            f"simpo {' '.join(words[: 1 + (words[0] == 'pairs')])} ended with exit code {code}.",
            f"Resume with: {command_to_resume()}",
            exit_code=ExitCode(code) if code in set(ExitCode) else ExitCode.CRASH,
        )
