"""The commands by which a model is served, at the end of a run and in its card."""

from dataclasses import replace
from pathlib import Path

import pytest

from simpo_cli.publish.serve import serve_commands, served_name
from simpo_cli.recipe.schema import LoraRecipe, ModelRecipe
from tests.train.runs import tiny_runs

_WHOLE = ModelRecipe(path="x")


def _commands(recipe: ModelRecipe, *, has_code: bool = False) -> list[str]:
    return [command for command, _ in serve_commands("mine", "run/model", "org/base", recipe, has_code=has_code)]


def test_a_whole_model_is_served_as_it_is() -> None:
    assert _commands(_WHOLE) == ["vllm serve run/model", "transformers serve run/model"]
    assert _commands(_WHOLE, has_code=True)[0] == "vllm serve run/model --trust-remote-code"


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (4, 8), (16, 16), (24, 32), (300, 320)])
def test_adapters_are_served_beside_their_base_with_a_rank_that_vllm_takes(rank: int, most: int) -> None:
    adapters = replace(_WHOLE, lora=LoraRecipe(rank=rank))
    wanted = f"vllm serve org/base --enable-lora --lora-modules mine=run/model --max-lora-rank {most}"
    assert _commands(adapters) == [wanted]


def test_an_adapter_of_pissa_is_written_with_twice_its_rank() -> None:
    [command] = _commands(replace(_WHOLE, lora=LoraRecipe(rank=16, init="pissa")))
    assert command.endswith("--max-lora-rank 32")


def test_dora_is_merged_first() -> None:
    assert _commands(replace(_WHOLE, lora=LoraRecipe(use_dora=True))) == []


@pytest.mark.parametrize(
    ("name", "served"), [("My run: no. 2!", "my-run-no.-2"), ("a_b-c", "a_b-c"), ("你好", "model")]
)
def test_names_are_those_that_servers_take(name: str, served: str) -> None:
    assert served_name(name) == served


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_ends_with_them(lora: bool, tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    runs = tiny_runs(tmp_path, tiny_folder, prefs, "train.max_steps=1", *(["model.lora.rank=4"] if lora else []))
    outcome = runs.train("run").outcome
    assert outcome is not None
    run = tmp_path / "run"
    beside = f"vllm serve {tiny_folder} --enable-lora --lora-modules tiny={run}/model --max-lora-rank 8"
    alone = [f"vllm serve {run}/model", f"transformers serve {run}/model"]
    export = f"simpo export {run} --gguf q8_0"
    assert [command for command, _ in outcome.next_commands][2:-1] == [*([beside] if lora else alone), export]
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    served = "vllm serve START-MODEL --enable-lora --lora-modules tiny=. --max-lora-rank 8" if lora else "vllm serve ."
    assert f"```shell\n{served}\n" in card
    assert "`simpo export RUN --gguf q8_0`" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize("pairs", ["own", "builtin:guide"])
def test_who_trains_on_the_shipped_pairs_is_shown_the_way_to_others(
    pairs: str, tmp_path: Path, tiny_folder: Path, prefs: Path
) -> None:
    runs = tiny_runs(tmp_path, tiny_folder, prefs if pairs == "own" else Path(pairs), "train.max_steps=1")
    outcome = runs.train("run", "model.path=builtin:guide").outcome
    assert outcome is not None
    expected = f"simpo stats {prefs}" if pairs == "own" else "simpo init my-run.yaml"
    assert outcome.next_commands[-1][0] == expected


def test_new_adapters_on_a_merged_model_are_served_beside_it(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    runs = tiny_runs(tmp_path, tiny_folder, prefs, "train.max_steps=1", "model.lora.rank=4")
    runs.train("first")
    outcome = runs.train("run", f"model.path={tmp_path}/first/model", "model.adapter=merge").outcome
    assert outcome is not None
    assert outcome.next_commands[2][0].startswith(f"vllm serve {tmp_path}/run/base --enable-lora ")
