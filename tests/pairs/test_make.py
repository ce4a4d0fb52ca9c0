"""Pairs out of scored answers: which answers become a pair, what is counted, and that the audit is content."""

import json
import random
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo_cli.data.load import PairReader
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.pairs import make
from simpo_cli.pairs.make import Making, NoPairsError, choose, make_pairs
from simpo_cli.pairs.samples import SampleFolder
from tests.pairs.folders import Made, write_answers

WORDS = ["red", "oak", "sea", "ink", "fog", "elm", "jar", "owl", "rye", "kit", "bay", "cup", "dew", "fir", "gem", "hat"]


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) + str(rng.randrange(1000)) for _ in range(words))


def _made(folder: Path, output: Path, making: Making | None = None, **more: Any) -> tuple[dict[str, Any], list[Any]]:
    made = make_pairs(SampleFolder.open(folder), more.get("weaker"), more.get("kind"), making or Making(), output)
    return made.document, [json.loads(line) for line in output.read_text("utf-8").splitlines()]


scores = st.lists(st.floats(-100, 100) | st.sampled_from([0.0, 1.0]), min_size=0, max_size=8)


@given(scores, st.sampled_from(["worst", "low"]), st.floats(0, 5), st.none() | st.floats(-50, 50))
@settings(max_examples=300, deadline=None)
def test_the_chosen_answer_is_the_best_and_the_rejected_one_as_the_rule_says(
    values: list[float], rejected: Any, margin: float, bar: float | None
) -> None:
    scored = [(value, Answer("k", f"answer {place}", (1,), True)) for place, value in enumerate(values)]
    found = choose(scored, Making(rejected=rejected, min_margin=margin, min_score=bar))
    if len(values) < 2:
        assert found == make.TOO_FEW
        return
    best = max(values)
    if all(value == best for value in values):
        assert found == make.ALL_EQUAL
        return
    if bar is not None and best < bar:
        assert found == make.UNDER_BAR
        return
    wanted = min(values)
    if rejected == "low":
        low = fmean(values) - 2 * pstdev(values)
        wanted = min((value for value in values if value < best), key=lambda value: abs(value - low))
    if best - wanted <= margin:
        assert found == make.UNDER_MARGIN
        return
    assert not isinstance(found, str)
    (score, chosen), (other, worse) = found
    assert (score, other) == (best, wanted)
    assert chosen.text == f"answer {values.index(best)}"
    assert worse.text == f"answer {values.index(wanted)}"


def test_every_prompt_is_a_pair_or_counted_with_its_reason(tmp_path: Path) -> None:
    rng = random.Random(3)
    good, bad, other = (_text(rng, 12) for _ in range(3))
    folder = write_answers(
        tmp_path / "answers",
        {
            "a pair": [Made(good, 1.0), Made(bad, 0.0)],
            "equal scores": [Made(good, 0.5), Made(bad, 0.5)],
            "the best one did not end": [Made(good, 1.0, ended=False), Made(bad, 0.0)],
            "the worse one did not end": [Made(good, 1.0), Made(bad, 0.0, ended=False)],
            "one is empty": [Made("", 1.0), Made(bad, 0.0)],
            "one has no score": [Made(good, 1.0), Made(other, None)],
            "both are bad": [Made(good, 0.4), Made(bad, 0.0)],
            "close": [Made(good, 1.0), Made(bad, 0.95)],
        },
    )
    document, rows = _made(folder, tmp_path / "prefs.jsonl", Making(min_score=0.9, min_margin=0.1))
    assert [row["prompt"][0]["content"] for row in rows] == ["a pair"]
    assert (rows[0]["chosen"][0]["content"], rows[0]["rejected"][0]["content"]) == (good, bad)
    assert (rows[0]["score_chosen"], rows[0]["score_rejected"]) == (1.0, 0.0)
    assert document["without_pair"] == {
        make.TOO_FEW: 4,
        make.ALL_EQUAL: 1,
        make.UNDER_BAR: 1,
        make.UNDER_MARGIN: 1,
    }
    assert document["pairs"] + sum(document["without_pair"].values()) == document["prompts"] == 8


def test_pairs_pass_the_audit_without_an_error_and_are_read_as_they_were_made(tmp_path: Path) -> None:
    rng = random.Random(5)
    answers = {f"{_text(rng, 9)}?": [Made(_text(rng, 30), rng.random()) for _ in range(4)] for _ in range(60)}
    document, rows = _made(write_answers(tmp_path / "answers", answers), tmp_path / "prefs.jsonl")
    assert document["audit"]["count"] == len(rows) == 60
    assert [one for one in document["audit"]["findings"] if one["severity"] == "error"] == []
    for pair, row, (question, made) in zip(
        PairReader(str(tmp_path / "prefs.jsonl"), role="train"), rows, answers.items(), strict=True
    ):
        ordered = sorted(made, key=lambda one: one.score or 0)
        assert (pair.chosen, pair.rejected) == (ordered[-1].text, ordered[0].text)
        assert [turn.content for turn in pair.prompt] == [question]  # type: ignore[union-attr]
        assert row["score_chosen"] > row["score_rejected"]


def test_what_the_audit_would_drop_is_left_out_and_counted(tmp_path: Path) -> None:
    rng = random.Random(7)
    text, better, worse = _text(rng, 40), _text(rng, 40), _text(rng, 40)
    folder = write_answers(
        tmp_path / "answers",
        {
            text: [Made(better, 1.0), Made(worse, 0.0)],
            f"{text} now": [Made(better, 1.0), Made(worse, 0.0)],  # nearly the same pair
            _text(rng, 9): [Made(_text(rng, 40), 1.0), Made(_text(rng, 40), 0.0)],
        },
    )
    document, rows = _made(folder, tmp_path / "prefs.jsonl")
    assert len(rows) == 2
    assert [key for key in document["without_pair"] if key.startswith("DUP002")], document["without_pair"]


def test_prompts_of_the_evaluation_data_are_left_out(tmp_path: Path) -> None:
    rng = random.Random(9)
    questions = [_text(rng, 12) for _ in range(6)]
    answers = {one: [Made(_text(rng, 20), 1.0), Made(_text(rng, 20), 0.0)] for one in questions}
    evaluation = tmp_path / "eval.jsonl"
    lines = [
        {"prompt": one, "chosen": _text(rng, 8), "rejected": _text(rng, 8)} for one in (questions[2], questions[4])
    ]
    evaluation.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    folder = write_answers(tmp_path / "answers", answers)
    document, rows = _made(folder, tmp_path / "prefs.jsonl", Making(evaluation=(str(evaluation),)))
    left = [row["prompt"][0]["content"] for row in rows]
    assert left == [one for place, one in enumerate(questions) if place not in (2, 4)]
    assert document["without_pair"] == {make.IN_EVALUATION: 2}


def test_matched_lengths_leave_as_many_longer_as_shorter_chosen_answers(tmp_path: Path) -> None:
    rng = random.Random(11)
    answers = {}
    for number in range(40):
        long, short = _text(rng, 25), _text(rng, 10)
        chosen, rejected = (long, short) if number % 4 else (short, long)
        if number % 10 == 0:
            chosen, rejected = _text(rng, 15), _text(rng, 15)
        answers[_text(rng, 9)] = [Made(chosen, 1.0), Made(rejected, 0.0)]
    folder = write_answers(tmp_path / "answers", answers)
    before, _ = _made(folder, tmp_path / "all.jsonl")
    after, rows = _made(folder, tmp_path / "prefs.jsonl", Making(match_lengths=True))
    assert before["chosen_longer"]["longer"] > 2 * before["chosen_longer"]["shorter"] > 0
    assert after["chosen_longer"]["longer"] == after["chosen_longer"]["shorter"] == before["chosen_longer"]["shorter"]
    assert after["chosen_longer"]["equal"] == before["chosen_longer"]["equal"] == 4
    assert after["without_pair"] == {make.UNMATCHED: before["pairs"] - len(rows)}
    assert after["audit"]["bias"]["value"] == 0.5


def test_a_stronger_and_a_weaker_model_make_pairs_by_the_hash_of_the_prompt(tmp_path: Path) -> None:
    rng = random.Random(13)
    questions = [_text(rng, 9) for _ in range(5)]
    texts = {side: {one: _text(rng, 20) for one in questions} for side in ("strong", "weak")}
    strong = write_answers(tmp_path / "strong", {one: [Made(texts["strong"][one])] for one in questions[:4]}, "strong")
    backwards = list(reversed(questions[1:]))
    same = questions[3]
    texts["weak"][same] = texts["strong"][same]
    weak = write_answers(tmp_path / "weak", {one: [Made(texts["weak"][one])] for one in backwards}, "weak")
    document, rows = _made(strong, tmp_path / "prefs.jsonl", weaker=SampleFolder.open(weak))
    seen = {row["prompt"][0]["content"]: (row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}
    assert seen == {one: (texts["strong"][one], texts["weak"][one]) for one in questions[1:3]}
    assert document["without_pair"] == {make.ONE_MODEL: 2, make.SAME_TEXT: 1}
    assert "score_chosen" not in rows[0]
    with pytest.raises(UserError, match="answers of the same model"):
        _made(strong, tmp_path / "more.jsonl", weaker=SampleFolder.open(strong))


def test_without_a_pair_there_is_one_sentence_with_the_counts(tmp_path: Path) -> None:
    answers = {f"question {number}": [Made("one", 0.5), Made("other", 0.5)] for number in range(3)}
    folder = write_answers(tmp_path / "answers", answers)
    with pytest.raises(NoPairsError, match=r"no pair is left of 3 prompts \(3 all scores are equal\)"):
        _made(folder, tmp_path / "prefs.jsonl")
    assert not (tmp_path / "prefs.jsonl").exists()


def test_scores_have_to_be_there_and_named_where_there_are_several(tmp_path: Path) -> None:
    rng = random.Random(17)
    answers = {_text(rng, 9): [Made(_text(rng, 9)), Made(_text(rng, 9))]}
    bare = write_answers(tmp_path / "bare", answers)
    with pytest.raises(UserError, match="have no scores"):
        _made(bare, tmp_path / "prefs.jsonl")
    answers = {_text(rng, 9): [Made(_text(rng, 9), 1.0), Made(_text(rng, 9), 0.0)]}
    folder = write_answers(tmp_path / "answers", answers)
    with pytest.raises(UserError, match="no scores by judge, but by rule"):
        _made(folder, tmp_path / "prefs.jsonl", kind="judge")
    rule = SampleFolder.open(folder).scores_file("rule")
    rule.with_name("scores.judge.jsonl").write_bytes(rule.read_bytes())
    with pytest.raises(UserError, match="scores by rule and by judge"):
        _made(folder, tmp_path / "prefs.jsonl")
    assert _made(folder, tmp_path / "prefs.jsonl", kind="judge")[0]["pairs"] == 1


def test_scores_of_other_answers_are_refused(tmp_path: Path) -> None:
    folder = write_answers(tmp_path / "answers", {"a question": [Made("one", 1.0), Made("two", 0.0)]})
    answers = folder / "answers.jsonl"
    answers.write_text(answers.read_text("utf-8").replace('"one"', '"three"'), encoding="utf-8")
    with pytest.raises(UserError, match="scores of other answers"):
        _made(folder, tmp_path / "prefs.jsonl")


def test_only_its_own_file_is_replaced(tmp_path: Path) -> None:
    folder = write_answers(tmp_path / "answers", {"a question": [Made("one", 1.0), Made("two", 0.0)]})
    output = tmp_path / "prefs.jsonl"
    _made(folder, output)
    before = output.read_bytes()
    _made(folder, output)
    assert output.read_bytes() == before
    output.write_text("mine\n", encoding="utf-8")
    with pytest.raises(UserError, match="is not what simpo pairs make wrote"):
        _made(folder, output)
    assert output.read_text("utf-8") == "mine\n"
    for wrong in (tmp_path, tmp_path / "prefs.json"):
        with pytest.raises(UserError, match="-o"):
            _made(folder, wrong)
