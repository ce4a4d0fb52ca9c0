"""What is being done, and how far it is, in words."""

import itertools

import pytest

from simpo_cli import stages
from simpo_cli.stages import SECONDS_OF_SILENCE, Pulse, Stage, stage
from tests.report.screen import Clock


@pytest.mark.parametrize(
    ("total", "done", "seconds", "said"),
    [
        (None, 0, 12, "scoring pairs, 0:12 so far"),
        (None, 1500, 12, "scoring pairs, 1,500, 0:12 so far"),
        (500, 0, 12, "scoring pairs, 0 of 500, 0:12 so far"),
        (500, 125, 20, "scoring pairs, 125 of 500, 1:00 left"),
        (500, 500, 20, "scoring pairs, 500 of 500, 0:20 so far"),
    ],
)
def test_how_far_it_is_and_the_time_left_where_that_can_be_told(
    total: int | None, done: int, seconds: float, said: str
) -> None:
    now = 50.0
    one = Stage("scoring pairs", total, clock=lambda: now)
    one.advance(done)
    now += seconds
    assert one.in_words() == said


def test_the_outer_stage_is_named_before_the_inner_one_and_both_end() -> None:
    assert stages.in_words() == ""
    with stage("closing evaluation"):
        with stage("scoring pairs", 20) as scoring:
            scoring.advance(3)
            assert stages.in_words().startswith("closing evaluation: scoring pairs, 3 of 20, ")
        assert stages.in_words() == "closing evaluation, 0:00 so far"
    assert stages.in_words() == ""


def test_a_stage_that_fails_is_over() -> None:
    @stage("loading")
    def load() -> None:
        assert stages.in_words().startswith("loading")
        raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        load()
    assert stages.in_words() == ""


def test_parts_count_when_they_are_done_and_from_0_again_in_a_second_attempt() -> None:
    with stage("step 1, pairs", 5) as doing:
        counts = [doing.done for _ in doing.advancing([[0, 1], [2], [3, 4]])]
        assert (counts, doing.done) == ([0, 2, 3], 5)
        assert [doing.done for _ in doing.advancing([[0], [1]])] == [0, 1]


def test_a_log_is_never_silent_for_longer_than_half_a_minute() -> None:
    clock, said = Clock(), list[str]()
    pulse = Pulse(said.append, clock=clock)
    spoken_at = [clock()]
    with stage("loading the weights"):
        for _ in range(300):
            clock.seconds += 1
            before = len(said)
            pulse.beat()
            if len(said) > before:
                spoken_at.append(clock())
    gaps = [later - earlier for earlier, later in itertools.pairwise(spoken_at)]
    assert set(gaps) == {SECONDS_OF_SILENCE}
    assert SECONDS_OF_SILENCE < 30
    assert all(line.startswith("loading the weights, ") for line in said)
    clock.seconds += 40  # between two stages it says that it is still there
    pulse.beat()
    assert said[-1].startswith("working, ")


def test_a_log_that_says_something_else_gets_no_beat() -> None:
    clock, said = Clock(), list[str]()
    pulse = Pulse(said.append, clock=clock)
    with stage("pairs of step 1", 8):
        for _ in range(100):
            clock.seconds += 10
            pulse.heard()
            pulse.beat()
    assert said == []
