"""What counts as another run: every key of a recipe is identity, schedule, machine or free; and where records went."""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from simpo_cli.data.prepare import make_plan, prepare_data
from simpo_cli.errors import UserError
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import (
    CheckpointRecipe,
    DataRecipe,
    DataSource,
    LossRecipe,
    ModelRecipe,
    Recipe,
    TrainRecipe,
)
from simpo_cli.recipe.tree import recipe_values
from simpo_cli.run import receipt
from simpo_cli.run.receipt import Identity, ledger, ledgers, require_same_run
from simpo_cli.train import run_plan
from tests.train.runs import tiny_runs

RECIPE = Recipe(name="a", model=ModelRecipe(path="m"), data=DataRecipe(train="x.jsonl"))


def _identity(recipe: Recipe = RECIPE, **changes: Any) -> Identity:
    content: dict[str, Any] = {
        "recipe": recipe_values(recipe),
        "data": _data("x.jsonl aa", "y.jsonl bb"),
        "model": {"revision": None, "files": {"model.safetensors": "cc"}},
        "tokenizer": "dd",
        "template": "ee",
        "plan": {"train_pairs": 90, "held_out_pairs": 10, "tokens": "ff"},
        "machine": {"torch": "2.13", "threads": 2, "packing": "shared_prefix"},
    }
    return Identity(**{**content, **changes})


def _data(*train: str, held_out: list[list[str]] | None = None) -> dict[str, Any]:
    """What it was read from: names of files and what they hold."""
    return {"train": [file.split() for file in train], "eval": held_out}


def _said(now: Identity) -> list[tuple[str, str]]:
    return [(change.key, change.kind) for change in now.changes_since(_identity())]


def test_an_identity_survives_json_and_equals_itself() -> None:
    assert Identity(**asdict(_identity())) == _identity()
    assert _said(_identity()) == []
    assert _identity().hashes.keys() == {"recipe_sha256", "data_sha256", "model_sha256", "plan_sha256"}


def test_a_key_makes_another_run_unless_it_is_named_here_and_every_name_is_one_of_a_key() -> None:
    keys = set(recipe_values(RECIPE))
    free = {key for key in keys if {key, key.partition(".")[0]} & receipt._FREE} | receipt._SEEN_ELSEWHERE
    schedule = {f"train.{name}" for name in receipt._SCHEDULE}
    assert free | schedule | set(receipt._MARGIN) <= keys
    assert keys | {key.partition(".")[0] for key in keys} >= receipt._FREE
    assert not free & schedule
    for key in keys:
        changed = replace(_identity(), recipe={**_identity().recipe, key: 7.5})
        expected = "schedule" if key in schedule else "identity"
        assert _said(changed) == ([] if key in free or key.endswith(".path") else [(key, expected)]), key


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (replace(RECIPE, name="b", output_dir="elsewhere", checkpoint=CheckpointRecipe(every=3)), []),
        (replace(RECIPE, data=DataRecipe(train=[DataSource(path="z.jsonl")])), []),  # its content says more
        (
            replace(RECIPE, data=DataRecipe(train=[DataSource(path="x", repeat=2)])),
            [("data.train.0.repeat", "identity")],
        ),
        (replace(RECIPE, loss=LossRecipe(gamma=1.0)), []),  # the same margin in other words
        (replace(RECIPE, loss=LossRecipe(gamma=1.5)), [("loss.gamma", "identity")]),
        (replace(RECIPE, loss=LossRecipe(sft_weight=0.1)), [("loss.sft_weight", "identity")]),
        # the machine's part says these
        (replace(RECIPE, train=TrainRecipe(precision="fp32", tokens_per_microbatch=64)), []),
        (
            replace(RECIPE, train=TrainRecipe(num_epochs=2, pairs_per_step=64)),
            [("train.pairs_per_step", "identity"), ("train.num_epochs", "schedule")],
        ),
    ],
)
def test_keys_of_the_recipe(recipe: Recipe, expected: list[tuple[str, str]]) -> None:
    assert _said(_identity(recipe)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": _data("new/x.jsonl aa", "y.jsonl bb")}, []),
        ({"data": _data("y.jsonl bb", "x.jsonl aa")}, [("data.train", "identity")]),
        ({"data": _data("x.jsonl aa", "y.jsonl bb", held_out=[["e", "ff"]])}, [("data.eval", "identity")]),
        ({"model": {"revision": None, "files": {"model.safetensors": "c0"}}}, [("model.path", "identity")]),
        ({"tokenizer": "d0"}, [("tokenizer", "identity")]),
        ({"template": "e0"}, [("data.chat_template", "identity")]),
        ({"plan": {"train_pairs": 89, "held_out_pairs": 10, "tokens": "f0"}}, [("data.train", "identity")]),
        ({"plan": {"train_pairs": 90, "held_out_pairs": 10, "tokens": "f0"}}, [("data.train", "identity")]),
        ({"machine": {"torch": "2.14", "threads": 2, "packing": "shared_prefix"}}, [("torch", "machine")]),
        ({"machine": {"torch": "2.13", "threads": 2}}, [("packing", "machine")]),
    ],
)
def test_what_a_run_reads_and_runs_on(changes: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert _said(_identity(**changes)) == expected


@pytest.mark.parametrize(("before", "now"), [("adamw_8bit", "paged_adamw_8bit"), ("adamw", "paged_adamw_8bit")])
def test_moments_may_get_pages_and_otherwise_stay_what_they_are(before: Any, now: Any) -> None:
    then, there = (_identity(replace(RECIPE, train=TrainRecipe(optimizer=name))) for name in (before, now))
    changes = there.changes_since(then)
    if before == "adamw_8bit":
        assert changes == []
        return
    with pytest.raises(UserError, match=f"x cannot be resumed: train.optimizer is {now}, was adamw, and the state"):
        require_same_run(changes, ["train.optimizer"], "x")


def test_a_changed_file_is_named() -> None:
    [change] = _identity(data=_data("x.jsonl aa", "y.jsonl b0")).changes_since(_identity())
    assert (change.key, change.kind) == ("data.train", "identity")
    assert change.sentence == "the pairs of data.train are others (y.jsonl)"


def test_a_checkpoint_that_does_not_say_its_tokens_is_not_refused_for_it() -> None:
    before = _identity(plan={"train_pairs": 90, "held_out_pairs": 10})
    assert _identity().changes_since(before) == []


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({}, {"a.py": "1"}, "the model's own code (a.py) is run now and was not before (--trust-remote-code)"),
        ({"a.py": "1"}, {}, "the model's own code (a.py) was run before and is not now (--trust-remote-code)"),
        ({"a.py": "1", "b.py": "2"}, {"a.py": "1", "b.py": "3"}, "the model's own code is another (b.py)"),
        ({"a.py": "1", "b.py": "2"}, {"a.py": "1"}, "the model's own code is another (b.py)"),
        ({"a.py": "1"}, {"a.py": "1"}, None),
    ],
)
def test_code_that_a_model_brings_with_it_is_part_of_the_model(
    before: dict[str, str], now: dict[str, str], said: str | None
) -> None:
    """Checkpoints of models without any do not speak of it."""
    then, there = (
        _identity(model={"revision": None, "files": {}, **({"code": code} if code else {})}) for code in (before, now)
    )
    expected = [] if said is None else [("model.path", "identity", said)]
    assert [(change.key, change.kind, change.sentence) for change in there.changes_since(then)] == expected


@pytest.mark.parametrize(
    ("device", "packing", "compiled", "expected"),
    [
        ("cuda", "shared_prefix", False, "0.8.5"),
        ("cuda", "shared_prefix", True, None),
        ("cuda", "padded", False, None),
        ("cpu", "shared_prefix", False, None),
    ],
)
def test_liger_is_part_of_it_where_its_kernels_compute(
    device: str, packing: str, compiled: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_plan, "liger_version", lambda: "0.8.5")
    data: Any = SimpleNamespace(train=[], held_out=[], identity="aa", train_source=None, eval_source=None)
    data.tokenizer = SimpleNamespace(dates=False)
    run: Any = SimpleNamespace(
        recipe=RECIPE,
        source=SimpleNamespace(quantization=None),
        data=data,
        accelerator=SimpleNamespace(device=torch.device(device)),
        strategy="none",
        packing=packing,
        compiled=compiled,
        checkpointing=False,
        budget=100,
    )
    content: dict[str, Any] = {
        "model": {"revision": None, "files": {}, "code": {}},
        "versions": dict.fromkeys(("simpo-cli", "torch", "transformers", "peft")),
        "hardware": dict.fromkeys(("device", "threads", "cpu_capability", "compute")),
        "tokenizer_sha256": "aa",
        "template_sha256": "aa",
    }
    assert run_plan.RunPlan.identity(run, content).machine["liger"] == expected


# The account of the records


def _write(file: Path, count: int) -> None:
    rows = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}, do.", "rejected": f"No {i}!"} for i in range(count)]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[5]["chosen"] = ""
    lines = [json.dumps(row) for row in rows]
    lines[7] = '{"prompt": "broken'
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(("sources", "repeated"), [("a", 0), ("a, b", 0), ("a twice", 27)])
@pytest.mark.parametrize("own_eval", [False, True])
def test_every_record_is_somewhere(
    tmp_path: Path, tiny_folder: Path, sources: str, repeated: int, own_eval: bool
) -> None:
    for name in ("a", "b", "e"):
        _write(tmp_path / f"{name}.jsonl", 30)
    named = {
        "a": f"{tmp_path}/a.jsonl",
        "a, b": f"[{{path: {tmp_path}/a.jsonl}}, {{path: {tmp_path}/b.jsonl}}]",
        "a twice": f"[{{path: {tmp_path}/a.jsonl, repeat: 2}}]",
    }[sources]
    evaluated = f"data.eval={tmp_path}/e.jsonl" if own_eval else "data.holdout=6"
    more = [f"data.train={named}", evaluated, "data.on_bad_record=skip", "data.min_response_tokens=3"]
    runs = tiny_runs(tmp_path, tiny_folder, tmp_path / "a.jsonl")
    recipe = compose(str(runs.recipe), [*more, "train.max_steps=2"]).recipe
    data = prepare_data(recipe)
    plan = make_plan(recipe, len(data.train))
    for steps, trained in ((0, 0), (1, 8), (2, 16)):
        accounts = ledgers(data, plan, steps)
        account = accounts["train"]
        assert account["read"] == (60 if sources == "a, b" else 30)
        assert account["repeated"] == repeated
        assert account["trained"] == trained
        assert account["held_out"] == (0 if own_eval else len(data.held_out))
        assert account["refused"] == (2 if sources == "a, b" else 1)
        assert sum(account["dropped"].values()) >= 2
        assert account["trained"] + account["not_reached"] == len(data.train)
        account = accounts["eval"]
        assert (account is not None) == own_eval
        assert account is None or [account[name] for name in ("read", "held_out", "refused")] == [30, 27, 1]
    with pytest.raises(AssertionError, match=r"\d+ records read, repetitions counted, and \d+ accounted for"):
        ledger(data.train_source, trained=1)


def test_commands_for_the_same_run_and_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lets a run be resumed means nothing to another one."""
    typed = ["train", "a.yaml", "--resume", "--allow-changed", "loss.beta", "--allow-changed=loss.gamma", "loss.beta=3"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/simpo", *typed])
    allowed = "--allow-changed loss.beta --allow-changed=loss.gamma"
    assert receipt.command_to_resume() == f"simpo train a.yaml {allowed} loss.beta=3 --resume"
    assert receipt.command_with("seed=2") == "simpo train a.yaml loss.beta=3 seed=2"
