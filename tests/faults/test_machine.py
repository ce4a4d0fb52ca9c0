"""A few runs of the state machine; `make test-faults` lets more happen."""

from hypothesis.stateful import run_state_machine_as_test

from tests.faults.children import Children
from tests.faults.machine import few_or_many, machine_for


def test_whatever_happens_a_run_goes_on_from_what_was_committed_last(children: Children) -> None:
    run_state_machine_as_test(machine_for(children), settings=few_or_many(3))
