"""What a judge is asked, and what its reply means."""

import pytest

from simpo_cli.evaluate.judge_client import question_about, read_reply


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
