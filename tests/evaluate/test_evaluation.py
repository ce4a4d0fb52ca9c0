"""`simpo eval` of one model, on the code and the numbers of training, and of several on the pairs that two share."""

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
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.evaluation import Evaluator
from simpo_cli.evaluate.results import Evaluation, Failure
from simpo_cli.statistics import compare_accuracy, holm, mean, proportion, signed_rank_test, spearman
from tests.evaluate.conftest import HELD_OUT, ignore
from tests.model.reference import response_logps
from tests.tiny import byte_level_tokenizer, save_tokenizer

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
    now, then, prompts = one.scores, one.baseline.scores, one.scores.groups.tolist()
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
    rewards, lengths = np.r_[now.chosen, now.rejected], np.r_[now.lengths]
    pooled = spearman(rewards, lengths, prompts * 2)
    assert pooled is not None
    assert of_run["length"]["spearman"]["ci"] == pytest.approx([pooled.low, pooled.high])
    assert of_run["length"]["spearman"]["n"] == HELD_OUT
    centred = [np.r_[(a - b) / 2, (b - a) / 2] for a, b in ((now.chosen, now.rejected), now.lengths)]
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
    assert found["source"][1]["accuracy"] == proportion(part.chosen > part.rejected, part.groups).as_json()
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


@pytest.fixture(scope="module")
def three(document: Document) -> dict[str, Any]:
    return document("run", "again", "lora")


def test_two_runs_are_compared_pair_by_pair(assess: Assess, three: dict[str, Any]) -> None:
    first, second = assess("run", "again", baseline="none")
    comparison = three["comparisons"][0]
    assert [Path(model).parent.name for model in comparison["models"]] == ["run", "again"]
    assert comparison["recipes"] == [{"key": "seed", "values": [42, 7]}]
    right = [(one.scores.chosen > one.scores.rejected).astype(float) for one in (first, second)]
    test = compare_accuracy(*right, first.scores.groups.tolist())
    assert comparison["difference"]["accuracy"] == test.difference.as_json()
    margins = [2 * (one.scores.chosen - one.scores.rejected) for one in (first, second)]
    expected = mean(margins[1] - margins[0], first.scores.groups.tolist())
    assert comparison["difference"]["margin"]["value"] == pytest.approx(expected.value)


def test_margins_of_other_objectives_are_not_compared_and_accuracies_are(three: dict[str, Any]) -> None:
    comparison = three["comparisons"][1]
    assert {told["key"] for told in comparison["recipes"]} > {"loss.beta", "loss.gamma_beta_ratio", "model.lora.rank"}
    difference = comparison["difference"]
    assert (difference["same_tokens"], difference["same_rewards"]) == (True, False)
    assert difference["margin"] is None
    assert difference["accuracy"]["n"] == HELD_OUT


def test_all_tests_of_the_document_are_minded_together(three: dict[str, Any]) -> None:
    tests = [one["difference"] for one in (*three["evaluations"], *three["comparisons"])]
    assert len(tests) == 6
    assert [one["p_value_holm"] for one in tests] == pytest.approx(holm([one["p_value"] for one in tests]))


def test_runs_that_differ_by_their_seed_alone_are_put_together(three: dict[str, Any]) -> None:
    [group] = three["seeds"]
    assert group["seeds"] == [42, 7]
    values = [one["accuracy"]["value"] for one in three["evaluations"][:2]]
    expected = mean(values)
    assert group["accuracy"] == {
        "value": expected.value,
        "ci": [max(0.0, expected.low), min(1.0, expected.high)],
        "n": 2,
    }
    assert group["difference"]["value"] == pytest.approx(
        sum(one["difference"]["accuracy"]["value"] for one in three["evaluations"][:2]) / 2
    )


def test_a_model_by_itself_takes_the_pairs_of_the_run_beside_it(document: Document) -> None:
    both = document("tiny", "run")
    tiny, run = both["evaluations"]
    assert tiny["accuracy"] == run["baseline"]["accuracy"]
    assert both["comparisons"][0]["difference"]["accuracy"] == run["difference"]["accuracy"]
    assert both["comparisons"][0]["recipes"] is None


def test_a_baseline_among_several_is_not_compared_with_itself(place: Path, document: Document) -> None:
    first, second = document("run", "again", baseline=str(place / "run"))["evaluations"]
    assert first["baseline"] is None
    assert second["difference"]["accuracy"]["n"] == HELD_OUT


def test_other_tokens_leave_accuracies_and_nothing_else(place: Path, document: Document) -> None:
    other = place / "other"
    shutil.copytree(place / "tiny", other, dirs_exist_ok=True)
    tokenizer = byte_level_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"), vocab_size=300)
    template = json.loads((other / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    template = template or (other / "chat_template.jinja").read_text(encoding="utf-8")
    save_tokenizer(other, tokenizer, bos="<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>", template=template)
    difference = document("run", baseline=str(other))["difference"]
    assert difference["same_tokens"] is False
    assert difference["accuracy"]["n"] == HELD_OUT
    for key in ("margin", "margin_p_value", "loss", "logps/chosen_delta", "chosen_fell"):
        assert difference[key] is None
    assert difference["is_noise"]["margin"] is None


def test_what_was_scored_is_kept_when_a_later_one_fails(place: Path) -> None:
    broken = place / "broken"
    shutil.copytree(place / "tiny", broken, dirs_exist_ok=True)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    kept: list[tuple[int, int]] = []

    def keep(assessed: list[Evaluation], failed: list[Failure]) -> None:
        kept.append((len(assessed), len(failed)))

    names = [str(place / name) for name in ("run", "broken", "again")]
    said: list[str] = []
    assessed, failed = Evaluator((), "none", (), said.append).run(names, keep)
    assert [one.target.name for one in assessed] == [f"{place}/run/model", f"{place}/again/model"]
    assert [failure.error.exit_code for failure in failed] == [ExitCode.USAGE]
    assert kept == [(1, 0), (1, 1)]
    assert any("not scored" in line and "broken" in line for line in said)


def test_where_all_fail_the_first_reason_is_given(place: Path) -> None:
    for name in ("bad1", "bad2"):
        shutil.copytree(place / "tiny", place / name, dirs_exist_ok=True)
        (place / name / "model.safetensors").write_bytes(b"")
    names = [str(place / "bad1"), str(place / "bad2")]
    with pytest.raises(UserError, match="bad1"):
        Evaluator([f"data.eval={place}/held.jsonl"], None, (), ignore).run(names, ignore)


def _copy_held_out_elsewhere(place: Path, there: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """A copy of the run whose held-out records lie in another file, in the other order, each of them changed."""
    records = [json.loads(line) for line in (place / "held.jsonl").read_text(encoding="utf-8").splitlines()]
    held = there / "mine.jsonl"
    held.write_text("".join(json.dumps(change(record)) + "\n" for record in records[::-1]), encoding="utf-8")
    shutil.copytree(place / "run", there / "run")
    recipe = there / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace(f"{place}/held.jsonl", str(held)), encoding="utf-8")
    return str(there / "run")


def test_equal_pairs_of_another_file_are_the_same_pairs(place: Path, tmp_path: Path, document: Document) -> None:
    moved = _copy_held_out_elsewhere(place, tmp_path, lambda record: record)
    comparison = document("run", moved, baseline="none")["comparisons"][0]
    assert (comparison["pairs"], comparison["swapped"]) == (HELD_OUT, 0)
    assert comparison["difference"]["accuracy"]["value"] == 0  # one model, and its pairs in the right order
    assert comparison["difference"]["wins"] == comparison["difference"]["losses"] == 0


def test_pairs_with_swapped_labels_are_other_pairs(place: Path, tmp_path: Path, document: Document) -> None:
    swapped = _copy_held_out_elsewhere(
        place, tmp_path, lambda record: {**record, "chosen": record["rejected"], "rejected": record["chosen"]}
    )
    comparison = document("run", swapped, baseline="none")["comparisons"][0]
    assert (comparison["pairs"], comparison["swapped"]) == (0, HELD_OUT)
    assert comparison["difference"] is None
