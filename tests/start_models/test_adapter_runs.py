"""From an adapter to a run by the commands: trained further, merged for full tuning, or merged under a new one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from simpo_cli.model.load import load_model
from simpo_cli.model.source import find_model
from simpo_cli.publish import export
from tests.cli.seen import Simpo
from tests.start_models.conftest import MakeAdapter
from tests.tiny import change_json

WAYS = {
    "continued": ("model.lora={}",),
    "fully tuned": (),
    "merged under a new one": ("model.lora={rank: 2}", "model.adapter=merge"),
}
SAID = {
    "continued": "trained further",
    "fully tuned": "merged into it, and all weights trained",
    "merged under a new one": "merged into it under a new one",
}
IDS = torch.arange(24)[None]


def _logits(model: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=IDS).logits
    return logits


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _as_others_load_it(folder: Path) -> Tensor:
    is_adapter = (folder / "adapter_config.json").is_file()
    auto: Any = AutoPeftModelForCausalLM if is_adapter else AutoModelForCausalLM
    return _logits(auto.from_pretrained(folder))


@pytest.mark.parametrize("way", WAYS)
def test_a_run_from_an_adapter_to_its_end_and_on(
    way: str, simpo: Simpo, place: Path, make_adapter: MakeAdapter, tiny_folder: Path
) -> None:
    words = ("train", "run.yaml", f"model.path={make_adapter(use_rslora=True)}", "checkpoint.every=1", *WAYS[way])
    planned = simpo(*words, "--dry-run")
    assert planned.code == 0
    assert f"(rsLoRA, rank 4, alpha 8, on q_proj, v_proj) on {tiny_folder}" in _one_line(planned.err).replace("- ", "-")
    assert SAID[way] in _one_line(planned.err)
    assert not (place / "runs").exists()
    trained = simpo(*words)
    assert trained.code == 0, trained.err
    assert SAID[way] in _one_line(trained.err)
    run = place / "runs" / "tried"
    first = _as_others_load_it(run / "model")
    torch.testing.assert_close(_logits(load_model(find_model(str(run / "model")), torch.float32)), first)

    resumed = simpo(*words, "train.max_steps=3", "--resume")
    assert resumed.code == 0, resumed.err
    assert not torch.equal(_as_others_load_it(run / "model"), first)
    at_once = simpo(*words, "train.max_steps=3", "train.warmup_ratio=0.1", "name=whole")
    assert at_once.code == 0
    for name in ("adapter_config.json", "config.json"):
        if (run / "model" / name).is_file():
            assert (run / "model" / name).read_text() == (place / "runs/whole/model" / name).read_text().replace(
                "runs/whole", "runs/tried"
            )

    for target in ("runs/tried", "runs/tried/checkpoints/step-00000003"):
        scored = simpo("eval", target, "--json")
        assert scored.code == 0, scored.err
        assert json.loads(scored.out)["baseline"] is not None
    merged = simpo("export", "runs/tried", "--merge", "--dtype", "fp32")
    assert merged.code == (2 if way == "fully tuned" else 0), merged.err
    if way != "fully tuned":
        wanted = _as_others_load_it(run / "model")
        torch.testing.assert_close(_as_others_load_it(run / "merged"), wanted, rtol=0, atol=1e-3)
    verified = simpo("report", "runs/tried", "--verify")
    assert verified.code == 0, verified.err


def test_adapters_name_their_true_base(simpo: Simpo, place: Path, make_adapter: MakeAdapter, tiny_folder: Path) -> None:
    folder = make_adapter()
    for way, base in (("continued", tiny_folder), ("merged under a new one", place / "runs/tried/base")):
        assert simpo("train", "run.yaml", f"model.path={folder}", *WAYS[way], "--fresh").code == 0
        named = json.loads((place / "runs/tried/model/adapter_config.json").read_text(encoding="utf-8"))
        assert named["base_model_name_or_path"] == str(base)
    rank = {
        tensor.shape[0]
        for name, tensor in load_file(place / "runs/tried/model/adapter_model.safetensors").items()
        if "lora_A" in name
    }
    assert rank == {2}


def test_the_base_of_a_merge_is_made_anew_for_a_run_that_begins_again(
    simpo: Simpo, place: Path, make_adapter: MakeAdapter
) -> None:
    words = ("train", "run.yaml", f"model.path={make_adapter()}", *WAYS["merged under a new one"])
    assert simpo(*words).code == 0
    base = place / "runs/tried/base/model.safetensors"
    right = load_file(base)
    shutil.rmtree(place / "runs/tried/base")
    assert simpo(*words, "train.max_steps=3", "--resume").code == 0
    assert all(torch.equal(tensor, right[name]) for name, tensor in load_file(base).items())
    for checkpoint in (place / "runs/tried/checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    base.write_bytes(b"of another adapter")
    assert simpo(*words, "--resume").code == 0
    assert all(torch.equal(tensor, right[name]) for name, tensor in load_file(base).items())


def test_a_run_of_this_tool_can_be_a_start_too(simpo: Simpo) -> None:
    assert simpo("train", "run.yaml", "model.lora={rank: 2}").code == 0
    again = ("train", "run.yaml", "name=again", "model.path=runs/tried/model")
    for way in WAYS:
        assert simpo(*again, *WAYS[way], "--fresh").code == 0
    of_the_run = simpo("train", "run.yaml", "name=other", "model.path=runs/tried", "--dry-run")
    assert of_the_run.code == 2
    assert "runs/tried is the folder of a run, and a model folder is wanted" in of_the_run.err
    assert "runs/tried/model" in of_the_run.err


def test_eval_inspect_and_stats_take_an_adapter(simpo: Simpo, make_adapter: MakeAdapter) -> None:
    folder = make_adapter()
    scored = simpo("eval", str(folder), "--data", "prefs.jsonl", "--json")
    assert scored.code == 0, scored.err
    of_base = simpo("eval", "run.yaml", "data.eval=prefs.jsonl", "--json")
    assert json.loads(scored.out)["margin"]["value"] != json.loads(of_base.out)["margin"]["value"]
    seen = simpo("inspect", "run.yaml", f"model.path={folder}", "-n", "1", "--json")
    assert seen.code == 0, seen.err
    assert json.loads(seen.out)["pairs"]
    measured = simpo("stats", "prefs.jsonl", "--recipe", "run.yaml", "--model", str(folder), "--json")
    assert measured.code == 0, measured.err


def test_a_relative_base_is_true_in_what_is_exported(
    simpo: Simpo, place: Path, make_adapter: MakeAdapter, tiny_folder: Path
) -> None:
    folder = make_adapter("made/sft")
    shutil.copytree(tiny_folder, place / "made" / "base")
    change_json(folder / "adapter_config.json", base_model_name_or_path="base")
    assert simpo("train", "run.yaml", f"model.path={folder}", "model.lora={}").code == 0
    _as_others_load_it(place / "runs/tried/model")


@pytest.mark.parametrize("words", [("train", "--dry-run"), ("train",), ("inspect",)])
def test_a_base_that_is_gone_is_said_at_once(
    words: tuple[str, ...], simpo: Simpo, place: Path, make_adapter: MakeAdapter
) -> None:
    folder = make_adapter()
    change_json(folder / "adapter_config.json", base_model_name_or_path="gone/for/good")
    seen = simpo(words[0], "run.yaml", f"model.path={folder}", *words[1:])
    assert seen.code == 2
    assert "trained beside the model gone/for/good, which is not here" in _one_line(seen.err)
    assert not (place / "runs").exists()


def test_a_template_that_only_the_base_has_goes_into_what_is_written(
    simpo: Simpo, place: Path, make_adapter: MakeAdapter, tiny_folder: Path
) -> None:
    folder = make_adapter()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_folder / name, folder / name)
    assert simpo("train", "run.yaml", f"model.path={folder}").code == 0
    written = (place / "runs/tried/model/chat_template.jinja").read_text(encoding="utf-8")
    assert written == (tiny_folder / "chat_template.jinja").read_text(encoding="utf-8")


@pytest.mark.parametrize("more", [(), ("model.lora={rank: 2}",)])
def test_what_could_not_be_saved_at_the_end_is_said_before_the_first_step(
    more: tuple[str, ...], simpo: Simpo, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if more:
        monkeypatch.setattr("peft.PeftModel.save_pretrained", _fails)
    else:
        monkeypatch.setattr("transformers.GenerationConfig.save_pretrained", _fails)
    seen = simpo("train", "run.yaml", *more)
    assert seen.code == 2
    assert "could not be saved: these values contradict one another" in _one_line(seen.err)
    metrics = place / "runs/tried/metrics.jsonl"
    assert not metrics.exists() or metrics.read_text() == ""
    assert not (place / "runs/tried/.model.tmp").exists()


def _fails(*_: Any, **__: Any) -> None:
    raise ValueError("these values contradict one another")


def test_the_trial_reads_the_adapters_as_the_end_will(
    simpo: Simpo, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters whose base nobody would find again: seen at the first step, not after the last."""
    monkeypatch.setattr(
        export, "_name_base", lambda config, *_: setattr(config, "base_model_name_or_path", "/not/there")
    )
    seen = simpo("train", "run.yaml", "model.lora={rank: 2}")
    assert seen.code == 2
    assert "trained beside the model /not/there, which is not here" in _one_line(seen.err)
    assert not (place / "runs/tried/model").exists()
