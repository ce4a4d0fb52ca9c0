"""A whole study: the search, the comparison on the other half, and what is left behind.

study.json says what was found with n and intervals, best.yaml is the recipe to train next, and looks.jsonl beside the
studies and runs counts how often their confirming halves were looked at: each look uses them up a little.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from textwrap import wrap
from typing import Any

import numpy as np

from simpo_cli import __version__, statistics
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import read_rows, write_json, write_text
from simpo_cli.evaluate.looks import LOOKS, count_look
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.tree import differences, without_defaults
from simpo_cli.recipe.yaml_text import to_yaml
from simpo_cli.run.folder import RECIPE, STUDY
from simpo_cli.run.receipt import command_to_resume, recipe_sha256
from simpo_cli.run.stop import Stopped, StopRequest
from simpo_cli.tune.folder import (
    BEST,
    LIKENESS,
    OBJECTIVES,
    RANGE,
    SCHEMA_VERSION,
    TRIALS,
    UTILITY,
    Document,
)
from simpo_cli.tune.judging import ACCURACY_WEIGHT
from simpo_cli.tune.space import recipe_with
from simpo_cli.tune.study import Say, Study, Tuning

Arms = tuple[list[Document], list[Document]]  # the recipe and the winner, with each new seed
_COMMENT_WIDTH = 100


def claim(tuning: Tuning, *, resume: bool = False, fresh: bool = False, join: bool = False) -> None:
    """Make the folder of a study, or see that the one that is there is this study's.

    Args:
        resume: continue a study of this name.
        fresh: set a study of this name aside.
        join: help a study that another process leads.

    Raises:
        UserError: the space does not do, or the folder holds another study or none.
    """
    study = Study(tuning)
    path, file = tuning.path, study.folder.file
    looks = path.parent / LOOKS
    if looks.exists() and not looks.is_file():
        raise UserError(f"{looks} is no file, and counts looks at held-out pairs.", "Move it away.")
    read_rows(looks)  # refused now, not at the end
    if fresh and (file.is_file() or study.folder.is_of_a_study()):
        with study.folder.led():
            path.rename(path.with_name(f"{path.name}.old-{datetime.now():%Y%m%d-%H%M%S}"))
    _require_usable(study, resume=resume, join=join)
    if not file.is_file():
        write_text(path / RECIPE, tuning.composed.as_yaml())
        write_json(file, _document(study, None, None))


def tune(tuning: Tuning, *, say: Say, leads: bool = True) -> Document:
    """Run a study whose folder is there to its end, and return what study.json holds.

    Args:
        leads: whether this process writes what is found; others run trials only.

    Raises:
        UserError: what is held out does not do, or another process leads. A signal that stopped the study is one of
            them (exit code 75).
    """
    with StopRequest() as stop:
        study = Study(tuning, stop, say)
        try:
            if not leads:
                best, arms = _searched(study)
                try:
                    with study.folder.led():  # whoever led is gone
                        if (study.folder.read(STUDY) or {}).get("verdict") is None:
                            return _finished(study, best, arms)
                except UserError:
                    say("the process that leads writes what was found")
                return _document(study, best, arms)
            with study.folder.led():
                study.advanced = lambda: write_json(study.folder.file, _document(study, None, None))
                try:
                    return _finished(study, *_searched(study))
                except UserError:
                    if not (tuning.path / TRIALS).exists():  # refused before the first trial: nothing is lost
                        study.folder.leave()
                    raise
        except Stopped as stopped:
            raise UserError(
                f"Stopped by {stopped.name}; every finished trial is saved.",
                f"Resume with: {command_to_resume()}",
                exit_code=ExitCode.SAVED,
            ) from None


def _searched(study: Study) -> tuple[Document, Arms | None]:
    """The winner, and both arms of its confirmation where there is something to confirm."""
    best = study.search()
    is_another = best["values"] != study.space.current and not best["measures"]["reasons"]
    return best, study.confirm(best) if is_another else None


def _finished(study: Study, best: Document, arms: Arms | None) -> Document:
    """Write what was found, and return it."""
    document = _document(study, best, arms)
    if arms is not None:
        document["confirmed"]["looks"] = _count_look(study, arms)
    write_text(study.tuning.path / BEST, _best_recipe(study, document))
    write_json(study.folder.file, document)
    return document


def _identity(study: Study) -> Document:
    scorer = study.tuning.scorer
    return {
        "recipe_sha256": recipe_sha256(study.tuning.composed),
        "scorer": None if scorer is None else scorer.identity,
    }


def _require_usable(study: Study, *, resume: bool, join: bool) -> None:
    """Refuse a folder that holds something else, another study, or one that is not to be resumed."""
    path, before = study.tuning.path, None
    if study.folder.file.is_file():
        with suppress(UserError):  # a damaged one is written again: what it says follows from the trials
            before = study.folder.read(STUDY)
    elif join:
        raise UserError(f"there is no study in {path} to join.", "Start it without --join.")
    if not study.folder.file.is_file() and not study.folder.is_of_a_study():
        if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists and holds no study.", "Set another name=NAME, or move it away.")
        return
    if not (resume or join):
        raise UserError(
            f"{path} holds a study already.",
            f"Add --resume to continue it, or --fresh to set it aside as {path.name}.old-TIME.",
        )
    if before is None or "recipe_sha256" not in before:
        if keys := _differing_keys(study):
            raise UserError(
                f"{study.folder.file} is damaged, and {path / RECIPE} is of another recipe: {', '.join(keys)}.",
                "Add --fresh to set it aside, or set another name=NAME.",
            )
        study.folder.file.unlink(missing_ok=True)
        return
    identity, what = _identity(study), ""
    if before.get("scorer") != identity["scorer"]:
        what = "that is judged otherwise (--rule)"
    elif before.get("recipe_sha256") != identity["recipe_sha256"]:
        keys = _differing_keys(study) or [RECIPE]
        what = f"of another recipe: {', '.join(keys)} {'differs' if len(keys) == 1 else 'differ'}"
    elif (before.get("kind"), before.get("schema_version")) != ("study", SCHEMA_VERSION):
        what = "of another version"
    if what:
        fix = "Set another name=NAME, run the command as it was, or add --fresh."
        raise UserError(f"{path} holds a study {what}.", fix)


def _differing_keys(study: Study) -> list[str]:
    """What is not as it was when the study was begun; the whole recipe where that cannot be read."""
    try:
        before = compose(str(study.tuning.path / RECIPE)).recipe
    except UserError:
        return [RECIPE]
    return list(differences(before, study.recipe))


# What study.json says


def _document(study: Study, best: Document | None, arms: Arms | None) -> Document:
    recipe, folder = study.recipe, study.folder
    found = None if arms is None else confirmed(study, *arms)
    trials = [(number, folder.outcome(spec)) for number, spec in enumerate(study.seen.values(), start=1)]
    kept = ("id", "stage", "values", "steps", "seed", "part", "measures", "seconds")
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "study",
        "tool": f"simpo {__version__}",
        "name": recipe.name,
        "recipe": study.tuning.composed.name,
        "model": recipe.model.path,
        **_identity(study),
        "objective": study.judge.objective,
        "guards": {"endless": recipe.tune.guards.endless, "repeating": recipe.tune.guards.repeating},
        "current": dict(study.space.current),
        "range": folder.read(RANGE),
        "start": {part: _start_of(folder.read(f"start-{part}.json")) for part in ("choosing", "confirming")},
        "trials": [{"number": number, **{key: one[key] for key in kept}} for number, one in trials if one is not None],
        "winner": None if best is None else {key: best[key] for key in ("id", "stage", "values", "steps", "measures")},
        "confirmed": found,
        "verdict": None if best is None else _verdict(study, best, found),
    }


def _start_of(start: Document | None) -> Document | None:
    if start is None:
        return None
    pairs, prompts = len(start["prompts"]), len(set(start["prompts"]))
    gaps = np.subtract(start["scores"]["chosen"], start["scores"]["rejected"])
    quantiles = {f"{q:g}": float(np.quantile(gaps, q)) for q in (0.05, 0.5, 0.95)}
    return {"pairs": pairs, "prompts": prompts, "measures": start["measures"], "gap_quantiles": quantiles}


def confirmed(study: Study, untuned: Sequence[Document], winner: Sequence[Document]) -> Document:
    """Recipe and winner on the confirming half, over the same prompts and seeds: the one test, and what stands beside.

    The test is of what chose; the difference in accuracy on the pairs has an interval, and nothing is decided by it.
    """
    start = study.folder.read("start-confirming.json")
    assert start is not None
    arms = {"untuned": untuned, "winner": winner}
    found: Document = {"seeds": [one["seed"] for one in winner], "steps": winner[0]["steps"], "arms": {}}
    for name, arm in arms.items():
        found["arms"][name] = {
            key: [one["measures"].get(key) and one["measures"][key]["value"] for one in arm]
            for key in (study.judge.objective, LIKENESS, "accuracy", "balanced", "gap", "ended", "repeating")
        }
        answers = [one["answers"] for one in arm if one["answers"] is not None]
        together = {key: [value for one in answers for value in one[key]] for key in start["answers"]}
        lost = [reason for one in arm if one["answers"] is None for reason in one["measures"]["reasons"]]
        found["arms"][name]["reasons"] = lost or study.judge.reasons(together, start["answers"])
    if any(one["scores"] is None for arm in arms.values() for one in arm):
        return {**found, "difference": None, "from_start": None, "on_pairs": None}
    chosen_by = study.judge.objective
    before = [start] * len(winner)
    worth = [np.array([one["answers"][chosen_by] for one in arm], np.float64) for arm in (before, untuned, winner)]
    known = np.isfinite(np.concatenate(worth)).all(axis=0)  # a rule may have had no score for an answer
    of_start, of_untuned, of_winner = (values[:, known] for values in worth)
    limit = 1 + ACCURACY_WEIGHT if chosen_by == UTILITY else np.inf
    found["difference"] = _difference({"untuned": of_untuned, "winner": of_winner}, limit)
    found["from_start"] = _difference({"start": of_start, "winner": of_winner}, limit)
    right = {name: np.array([_right(one) for one in arm]) for name, arm in arms.items()}
    found["on_pairs"] = _difference(right, 1.0, start["prompts"])
    return found


def _right(outcome: Document) -> Any:
    scores = outcome["scores"]
    return (np.sign(np.subtract(scores["chosen"], scores["rejected"])) + 1) / 2


def _difference(arms: Mapping[str, Any], limit: float, groups: Sequence[str] | None = None) -> Document | None:
    """The second of two arms less the first.

    Args:
        limit: the largest difference that there can be.
    """
    first, second = arms.values()
    if first.shape[1] < 2:
        return None
    both = statistics.crossed_difference(first, second, groups)
    difference = both.difference.as_json()
    difference["ci"] = [min(max(bound, -limit), limit) for bound in difference["ci"]]
    return {
        **{name: float(arm.mean()) for name, arm in arms.items()},
        **difference,
        "p_value": both.p_value,
        "prompts": both.prompts,
        "smallest_effect": both.smallest_effect if both.smallest_effect < limit else None,
    }


def _verdict(study: Study, best: Document, found: Document | None) -> Document:
    """One of `better`, `worse`, `below start`, `no difference`, `untuned`, `ruled out`, and the sentence."""
    if found is None:
        if best["measures"]["reasons"]:
            return {"found": "ruled out", "sentence": "Every setting is ruled out by what its answers are like."}
        return {"found": "untuned", "sentence": "No setting that was tried beats your recipe on the choosing half."}
    name = OBJECTIVES[study.judge.objective]
    of_recipe, reasons = (found["arms"][arm]["reasons"] for arm in ("untuned", "winner"))
    if found["difference"] is None or (reasons and not of_recipe):
        said = "; ".join(reasons) or f"nothing to compare it with, {'; '.join(of_recipe) or 'no scores'}"
        return {"found": "ruled out", "sentence": f"With new seeds the winner of the search is ruled out: {said}."}
    difference = found["difference"]
    low, high = difference["ci"]
    numbers = (
        f"{difference['winner']:.3f} against {difference['untuned']:.3f}, {difference['value']:+.3f} "
        f"({low:+.3f} to {high:+.3f}), n = {difference['prompts']} prompts, {len(found['seeds'])} new seeds each"
    )
    if low > 0 and (before := found["from_start"])["ci"][1] < 0:
        return {
            "found": "below start",
            "sentence": f"The winner beats your recipe, and is worse than the model before training: {name} {numbers}; "
            f"{before['start']:.3f} before. {found['steps']:,} steps of such trials say nothing of a run.",
        }
    if low > 0:
        both = f" Answers of both are not whole, of the winner: {'; '.join(reasons)}." if reasons else ""
        return {"found": "better", "sentence": f"The winner beats your recipe by the {name}: {numbers}.{both}"}
    if high < 0:
        return {"found": "worse", "sentence": f"The winner of the search is worse than your recipe: {numbers}."}
    smallest = difference["smallest_effect"] and f"{difference['smallest_effect']:.3f}"
    seen = f"A difference of {smallest} would have been seen in four of five such studies."
    if smallest is None:
        seen = "Seeds differ too much for any difference to be seen."
    return {
        "found": "no difference",
        "sentence": f"No setting beats your recipe by more than chance: {name} {numbers}. {seen}",
    }


# What is left behind


def _count_look(study: Study, arms: Arms) -> int:
    """How often the confirming half of these held-out pairs was looked at, this time among them."""
    start = study.folder.read("start-confirming.json")
    assert start is not None
    return count_look(study.tuning.path, start["prompts"], "".join(one["id"] for arm in arms for one in arm).encode())


def _best_recipe(study: Study, document: Document) -> str:
    """best.yaml: the recipe with what was found better, a comment on every line that changed."""
    verdict, current = document["verdict"], study.space.current
    is_better = verdict["found"] == "better"
    values = document["winner"]["values"] if is_better else {}
    changed = [key for key, value in values.items() if value != current[key]]
    name = f"{study.recipe.name}-tuned"
    more = {**values, "eval.part": "confirming", "name": name, "output_dir": str(study.tuning.path.with_name(name))}
    composed = recipe_with(study.tuning.composed, study.tuning.overrides, more)
    tried = sum(trial["part"] == "choosing" for trial in document["trials"])
    reason = f"chosen among {tried} trials, see {study.tuning.path / 'study.html'}"
    notes = {key: f"was {current[key]}: {reason}" for key in changed}
    notes["eval.part"] = "the search chose by the other half"
    tree = without_defaults(composed.tree)
    tree.value.pop("tune", None)
    text = to_yaml(tree, notes=notes)
    lines = [verdict["sentence"]] if is_better else [verdict["sentence"], "So this is the recipe as it was."]
    return "".join(f"# {line}\n" for said in lines for line in wrap(said, _COMMENT_WIDTH)) + text
