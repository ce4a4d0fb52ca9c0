"""The folder of a model's answers, several to a prompt: how they were made, the prompts, the answers, and their scores.

    manifest.json         model and its hashes, decoding, template, prompts; two equal ones ask the same
    prompts.jsonl         a prompt a line, with its key: the hash of its text
    answers.jsonl         an answer a line: key, number, output, ended, ids; in the order of the prompts
    scores.KIND.jsonl     who scored which answers, then a score a line: key, number, score, reason

Answers and scores come in batches whose number and content follow from the manifest. A batch is one line of a log, so
a call that was killed leaves whole batches and perhaps the beginning of one, which is made again; several processes
have a log each. When all batches are there, the file is written whole, and is the same, byte for byte, however often
the work was broken off and whoever did it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from simpo_cli.data.messages import turns_of
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import (
    MANIFEST,
    PROMPTS,
    Answer,
    add_rows,
    read_rows,
    write_json,
    write_lines,
)
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.files import disk_faults, object_in
from simpo_cli.pairs.scorer import Answered, Score, ScorerKind

SCHEMA_VERSION = 1
ANSWERS = "answers"
LOCK = ".lock"
Row = dict[str, Any]


class BatchLog:
    """Rows that are made in batches and may be broken off anywhere.

    Args:
        folder: where the file is to be.
        name: the file's name without its suffix.
        heading: what the rows depend on; a log with another one is not continued.
        rank: of this process, which has a log of its own.
    """

    def __init__(self, folder: Path, name: str, heading: Mapping[str, Any], rank: int = 0) -> None:
        self._folder, self._name, self._heading = folder, name, dict(heading)
        self._own = folder / f".{name}.{rank}.log"

    def done(self) -> dict[int, list[Row]]:
        """The batches that are there, by number, of all processes.

        Raises:
            UserError: a log is of something else, or damaged.
        """
        found: dict[int, list[Row]] = {}
        for file in self._logs():
            rows = read_rows(file)
            if rows and rows[0] != self._heading:
                differing = sorted(
                    key for key in self._heading.keys() | rows[0].keys() if self._heading.get(key) != rows[0].get(key)
                )
                raise UserError(
                    f"holds what was begun otherwise: {', '.join(differing)} differ.",
                    "Run the command as it was, or remove the file to begin again.",
                    where=str(file),
                )
            found |= {row["batch"]: row["rows"] for row in rows[1:]}
        return found

    def add(self, number: int, rows: Sequence[Row]) -> None:
        """Keep a batch."""
        with disk_faults(f"{self._own} cannot be written", ", and run the same command again"):
            if not read_rows(self._own):  # new, or killed in its first line
                self._own.unlink(missing_ok=True)
                add_rows(self._own, [self._heading])
            add_rows(self._own, [{"batch": number, "rows": list(rows)}])

    def finish(self, rows: Iterable[Row], heading: Mapping[str, Any] | None = None) -> None:
        """Write the file, whole, and remove the logs."""
        write_lines(self._folder / f"{self._name}.jsonl", [*([heading] if heading else []), *rows])
        for file in self._logs():
            file.unlink()

    def _logs(self) -> list[Path]:
        return sorted(self._folder.glob(f".{self._name}.*.log"))


@dataclass(frozen=True)
class SampleFolder:
    """A folder of answers.

    Attributes:
        path: the folder.
        manifest: how the answers are made.
        questions: what is asked, in order.
    """

    path: Path
    manifest: Mapping[str, Any]
    questions: tuple[Question, ...]

    @classmethod
    def make(cls, path: Path, manifest: Mapping[str, Any], questions: Sequence[Question]) -> "SampleFolder":
        """A new folder, or one that is there already for the same manifest; see `require_usable`.

        The rows of a batch stay those with which a folder was begun: another machine may have other memory.

        Raises:
            UserError: the folder holds answers of another manifest.
        """
        if (path / MANIFEST).is_file():
            found = cls.open(path)
            differing = [
                key for key in manifest if key != "batch_rows" and found.manifest.get(key) != _as_read(manifest[key])
            ]
            if differing:
                raise UserError(
                    f"{path} holds answers that were made otherwise: {', '.join(differing)} differ.",
                    "Name another folder with --output, or move this one away.",
                )
            return found
        rows = [
            {
                "key": one.key,
                "where": one.where,
                "messages": [turn.as_record() for turn in one.turns],
                "ids": one.ids,
                "record": one.record,
                "is_text": one.is_text,
            }
            for one in questions
        ]
        write_lines(path / PROMPTS, rows)
        write_json(path / MANIFEST, manifest)
        return cls(path, manifest, tuple(questions))

    @staticmethod
    def require_usable(path: Path) -> None:
        """Refuse (UserError) a path at which something else lies than answers, or what a killed call left of them."""
        if (path / MANIFEST).is_file() or not path.exists():
            return
        if not path.is_dir() or any(one.name != PROMPTS and one.name[0] != "." for one in path.iterdir()):
            raise UserError(f"{path} exists and holds no answers.", "Name another folder with --output.")

    @classmethod
    def open(cls, path: Path) -> "SampleFolder":
        """A folder that `make` made.

        Raises:
            UserError: it is none, or damaged.
        """
        if not (path / MANIFEST).is_file():
            raise UserError(f"{path} is no folder of answers.", "Make one with: simpo pairs sample PROMPTS --model M")
        try:
            manifest = object_in((path / MANIFEST).read_bytes())
            if manifest["schema_version"] != SCHEMA_VERSION or manifest["kind"] != "samples":
                raise ValueError(f"it holds {manifest['kind']}, of version {manifest['schema_version']}")
            questions = tuple(
                Question(
                    row["key"],
                    tuple(turns_of(row["messages"], "messages")),
                    tuple(row["ids"]),
                    row["where"],
                    record=dict(row["record"]),
                    is_text=bool(row["is_text"]),
                )
                for row in read_rows(path / PROMPTS)
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read as a folder of answers: {error}.",
                "Name a folder that simpo pairs sample has made, or make it again elsewhere.",
            ) from error
        if len(questions) != manifest["prompts"]["count"]:
            raise UserError(
                f"{path / PROMPTS} holds {len(questions):,} prompts of {manifest['prompts']['count']:,}.",
                "Restore the file, or make the answers again elsewhere.",
            )
        return cls(path, manifest, questions)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A block in which nobody else works on the folder.

        Raises:
            UserError: somebody does (exit code 4).
        """
        with locked(self.path):
            yield

    @property
    def is_whole(self) -> bool:
        """Whether all answers are there."""
        return (self.path / f"{ANSWERS}.jsonl").is_file()

    @property
    def answers_per_prompt(self) -> int:
        """How many answers each prompt has."""
        return int(self.manifest["decoding"]["answers_per_prompt"])

    def answers(self) -> list[tuple[int, Answered]]:
        """Every answer with its number among those of its prompt, in the order of the prompts.

        Raises:
            UserError: answers are missing, or a row is damaged.
        """
        if not self.is_whole:
            raise UserError(
                f"{self.path} does not hold all its answers yet.",
                "Run simpo pairs sample again with the same options: it resumes where it stopped.",
            )
        questions = {one.key: one for one in self.questions}
        file = self.path / f"{ANSWERS}.jsonl"
        try:
            found = [
                (
                    int(row["number"]),
                    Answered(
                        questions[row["key"]],
                        Answer(row["key"], row["output"], tuple(row["ids"]), bool(row["ended"])),
                    ),
                )
                for row in read_rows(file)
            ]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"a row lacks {error}, or is of another prompt.", "Make the answers again elsewhere.", where=str(file)
            ) from error
        if len(found) != len(self.questions) * self.answers_per_prompt:
            raise UserError(
                f"holds {len(found):,} answers of {len(self.questions) * self.answers_per_prompt:,}.",
                "Make the answers again elsewhere.",
                where=str(file),
            )
        return found

    def answers_sha256(self) -> str:
        """The hash of the file of answers."""
        return hashlib.sha256((self.path / f"{ANSWERS}.jsonl").read_bytes()).hexdigest()

    def scores_file(self, kind: ScorerKind) -> Path:
        """Where the scores of a kind of scorer are."""
        return self.path / f"scores.{kind}.jsonl"

    def scored_by(self) -> list[ScorerKind]:
        """The kinds of scorers whose scores are all there."""
        kinds: tuple[ScorerKind, ...] = ("rule", "reward_model", "judge")
        return [kind for kind in kinds if self.scores_file(kind).is_file()]

    def scores(self, kind: ScorerKind) -> tuple[Row, dict[tuple[str, int], Score]]:
        """Who scored, and the scores by key and number.

        Raises:
            UserError: they are of other answers, or a row is damaged.
        """
        file = self.scores_file(kind)
        heading, *rows = read_rows(file)
        if heading.get("answers_sha256") != self.answers_sha256():
            raise UserError(
                "holds scores of other answers.", "Move the file away and score the answers again.", where=str(file)
            )
        try:
            scores = {(row["key"], row["number"]): Score(row["score"], row.get("reason", "")) for row in rows}
        except (KeyError, TypeError) as error:
            raise UserError(
                f"a row lacks {error}.", "Move the file away and score the answers again.", where=str(file)
            ) from error
        return heading, scores


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """A block in which no other process of ours works on a folder, which is made if need be.

    Raises:
        UserError: one does (exit code 4).
    """
    with disk_faults(f"{folder} cannot be used"):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise UserError(
                f"another process works on {folder}.", "Wait until it has ended.", exit_code=ExitCode.ENVIRONMENT
            ) from error
    try:
        yield
    finally:
        lock.release()


def _as_read(value: Any) -> Any:
    """A value as it comes back from JSON."""
    return json.loads(json.dumps(value))
