"""Margins, findings and tokens of a model before the first step, and the pairs to read: by other arithmetic."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.evaluate.metrics import EvalSummary, PairScores, summarise
from simpo_cli.evaluate.pair_files import write_samples
from simpo_cli.evaluate.scoring import OpenModel, open_model, score_tokens
from simpo_cli.evaluate.start import (
    fitting_lengths,
    margin_histogram,
    score_start,
    start_document,
    start_findings,
    suggestions,
)
from simpo_cli.model.source import find_model
from simpo_cli.recipe.schema import DataRecipe, LossRecipe, ModelRecipe, Recipe, TrainRecipe
from simpo_cli.statistics import Measured
from tests.model.reference import random_pairs, response_logps
from tests.tiny import save_tiny_model


def scores_of(differences: Sequence[float]) -> PairScores:
    """Scored pairs of these differences, each of a prompt of its own."""
    chosen = np.array([d - 1.0 for d in differences])
    lengths = np.full(len(chosen), 7)
    return PairScores(chosen, np.full(len(chosen), -1.0), (lengths, lengths), np.arange(len(chosen)).astype(str))


def summary_of(differences: Sequence[float]) -> EvalSummary:
    return summarise(scores_of(differences), LossRecipe(beta=2, gamma=1))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


DIFFERENCES = [-1.5, -0.2, 0.0, 0.1, 0.5, 3.0]


def test_a_target_that_most_pairs_are_past_is_raised_to_where_half_of_them_are_not() -> None:
    draw = random.Random(1)
    spread = [draw.gauss(0.9, 0.2) for _ in range(400)]  # past gamma/beta 0.5 all but a few
    [one] = suggestions(scores_of(spread), summary_of(spread))
    [override] = one["overrides"]
    ratio = float(override.removeprefix("loss.gamma_beta_ratio="))
    assert ratio * 20 == pytest.approx(round(ratio * 20))
    assert 0 <= ratio - float(np.median(spread)) <= 0.05
    below, before = (100 * sum(d <= limit for d in spread) / 400 for limit in (ratio, 0.5))
    assert one["why"] == f"{below:.1f} % of the scored pairs are then below the target, now {before:.1f} % (n = 400)"


def test_nothing_is_suggested_where_these_pairs_show_nothing() -> None:
    for centre in (0.0, 0.3, 0.5):
        spread = [centre + (number - 50) / 100 for number in range(101)]
        assert suggestions(scores_of(spread), summary_of(spread)) == []


def test_the_histogram_holds_zero_in_its_middle_and_gamma_within() -> None:
    margins = np.array([-0.5, -0.1, 0.0, 0.2, 0.4] * 50)
    shape = margin_histogram(margins, gamma=3.0)
    assert sum(shape["hist"]) == 250
    assert shape["bin_edges"][0] == -shape["bin_edges"][-1]
    assert shape["bin_edges"][-1] > 3.0
    assert sum(margin_histogram(np.array([100.0, *margins]), gamma=0.0)["hist"]) == 251


def test_findings_come_with_clear_intervals_only() -> None:
    def codes(differences: Sequence[float]) -> list[str]:
        return [finding.code for finding in start_findings(summary_of(differences))]

    assert codes([-0.3] * 80 + [0.3] * 20) == ["LBL005"]
    assert codes([-0.3] * 4 + [0.3]) == []  # five pairs say nothing
    assert codes([-0.3] * 52 + [0.3] * 48) == []
    assert codes([0.3] * 100) == []
    assert codes([0.6] * 80 + [0.3] * 20) == ["MOD001"]
    assert codes([0.6] * 52 + [0.3] * 48) == []
    [swapped] = start_findings(summary_of([-0.3] * 80 + [0.3] * 20))
    assert swapped.count == 80
    assert "80 of 100 pairs" in swapped.hint


def test_labels_that_only_follow_length_do_not_look_swapped() -> None:
    summary = summary_of([-0.3] * 80 + [0.3] * 20)
    balanced = Measured(0.5, 0.4, 0.6, 100)
    assert start_findings(replace(summary, length={**summary.length, "balanced": balanced})) == []


def test_the_document_is_measured_under_the_objective() -> None:
    loss = LossRecipe(beta=2, gamma=1)
    recipe = Recipe(name="r", model=ModelRecipe(path="m"), data=DataRecipe(train="-"), loss=loss)
    document = start_document(scores_of(DIFFERENCES), recipe, 7)
    assert (document["pairs"], document["of_pairs"]) == (6, 7)
    assert document["accuracy"]["value"] == pytest.approx(3.5 / 6)
    assert document["ties"] == 1
    assert document["margin"]["value"] == pytest.approx(2 * sum(DIFFERENCES) / 6)
    assert document["target_reached"]["value"] == pytest.approx(1 / 6)  # 2 x 0.5 is at the target, not past it
    assert document["loss"]["value"] == pytest.approx(sum(-math.log(sigmoid(2 * d - 1)) for d in DIFFERENCES) / 6)
    assert document["gradient_weight"]["value"] == pytest.approx(sum(sigmoid(1 - 2 * d) for d in DIFFERENCES) / 6)
    assert document["objective"]["gamma_beta_ratio"] == 0.5
    assert sum(document["margin"]["histogram"]["hist"]) == 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_real_model_is_measured_as_single_sequences_are(folder: Path) -> None:
    pairs = [
        PreferencePair(f"Question {n % 5}?", "yes please " * (n % 4 + 1), "never " * (n % 3 + 1), f"p.jsonl:{n}")
        for n in range(12)
    ] + [PreferencePair("empty", "", "x", "p.jsonl:13")]
    recipe = Recipe(
        name="r",
        model=ModelRecipe(path=str(folder)),
        data=DataRecipe(train="-", max_length=64, max_prompt_length=40),
        loss=LossRecipe(beta=2, gamma=0.4),
        train=TrainRecipe(precision="fp32"),
    )
    tokenizer = load_tokenizer(str(folder))
    scores = score_start(recipe, pairs, tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder)
    differences = []
    with torch.no_grad():
        for pair in encode_pairs(pairs, tokenizer, recipe.data).pairs:
            chosen, rejected = (
                float(response_logps(model, pair.prompt.tolist(), side.tolist()).mean())
                for side in (pair.chosen, pair.rejected)
            )
            differences.append(chosen - rejected)
    assert (scores.chosen - scores.rejected).tolist() == pytest.approx(differences, abs=1e-4)
    document = start_document(scores, recipe, of_pairs=13)
    assert (document["pairs"], document["prompts"], document["of_pairs"]) == (12, 5, 13)
    weight = sum(sigmoid(0.4 - 2 * d) for d in differences) / 12
    assert document["gradient_weight"]["value"] == pytest.approx(weight, abs=1e-4)


def test_nothing_to_score_is_said(folder: Path) -> None:
    data = DataRecipe(train="-", max_length=64, max_prompt_length=40)
    recipe = Recipe(name="r", model=ModelRecipe(path=str(folder)), data=data)
    pair = PreferencePair("p", "", "x", "p.jsonl:1")
    with pytest.raises(UserError, match="no pair is left to score"):
        score_start(recipe, [pair], load_tokenizer(str(folder)))


def test_lengths_fit_the_model(folder: Path) -> None:
    lengths = fitting_lengths(str(folder))
    assert (lengths.max_length, lengths.max_prompt_length) == (512, 448)


PAIRS = random_pairs(4, seed=5)


@pytest.fixture
def opened(folder: Path) -> OpenModel:
    recipe = Recipe(
        name="r", model=ModelRecipe(path=str(folder)), data=DataRecipe(train="-"), train=TrainRecipe(precision="fp32")
    )
    return open_model(recipe, find_model(str(folder)), PAIRS)


LOSSES: list[tuple[LossRecipe, Callable[[float, float], float]]] = [
    (LossRecipe(gamma=0.3), lambda d, _: -math.log(sigmoid(d))),
    (LossRecipe(beta=5, gamma_beta_ratio=0.1, type="hinge"), lambda d, _: max(0.0, 1 - d)),
    (
        LossRecipe(gamma=0.3, label_smoothing=0.2, sft_weight=0.5),
        lambda d, m: -0.8 * math.log(sigmoid(d)) - 0.2 * math.log(sigmoid(-d)) - 0.5 * m,
    ),
]


@pytest.mark.parametrize(("loss", "formula"), LOSSES)
def test_every_number_is_that_of_single_sequences(
    folder: Path, opened: OpenModel, loss: LossRecipe, formula: Callable[[float, float], float]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    for pair, scores in zip(PAIRS, score_tokens(opened, PAIRS, loss), strict=True):
        with torch.no_grad():
            chosen = response_logps(model, pair.prompt.tolist(), pair.chosen.tolist()).tolist()
            rejected = response_logps(model, pair.prompt.tolist(), pair.rejected.tolist()).tolist()
        assert scores["chosen"]["logps"] == pytest.approx(chosen, abs=1e-4)
        assert scores["rejected"]["logps"] == pytest.approx(rejected, abs=1e-4)
        assert scores["chosen"]["logp_sum"] == pytest.approx(sum(chosen), abs=1e-3)
        m_chosen, m_rejected = sum(chosen) / len(chosen), sum(rejected) / len(rejected)
        assert (scores["chosen"]["logp_mean"], scores["rejected"]["logp_mean"]) == pytest.approx(
            (m_chosen, m_rejected), abs=1e-4
        )
        assert scores["chosen"]["reward"] == pytest.approx(loss.beta * m_chosen, abs=1e-3)
        margin = loss.beta * (m_chosen - m_rejected)
        assert scores["margin"] == pytest.approx(margin, abs=1e-3)
        assert scores["loss"] == pytest.approx(formula(margin - loss.margin, m_chosen), abs=1e-3)


def test_they_are_those_of_the_scores_that_training_and_eval_take(opened: OpenModel) -> None:
    packed_together = opened.score(PAIRS, "tiny")
    alone = score_tokens(opened, PAIRS, LossRecipe())
    assert [one["chosen"]["logp_mean"] for one in alone] == pytest.approx(packed_together.chosen.tolist(), abs=1e-5)
    assert [one["rejected"]["logp_mean"] for one in alone] == pytest.approx(packed_together.rejected.tolist(), abs=1e-5)


def test_the_model_is_left_without_gradients(opened: OpenModel) -> None:
    assert not any(parameter.requires_grad for parameter in opened.policy.parameters())


def _pair(number: int, ids: list[int]) -> EncodedPair:
    tokens = np.array(ids, dtype=np.int32)
    return EncodedPair(tokens, tokens[::-1], tokens[:1], prompt_key=f"{number:016x}", where=f"prefs.jsonl:{number}")


def _scores(margins: list[float]) -> PairScores:
    zeros = np.zeros(len(margins))
    lengths = np.ones(len(margins), dtype=np.int64)
    return PairScores(np.array(margins), zeros, (lengths, lengths), np.arange(len(margins)))


@pytest.fixture(scope="module")
def tokenizer():  # type: ignore[no-untyped-def]
    return load_tokenizer("builtin:guide")


def _rows(tmp_path: Path, tokenizer, after: list[float], seed: int = 1) -> list[dict[str, object]]:  # type: ignore[no-untyped-def]
    ids = tokenizer.encode_batch(["To turn it on, press Save."])[0]
    pairs = [_pair(number, ids) for number in range(1, len(after) + 1)]
    file = tmp_path / "samples.jsonl"
    write_samples(file, pairs, _scores([0.0] * len(after)), _scores(after), tokenizer=tokenizer, seed=seed)
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_the_worst_are_those_whose_margin_fell_most(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    rows = _rows(tmp_path, tokenizer, [0.5, -0.1, -0.4, 0.0, -0.2, -0.3])
    assert [row["line"] for row in rows if row["why"] == "worst"] == [3, 6, 5]
    assert rows[0]["prompt"] == "To turn it on, press Save."
    assert [path.name for path in tmp_path.iterdir()] == ["samples.jsonl"]


def test_where_no_margin_fell_there_is_no_worst(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    assert {row["why"] for row in _rows(tmp_path, tokenizer, [0.5, 0.0, 0.1])} == {"drawn"}


def test_the_seed_draws_and_nothing_else(tmp_path: Path, tokenizer) -> None:  # type: ignore[no-untyped-def]
    def drawn(seed: int, after: list[float]) -> list[object]:
        return [row["line"] for row in _rows(tmp_path, tokenizer, after, seed) if row["why"] == "drawn"]

    seen = {tuple(drawn(seed, [0.1] * 50)) for seed in range(20)}
    assert len(seen) == 20
    assert drawn(3, [0.1] * 50) == drawn(3, [-0.1, *[0.3] * 49])
    assert sorted(drawn(3, [0.1] * 2)) == [1, 2]
