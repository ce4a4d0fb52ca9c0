"""`eval.part`: which half of the held-out pairs a run is measured on, and which one chooses its best checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest

from simpo_cli.data.plan import positions_of_part
from simpo_cli.data.prepare import prepare_data
from simpo_cli.errors import UserError
from simpo_cli.evaluate.held_out import held_out_of
from simpo_cli.recipe.composition import compose
from tests.train.runs import Runs, rows, tiny_runs, write_prefs

PARTS = ("choosing", "confirming")


@pytest.fixture
def runs(tmp_path: Path, tiny_folder: Path) -> Runs:
    prefs = write_prefs(tmp_path / "prefs.jsonl", pairs=60, prompts=50)
    return tiny_runs(tmp_path, tiny_folder, prefs, "data.holdout=24", "train.max_steps=3")


def test_the_halves_are_disjoint_and_keep_prompts_whole(runs: Runs) -> None:
    def prompts(holdout: int, part: str) -> set[str]:
        recipe = compose(str(runs.recipe), [f"data.holdout={holdout}", f"eval.part={part}"]).recipe
        return {pair.prompt_key for pair in prepare_data(recipe).held_out}

    halves = [prompts(24, part) for part in PARTS]
    assert halves[0] | halves[1] == prompts(24, "all")
    assert not halves[0] & halves[1]
    assert min(map(len, halves)) >= 5
    for part, half in zip(PARTS, halves, strict=True):  # a prompt stays in its half whatever else is held out
        assert half <= prompts(40, part)


def test_about_half_of_many_prompts_confirm() -> None:
    pairs = held_out_of(compose("demo").recipe).pairs
    confirming = len(positions_of_part(pairs, "confirming"))
    assert 200 <= confirming <= 300
    assert confirming + len(positions_of_part(pairs, "choosing")) == len(pairs) == 500
    assert np.array_equal(positions_of_part(pairs, "all"), np.arange(500))


def test_a_run_is_measured_on_its_half_and_accounts_for_every_record(runs: Runs) -> None:
    halves = []
    for part in PARTS:
        runs.train(part, f"eval.part={part}")
        receipt = runs.receipt(part)
        halves.append({row["where"] for row in rows(runs.folder / part / "evals-pairs.jsonl")})
        assert receipt["outcome"]["after"]["pairs"] == len(halves[-1])
        records = receipt["data"]["train"]["records"]
        dropped = sum(records["dropped"].values())
        named = ("trained", "held_out", "not_reached", "repeated", "refused")
        assert records["read"] == sum(records[name] for name in named) + dropped
        assert records["held_out"] >= 24
        assert f"(the {part} half)" in (runs.folder / part / "model/README.md").read_text("utf-8")
    assert not halves[0] & halves[1]
    first, second = (runs.weights(part) for part in PARTS)
    assert all(bool((first[name] == second[name]).all()) for name in first), "training does not depend on it"


def test_the_best_checkpoint_is_chosen_by_the_choosing_half(runs: Runs) -> None:
    """Whatever half the run is measured on; its loss is that of a run which is measured on that half."""
    always = ("checkpoint.best=true", "checkpoint.every=1", "eval.every=1", "train.learning_rate=3e-2")
    losses = {}
    for part in ("all", *PARTS):
        runs.train(part, f"eval.part={part}", *always)
        losses[part] = [(row["loss"], row["choosing_loss"]) for row in runs.log(part, "evals")[:-1]]
    chosen_by = [loss for loss, _ in losses["choosing"]]
    assert [choosing for _, choosing in losses["choosing"]] == chosen_by
    for part in ("all", "confirming"):
        assert [choosing for _, choosing in losses[part]] == pytest.approx(chosen_by, rel=1e-5)
        assert [loss for loss, _ in losses[part]] != pytest.approx(chosen_by, rel=1e-3)
    assert len({tuple(runs.checkpoints(part)) for part in losses}) == 1


def test_another_half_is_another_run(runs: Runs) -> None:
    runs.train("run", "eval.part=choosing")
    with pytest.raises(UserError, match="eval.part"):
        runs.train("run", "eval.part=confirming", "train.max_steps=4", resume=True)


def test_a_half_without_pairs_is_refused(runs: Runs) -> None:
    """Of one held-out prompt, which is in one of the halves."""

    def held_out(part: str) -> int:
        return len(prepare_data(compose(str(runs.recipe), ["data.holdout=1", f"eval.part={part}"]).recipe).held_out)

    both = prepare_data(compose(str(runs.recipe), ["data.holdout=1"]).recipe).held_out
    full, empty = PARTS if len(positions_of_part(both, "choosing")) else PARTS[::-1]
    assert held_out(full) == len(both)
    with pytest.raises(UserError, match=f"is in the {empty} half") as refused:
        held_out(empty)
    assert refused.value.key == "eval.part"


def test_what_was_saved_before_there_were_halves_still_chooses(runs: Runs) -> None:
    """Of evaluations of 0.1.0, which have one loss."""
    always = ("checkpoint.best=true", "checkpoint.every=1", "checkpoint.keep=2", "eval.every=1")
    runs.train("run", *always)
    file = runs.folder / "run/evals.jsonl"
    kept = [{name: value for name, value in row.items() if name != "choosing_loss"} for row in rows(file)]
    kept[2]["loss"] = 0.0
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    runs.train("run", *always, "train.max_steps=5", resume=True)
    assert runs.checkpoints("run") == [2, 4, 5]
