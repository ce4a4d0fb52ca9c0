"""What a judge is asked, and what its reply means."""

import pytest

from simpo_cli.evaluate.judge.client import question_about, read_reply


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
        ("Verdict: C", None),
        ("Verdict: Alpha", None),
        ("The first answer is better.", None),
        ("A is the better answer", None),
        ("", None),
        ("{}", None),
    ],
)
def test_a_reply_is_read_by_its_last_verdict(reply: str, verdict: str | None) -> None:
    reading = read_reply(reply)
    assert reading.verdict == verdict
    assert reading.problem == ("" if verdict else "unreadable")


def test_a_reply_that_declines_is_told_from_one_that_is_garbage() -> None:
    assert read_reply("I’m sorry, but I can't help with comparing these.").problem == "refused"
    assert read_reply("I cannot assist. Verdict: A").verdict == "A"


def test_texts_stay_as_they_are() -> None:
    asked = question_about("{a} or {b}?", "{b} {request}", "\\1 {x}")
    assert "<request>\n{a} or {b}?\n</request>" in asked
    assert "<answer_A>\n{b} {request}\n</answer_A>" in asked
    assert "<answer_B>\n\\1 {x}\n</answer_B>" in asked
