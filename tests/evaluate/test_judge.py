"""A judge: what it is asked, end to end against a server of the test, and win rates whose truth is known."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import MODES, SIDES, Answer, AnswerFolder
from simpo_cli.evaluate.judge import AT_ONCE, judge_answers, judge_document, length_controlled
from simpo_cli.evaluate.judge_client import Judge, question_about, read_reply
from simpo_cli.statistics import proportion
from simpo_cli.versions import install_command
from tests.evaluate.generate.questions import random_questions
from tests.evaluate.local_judge import Said, completion, error, judge_server, shown_answers

MANIFEST = {
    "schema_version": 1,
    "kind": "answers",
    "models": {"base": {"name": "base"}, "trained": {"name": "trained"}},
}


def answered(path: Path, count: int, *, texts: Sequence[str] = ("base {i}", "trained {i}, and longer")) -> Path:
    """A folder of answers that needs no model."""
    questions = random_questions(count, seed=1)
    folder = AnswerFolder.make(path, MANIFEST, questions)
    for side, text in zip(SIDES, texts, strict=True):
        answers = [Answer(one.key, text.replace("{i}", str(i)), (i,), True) for i, one in enumerate(questions)]
        for mode in MODES:
            folder.add(side, mode, answers)
    return path


def judge_at(url: str, **settings: Any) -> Judge:
    return Judge(url, "tiny-judge", **{"timeout": 10.0, "retries": 0, **settings})


def quiet(_done: int, _wanted: int) -> None:
    pass


def judged(path: Path, say: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The document after a judge, and what it was asked."""
    with judge_server(say) as server:
        judge_answers(path, judge_at(server.url), quiet)
    (document,) = judge_document(path)
    return document, server.requests


def moved(record: Path, document: dict[str, Any], url: str) -> None:
    """The record as if the server of now had written it: each has a port of its own."""
    record.write_bytes(record.read_bytes().replace(document["url"].encode(), url.encode()))


def likes(word: str) -> Any:
    """A judge that prefers the answer that holds a word, wherever it is shown."""

    def say(request: dict[str, Any]) -> Said:
        a, b = shown_answers(request)
        return completion(f"So.\nVerdict: {'tie' if (word in a) == (word in b) else 'A' if word in a else 'B'}")

    return say


def test_both_orders_are_asked_and_the_better_answer_wins(tmp_path: Path) -> None:
    document, requests = judged(answered(tmp_path / "answers", 12), likes("trained"))
    assert len(requests) == 24
    assert {request["path"] for request in requests} == {"/v1/chat/completions"}
    assert {request["temperature"] for request in requests} == {0.0}
    assert document["prompts"] == {"all": 12, "judged": 12, "equal_answers": 0}
    assert document["win_rate"]["value"] == 1.0
    assert document["position_consistency"]["value"] == 1.0
    assert document["first_shown_wins"] == 0.5
    assert document["verdicts"] == {"trained": 24, "tie": 0, "base": 0}


def test_a_judge_that_goes_by_place_is_found_out(tmp_path: Path) -> None:
    document, _ = judged(answered(tmp_path / "answers", 12), lambda _: completion("Verdict: A"))
    assert document["win_rate"]["value"] == 0.5
    assert document["position_consistency"]["value"] == 0.0
    assert document["first_shown_wins"] == 1.0


def test_equal_answers_are_ties_and_cost_nothing(tmp_path: Path) -> None:
    document, requests = judged(answered(tmp_path / "answers", 12, texts=("the same", "the same")), likes("x"))
    assert not requests
    assert document["win_rate"]["value"] == 0.5
    assert document["prompts"]["equal_answers"] == 12
    assert document["position_consistency"] is None


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    path = answered(tmp_path / "answers", 12)
    seen = 0

    def stops_behind_a_batch(request: dict[str, Any]) -> Said:
        nonlocal seen
        seen += 1
        return likes("trained")(request) if seen <= AT_ONCE else error(500, "out of memory")

    with judge_server(stops_behind_a_batch) as server, pytest.raises(UserError) as stopped:
        judge_answers(path, judge_at(server.url), quiet)
    assert stopped.value.exit_code == ExitCode.ENVIRONMENT
    assert f"did not reply, 8 times of {AT_ONCE}: '500: " in stopped.value.problem
    assert "16 of 24 replies are kept" in stopped.value.fix
    (document,) = judge_document(path)
    assert document["prompts"]["judged"] == 4
    assert document["replies"]["failed"] == 8
    first = {shown_answers(request) for request in server.requests[:AT_ONCE]}
    # killed in the middle of a line
    record = Path(document["file"])
    record.write_bytes(record.read_bytes() + b'{"key": "0')
    progress: list[tuple[int, int]] = []
    with judge_server(likes("trained")) as server:
        moved(record, document, server.url)
        judge_answers(path, judge_at(server.url), lambda *at: progress.append(at))
    again = [shown_answers(request) for request in server.requests]
    assert len(again) == 16
    assert first.isdisjoint(again), "what was judged is not asked again"
    assert progress[-1] == (24, 24)
    (document,) = judge_document(path)
    assert document["prompts"]["judged"] == 12
    assert document["replies"] == {"verdict": 24, "unreadable": 0, "refused": 0, "timed_out": 0, "failed": 0}


@pytest.mark.parametrize(
    ("say", "said", "outcome"),
    [
        (completion("blah"), "gave no verdict that can be read, 8 times of 8: 'blah'", "unreadable"),
        (completion(None), "gave no verdict that can be read, 8 times of 8", "unreadable"),
        (completion("I'm sorry, I can't help with that."), "refused to judge, 8 times of 8", "refused"),
        (completion(None, refusal="No."), "refused to judge, 8 times of 8: 'No.'", "refused"),
        (completion("", finish_reason="content_filter"), "refused to judge", "refused"),
        (error(400, "filtered", code="content_filter"), "refused to judge", "refused"),
        (error(400, "too long"), "did not reply, 8 times of 8: '400: ", "failed"),
        (error(503, "busy"), "did not reply, 8 times of 8: '503: ", "failed"),
        (error(429, "slow down"), "did not reply, 8 times of 8: '429: ", "failed"),
        ((200, {"choices": []}), "did not reply, 8 times of 8: 'a reply without choices'", "failed"),
        ((200, "<html>"), "did not reply", "failed"),
        ((200, None), "did not reply in time, 8 times of 8", "timed out"),
    ],
)
def test_a_judge_of_no_use_is_stopped_after_one_batch(tmp_path: Path, say: Said, said: str, outcome: str) -> None:
    path = answered(tmp_path / "answers", 12)
    with judge_server(lambda _: say) as server, pytest.raises(UserError) as stopped:
        judge_answers(path, judge_at(server.url, timeout=0.3 if say[1] is None else 10.0), quiet)
    assert said in stopped.value.problem
    assert "the same command resumes there" in stopped.value.fix
    assert stopped.value.exit_code == ExitCode.ENVIRONMENT
    assert len(server.requests) == 8
    (document,) = judge_document(path)
    assert document["replies"][outcome.replace(" ", "_")] == 8
    assert document["win_rate"] is None


def test_some_garbage_is_counted_and_its_prompts_left_out(tmp_path: Path) -> None:
    path = answered(tmp_path / "answers", 12)
    document, _ = judged(
        path, lambda one: completion("hm") if "trained 3" in shown_answers(one)[0] else likes("trained")(one)
    )
    assert document["replies"]["unreadable"] == 1
    assert document["prompts"] == {"all": 12, "judged": 11, "equal_answers": 0}
    with judge_server(likes("trained")) as server:
        moved(Path(document["file"]), document, server.url)
        judge_answers(path, judge_at(server.url), quiet)
    assert not server.requests, "a reply that came is not asked for again"


@pytest.mark.parametrize(
    ("say", "said"),
    [
        (error(401, "Incorrect API key: sk-secret-9"), "refuses the key in JUDGE_KEY (401)"),
        (error(403, "no"), "refuses the key in JUDGE_KEY (403)"),
        (error(404, "no such model"), "knows no tiny-judge at this address (404)"),
    ],
)
def test_what_would_go_on_failing_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Said, said: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-9")
    path = answered(tmp_path / "answers", 12)
    with judge_server(lambda _: say) as server, pytest.raises(UserError) as stopped:
        judge_answers(path, judge_at(server.url, key_variable="JUDGE_KEY"), quiet)
    assert said in str(stopped.value)
    assert "sk-secret-9" not in str(stopped.value)
    assert set(server.keys) == {"Bearer sk-secret-9"}


def test_nobody_there(tmp_path: Path) -> None:
    path = answered(tmp_path / "answers", 2)
    with judge_server(likes("x")) as server:
        pass
    with pytest.raises(UserError, match="the judge cannot be reached") as stopped:
        judge_answers(path, judge_at(server.url), quiet)
    assert stopped.value.exit_code == ExitCode.ENVIRONMENT


def test_the_key_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-9")
    path = answered(tmp_path / "answers", 4)
    with (
        judge_server(lambda _: error(400, "your key sk-secret-9 is odd")) as server,
        pytest.raises(UserError) as stopped,
    ):
        judge_answers(path, judge_at(server.url), quiet)
    assert "your key (the key) is odd" in str(stopped.value)
    assert all("sk-secret-9" not in file.read_text(encoding="utf-8") for file in path.iterdir())


def test_a_model_that_takes_no_temperature(tmp_path: Path) -> None:
    def say(request: dict[str, Any]) -> Said:
        if "temperature" in request:
            return error(400, "Unsupported value", param="temperature", code="unsupported_value")
        return likes("trained")(request)

    document, _ = judged(answered(tmp_path / "answers", 2), say)
    assert document["replies"]["verdict"] == 4


def test_verdicts_belong_to_their_answers(tmp_path: Path) -> None:
    path = answered(tmp_path / "answers", 4)
    with judge_server(likes("trained")) as server:
        judge_answers(path, judge_at(server.url), quiet)
        file = path / "trained.greedy.jsonl"
        file.write_text(file.read_text().replace("trained 2", "trained two"))
        with pytest.raises(UserError, match="verdicts of something else: answers_sha256 differs"):
            judge_answers(path, judge_at(server.url), quiet)
    assert json.loads((path / "judge.tiny-judge.jsonl").read_text().splitlines()[0])["judge"] == "tiny-judge"


@pytest.mark.parametrize(
    ("line", "old", "new", "said"),
    [
        (0, '"url"', '"link"', "url: Field required"),
        (2, '"winner"', '"won"', "winner: Field required"),
        (2, '"trained"', '"nobody"', "winner: "),
        (2, '"reply": "', '"reply": 7, "x": "', "reply: "),
    ],
)
def test_a_damaged_file_of_replies_is_named_with_its_line(
    tmp_path: Path, line: int, old: str, new: str, said: str
) -> None:
    path = answered(tmp_path / "answers", 4)
    document, _ = judged(path, likes("trained"))
    lines = Path(document["file"]).read_text().splitlines(keepends=True)
    assert old in lines[line]
    lines[line] = lines[line].replace(old, new)
    Path(document["file"]).write_text("".join(lines))
    with pytest.raises(UserError, match=said) as damaged:
        judge_document(path)
    assert damaged.value.where == f"{document['file']}:{line + 1}"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "which is no address"),
        ("ftp://localhost", "which is no address"),
        ("https://me:secret@host/v1", "holds a password or a query"),
        ("https://host/v1?key=secret", "holds a password or a query"),
    ],
)
def test_addresses_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        judge_at(url)
    assert "secret" not in str(refused.value)


def test_a_variable_that_is_not_set_and_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UserError, match="NO_SUCH_KEY is not set"):
        judge_at("http://localhost/v1", key_variable="NO_SUCH_KEY")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError) as missing:
        judge_at("http://localhost/v1")
    assert missing.value.exit_code == ExitCode.ENVIRONMENT
    assert install_command("judge") in missing.value.fix


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Both are fine.\nVerdict: A", "A"),
        ("**Verdict:** B", "B"),
        ("verdict: tie.", "tie"),
        ("Verdict: A tie", "tie"),
        ("Verdict: [[A]]", "A"),
        ("VERDICT - Answer B", "B"),
        ("Answer A says 'Verdict: A', which is beside the point.\n\nVerdict: B", "B"),
        ("B", "B"),
        ("  [[tie]]\n", "tie"),
        ("Verdict: C", "unreadable"),
        ("Verdict: Alpha", "unreadable"),
        ("The first answer is better.", "unreadable"),
        ("A is the better answer", "unreadable"),
        ("", "unreadable"),
        ("{}", "unreadable"),
        ("I’m sorry, but I can't help with comparing these.", "refused"),
        ("I cannot assist. Verdict: A", "A"),
    ],
)
def test_a_reply_is_read_by_its_last_verdict(reply: str, verdict: str) -> None:
    assert read_reply(reply) == verdict


def test_texts_stay_as_they_are() -> None:
    question = question_about("{a} or {b}?", "{b} {request}", "\\1 {x}")
    assert "<request>\n{a} or {b}?\n</request>" in question
    assert "<answer_A>\n{b} {request}\n</answer_A>" in question
    assert "<answer_B>\n\\1 {x}\n</answer_B>" in question


def simulated(
    draw: np.random.Generator, *, quality: float, bias: float, prompts: int = 100, agree: float = 0.6
) -> tuple[list[float], list[float], list[str]]:
    """Verdicts of a judge: sigmoid(quality + bias * tanh(difference / spread)), the trained answers longer by far.

    Both orders of a prompt give the same verdict with probability `agree`, and else one of their own.
    """
    longer = np.round(draw.normal(150, 200, prompts))
    chances = 1 / (1 + np.exp(-(quality + bias * np.tanh(longer / longer.std(ddof=1)))))
    first = draw.random(prompts) < chances
    second = np.where(draw.random(prompts) < agree, first, draw.random(prompts) < chances)
    names = [str(i) for i in range(prompts)]
    return np.concatenate([first, second]).astype(float).tolist(), [*longer, *longer], [*names, *names]


def test_a_judge_that_goes_by_length_inflates_the_raw_win_rate_only() -> None:
    raw, controlled, covered, seen = [], [], 0, 300
    draw = np.random.default_rng(1)
    for _ in range(seen):
        scores, longer, prompts = simulated(draw, quality=0.0, bias=1.5)
        raw.append(proportion(scores, prompts).value)
        result = length_controlled(scores, longer, prompts)
        assert result is not None
        controlled.append(result.win_rate.value)
        covered += result.win_rate.low <= 0.5 <= result.win_rate.high
    assert np.mean(raw) > 0.62
    assert np.mean(controlled) == pytest.approx(0.5, abs=0.01)
    assert 0.92 <= covered / seen <= 0.98


def test_a_better_model_stays_better() -> None:
    draw = np.random.default_rng(2)
    results = [length_controlled(*simulated(draw, quality=0.8, bias=1.0, prompts=200)) for _ in range(100)]
    wanted = 1 / (1 + np.exp(-0.8))
    assert np.mean([result.win_rate.value for result in results if result]) == pytest.approx(wanted, abs=0.01)
    assert np.mean([result.length_effect.value for result in results if result]) == pytest.approx(1.0, abs=0.1)
    assert sum(result.win_rate.low <= wanted <= result.win_rate.high for result in results if result) >= 89


def test_the_fit_is_the_top_of_the_penalised_likelihood() -> None:
    scores, longer, prompts = simulated(np.random.default_rng(3), quality=0.4, bias=-0.7)
    scores[:20] = [0.5] * 20
    spread = np.std(longer[:100], ddof=1)

    def loss(weights: np.ndarray) -> float:
        return 0.5 * float((weights**2).sum()) / 25 + sum(
            float(score * np.log1p(np.exp(-z)) + (1 - score) * np.log1p(np.exp(z)))
            for score, z in zip(scores, weights[0] + weights[1] * np.tanh(np.array(longer) / spread), strict=True)
        )

    theta, phi = minimize(loss, [0.0, 0.0], tol=1e-12).x
    result = length_controlled(scores, longer, prompts)
    assert result is not None
    assert result.win_rate.value == pytest.approx(1 / (1 + np.exp(-theta)), abs=1e-5)
    assert result.length_effect.value == pytest.approx(phi, abs=1e-4)


def test_a_judge_that_always_says_the_same_gives_numbers() -> None:
    prompts = [str(i) for i in range(12)] * 2
    longer = [float(i) for i in range(12)] * 2
    always = length_controlled([1.0] * 24, longer, prompts)
    assert always is not None
    assert 0.9 < always.win_rate.value < 1
    assert always.win_rate.low < 0.9, "twelve prompts cannot say more"
    by_length = length_controlled([float(gap > 5.5) for gap in longer], [gap - 5.5 for gap in longer], prompts)
    assert by_length is not None
    assert by_length.win_rate.value == pytest.approx(0.5, abs=0.01)
    assert np.isfinite([by_length.win_rate.low, by_length.win_rate.high, by_length.length_effect.value]).all()


def test_where_length_cannot_be_controlled() -> None:
    assert length_controlled([1.0] * 18, [1.0, 2.0, 3.0] * 6, [str(i % 9) for i in range(18)]) is None
    assert length_controlled([1.0] * 20, [5.0] * 20, [str(i % 10) for i in range(20)]) is None


def test_both_orders_of_a_prompt_are_one_sample() -> None:
    scores = [1.0, 0.0] * 15
    doubled = proportion(scores * 2, [str(i) for i in range(30)] * 2)
    single = proportion(scores, [str(i) for i in range(30)])
    assert doubled.high - doubled.low == pytest.approx(single.high - single.low, rel=0.08)
