"""Grades of a judge: what it is asked, how its replies are read, and what stops a scoring."""

import hashlib
import re
from typing import Any

import pytest

from simpo_cli.data.pair import Message
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.evaluate.judge_client import Judge
from simpo_cli.pairs.judged import INSTRUCTIONS, JudgeScorer, host_of, read_score
from simpo_cli.pairs.scorer import Answered, Score
from tests.evaluate.local_judge import Said, completion, error, judge_server


def asked(text: str, prompt: str = "How?") -> Answered:
    return Answered(Question("k", (Message("user", prompt),), (5,), "p:1"), Answer("k", text, (7,), ended=True))


def scorer_at(url: str, **settings: Any) -> JudgeScorer:
    return JudgeScorer(Judge(url, "tiny-judge", **{"timeout": 10.0, "retries": 0, **settings}))


def shown_answer(request: dict[str, Any]) -> str:
    found = re.search(r"<answer>\n(.*)\n</answer>", request["messages"][-1]["content"], re.DOTALL)
    assert found is not None
    return found[1]


def by_answer(replies: dict[str, Said]) -> Any:
    """A judge that says of each answer what the test wants."""
    return lambda request: replies[shown_answer(request)]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Clear and right.\nScore: 8", 8.0),
        ("Score: 1", 1.0),
        ("Score: 10", 10.0),
        ("Score: 7.25", 7.25),
        ("Score: 7,5", 7.5),
        ("**Score:** 6", 6.0),
        ("score: **9**.", 9.0),
        ("Score: 8/10", 8.0),
        ("Score: 8 / 10", 8.0),
        ("Score: 3. It is short.", 3.0),
        ("The answer asks for Score: 10, and is wrong.\nScore: 2", 2.0),
        ("<think>Score: 9?</think>\nScore: 4\n", 4.0),
        ("7", 7.0),
        ("**7.5**\n", 7.5),
        ("7/10", 7.0),
        ("Score: 0", "unreadable"),
        ("Score: 10.5", "unreadable"),
        ("Score: 11", "unreadable"),
        ("Score: -3", "unreadable"),
        ("-3", "unreadable"),
        ("Score: 80", "unreadable"),
        ("Score: 8/100", "unreadable"),
        ("Score: 4/5", "unreadable"),
        ("Score: 9%", "unreadable"),
        ("Score: 8-9", "unreadable"),
        ("Score: 5\nOn second thoughts:\nScore: 50", "unreadable"),
        ("Score: N", "unreadable"),
        ("Score: 7.5.1", "unreadable"),
        ("Score: 1e1", "unreadable"),
        ("I give it 8 points.", "unreadable"),
        ("", "unreadable"),
        ("I can't grade this.", "refused"),
        ("I\u2019m not able to help with that.", "refused"),
        ("I cannot score it well.\nScore: 2", 2.0),
    ],
)
def test_replies(reply: str, score: float | str) -> None:
    assert read_score(reply) == score


def test_every_answer_is_graded_by_itself_and_scores_keep_their_order() -> None:
    grades = {f"answer {{{i}}} %s \\1 <b>": 1 + i for i in range(8)}
    with judge_server(lambda request: completion(f"So.\nScore: {grades[shown_answer(request)]}")) as server:
        scores = scorer_at(server.url).score([asked(text, "What?\n{answer}") for text in grades])
    assert scores == [Score(float(grade)) for grade in grades.values()]
    assert len(server.requests) == 8
    for request in server.requests:
        system, user = request["messages"]
        assert system == {"role": "system", "content": INSTRUCTIONS}
        assert user["content"].startswith("<request>\nWhat?\n{answer}\n</request>")
        assert request["temperature"] == 0.0
        assert request["model"] == "tiny-judge"


def test_what_is_no_grade_has_its_reason() -> None:
    replies = {
        "good": completion("Score: 9"),
        "off": completion("Score: 12"),
        "refused": completion("I cannot help with that."),
        "filtered": completion(None, finish_reason="content_filter"),
        "broken": error(500, "out of order"),
        "half \ufffd": completion("Score: 5"),
    }
    with judge_server(by_answer(replies)) as server:
        scores = scorer_at(server.url).score([asked(text) for text in replies] + [asked("half \ud83d")])
    reasons = ["unreadable", "refused", "refused", "failed"]
    assert scores == [Score(9.0), *(Score(None, reason) for reason in reasons), Score(5.0), Score(None, "failed")]


def test_a_judge_that_does_not_reply_in_time_is_a_reason() -> None:
    replies = {"good": completion("Score: 9"), "slow": (200, None)}
    with judge_server(by_answer(replies)) as server:
        scores = scorer_at(server.url, timeout=0.5).score([asked("good"), asked("slow")])
    assert scores == [Score(9.0), Score(None, "timed out")]


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (
            completion("Fine answer."),
            "the judge tiny-judge gave no verdict that can be read, 2 times of 2: 'Fine answer.'.",
        ),
        (completion("I can't help with that."), "the judge tiny-judge refused to judge, 2 times of 2"),
        (error(500, "out of order"), "the judge tiny-judge did not reply, 2 times of 2: '500: "),
    ],
)
def test_a_first_batch_without_a_grade_stops(reply: Said, problem: str) -> None:
    with judge_server(lambda _: reply) as server, pytest.raises(UserError) as stopped:
        scorer_at(server.url).score([asked("a"), asked("b")])
    assert stopped.value.problem.startswith(problem)
    assert stopped.value.exit_code == ExitCode.ENVIRONMENT
    assert "resumes" in stopped.value.fix


def test_later_only_a_batch_without_replies_stops() -> None:
    replies = {"good": completion("Score: 9"), "off": completion("?"), "broken": error(500, "out of order")}
    with judge_server(by_answer(replies)) as server:
        scorer = scorer_at(server.url)
        assert scorer.score([asked("good")]) == [Score(9.0)]
        assert scorer.score([asked("off"), asked("broken")]) == [Score(None, "unreadable"), Score(None, "failed")]
        with pytest.raises(UserError, match="did not reply"):
            scorer.score([asked("broken")])
        resumed = scorer_at(server.url)
        resumed.has_scored = True
        assert resumed.score([asked("off")]) == [Score(None, "unreadable")]
        assert resumed.score([]) == []


def test_the_identity_says_who_judged_and_how() -> None:
    scorer = scorer_at("http://127.0.0.1:9/v1/")
    digest = hashlib.sha256(INSTRUCTIONS.encode()).hexdigest()
    judge = {"judge": "tiny-judge", "url": "http://127.0.0.1:9/v1", "instructions_sha256": digest}
    assert scorer.identity == {"kind": "judge", **judge}
    assert scorer.batch_size == 8
    scorer.close()


def test_the_host_is_told_without_secrets() -> None:
    assert host_of("http://localhost:8000/v1") == "localhost:8000"
    assert host_of("https://me:word@api.example.org/v1?key=1") == "api.example.org"
    assert host_of("http://[::1]:80/v1") == "[::1]:80"
