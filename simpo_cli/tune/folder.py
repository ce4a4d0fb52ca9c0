"""The folder of a study: what was tried and what came of it, shared by all processes that work on it.

    study.json        what the study is and what it found; written anew after each trial
    recipe.yaml       the recipe that is tuned, composed
    range.json        the learning-rate range test, and how long trials are
    start-PART.json   the start model on a half of the held-out pairs
    trials/ID.json    a finished trial: settings, per-pair scores, answers, measures
    journal.jsonl     the same trials as Optuna's journal storage, which optuna-dashboard reads
    best.yaml         the winner as a recipe
    study.html        the page

A trial is known by a hash of its settings, and is finished when its file is there: that is written whole, so nothing is
counted twice and nothing is half counted. The journal says which trial is to be run next and who runs which; a lock,
which the system lets go of when its process dies, says whether that process is still there.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import write_json
from simpo_cli.files import disk_faults, object_in
from simpo_cli.recipe.schema import HeldOutPart, Recipe
from simpo_cli.run.folder import RECIPE, STUDY
from simpo_cli.versions import require_extra

if TYPE_CHECKING:
    import optuna

RANGE, JOURNAL, TRIALS, LOCKS = "range.json", "journal.jsonl", "trials", ".locks"
BEST, PAGE, SCRATCH = "best.yaml", "study.html", ".scratch"
_OURS = {
    *(STUDY, RANGE, JOURNAL, f"{JOURNAL}.damaged", TRIALS, LOCKS, RECIPE, BEST, PAGE, SCRATCH),
    *("start-choosing.json", "start-confirming.json"),
}
_HELD = {  # what is read of each kind of document
    RANGE: {"sweep", "rates", "trial_steps", "recipe_steps"},
    "start": {"measures", "scores", "answers", "prompts", "seconds"},
    TRIALS: {"id", "values", "steps", "seed", "part", "measures", "scores", "answers"},
}
SCHEMA_VERSION = 1
LIKENESS, UTILITY, SCORE = "likeness", "utility", "score"
OBJECTIVES = {
    UTILITY: "likeness of greedy answers plus half of accuracy",
    SCORE: "mean score of greedy answers",
}
"""What chooses, as a sentence names it."""
Document = dict[str, Any]


def study_path(recipe: Recipe) -> Path:
    """Where the study of a recipe lies: beside a run of it."""
    folder = Path(recipe.output_dir)
    if folder.name in ("", ".."):
        fix = "Set output_dir to a folder with a name, such as runs/${name}."
        raise UserError(f"output_dir is {recipe.output_dir}, and a study lies beside it.", fix, key="output_dir")
    return folder.with_name(f"{folder.name}-tune")


@dataclass(frozen=True)
class Spec:
    """A trial that is to be run.

    Attributes:
        stage: of the search, or `confirming`.
        values: of all dotted keys that are searched.
        steps: how many are taken; the schedule spans them.
        part: the half of the held-out pairs that it is measured on.
    """

    stage: str
    values: Mapping[str, Any]
    steps: int
    seed: int
    part: HeldOutPart

    @property
    def id(self) -> str:
        """The same for the same training, measured on the same pairs."""
        content = {name: value for name, value in asdict(self).items() if name != "stage"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


class StudyFolder:
    """A folder that holds a study, or will.

    Args:
        choices: of each key that is searched, the values that it may have, for those that are no numbers.
    """

    def __init__(self, path: Path, choices: Mapping[str, Sequence[Any]]) -> None:
        self.path, self._choices = path, choices

    @property
    def file(self) -> Path:
        """What makes it one."""
        return self.path / STUDY

    def read(self, name: str) -> Document | None:
        """A document of the folder; None where it is not there.

        Raises:
            UserError: it is damaged.
        """
        file = self.path / name
        if not file.is_file():
            return None
        try:
            found = object_in(file.read_bytes())
            missing = sorted(_HELD.get(name.partition("-")[0].partition("/")[0], set()) - found.keys())
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
        except (OSError, ValueError) as error:
            fix = "Move it away: it is made again."
            raise UserError(f"cannot be used: {error}.", fix, where=str(file)) from error
        return found

    def is_of_a_study(self) -> bool:
        """Whether it holds files of a study and nothing else, also where some are missing."""
        names = {one.name for one in self.path.iterdir()} if self.path.is_dir() else set()
        return RECIPE in names and names <= _OURS

    def leave(self) -> None:
        """Take away what a study has written before its first trial, and the folder if nothing else is in it."""
        for name in (STUDY, RANGE, JOURNAL, RECIPE, "start-choosing.json", "start-confirming.json"):
            (self.path / name).unlink(missing_ok=True)
        for name in (LOCKS, SCRATCH):
            rmtree(self.path / name, ignore_errors=True)
        with suppress(OSError):
            self.path.rmdir()

    def once(self, name: str, make: Callable[[], Document]) -> Document:
        """A document that one process makes and all read."""
        found = self.read(name)
        if found is None:
            with self._lock(name):
                found = self.read(name)
                if found is None:
                    found = make()
                    write_json(self.path / name, found)
        return found

    def outcome(self, spec: Spec) -> Document | None:
        """What came of a trial; None where it is not finished."""
        return self.read(f"{TRIALS}/{spec.id}.json")

    @property
    def num_finished(self) -> int:
        """Trials that are finished, whoever ran them."""
        return len(list((self.path / TRIALS).glob("*.json")))

    @contextmanager
    def taking(self, specs: Sequence[Spec]) -> Iterator[Spec | None]:
        """A block for the next of these trials that is nobody's; None where each is finished or another's.

        The block writes what came of it with `finish`; where it does not, the trial is free again.
        """
        with self._lock("taking"):
            running = self._running_elsewhere()
            free = (spec for spec in specs if spec.id not in running and self.outcome(spec) is None)
            spec = next(free, None)
            if spec is not None:
                trial, lock = self._begun(spec)
        if spec is None:
            yield None
            return
        try:
            yield spec
        finally:
            self._settle(trial)
            lock.release()

    def finish(self, spec: Spec, outcome: Document) -> None:
        """Write what came of a trial."""
        write_json(self.path / TRIALS / f"{spec.id}.json", {"id": spec.id, **asdict(spec), **outcome})

    # The journal

    @cached_property
    def _study(self) -> "optuna.Study":
        require_extra("optuna", "tune", "a study")
        import optuna
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        file = self.path / JOURNAL
        with self._lock("journal"):
            _cut_torn_line(file)
            try:
                optuna.storages.JournalStorage(JournalFileBackend(str(file)))
            except Exception:  # it holds something else; the trials are in files of their own
                file.replace(file.with_name(f"{JOURNAL}.damaged"))
        backend = JournalFileBackend(str(file), lock_obj=cast(Any, _JournalLock(self._lock("journal"))))
        return optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=self.path.name,
            direction="maximize",
            load_if_exists=True,
        )

    def _running_elsewhere(self) -> set[str]:
        """The trials that other processes run; those of processes that are gone are settled."""
        from optuna.trial import TrialState

        unfinished = (TrialState.RUNNING, TrialState.WAITING)  # it waits where its process died before it began
        running = set[str]()
        for trial in self._study.get_trials(deepcopy=False, states=unfinished):
            lock = self._lock(f"trial-{trial.number}")
            try:
                with lock.acquire(timeout=0):
                    self._settle(self._study.ask() if trial.state == TrialState.WAITING else trial)
            except Timeout:
                running.add(trial.user_attrs["id"])
        return running

    def _begun(self, spec: Spec) -> tuple["optuna.Trial", FileLock]:
        """The trial in the journal, now running, and the lock that says so."""
        self._study.enqueue_trial(dict(spec.values), user_attrs={"id": spec.id, **asdict(spec)})
        trial = self._study.ask()
        lock = self._lock(f"trial-{trial.number}")
        lock.acquire()
        for key, value in spec.values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                trial.suggest_float(key, value, value)
            else:
                trial.suggest_categorical(key, self._choices[key])
        return trial, lock

    def _settle(self, trial: Any) -> None:
        """Tell the journal what the file of a trial says, or that it ended without one."""
        from optuna.trial import TrialState

        found = self.read(f"{TRIALS}/{trial.user_attrs['id']}.json")
        if found is None:
            self._study.tell(trial.number, state=TrialState.FAIL)
        else:
            self._study.tell(trial.number, found["measures"]["objective"] or 0.0)

    def _lock(self, name: str) -> FileLock:
        with disk_faults(f"{self.path} cannot be used"):
            (self.path / LOCKS).mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / LOCKS / name)

    @contextmanager
    def led(self) -> Iterator[None]:
        """A block in which this process leads the study; others only join.

        Raises:
            UserError: another one leads it (exit code 4).
        """
        lock = self._lock("leader")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another process leads the study in {self.path}.",
                "Add --join to help it, or wait until it has ended.",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        try:
            yield
        finally:
            lock.release()


class _JournalLock:
    """Optuna's lock of its journal, as one that goes with the process that holds it."""

    def __init__(self, lock: FileLock) -> None:
        self._lock = lock

    def acquire(self) -> bool:
        self._lock.acquire()
        return True

    def release(self) -> None:
        self._lock.release()


def _cut_torn_line(file: Path) -> None:
    """Take away the beginning of a line that a kill cut short; Optuna would refuse what follows it."""
    with suppress(FileNotFoundError), file.open("r+b") as stream:
        content = stream.read()
        stream.truncate(content.rfind(b"\n") + 1)
