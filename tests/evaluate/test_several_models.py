"""Several models of one `simpo eval`: each two on the same pairs, seeds together, and what fails by itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.evaluation import Evaluator
from simpo_cli.evaluate.results import Evaluation, Failure
from simpo_cli.statistics import compare_accuracy, holm, mean
from tests.evaluate.conftest import HELD_OUT, ignore
from tests.tiny import byte_level_tokenizer, save_tokenizer

Document = Callable[..., dict[str, Any]]
Assess = Callable[..., list[Evaluation]]


@pytest.fixture(scope="module")
def three(document: Document) -> dict[str, Any]:
    return document("run", "again", "lora")


def test_two_runs_are_compared_pair_by_pair(assess: Assess, three: dict[str, Any]) -> None:
    first, second = assess("run", "again", baseline="none")
    comparison = three["comparisons"][0]
    assert [Path(model).parent.name for model in comparison["models"]] == ["run", "again"]
    assert comparison["recipes"] == [{"key": "seed", "values": [42, 7]}]
    right = [(one.scores.chosen > one.scores.rejected).astype(float) for one in (first, second)]
    test = compare_accuracy(*right, first.scores.prompt_keys)
    assert comparison["difference"]["accuracy"] == test.difference.as_json()
    margins = [2 * (one.scores.chosen - one.scores.rejected) for one in (first, second)]
    expected = mean(margins[1] - margins[0], first.scores.prompt_keys)
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
