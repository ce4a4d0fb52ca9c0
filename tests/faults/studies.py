"""Studies in a child that kills itself at a chosen moment. A function of `KILLS` is called in it before its command."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.rounds import at, die


def quickly() -> None:
    """Answers of a few tokens: a random model never ends by itself."""
    from simpo_cli.tune import bench

    bench.ANSWER_TOKENS = 6


def in_the_range_test() -> None:
    quickly()
    at("simpo_cli.tune.bench", "accumulate", 2)


def in_a_trial() -> None:
    quickly()
    at("simpo_cli.train.loop", "accumulate", 15)


def before_a_trial_is_written() -> None:
    quickly()
    at("simpo_cli.tune.folder", "write_json", 3, lambda file, _: file.parent.name == "trials")


def before_the_journal_knows_it() -> None:
    from simpo_cli.tune.folder import StudyFolder

    quickly()
    _at_method(StudyFolder, "_settle", 2)


def in_a_line_of_the_journal() -> None:
    """Half of a line is on the disk."""
    from optuna.storages.journal import JournalFileBackend

    quickly()
    real, calls = JournalFileBackend.append_logs, [0]

    def torn(self: Any, logs: Any) -> None:
        calls[0] += 1
        real(self, logs)
        if calls[0] == 12:
            file = Path(self._file_path)
            os.truncate(file, file.stat().st_size - 20)
            die()

    JournalFileBackend.append_logs = torn  # type: ignore[method-assign]


def between_asking_and_running() -> None:
    """The trial waits in the journal."""
    from optuna import Study

    quickly()
    _at_method(Study, "ask", 3)


def in_the_confirmation() -> None:
    from simpo_cli.tune.bench import Bench

    quickly()
    _at_method(Bench, "train", 6)


def before_the_last_word() -> None:
    quickly()
    at("simpo_cli.tune.session", "_best_recipe", 1)


def _at_method(owner: Any, name: str, count: int) -> None:
    real, calls = getattr(owner, name), [0]

    def deadly(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            die()
        return real(*args, **options)

    setattr(owner, name, deadly)


KILLS: tuple[Callable[[], None], ...] = (
    in_the_range_test,
    in_a_trial,
    before_a_trial_is_written,
    before_the_journal_knows_it,
    in_a_line_of_the_journal,
    between_asking_and_running,
    in_the_confirmation,
    before_the_last_word,
)
