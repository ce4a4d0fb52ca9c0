"""A run under everything that can happen to it, in any order, against a model of a few lines: what was committed last.

The rules train until a phase and kill, stop or fill the disk there, corrupt and delete checkpoints, and let a second
process come. After each of them the newest checkpoint that is whole to the last byte must be the one that the model
names, and every process must go on from it; at the end the run must have the bits of one that nothing happened to.
"""

import os
import shutil
import signal
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from simpo_cli.errors import ExitCode
from simpo_cli.run.folder import LOGS
from simpo_cli.run.manifest import DamagedCheckpointError, find_checkpoints, folder_name
from tests.faults.children import Children
from tests.faults.phases import EXPORT, LOADING, REPORT, SAVE, TRAINING, Interruption
from tests.faults.same_run import Content, content_of, differing_bits

STEPS, KEEP, NOTHING = 5, 2, -1
COMMAND = ("train", "run.yaml", "--resume", f"train.max_steps={STEPS}", f"checkpoint.keep={KEEP}", "checkpoint.best=no")
_LARGE_FILES = ("weights.safetensors", "optimizer.safetensors")


class Committed:
    """The oracle: which checkpoints there are, in the order in which they were saved."""

    def __init__(self) -> None:
        self.saved: list[int] = []  # steps of those that look whole from outside
        self.spoilt: set[int] = set()  # those of them that hold another bit, which is found when they are read
        self.broken: set[int] = set()  # steps of those that are seen to be damaged from outside
        self.is_done = False  # the run has said that it came to its end

    @property
    def last(self) -> int:
        """The step to go on from."""
        return next((step for step in reversed(self.saved) if step not in self.spoilt), NOTHING)

    @property
    def is_usable(self) -> bool:
        """Whether a process can begin or go on."""
        return self.last != NOTHING or not (self.saved or self.broken)

    @property
    def is_complete(self) -> bool:
        """Whether a process finds nothing to do, which it decides without reading weights."""
        return self.is_done and self.saved[-1:] == [STEPS]

    @property
    def due(self) -> list[int]:
        """What the next process saves, if it comes to its end."""
        return list(range(self.last + 1, STEPS + 1))

    def forget(self, step: int) -> None:
        """A checkpoint is gone, or replaced."""
        self.saved = [one for one in self.saved if one != step]
        self.spoilt.discard(step)
        self.broken.discard(step)

    def save(self, steps: list[int]) -> None:
        """Checkpoints are committed, one after the other; those that look whole make room for them."""
        for step in steps:
            self.forget(step)
            self.saved.append(step)
            stay = ([one for one in self.saved if one > 0] or self.saved)[-KEEP:]
            for one in [one for one in self.saved if one not in stay]:
                self.forget(one)


class RunMachine(RuleBasedStateMachine):
    """What happens to a run; `children` and `unbroken` are set by `machine_for`."""

    children: Children
    unbroken: Content

    def __init__(self) -> None:
        super().__init__()
        self.run = self.children.place / "runs" / "run"
        shutil.rmtree(self.run, ignore_errors=True)
        self.committed = Committed()

    @rule(
        phase=st.sampled_from((LOADING, TRAINING, TRAINING, SAVE, SAVE, EXPORT, REPORT)),
        count=st.integers(1, 4),
        what=st.sampled_from(("kill", "kill", "stop", "full disk")),
    )
    def trains_until(self, phase: str, count: int, what: str) -> None:
        """A process is killed or stopped in a phase; the disk is full when it saves for the nth time."""
        if what == "full disk":
            interruption = Interruption(SAVE, count, fills_the_disk=True)
        else:
            count = count if phase in (TRAINING, SAVE) else 1
            interruption = Interruption(phase, count, [signal.SIGKILL if what == "kill" else signal.SIGTERM])
        self._train(interruption, what)

    def _train(self, interruption: Interruption, what: str) -> None:
        committed, came_from, phase = self.committed, self.committed.last, interruption.phase
        signalled = {"kill": -signal.SIGKILL, "stop": int(ExitCode.SAVED)}.get(what, 0)
        saved = self._saved_at(interruption)
        if committed.is_complete:  # a process that was killed in the report may have left that to be written
            codes, came_from = {0, -signal.SIGKILL, -signal.SIGTERM} if phase == REPORT else {0}, NOTHING
        elif not committed.is_usable:  # which one sees from outside, or when one has read it
            code = signalled if committed.saved and phase == LOADING else int(ExitCode.ENVIRONMENT)
            codes, came_from = {code}, NOTHING
        elif phase == LOADING:
            codes, came_from = {signalled}, NOTHING  # before it has said what it goes on from
        elif saved is None:
            codes = {-signal.SIGKILL if what == "kill" and phase == REPORT else 0}
            committed.save(committed.due)
            committed.is_done = True
        else:
            codes = {int(ExitCode.ENVIRONMENT) if what == "full disk" else signalled}
            # what has begun comes to its end: a save, or a step whose last micro-batch is on its way
            ends = what == "stop" and (phase == SAVE or (phase == TRAINING and interruption.count % 2 == 0))
            committed.save(committed.due[: saved + ends])
            committed.is_done = False
        code = self.children.run(*COMMAND, interrupted=interruption)
        said = self.children.said()
        assert code in codes, f"exit code {code} and not {codes}: {said}"
        assert "Traceback" not in said
        if came_from != NOTHING:
            assert f"resumes from step {came_from} of {STEPS}" in said, said

    def _saved_at(self, interruption: Interruption) -> int | None:
        """How many of the due checkpoints are saved when a process comes to be interrupted; None if it does not."""
        due, count = self.committed.due, interruption.count
        if interruption.phase == EXPORT:
            return len(due)
        if interruption.phase == SAVE:
            return count - 1 if count <= len(due) else None
        if interruption.phase == TRAINING:  # entered for the step, and once more for its only micro-batch
            saved = (count - 1) // 2 + (self.committed.last == NOTHING)
            return saved if saved < len(due) else None
        return None  # what comes in the report comes when the run has said that it is done

    @precondition(lambda self: self.committed.saved)
    @rule(
        newest=st.booleans(),
        file=st.sampled_from((*_LARGE_FILES, "manifest.json")),
        place=st.floats(0, 1, exclude_max=True),
        how=st.sampled_from(("bit", "cut", "removed")),
    )
    def corrupt(self, newest: bool, file: str, place: float, how: str) -> None:
        """A file of the newest or the oldest checkpoint is damaged."""
        step = self.committed.saved[-1 if newest else 0]
        path = self.run / "checkpoints" / folder_name(step) / file
        content = bytearray(path.read_bytes())
        match how:
            case "bit":
                content[int(place * len(content))] ^= 1 << int(place * 8)
                path.write_bytes(content)
            case "cut":
                path.write_bytes(content[: int(place * len(content))])
            case "removed":
                path.unlink()
        if how == "bit" and file in _LARGE_FILES:
            self.committed.spoilt.add(step)
        else:
            self.committed.forget(step)
            self.committed.broken.add(step)

    @precondition(lambda self: self.committed.saved or self.committed.broken)
    @rule(newest=st.booleans())
    def delete(self, newest: bool) -> None:
        """A checkpoint is removed by hand."""
        steps = sorted({*self.committed.saved, *self.committed.broken})
        step = steps[-1 if newest else 0]
        shutil.rmtree(self.run / "checkpoints" / folder_name(step))
        self.committed.forget(step)

    @precondition(lambda self: self.committed.is_usable and not self.committed.is_complete)
    @rule()
    def second_process(self) -> None:
        """Two come at once: one stands still with the folder, the other is refused; the first is killed."""
        pids = self.children.start(COMMAND, COMMAND, interrupted=Interruption(LOADING, 1, [signal.SIGSTOP]))
        ended = self.children.wait_for_one()
        assert ended is not None
        refused, code = ended
        assert code == ExitCode.ENVIRONMENT, self.children.said(refused)
        assert f"pid {pids[1 - refused]} on " in self.children.said(refused)
        os.kill(pids[1 - refused], signal.SIGKILL)
        assert self.children.wait() is not None

    @invariant()
    def what_was_committed_last_is_there(self) -> None:
        """The newest checkpoint that is whole, every byte of it read."""
        assert _newest_verified(self.run / "checkpoints") == self.committed.last

    def teardown(self) -> None:
        """The run comes to its end, from wherever it is, and nothing can be seen of what happened to it."""
        if not self.committed.is_usable:
            shutil.rmtree(self.run / "checkpoints")
            self.committed = Committed()
        if not self.committed.is_complete:
            assert self.children.run(*COMMAND) == 0, self.children.said()
            differing = differing_bits(_lasting(content_of(self.run)), _lasting(self.unbroken))
            assert not differing, f"bits that differ: {differing}"


def machine_for(children: Children) -> type[RuleBasedStateMachine]:
    """The machine over the run of a place of its own."""
    run = children.place / "runs" / "run"
    shutil.rmtree(run, ignore_errors=True)  # what a test that failed has left there
    assert children.run(*COMMAND) == 0, children.said()
    content = content_of(run)
    return type("RunMachine", (RunMachine,), {"children": children, "unbroken": content})


def few_or_many(examples: int) -> settings:
    """So many runs of up to six events, the same in every process."""
    return settings(
        max_examples=examples,
        stateful_step_count=6,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def _newest_verified(parent: Path) -> int:
    whole, _ = find_checkpoints(parent)
    for checkpoint in whole:
        try:
            checkpoint.verify()
        except DamagedCheckpointError:
            continue
        return checkpoint.step
    return NOTHING


def _lasting(content: Content) -> Content:
    """What a run is in the end, whatever it has said of the damage on its way."""
    last = f"checkpoints/{folder_name(STEPS)}/"
    lasting = (*LOGS, "evals-pairs.jsonl", "evals-samples.jsonl", *(f"{last}{name}" for name in _LARGE_FILES))
    return {name: data for name, data in content.items() if name in lasting or name.startswith("model/")}
