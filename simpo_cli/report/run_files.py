"""A run folder read for its report: also while it trains, and also where it ended early."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.names import not_a_run
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import Recipe
from simpo_cli.recipe.tree import scalars
from simpo_cli.recipe.yaml_text import parse_file
from simpo_cli.run.documents import code_of_old, read_log, read_receipt
from simpo_cli.run.folder import EVAL_PAIRS, EVAL_SAMPLES, EVALS, METRICS, NOTES, is_in_use

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What a run has written so far."""

    path: Path
    receipt: Mapping[str, Any]  # run.json
    recipe_text: str  # recipe.yaml
    recipe: Recipe | None  # None where this version of simpo does not understand it
    values: Mapping[str, Any]  # the same as dotted keys and their values; items of lists are KEY.0, KEY.1
    metrics: Sequence[Row]  # by step
    evals: Sequence[Row]
    pairs: Sequence[Row]  # of each held-out pair its scores before and after; empty before the end
    samples: Sequence[Row]  # the texts of a few of them
    notes: Sequence[Row]  # the first screen's lines and the notes, each once
    is_training: bool  # a process holds the folder
    last_written: datetime | None  # when the last step or evaluation was written, UTC

    @property
    def name(self) -> str:
        """The recipe's; of a run of another version that of its folder."""
        return self.path.resolve().name if self.recipe is None else self.recipe.name

    @property
    def outcome(self) -> Mapping[str, Any]:
        """What was measured at the end; empty before it."""
        outcome: Mapping[str, Any] = self.receipt.get("outcome") or {}
        return outcome

    @property
    def num_steps(self) -> int:
        """Steps that are planned."""
        return int(self.receipt["plan"]["steps"])

    @property
    def steps_done(self) -> int:
        """The last step that was written."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def state(self) -> str:
        """training, done, stopped, failed, or lost: the process ended and could not say so."""
        status = str(self.receipt["status"])
        if status == "running":
            return "training" if self.is_training else "lost"
        return status


def read_run(path: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        UserError: it is not a run, or one of its files is damaged.
    """
    if not (path / "run.json").is_file():
        raise not_a_run(str(path))
    receipt = read_receipt(path)
    try:
        recipe_text = (path / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a run: {error}.", "Restore its recipe.yaml.") from error
    tree = parse_file(recipe_text, str(path / "recipe.yaml"))
    try:
        recipe = compose(str(path / "recipe.yaml")).recipe
    except UserError:
        recipe = None  # of another version: the page then lacks the lines of gamma and of the gradient's limit
    logs = [path / name for name in (METRICS, EVALS)]
    written = [file.stat().st_mtime for file in logs if file.is_file()]
    notes = [{"code": code_of_old(note["text"]), **note} for note in read_log(path / NOTES)]
    return RunFiles(
        path=path,
        receipt=receipt,
        recipe_text=recipe_text,
        recipe=recipe,
        values={".".join(path): node.value for path, node in scalars(tree)},
        metrics=read_log(logs[0]),
        evals=read_log(logs[1]),
        pairs=read_log(path / EVAL_PAIRS),
        samples=read_log(path / EVAL_SAMPLES),
        notes=[note for number, note in enumerate(notes) if note not in notes[:number]],  # resuming says some again
        is_training=is_in_use(path),
        last_written=datetime.fromtimestamp(max(written), UTC) if written else None,
    )
