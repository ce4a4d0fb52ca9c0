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
from typing import Any, get_args

from filelock import FileLock, Timeout

from simpo_cli.data.messages import turns_of
from simpo_cli.data.pair import RecordError
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import (
    MANIFEST,
    PROMPTS,
    Answer,
    add_rows,
    differing,
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
RowKey = tuple[str, int]
"""Of an answer or its score: the key of its prompt, and its number among the answers to it."""

_DAMAGES = (AttributeError, KeyError, OverflowError, RecordError, TypeError, ValueError)
"""What it leads to when a file that we wrote holds something else."""


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
        self._own, self._is_begun = folder / f".{name}.{rank}.log", False

    def done(self, batches: Sequence[Iterable[RowKey]] | None = None) -> dict[int, list[Row]]:
        """The batches that are there, by number, of all processes.

        Args:
            batches: the rows that each batch has, by key and number.

        Raises:
            UserError: a log is of something else, or damaged.
        """
        found: dict[int, list[Row]] = {}
        for file in self._logs():
            rows = read_rows(file)
            if rows and (words := differing(rows[0], self._heading)):
                raise UserError(
                    f"holds what was begun otherwise: {words}.",
                    "Run the command as it was, or remove the file to begin again.",
                    where=str(file),
                )
            for line, row in enumerate(rows[1:], start=2):
                if not _is_batch(row, batches):
                    raise UserError(
                        "is no batch of this work.",
                        "Remove the file to make its batches again.",
                        where=f"{file}:{line}",
                    )
                found[row["batch"]] = row["rows"]
        return found

    def add(self, number: int, rows: Sequence[Row]) -> None:
        """Keep a batch."""
        with disk_faults(f"{self._own} cannot be written", ", and run the same command again"):
            if not self._is_begun:
                if not read_rows(self._own):  # new, or killed in its first line
                    self._own.unlink(missing_ok=True)
                    add_rows(self._own, [self._heading])
                self._is_begun = True
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
            asked = {key: _as_read(value) for key, value in manifest.items() if key != "batch_rows"}
            if words := differing({key: found.manifest.get(key) for key in asked}, asked):
                raise UserError(
                    f"{path} holds answers that were made otherwise: {words}.",
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
            for count in (manifest["prompts"]["count"], manifest["decoding"]["answers_per_prompt"]):
                _require_whole(count, "a count", least=1)
            _require_whole(manifest["batch_rows"], "batch_rows", least=1)
            dict(manifest["model"]["sha256"])
            questions = tuple(map(_question_of, read_rows(path / PROMPTS)))
        except (OSError, *_DAMAGES) as error:
            raise UserError(
                f"{path} cannot be read as a folder of answers: {_in_words(error)}.",
                "Name a folder that simpo pairs sample has made, or make it again elsewhere.",
            ) from error
        if len({one.key for one in questions}) != manifest["prompts"]["count"]:
            raise UserError(
                f"{path / PROMPTS} holds {len(questions):,} prompts of {manifest['prompts']['count']:,}.",
                "Restore the file, or make the answers again elsewhere.",
            )
        return cls(path, manifest, questions)

    @property
    def is_whole(self) -> bool:
        """Whether all answers are there."""
        return (self.path / f"{ANSWERS}.jsonl").is_file()

    @property
    def answers_per_prompt(self) -> int:
        """How many answers each prompt has."""
        number: int = self.manifest["decoding"]["answers_per_prompt"]
        return number

    def _require_all(self) -> None:
        if not self.is_whole:
            raise UserError(
                f"{self.path} does not hold all its answers yet.",
                "Run simpo pairs sample again with the same options: it resumes where it stopped.",
            )

    def answers(self) -> list[tuple[int, Answered]]:
        """Every answer with its number among those of its prompt, in the order of the prompts.

        Raises:
            UserError: answers are missing, or a row is damaged.
        """
        self._require_all()
        file, fix = self.path / f"{ANSWERS}.jsonl", "Make the answers again elsewhere."
        questions, found = {one.key: one for one in self.questions}, []
        left = {(one.key, number) for one in self.questions for number in range(self.answers_per_prompt)}
        for line, row in enumerate(read_rows(file), start=1):
            try:
                left.remove((row["key"], row["number"]))
                found.append((row["number"], Answered(questions[row["key"]], _answer_of(row))))
            except _DAMAGES as error:
                raise UserError(
                    f"is no answer, or not to these prompts: {_in_words(error)}.", fix, where=f"{file}:{line}"
                ) from error
        if left:
            raise UserError(f"holds {len(found):,} answers of {len(found) + len(left):,}.", fix, where=str(file))
        return found

    def answers_sha256(self) -> str:
        """The hash of the file of answers.

        Raises:
            UserError: answers are missing.
        """
        self._require_all()
        return hashlib.sha256((self.path / f"{ANSWERS}.jsonl").read_bytes()).hexdigest()

    def scores_file(self, kind: ScorerKind) -> Path:
        """Where the scores of a kind of scorer are."""
        return self.path / f"scores.{kind}.jsonl"

    def scored_by(self) -> list[ScorerKind]:
        """The kinds of scorers whose scores are all there."""
        return [kind for kind in get_args(ScorerKind) if self.scores_file(kind).is_file()]

    def scores(self, kind: ScorerKind) -> tuple[Row, dict[RowKey, Score]]:
        """Who scored, and the scores by key and number.

        Raises:
            UserError: they are of other answers, or a row is damaged.
        """
        file, fix = self.scores_file(kind), "Move the file away and score the answers again."
        heading, *rows = read_rows(file) or [{}]
        if heading.get("answers_sha256") != self.answers_sha256():
            raise UserError("holds scores of other answers.", fix, where=str(file))
        scores: dict[RowKey, Score] = {}
        for line, row in enumerate(rows, start=2):
            try:
                scores[row["key"], row["number"]] = _score_of(row)
            except _DAMAGES as error:
                raise UserError(f"is no score: {_in_words(error)}.", fix, where=f"{file}:{line}") from error
        if {(one.key, number) for one in self.questions for number in range(self.answers_per_prompt)} != scores.keys():
            raise UserError("does not hold a score of each answer.", fix, where=str(file))
        return heading, scores


# Rows that may be damaged: each of these raises one of _DAMAGES


def _question_of(row: Row) -> Question:
    return Question(
        _require(row["key"], str, "key"),
        tuple(turns_of(row["messages"], "messages")),
        _ids_of(row),
        _require(row["where"], str, "where"),
        record=_require(row["record"], dict, "record"),
        is_text=_require(row["is_text"], bool, "is_text"),
    )


def _answer_of(row: Row) -> Answer:
    text = _require(row["output"], str, "output")
    text.encode()  # half of a surrogate pair is no text
    return Answer(row["key"], text, _ids_of(row), _require(row["ended"], bool, "ended"))


def _ids_of(row: Row) -> tuple[int, ...]:
    ids = _require(row["ids"], list, "ids")
    for one in ids:
        _require_whole(one, "one of ids")
    return tuple(ids)


def _score_of(row: Row) -> Score:
    value = row["score"]
    if value is None:
        return Score(None, _require(row.get("reason", ""), str, "reason"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("score is no number")
    return Score(float(value))


def _is_batch(row: Row, batches: Sequence[Iterable[RowKey]] | None) -> bool:
    """Whether a line of a log is a batch, of these rows where they are known."""
    try:
        number, rows = _require_whole(row["batch"], "batch"), _require(row["rows"], list, "rows")
        row_keys = sorted((_require(one["key"], str, "key"), _require_whole(one["number"], "number")) for one in rows)
        if batches is None:
            return True
        for one in rows:
            _score_of(one) if "score" in one else _answer_of(one)
        return row_keys == sorted(batches[number])
    except (IndexError, *_DAMAGES):
        return False


def _require(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is of another kind")
    return value


def _require_whole(value: Any, name: str, least: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError(f"{name} is not a whole number from {least}")
    return value


def _in_words(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


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
