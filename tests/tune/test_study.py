"""A study from its first trial to best.yaml: what is tried, what is chosen, what is said, and what a resume finds."""

import hashlib
import json
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.command_sections import TuneRecipe
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import Recipe
from simpo_cli.report.study_page import holds_study, study_page, write_study_report
from simpo_cli.report.study_view import conclusions
from simpo_cli.run.stop import Stopped
from simpo_cli.tune import session
from simpo_cli.tune.bench import Bench, Trained
from simpo_cli.tune.folder import BEST, Spec
from simpo_cli.tune.judging import Judge
from simpo_cli.tune.session import claim, tune
from simpo_cli.tune.study import Study, Tuning
from tests.train.runs import Runs
from tests.tune.small import tuning_of, write_recipe


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    return write_recipe(tmp_path_factory.mktemp("study"), tiny_folder)


def run(tuning: Tuning, **how: bool) -> dict[str, Any]:
    claim(tuning, **how)
    return tune(tuning, say=lambda _: None)


def timeless(document: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on a clock."""
    kept = json.loads(json.dumps(document))
    for trial in kept["trials"]:
        trial.pop("seconds")
    for name in ("seconds_per_step", "seconds_to_measure"):
        kept["range"].pop(name)
    return dict(kept)


@pytest.fixture(scope="module")
def whole(file: Path) -> tuple[Tuning, dict[str, Any]]:
    """A study that ran to its end, with a range test."""
    tuning = tuning_of(file, "name=whole", "tune.space=null", "tune.budget.steps=240")
    return tuning, run(tuning)


def best_of(tuning: Tuning, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What the judge makes of these trials by their files."""
    files = [tuning.path / "trials" / f"{one['id']}.json" for one in trials]
    return Judge(TuneRecipe(), None).best([json.loads(file.read_text("utf-8")) for file in files])


def test_the_search_goes_in_order_and_keeps_what_was_best(whole: tuple[Tuning, dict[str, Any]]) -> None:
    tuning, document = whole
    trials = [one for one in document["trials"] if one["part"] == "choosing"]
    rate, ratio, beta = document["current"]
    assert [one["number"] for one in document["trials"]] == list(range(1, len(document["trials"]) + 1))
    assert len({one["id"] for one in document["trials"]}) == len(document["trials"])
    assert trials[0]["values"] == document["current"]
    assert {(one["seed"], one["steps"]) for one in trials} == {(42, document["range"]["trial_steps"])}
    stages = [stage for stage, _ in groupby(trials, key=lambda one: one["stage"])]
    assert stages == ["untuned", rate, "corners", ratio, beta, rate]
    rates = document["range"]["rates"]
    assert [one["values"][rate] for one in trials if one["stage"] == rate][: len(rates)] == rates
    corners = [tuple(one["values"].values()) for one in trials if one["stage"] == "corners"]
    assert set(corners) <= {(one, *other) for one in sorted(rates)[:2] for other in ((0.1, 10.0), (0.5, 2.0))}

    def best_before(stage: str) -> dict[str, Any]:
        first = next(at for at, one in enumerate(trials) if one["stage"] == stage)
        values: dict[str, Any] = best_of(tuning, trials[:first])["values"]
        return values

    for key in (ratio, beta):
        others = {name: value for name, value in best_before(key).items() if name != key}
        tried = [one["values"] for one in trials if one["stage"] == key]
        assert tried
        assert all({name: value for name, value in one.items() if name != key} == others for one in tried)


def test_the_winner_is_the_best_of_all_that_were_tried(whole: tuple[Tuning, dict[str, Any]]) -> None:
    tuning, document = whole
    trials = [one for one in document["trials"] if one["part"] == "choosing"]
    assert document["winner"]["id"] == best_of(tuning, trials)["id"]


def made_up(
    file: Path, monkeypatch: pytest.MonkeyPatch, rates: list[float], trials: int, *, peak: float, most: float = 1.0
) -> tuple[Study, list[float]]:
    """A study of rates alone, and those it tries: the nearer to a peak the better, ruled out above the most."""
    study, tried = Study(tuning_of(file, "tune.space=null")), list[float]()
    ranged = {"trial_steps": 10, "rates": rates, "trials": trials}
    monkeypatch.setattr(study, "range", lambda: ranged)
    monkeypatch.setattr(study, "_plan", lambda _: "")
    study.space = replace(study.space, others={})

    def outcomes(specs: list[Spec]) -> list[dict[str, Any]]:
        found = []
        for spec in specs:
            rate = spec.values["train.learning_rate"]
            tried.append(rate)
            measures = {"objective": -abs(np.log(rate / peak)), "reasons": ["loops"] if rate > most else []}
            found.append({"values": spec.values, "measures": measures})
        return found

    monkeypatch.setattr(study, "outcomes", outcomes)
    return study, tried


@pytest.mark.parametrize(("peak", "beyond"), [(1e-3, []), (3e-3, [2.9e-3, 4.9e-3]), (1.0, [2.9e-3, 4.9e-3, 8.3e-3])])
def test_from_the_edge_rates_go_on_while_they_help_and_trials_are_left(
    file: Path, peak: float, beyond: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are the better the nearer the rate is to a peak; three trials of seven are left."""
    study, tried = made_up(file, monkeypatch, [4e-4, 1e-3], 7, peak=peak)
    best = study.search()
    assert tried == [1e-3, 4e-4, 1.7e-3, 5.9e-4, *beyond]  # the recipe's own is among the rates
    assert best["values"]["train.learning_rate"] == min(tried, key=lambda rate: abs(np.log(rate / peak)))


@pytest.mark.parametrize(("trials", "then", "found"), [(6, [8.8e-4, 5.2e-4], 8.8e-4), (5, [3.4e-4, 1.2e-4], 3.4e-4)])
def test_what_is_better_but_ruled_out_is_tried_at_a_lower_rate_if_trials_are_left(
    file: Path, trials: int, then: list[float], found: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, tried = made_up(file, monkeypatch, [2e-4, 1.5e-3], trials, peak=1.0, most=9e-4)
    assert study.search()["values"]["train.learning_rate"] == found
    assert tried == [1e-3, 2e-4, 1.5e-3, *then]


def test_the_confirmation_has_other_seeds_and_other_prompts(whole: tuple[Tuning, dict[str, Any]]) -> None:
    tuning, document = whole
    folder = tuning.path
    halves = [json.loads((folder / f"start-{part}.json").read_text("utf-8")) for part in ("choosing", "confirming")]
    assert not set(halves[0]["prompts"]) & set(halves[1]["prompts"])
    assert document["confirmed"]["seeds"] == [43, 44]
    confirming = [one for one in document["trials"] if one["part"] == "confirming"]
    assert [one["seed"] for one in confirming] == [43, 43, 44, 44]
    assert document["confirmed"]["difference"]["prompts"] == 30
    assert document["confirmed"]["on_pairs"]["prompts"] == len(set(halves[1]["prompts"]))


def test_optuna_reads_the_same_trials_from_the_journal(whole: tuple[Tuning, dict[str, Any]]) -> None:
    tuning, document = whole
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tuning.path / "journal.jsonl")))
    study = optuna.load_study(study_name=None, storage=storage)
    told = {trial.user_attrs["id"]: trial for trial in study.get_trials()}
    assert {trial.state for trial in told.values()} == {optuna.trial.TrialState.COMPLETE}
    assert set(told) == {one["id"] for one in document["trials"]}
    for one in document["trials"]:
        assert told[one["id"]].params == one["values"]
        assert told[one["id"]].value == one["measures"]["objective"]


def test_best_yaml_is_a_recipe_with_the_winner_in_it(whole: tuple[Tuning, dict[str, Any]]) -> None:
    tuning, document = whole
    text = (tuning.path / "best.yaml").read_text("utf-8")
    assert text.startswith("# ")
    recipe = compose(str(tuning.path / "best.yaml")).recipe
    assert (recipe.eval.part, recipe.name) == ("confirming", "whole-tuned")
    expected = document["winner"]["values"] if document["verdict"]["found"] == "better" else document["current"]
    assert recipe.train.learning_rate == expected["train.learning_rate"]
    assert recipe.loss.beta == expected["loss.beta"]
    assert recipe.loss.margin_beta_ratio == expected["loss.gamma_beta_ratio"]


def test_a_study_that_is_done_trains_nothing_again(
    whole: tuple[Tuning, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning, document = whole
    monkeypatch.setattr(Bench, "__init__", lambda *_: pytest.fail("a model was loaded"))
    assert timeless(run(tuning, resume=True)) == timeless(document)


def test_the_page_shows_every_trial_and_the_sentence(whole: tuple[Tuning, dict[str, Any]], tmp_path: Path) -> None:
    tuning, document = whole
    assert holds_study(tuning.path)
    page = write_study_report(tuning.path, tmp_path / "study.html").read_text("utf-8")
    assert document["verdict"]["sentence"].split(":")[0] in page
    assert page.count("<svg") >= 4
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page == study_page(document)


@pytest.mark.parametrize(("steps", "said"), [(9, ["rate", "quarter"]), (10, ["rate"]), (40, [])])
def test_it_is_said_when_trials_were_short(whole: tuple[Tuning, dict[str, Any]], steps: int, said: list[str]) -> None:
    document = {**whole[1], "range": {**whole[1]["range"], "trial_steps": steps, "recipe_steps": 40}}
    sentences = {
        "rate": f"Trials took {steps} of the 40 steps of a run: the best learning rate of a longer one may be lower.",
        "quarter": "So few say little of it: give tune.budget at least a quarter of them a trial.",
    }
    lines = "\n".join(conclusions(document))
    assert [name for name, sentence in sentences.items() if sentence in lines] == said


@pytest.mark.parametrize("broken_at", [1, 3, 5])
def test_broken_off_anywhere_it_finds_the_same(file: Path, broken_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the middle of a trial, then --resume."""
    monkeypatch.setattr(Judge, "best", lambda _, outcomes: outcomes[-1])  # never the recipe: so it is confirmed
    unbroken = run(tuning_of(file, "name=unbroken"), resume=True)
    name = f"name=broken-{broken_at}"
    real, calls = Bench.train, [0]

    def stopping(self: Bench, *args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == broken_at:
            raise Stopped(15)
        return real(self, *args, **options)

    monkeypatch.setattr(Bench, "train", stopping)
    with pytest.raises(UserError) as stopped:
        run(tuning_of(file, name))
    assert stopped.value.exit_code == ExitCode.SAVED
    assert "--resume" in stopped.value.fix
    document = run(tuning_of(file, name), resume=True)
    for one in (unbroken, document):
        one.pop("name")
        one.pop("recipe_sha256")
        if one["confirmed"]:
            one["confirmed"].pop("looks")
    assert timeless(document) == timeless(unbroken)


def test_each_look_at_the_confirming_half_is_counted_once(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any study and any run of the same held-out pairs; a resume is no new look, nor is the same result again."""
    monkeypatch.setattr(Judge, "best", lambda _, outcomes: outcomes[-1])  # never the recipe as it is
    one, other = (
        tuning_of(file, f"name=looks-{beta}", f"output_dir={tmp_path}/${{name}}", f"loss.beta={beta}")
        for beta in (3, 5)
    )
    documents = [run(tuning, resume=True) for tuning in (one, one, other)]
    assert [document["confirmed"]["looks"] for document in documents] == [1, 1, 2]
    best = Runs(tmp_path, (other.path / BEST).read_text("utf-8"), "train.max_steps=3", "health.stop_on=[]")
    looks = []
    for name, *more in (("first",), ("again",), ("other", "seed=9"), ("whole", "eval.part=all")):
        best.train(name, *more)
        looks.append(best.receipt(name)["outcome"].get("looks"))
    assert looks == [3, 3, 4, None]
    assert run(other, resume=True)["confirmed"]["looks"] == 2  # those of others came later
    (tmp_path / "looks.jsonl").write_text("{}}\n")
    best.train("uncounted", "seed=10")
    assert "looks" not in best.receipt("uncounted")["outcome"]
    lines = conclusions(documents[-1])
    assert "These held-out pairs were looked at for a confirmation for the 2nd time." in lines


def test_the_budget_decides_how_long_trials_are(file: Path) -> None:
    """Three values of beta and the recipe: a budget of 60 steps gives 15 to each, if the run has as many."""
    study = Study(tuning_of(file, "tune.budget.steps=60"))
    assert study._num_trials() == 4
    assert study._trial_steps(4, 20) == 15
    assert study._trial_steps(4, 12) == 12
    minutes = Study(tuning_of(file, "tune.budget.steps=null", "tune.budget.minutes=1"))
    # 60 s less five measurements of 2 s leave 50 s: 500 steps for four trials
    assert minutes._trial_steps(4, 1000, 0.1, 2.0) == 125
    usual = Study(tuning_of(file, "tune.budget.steps=null"))
    assert usual._trial_steps(4, 500) == 250
    # the recipe, four rates, two corners at two rates, five ratios, four betas, two rates around the best
    assert Study(tuning_of(file, "tune.space=null"))._num_trials() == 1 + 4 + 4 + 5 + 4 + 2


REFUSED: dict[tuple[str, ...], tuple[str, str]] = {
    ("tune.budget.steps=20",): ("tune.budget.steps is 20, and the 4 trials of this space take 40 at least", "Raise it"),
    ("tune.space=null", "tune.budget.steps=239"): (
        "tune.budget.steps is 239, and the 20 trials of this space take 240 at least",
        "Raise it",
    ),
    ("tune.space={model:{lora:{target_modules:[all-linear,q_prj]}}}", "model.lora={}"): (
        'model.lora.target_modules has the value "q_prj": model.lora.target_modules (q_prj) matches no layer',
        "Did you mean q_proj, v_proj?",
    ),
    ("data.eval=null", "data.holdout=20", "tune.budget.steps=40"): (
        "30 are the fewest to choose with",
        "data.holdout=90 at least",
    ),
    ("data.eval=null", "data.holdout=2", "tune.budget.steps=40"): (
        "half of the held-out pairs has",
        "data.holdout=90 at least",
    ),
}


@pytest.mark.parametrize("overrides", REFUSED, ids=lambda one: one[0])
def test_what_cannot_decide_is_refused_and_leaves_no_folder(file: Path, overrides: tuple[str, ...]) -> None:
    tuning = tuning_of(file, "name=refused", *overrides)
    with pytest.raises(UserError) as refused:
        run(tuning)
    problem, fix = REFUSED[overrides]
    assert problem in refused.value.problem
    assert fix in refused.value.fix
    assert not tuning.path.exists()


def test_a_folder_of_another_study_is_refused_by_name(file: Path) -> None:
    run(tuning_of(file, "name=mine"))
    before = {one: one.read_bytes() for one in tuning_of(file, "name=mine").path.rglob("*") if one.is_file()}
    for overrides, how, problem in (
        (("name=mine",), {}, "holds a study already"),
        (
            ("name=mine", "loss.beta=3"),
            {"resume": True},
            "holds a study of another recipe: loss.beta, loss.gamma differ",
        ),
        (("name=mine", "loss.beta=3"), {"join": True}, "of another recipe"),
        (("name=none",), {"join": True}, "there is no study"),
    ):
        with pytest.raises(UserError) as refused:
            claim(tuning_of(file, *overrides), **how)
        assert problem in refused.value.problem
    assert {one: one.read_bytes() for one in before} == before
    (tuning_of(file, "name=notes").path).mkdir(parents=True)
    (tuning_of(file, "name=notes").path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists and holds no study"):
        claim(tuning_of(file, "name=notes"))
    claim(tuning_of(file, "name=mine"), fresh=True)
    assert len(list(file.parent.glob("runs/mine-tune.old-*"))) == 1


@pytest.mark.parametrize("given", ["loss.gamma=2", "loss.gamma_beta_ratio=0.5"])
def test_a_trial_trains_what_its_row_says(file: Path, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A margin that the recipe gives as gamma would follow beta otherwise."""
    tuning = tuning_of(file, f"name=margin-{given[-1]}", given, "tune.space=null", "tune.budget.steps=240")
    trained: list[tuple[float, float, float]] = []

    def losses(_: Bench, recipe: Recipe, *__: object) -> Trained:
        trained.append((recipe.train.learning_rate, recipe.loss.margin_beta_ratio, recipe.loss.beta))
        return Trained(None, (), "made up")

    monkeypatch.setattr(Bench, "train", losses)
    document = run(tuning)
    assert document["current"]["loss.gamma_beta_ratio"] == 0.5
    rows = [tuple(one["values"].values()) for one in document["trials"]]
    assert np.array(trained) == pytest.approx(np.array(rows))
    assert len(set(rows)) == len(rows)


def test_the_winner_is_written_with_the_ratio_that_it_had(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = tuning_of(file, "name=ratio", "loss.gamma=2")
    better = {"sentence": "It is better.", "found": "better"}
    monkeypatch.setattr(Judge, "best", lambda _, outcomes: outcomes[-1])
    monkeypatch.setattr(session, "_verdict", lambda *_: better)
    document = run(tuning)
    recipe = compose(str(tuning.path / "best.yaml")).recipe
    assert document["winner"]["values"] == {"loss.beta": 8.0}
    assert (recipe.loss.beta, recipe.loss.margin) == (8.0, 2.0)  # gamma stays: only beta was searched
    assert "beta: 8.0 # was 4.0: chosen among" in (tuning.path / "best.yaml").read_text("utf-8")


def test_what_is_not_ours_stays_when_a_study_is_refused(file: Path) -> None:
    tuning = tuning_of(file, "name=mixed", "tune.budget.steps=20")
    tuning.path.mkdir(parents=True)
    (tuning.path / ".env").write_text("secret")
    with pytest.raises(UserError, match="exists and holds no study"):
        run(tuning)
    claim(tuning_of(file, "name=later", "tune.budget.steps=20"))
    later = tuning_of(file, "name=later", "tune.budget.steps=20")
    (later.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="tune.budget.steps is 20"):
        tune(later, say=lambda _: None)
    assert [one.name for one in later.path.iterdir()] == ["notes.txt"]
    assert (tuning.path / ".env").read_text() == "secret"


DAMAGES: dict[str, tuple[str, str | None]] = {
    "study.json": ("", None),
    "study.json ": ("{}", None),
    "journal.jsonl": ("garbage\n[]\n", None),
    "journal.jsonl ": ('{"op_code": 99}\n', None),
    "range.json": ("{}", "it lacks rates, recipe_steps, sweep, trial_steps"),
    "start-choosing.json": ("{}", "it lacks answers, measures"),
    "trials": ("{}", "it lacks answers, id, measures"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_made_again_or_named(
    whole: tuple[Tuning, dict[str, Any]], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy, whose last trial is missing."""
    tuning, document = whole
    copy = tmp_path / tuning.path.name
    shutil.copytree(tuning.path, copy)
    monkeypatch.setattr(Tuning, "path", copy)
    folder = copy / name.strip()
    damaged = next(folder.iterdir()) if folder.is_dir() else folder
    content, problem = DAMAGES[name]
    if name.startswith("journal"):
        (copy / "trials" / f"{document['trials'][-1]['id']}.json").unlink()
    damaged.write_text(content)
    if problem is None:
        again = run(tuning, resume=True)
        again["confirmed"]["looks"] = document["confirmed"]["looks"]
        assert timeless(again) == timeless(document)
        return
    with pytest.raises(UserError, match="cannot be used") as refused:
        run(tuning, resume=True)
    assert problem in refused.value.problem
    assert refused.value.where == str(damaged)


def test_who_joined_finishes_what_nobody_leads(file: Path) -> None:
    tuning = tuning_of(file, "name=joined")
    claim(tuning)
    document = tune(tuning, say=lambda _: None, leads=False)
    assert document["verdict"] is not None
    assert json.loads((tuning.path / "study.json").read_text("utf-8")) == document
    assert (tuning.path / "best.yaml").is_file()


# What is said of made-up comparisons


def of_answers(values: list[float]) -> dict[str, list[float]]:
    return {"utility": values, "likeness": values, "ended": [1.0] * 40, "repeating": [0.0] * 40}


def arm(values: Any, seeds: int = 3, ended: float = 1.0) -> list[dict[str, Any]]:
    rows = np.broadcast_to(np.asarray(values, dtype=np.float64), (seeds, 40))
    return [
        {
            "id": hashlib.sha256(f"{number}{row}".encode()).hexdigest(),
            "seed": number,
            "steps": 10,
            "values": {},
            "measures": {"utility": {"value": float(row.mean())}, "reasons": []},
            "scores": {"chosen": row.tolist(), "rejected": [0.5] * 40},
            "answers": {**of_answers(row.tolist()), "ended": [float(ended)] * 40},
        }
        for number, row in enumerate(rows)
    ]


def said(untuned: list[dict[str, Any]], winner: list[dict[str, Any]], before: float = 0.3) -> dict[str, Any]:
    def start(_: str) -> Any:
        return {"prompts": [str(number) for number in range(40)], "answers": of_answers([before] * 40)}

    study: Any = SimpleNamespace(judge=Judge(TuneRecipe(), None), folder=SimpleNamespace(read=start))
    best = {"measures": {"reasons": []}, "values": {}, "steps": 10}
    return session._verdict(study, best, session.confirmed(study, untuned, winner))


def test_better_worse_or_no_difference_follows_from_the_interval() -> None:
    draw = np.random.default_rng(0)
    low, high = (centre + 0.01 * draw.random((3, 40)) for centre in (0.4, 0.6))
    better = said(arm(low), arm(high))
    assert better["found"] == "better"
    assert "+0.200 (+0.19" in better["sentence"]
    assert "n = 40 prompts, 3 new seeds each" in better["sentence"]
    assert said(arm(high), arm(low))["found"] == "worse"
    alike = said(arm(draw.random((3, 40))), arm(draw.random((3, 40))))
    assert alike["found"] == "no difference"
    assert "No setting beats your recipe by more than chance" in alike["sentence"]
    assert "would have been seen in four of five such studies" in alike["sentence"]


def test_what_is_below_the_start_model_is_no_winner() -> None:
    """As of trials that are too short to learn anything."""
    draw = np.random.default_rng(0)
    low, high = (centre + 0.01 * draw.random((3, 40)) for centre in (0.4, 0.6))
    found = said(arm(low), arm(high), before=0.7)
    assert found["found"] == "below start"
    assert "is worse than the model before training" in found["sentence"]
    assert "0.700 before. 10 steps of such trials say nothing of a run." in found["sentence"]
    assert said(arm(low), arm(high), before=0.605)["found"] == "better"  # but for chance as good as before


def test_no_interval_leaves_what_there_can_be() -> None:
    """Two seeds of which one is lucky: the t interval alone would go from -5 to +5."""
    lucky = np.repeat([[0.1], [0.9]], 40, axis=1)
    alike = said(arm(0.4, seeds=2), arm(lucky, seeds=2))
    assert "(-1.500 to +1.500)" in alike["sentence"]
    assert "Seeds differ too much for any difference to be seen." in alike["sentence"]


def test_a_winner_whose_answers_fall_apart_with_new_seeds_is_ruled_out_unless_the_recipes_do_too() -> None:
    broken = arm(0.9, ended=0.9)
    found = said(arm(0.4), broken)
    assert found["found"] == "ruled out"
    assert "90.0 % of the answers end, 100.0 % of the start model's" in found["sentence"]
    assert said(arm(0.4), [*arm(0.9)[:2], broken[2]])["found"] == "better"  # over all seeds 96.7 % end
    better = said(arm(0.4, ended=0.5), broken)
    assert better["found"] == "better"
    assert "Answers of both are not whole, of the winner: 90.0 % of the answers end" in better["sentence"]


def test_one_lucky_seed_of_three_is_no_proof() -> None:
    """Over prompts alone this would be significant."""
    lucky = np.repeat([[0.4], [0.4], [0.9]], 40, axis=1)
    assert said(arm(0.4), arm(lucky))["found"] == "no difference"
