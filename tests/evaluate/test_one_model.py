"""`simpo eval` of one model: whatever names it, the same code and the same numbers as in training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from simpo_cli.builtin import guide_model_dir
from simpo_cli.evaluate.evaluation import Evaluator
from simpo_cli.evaluate.results import Evaluation
from simpo_cli.statistics import compare_accuracy, mean, proportion, signed_rank_test, spearman
from tests.evaluate.conftest import HELD_OUT, ignore
from tests.model.reference import response_logps

Document = Callable[..., dict[str, Any]]
Assess = Callable[..., list[Evaluation]]

SCORES = (
    "pairs", "prompts", "loss", "accuracy", "ties", "margin", "margin_median", "target_reached", "logps/chosen",
    "logps/rejected", "length", "baselines", "calibration",
)  # fmt: skip


def scores(document: dict[str, Any]) -> dict[str, Any]:
    """What was measured of the model itself."""
    return {name: document[name] for name in SCORES}


@pytest.fixture(scope="module")
def of_run(document: Document) -> dict[str, Any]:
    return document("run")


def test_a_run_its_model_folder_and_its_receipt_agree(place: Path, document: Document, of_run: dict[str, Any]) -> None:
    assert of_run == document("run/model") | {"token_cache": of_run["token_cache"]}
    outcome = json.loads((place / "run" / "run.json").read_text(encoding="utf-8"))["outcome"]
    assert scores(of_run) == scores(outcome["after"])
    assert scores(of_run["baseline"]) == scores(outcome["before"])
    assert {name: of_run["difference"][name] for name in outcome["difference"]} == outcome["difference"]


def test_a_recipe_means_its_start_model(document: Document, of_run: dict[str, Any]) -> None:
    start = document("recipe.yaml")
    assert scores(start) == scores(of_run["baseline"])
    assert start["baseline"] is None
    assert start["difference"] is None


def test_the_numbers_are_those_of_single_sequences(place: Path, assess: Assess, of_run: dict[str, Any]) -> None:
    [one] = assess("run", baseline="none")
    model = AutoModelForCausalLM.from_pretrained(place / "run" / "model", dtype=torch.float32)
    with torch.no_grad():
        m = np.array(
            [
                [float(response_logps(model, p.prompt.tolist(), r.tolist()).mean()) for r in (p.chosen, p.rejected)]
                for p in one.held_out.pairs
            ]
        )
    assert of_run["pairs"] == len(m) == HELD_OUT
    assert of_run["accuracy"]["value"] == float((m[:, 0] > m[:, 1]).mean())
    assert of_run["margin"]["value"] == pytest.approx(2 * float((m[:, 0] - m[:, 1]).mean()), rel=1e-4)
    assert of_run["logps/rejected"]["value"] == pytest.approx(float(m[:, 1].mean()), rel=1e-5)
    assert of_run["target_reached"]["value"] == float((2 * (m[:, 0] - m[:, 1]) > 0.7).mean())


def test_every_number_follows_from_the_scores_of_the_pairs(assess: Assess, of_run: dict[str, Any]) -> None:
    [one] = assess("run")
    assert one.baseline is not None
    now, then, prompts = one.scores, one.baseline.scores, list(one.scores.prompt_keys)
    assert len(set(prompts)) < len(prompts)  # so every interval and test goes by prompt
    right = [(s.chosen > s.rejected).astype(float) for s in (then, now)]
    margins = [2 * (s.chosen - s.rejected) for s in (then, now)]
    difference = of_run["difference"]
    test = compare_accuracy(*right, prompts)
    assert difference["accuracy"]["value"] == test.difference.value
    assert difference["accuracy"]["ci"] == pytest.approx([test.difference.low, test.difference.high])
    assert (difference["p_value"], difference["test"]) == (test.p_value, "sign-flip-by-prompt")
    assert difference["margin"]["ci"] == pytest.approx(mean(margins[1] - margins[0], prompts).as_json()["ci"])
    ranks = signed_rank_test(margins[1] - margins[0], prompts)
    assert (difference["margin_p_value"], difference["margin_test"]) == (pytest.approx(ranks.p_value), "datta-satten")
    drift = mean(now.chosen - then.chosen, prompts)
    assert difference["logps/chosen_delta"]["ci"] == pytest.approx([drift.low, drift.high])
    fell = proportion(now.chosen < then.chosen, prompts)
    assert difference["chosen_fell"]["ci"] == pytest.approx([fell.low, fell.high])
    rewards, lengths = np.r_[now.chosen, now.rejected], np.r_[now.chosen_lengths, now.rejected_lengths]
    pooled = spearman(rewards, lengths, prompts * 2)
    assert pooled is not None
    assert of_run["length"]["spearman"]["ci"] == pytest.approx([pooled.low, pooled.high])
    assert of_run["length"]["spearman"]["n"] == HELD_OUT
    centred = [
        np.r_[(a - b) / 2, (b - a) / 2]
        for a, b in ((now.chosen, now.rejected), (now.chosen_lengths, now.rejected_lengths))
    ]
    within = spearman(*centred, prompts * 2)
    assert within is not None
    assert of_run["length"]["spearman_within"]["ci"] == pytest.approx([within.low, within.high])


def test_a_checkpoint_is_scored_with_its_float32_weights(
    place: Path, document: Document, of_run: dict[str, Any]
) -> None:
    [last] = (place / "run" / "checkpoints").glob("step-*")
    checkpoint = document(f"run/checkpoints/{last.name}")
    save = of_run["save"]
    assert save["accuracy"] == checkpoint["accuracy"]
    assert save["difference"]["margin"]["value"] == pytest.approx(
        of_run["margin"]["value"] - checkpoint["margin"]["value"]
    )
    assert 0 < abs(save["difference"]["margin"]["value"]) < 0.05  # bfloat16 keeps eight bits
    assert scores(checkpoint["baseline"]) == scores(of_run["baseline"])


def test_a_model_that_is_saved_as_wide_as_it_was_trained_lost_nothing_to_the_save(document: Document) -> None:
    assert document("lora")["save"] is None


def test_adapters_are_scored_on_their_base_also_from_a_checkpoint(place: Path, document: Document) -> None:
    saved = document("lora/model")
    assert saved["difference"]["margin"]["value"] != 0
    outcome = json.loads((place / "lora" / "run.json").read_text(encoding="utf-8"))["outcome"]
    assert scores(saved) == scores(outcome["after"])
    [last] = (place / "lora" / "checkpoints").glob("step-*")
    assert scores(document(f"lora/checkpoints/{last.name}")) == scores(saved)


def test_a_model_by_itself_has_what_it_is_given(place: Path, document: Document, of_run: dict[str, Any]) -> None:
    given = [f"data.eval={place}/held.jsonl", "loss.gamma=0.7", "train.precision=fp32"]
    alone = document("tiny", overrides=given)
    assert alone["baseline"] is None
    assert alone["baselines"]["surface"] is None  # nothing says what it was trained on
    assert {**scores(alone), "baselines": 0} == {**scores(of_run["baseline"]), "baselines": 0}
    shutil.copytree(place / "run" / "model", place / "moved", dirs_exist_ok=True)
    against = document("moved", overrides=given, baseline=str(place / "tiny"))
    for key in ("accuracy", "p_value", "margin"):
        assert against["difference"][key] == of_run["difference"][key]


def test_the_embedded_model_goes_by_its_name(place: Path, tmp_path: Path, document: Document) -> None:
    shutil.copytree(guide_model_dir(), tmp_path / "guide")
    given = [f"data.eval={place}/held.jsonl"]
    [[named], _], [[copied], _] = (
        Evaluator(given, None, (), ignore).run([name], ignore) for name in ("builtin:guide", str(tmp_path / "guide"))
    )
    assert named.target.name == "builtin:guide"
    assert scores(named.as_json()) == scores(copied.as_json())
    against = document("run", baseline="builtin:guide")
    assert against["baseline"]["model"] == "builtin:guide"
    assert against["difference"]["accuracy"]["n"] == HELD_OUT


def test_an_id_of_the_hub_may_name_its_revision(place: Path, monkeypatch: pytest.MonkeyPatch, assess: Assess) -> None:
    revisions = {"first": place / "tiny", "refs/pr/2": place / "run" / "model"}

    def snapshot_download(name: str, *, revision: str, **_: object) -> str:
        assert name == "org/tiny"
        return str(revisions[revision])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    given = [f"data.eval={place}/held.jsonl", "loss.gamma=0.7", "train.precision=fp32"]
    [one], _ = Evaluator(given, "org/tiny@first", (), ignore).run(["org/tiny@refs/pr/2"], ignore)
    [run] = assess("run")
    assert one.target.name == "org/tiny@refs/pr/2"
    assert one.baseline is not None
    assert run.baseline is not None
    np.testing.assert_array_equal(one.scores.chosen, run.scores.chosen)
    np.testing.assert_array_equal(one.baseline.scores.chosen, run.baseline.scores.chosen)


def test_equal_weights_differ_by_noise_alone(place: Path, document: Document) -> None:
    shutil.copytree(place / "run" / "model", place / "twin", dirs_exist_ok=True)
    twin = document("run", baseline=str(place / "twin"))
    assert twin["difference"]["is_noise"] == {"accuracy": True, "margin": True}
    assert twin["difference"]["p_value"] == twin["difference"]["margin_p_value"] == 1.0


def test_the_noise_is_that_of_another_packing_and_small_in_float32(of_run: dict[str, Any]) -> None:
    noise = of_run["noise"]
    assert noise["packing"] == "padded rows"
    assert noise["pairs"] == HELD_OUT
    assert 0 < noise["largest"] < 1e-4
    assert noise["accuracy"] == 0
    assert of_run["difference"]["is_noise"] == {"accuracy": False, "margin": False}


def test_slices_by_column_hold_every_pair_once_and_mind_one_another(assess: Assess, document: Document) -> None:
    found = document("run", by=["source", "metadata.score"])["slices"]
    assert [(one["value"], one["pairs"]) for one in found["source"]] == [("first", 45), ("second", 15)]
    assert sum(one["pairs"] for one in found["metadata.score"]) == HELD_OUT
    [run] = assess("run")
    second = [i for i, pair in enumerate(run.held_out.pairs) if (int(pair.where.rsplit(":")[-1]) - 1) % 4 == 0]
    part = run.scores.select(second)
    assert found["source"][1]["accuracy"] == proportion(part.chosen > part.rejected, part.prompt_keys).as_json()
    p_values = [one["p_value"] for one in found["source"]]
    assert max(one["p_value_holm"] for one in found["source"]) >= max(p_values)
    assert min(one["p_value_holm"] for one in found["source"]) == min(1.0, 2 * min(p_values))


def test_several_files_are_told_apart(place: Path, document: Document) -> None:
    lines = (place / "held.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (place / "one.jsonl").write_text("".join(lines[:40]), encoding="utf-8")
    (place / "two.jsonl").write_text("".join(lines[40:]), encoding="utf-8")
    found = document("run", overrides=[f"data.eval=[{{path: {place}/one.jsonl}}, {{path: {place}/two.jsonl}}]"])
    assert [(Path(one["value"]).name, one["pairs"]) for one in found["slices"]["file"]] == [
        ("one.jsonl", 40),
        ("two.jsonl", 20),
    ]
    assert found["pairs"] == HELD_OUT


def test_pairs_that_are_held_out_of_the_training_file_are_found_again(document: Document) -> None:
    found = document("run", overrides=["data.eval=null", "data.holdout=10"], by=["source"])
    assert 10 <= found["pairs"] <= 11
    assert sum(one["pairs"] for one in found["slices"]["source"]) == found["pairs"]
    assert found["baselines"]["surface"] is not None
