"""The card of a model folder: what the hub's own library reads of it, and what it must not tell."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from simpo_cli.data.encode import AS_TRANSCRIPT
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.adapters import add_adapters
from simpo_cli.model.load import load_model
from simpo_cli.model.source import ModelSource, find_model
from simpo_cli.publish.card import Trained, inherited_licence, model_card, write_card
from simpo_cli.publish.export import save_model
from simpo_cli.recipe.schema import DataRecipe, LoraRecipe, ModelRecipe, Recipe
from tests.report.made_run import checked, outcome

COMMIT = "a" * 40
RISE = outcome((0.3, 0.2, 0.4), 0.001, prompts=35)


def _source(*files: tuple[str, str]) -> Any:
    return SimpleNamespace(account=SimpleNamespace(files=[(*file, 10) for file in files], counts=Counter()))


@pytest.fixture
def trained(tiny_folder: Path) -> Trained:
    """A run of a local model on a local file, whose names nobody else is to learn."""
    data: Any = SimpleNamespace(
        train=range(1200),
        held_out=range(40),
        train_source=_source(("/home/alice/secret.jsonl", "4" * 64)),
        eval_source=None,
        shared_prompts=0,
        tokenizer=SimpleNamespace(template_source="{{ messages }}"),
    )
    data.sources = [data.train_source]
    recipe = Recipe(
        name="mine", model=ModelRecipe(path=str(tiny_folder)), data=DataRecipe(train="/home/alice/secret.jsonl")
    )
    return Trained(recipe, find_model(str(tiny_folder)), data, 10, "bfloat16")


def _on_the_hub(trained: Trained, *files: tuple[str, str]) -> Trained:
    start = replace(trained.start, name="HuggingFaceTB/SmolLM2-135M", revision=COMMIT)
    trained.data.train_source.account.files = [(*file, 0) for file in files]  # type: ignore[attr-defined]
    return replace(trained, start=start)


def test_a_card_says_that_conversations_met_no_template(trained: Trained) -> None:
    assert "| form |" not in model_card(trained, {})
    trained.data.train_source.account.counts[AS_TRANSCRIPT] = 3
    assert "| form | no chat template: conversations were trained as `Human:`" in model_card(trained, {})


def _read(card: str) -> ModelCard:
    """The card as the hub's library reads it."""
    read = ModelCard(card, ignore_metadata_errors=False)
    assert yaml.safe_load(card.split("---")[1]) == read.data.to_dict()
    return read


def test_a_local_run_tells_nothing_of_the_machine(trained: Trained, tiny_folder: Path) -> None:
    card = model_card(trained, RISE)
    read = _read(card)
    assert read.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["simpo", "preference-alignment", "preference-optimization"],
    }
    for secret in ("alice", "secret", str(tiny_folder), str(Path.home()), "simpo train"):
        assert secret not in card
    assert "A tuning of a llama model that is not on the hub" in read.text
    assert "from 1,200 preference pairs" in read.text
    assert "10 steps of 128 pairs, 1 epoch;" in read.text
    assert "1 file (sha256 444444444444): 1,200 pairs, and 40 held out of the same by prompt" in read.text


def test_a_run_that_ended_before_its_pairs_says_how_many_it_reached(trained: Trained) -> None:
    short = replace(trained.recipe, train=replace(trained.recipe.train, max_steps=3))
    text = _read(model_card(replace(trained, recipe=short, steps=3), RISE)).text
    assert "from 384 preference pairs" in text
    assert "3 steps of 128 pairs; learning rate" in text
    assert "1,200 pairs, of which 384 were reached, and 40 held out" in text


def test_hub_ids_are_metadata_and_files_are_not(trained: Trained) -> None:
    hub = _on_the_hub(trained, ("org/pairs", "b" * 40), ("org/pairs", "b" * 40), ("data/prefs.jsonl", "4" * 64))
    read = _read(model_card(hub, RISE))
    assert read.data.base_model == "HuggingFaceTB/SmolLM2-135M"
    assert read.data.base_model_relation == "finetune"
    assert read.data.datasets == ["org/pairs"]
    assert f"[org/pairs](https://huggingface.co/datasets/org/pairs) at {'b' * 40}" in read.text
    assert f"| start model | HuggingFaceTB/SmolLM2-135M at {COMMIT} |" in read.text
    assert "prefs.jsonl" not in read.text


def test_how_it_did_stands_with_intervals_and_counts(trained: Trained) -> None:
    text = _read(model_card(trained, RISE)).text
    assert "| accuracy | 50.0 % (40.0 to 60.0) | 80.0 % (75.0 to 85.0) |" in text
    assert "| length-balanced | too few pairs | too few pairs |" in text
    assert "Held-out accuracy rose 30.0 points, from 50.0 % to 80.0 % (95 % CI of the difference +20.0 to +40.0" in text
    assert "random baseline 50.0 %; the longer response wins 40.0 % (30.0 to 50.0)" in text
    assert "intervals are rough" not in text
    assert "right answers" not in text
    known = {**RISE, "checked": checked(0.25, 0.75, (0.35, 0.62), 0.00002)}
    text = _read(model_card(trained, known)).text
    assert "| wholly right answers | 25.0 % (15.0 to 35.0) | 75.0 % (65.0 to 85.0) |" in text
    assert "Wholly right answers rose 50.0 points, from 25.0 % to 75.0 % (95 % CI of the difference +35.0 to" in text
    assert "Only 29 prompts: too few" in model_card(trained, outcome((0.3, 0.2, 0.4), 0.001, prompts=29))


def test_a_run_that_held_nothing_out_says_so(trained: Trained) -> None:
    assert "nothing says whether it got better" in model_card(trained, {"steps": 4, "answers": []})


def test_adapters_are_loaded_through_peft(trained: Trained) -> None:
    recipe = replace(trained.recipe, model=replace(trained.recipe.model, lora=LoraRecipe(rank=4)))
    read = _read(model_card(_on_the_hub(replace(trained, recipe=recipe)), RISE))
    assert (read.data.library_name, read.data.base_model_relation) == ("peft", "adapter")
    assert read.data.tags[-1] == "lora"
    assert "from peft import AutoPeftModelForCausalLM" in read.text
    assert "| LoRA | rank 4, alpha 32, all-linear |" in read.text
    assert "BitsAndBytesConfig" not in read.text
    merged = _read(model_card(_on_the_hub(replace(trained, recipe=recipe, merged="It was compared.")), RISE))
    assert (merged.data.library_name, merged.data.base_model_relation) == ("transformers", "finetune")
    assert "It was compared." in merged.text


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_quantised_base_of_adapters_is_said_and_loaded(trained: Trained, kind: Any) -> None:
    from transformers import BitsAndBytesConfig

    recipe = replace(trained.recipe, model=replace(trained.recipe.model, lora=LoraRecipe(), quantization=kind))
    beside = replace(trained, recipe=recipe, start=replace(trained.start, quantization=kind))
    text = _read(model_card(beside, RISE)).text
    assert f"trained beside a base in {kind}." in text
    [line] = [line for line in text.splitlines() if line.startswith("as_trained = ")]
    settings = eval(line.removeprefix("as_trained = "), {"BitsAndBytesConfig": BitsAndBytesConfig})
    assert settings.quantization_method() == {"nf4": "nf4", "int8": "llm_int8"}[kind]
    assert "from_pretrained(path, quantization_config=as_trained)" in text
    stored = replace(beside, start=replace(beside.start, is_stored_quantised=True))
    assert "as_trained" not in _read(model_card(stored, RISE)).text


def test_a_card_says_how_its_folder_is_served(trained: Trained) -> None:
    assert "## How to serve it\n\nIn this folder:\n\n```shell\nvllm serve .\ntransformers serve .\n```\n" in model_card(
        trained, RISE
    )
    lora = replace(trained.recipe.model, lora=LoraRecipe(rank=4))
    adapters = replace(_on_the_hub(trained), recipe=replace(trained.recipe, model=lora))
    served = "vllm serve HuggingFaceTB/SmolLM2-135M --enable-lora --lora-modules mine=. --max-lora-rank 8\n"
    assert f"```shell\n{served}```" in model_card(adapters, RISE)
    assert "```shell\nvllm serve .\n" in model_card(replace(adapters, merged="It was compared."), RISE)
    dora = replace(lora, lora=LoraRecipe(use_dora=True))
    card = model_card(replace(trained, recipe=replace(trained.recipe, model=dora)), RISE)
    assert "Adapters with DoRA are merged before they are served." in card
    assert "vllm" not in card


def _start(folder: Path, card: str | None, *, revision: str | None = None) -> ModelSource:
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")
    source: Any = SimpleNamespace(folder=folder, name="org/base", revision=revision)
    return source


@pytest.mark.parametrize(
    ("card", "revision", "licence"),
    [
        (None, None, {}),
        ("# no metadata\n", None, {}),
        ("---\nlicense: [broken\n---\n", None, {}),
        ("---\ntags: [x]\nlicense_name: alone\n---\n", None, {}),
        ("---\nlicense: apache-2.0\n---\n# base\n", None, {"license": "apache-2.0"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            COMMIT,
            {
                "license": "other",
                "license_name": "own",
                "license_link": "https://huggingface.co/org/base/blob/main/LICENSE",
            },
        ),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            None,
            {"license": "other", "license_name": "own"},
        ),
    ],
)
def test_the_licence_is_the_start_models_or_none(
    card: str | None, revision: str | None, licence: dict[str, str], tmp_path: Path
) -> None:
    assert inherited_licence(_start(tmp_path, card, revision=revision)) == licence


def test_the_inherited_licence_is_in_the_metadata(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    read = _read(model_card(replace(trained, start=replace(trained.start, folder=tmp_path)), RISE))
    assert read.data.license == "mit"


def _code(card: str) -> str:
    found: Sequence[str] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    [code] = found
    return code


def test_the_code_of_the_card_runs(
    trained: Trained, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_folder)
    exec(_code(model_card(trained, RISE)).replace("=200", "=3"), {})
    assert capsys.readouterr().out
    trained.data.tokenizer.template_source = ""
    exec(_code(model_card(trained, RISE)).replace("=200", "=3"), {})
    assert capsys.readouterr().out


def test_a_card_that_the_disk_does_not_take_leaves_the_old_one(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_card(model, "old")
    write_card(model, "new")
    assert [(file.name, file.read_text()) for file in model.iterdir()] == [("README.md", "new")]
    with pytest.raises(UserError, match="card of the model cannot be written") as caught:
        write_card(tmp_path / "gone", "card")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert list(tmp_path.iterdir()) == [model]


def test_a_process_killed_in_the_writing_of_a_card_leaves_nothing_in_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    write_card(model, "old")
    seen = list[str]()
    monkeypatch.setattr(os, "fsync", lambda _: seen.extend(sorted(os.listdir(model))))
    write_card(model, "new")
    assert seen == ["README.md"]


def test_adapters_of_a_hub_model_name_it_by_id_and_commit_and_are_loaded_beside_it(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot(path: str, *, revision: str | None, **_: object) -> str:
        asked.append((path, revision))
        return str(tiny_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    lora, folder = LoraRecipe(rank=2), tmp_path / "model"
    recipe = Recipe(name="x", model=ModelRecipe(path="org/base", lora=lora), data=DataRecipe(train="x"))
    source = replace(find_model("org/base"), revision="c" * 40)
    save_model(folder, add_adapters(load_model(source, "stored"), lora), recipe, source, "")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "c" * 40)
    assert str(tiny_folder) not in "".join(file.read_text("utf-8") for file in folder.glob("*.json"))  # the cache
    base = find_model(str(folder)).adapter_base
    assert base is not None
    assert (base.name, asked) == ("org/base", [("org/base", None), ("org/base", "c" * 40)])
