"""What lies at a path, and the command that fits it where something else is wanted."""

from itertools import product
from pathlib import Path

import pytest

from simpo_cli.names import _CALLED, is_hub_id, kind_of, no_such_target, not_a_run, wrong_kind


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/first", "runs/second", "tuned", "adapter", "plain"):
        Path(folder).mkdir(parents=True)
    Path("runs/first/run.json").write_text("{}")
    Path("runs/second/run.json").write_text("{}")
    Path("tuned/config.json").write_text('{"model_type": "llama"}')
    Path("adapter/adapter_config.json").write_text('{"peft_type": "LORA"}')
    Path("plain/config.json").write_text('{"builder": "json"}')
    Path("r.yaml").touch()
    Path("r.json").write_text('{"model": {"path": "m"}, "data": {"train": "d"}}')
    Path("prefs.json").write_text('[{"prompt": "p"}]')
    Path("columns.json").write_text('{"prompt": ["p"], "chosen": ["c"], "rejected": ["r"]}')
    Path("wrapped.json").write_text('{"data": [{"prompt": "p"}]}')
    Path("splits.json").write_text('{"train": {"prompt": ["p"], "chosen": ["c"]}, "test": {"prompt": ["p"]}}')
    Path("deep.json").write_text("[" * 100_000)
    Path("prefs.jsonl.gz").touch()
    Path("notes.txt").touch()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("runs/first", "run"),
        ("tuned", "model"),
        ("adapter", "model"),
        ("plain", None),
        ("runs", None),
        ("r.yaml", "recipe"),
        ("r.json", "recipe"),
        ("prefs.json", "pairs"),
        ("columns.json", "pairs"),
        ("wrapped.json", "pairs"),
        ("splits.json", "pairs"),
        ("deep.json", "pairs"),
        ("prefs.jsonl.gz", "pairs"),
        ("notes.txt", None),
        ("gone", None),
        ("x\0y", None),
    ],
)
def test_what_lies_at_a_path(name: str, kind: str | None) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(("wanted", "name"), list(product(_CALLED, ["runs/first", "tuned", "r.yaml", "prefs.json"])))
def test_every_wrong_kind_has_a_command_that_fits(wanted: str, name: str) -> None:
    wrong = wrong_kind(name, wanted)  # type: ignore[arg-type]
    if kind_of(name) == wanted:
        assert wrong is None
        return
    assert wrong is not None
    assert name == wrong.where
    assert "{" not in wrong.fix


def test_a_run_that_is_not_there_has_neighbours() -> None:
    assert no_such_target("runs/firts").problem == "there is no run runs/firts."
    assert no_such_target("runs/firts").fix == "Did you mean runs/first?"
    assert no_such_target("runs/zzz").fix == "Did you mean runs/first or runs/second?"
    assert not_a_run("secnd").fix == "Did you mean runs/second?"
    assert not_a_run("plain").fix == "Name the folder of a run: it holds run.json."
    assert "simpo eval MODEL --data prefs.json" in no_such_target("prefs.json").fix


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("org/model", True),
        ("org/model@refs/pr/1", True),
        ("runs/gone", False),
        ("runs/first", False),
        ("./model", False),
        ("a/b/c", False),
        ("org/recipe.yaml", False),
        ("model", False),
    ],
)
def test_ids_of_the_hub(name: str, is_one: bool) -> None:
    assert is_hub_id(name) is is_one
