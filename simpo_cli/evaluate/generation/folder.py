"""The folder of answers: a manifest that says how they were made, and a file of answers a model and mode.

A folder holds the answers of one manifest. A call with the same one goes on where the last stopped; a call with another
is refused, because answers made in different ways do not belong in one table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpo_cli.data.pair import Message
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generation.decoding import MODES, Generated, Mode
from simpo_cli.evaluate.generation.formats import (
    alpaca_eval_rows,
    arena_hard_answers,
    arena_hard_questions,
    write_json,
    write_lines,
)
from simpo_cli.evaluate.generation.measures import Answer
from simpo_cli.evaluate.generation.prompts import Question
from simpo_cli.evaluate.json_lines import add_rows, read_rows
from simpo_cli.json_documents import object_in

Side = Literal["base", "trained"]
SIDES: tuple[Side, ...] = ("base", "trained")

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PROMPTS = "prompts.jsonl"


def is_answers(folder: Path) -> bool:
    """Whether a folder holds answers."""
    return (folder / MANIFEST).is_file() and (folder / PROMPTS).is_file()


@dataclass(frozen=True)
class AnswerFolder:
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
    def make(cls, path: Path, manifest: Mapping[str, Any], questions: Sequence[Question]) -> "AnswerFolder":
        """A new folder, or one that is there already for the same manifest.

        Raises:
            UserError: the folder holds something else, or answers of another manifest.
        """
        if is_answers(path):
            found = cls.open(path)
            differing = [name for name in manifest if found.manifest.get(name) != manifest[name]]
            if differing:
                raise UserError(
                    f"{path} holds answers that were made otherwise: {', '.join(differing)} differ.",
                    "Name another folder with --answers, or move this one away.",
                )
            return found
        started = {
            MANIFEST,
            PROMPTS,
            f".{MANIFEST}",
            f".{PROMPTS}",
        }  # by a call that was killed before its first answer
        if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - started):
            raise UserError(f"{path} exists and holds no answers.", "Name another folder with --answers.")
        write_lines(path / PROMPTS, [_question_row(question) for question in questions])
        write_json(path / MANIFEST, manifest)
        return cls(path, manifest, tuple(questions))

    @classmethod
    def open(cls, path: Path) -> "AnswerFolder":
        """A folder that `make` made.

        Raises:
            UserError: it is none, or damaged.
        """
        try:
            manifest = object_in((path / MANIFEST).read_bytes())
            if manifest["schema_version"] != SCHEMA_VERSION or manifest["kind"] != "answers":
                raise ValueError("another version wrote it")
            questions = tuple(map(_question, read_rows(path / PROMPTS)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read as a folder of answers: {error}.", "Generate the answers again elsewhere."
            ) from error
        return cls(path, manifest, questions)

    def name_of(self, side: Side) -> str:
        """The model's name, as the files for other tools have it."""
        return str(self.manifest["models"][side]["name"])

    def file(self, side: Side, mode: Mode) -> Path:
        """Where a model's answers are."""
        return self.path / f"{side}.{mode}.jsonl"

    def answers(self, side: Side, mode: Mode) -> dict[str, Answer]:
        """The answers so far, by the key of their prompt."""
        rows = read_rows(self.file(side, mode))
        try:
            return {
                row["key"]: Answer(row["key"], row["output"], tuple(row["ids"]), bool(row["ended"])) for row in rows
            }
        except (KeyError, TypeError) as error:
            raise UserError(
                f"a row lacks {error}.",
                "Remove the file; its answers are made again.",
                where=str(self.file(side, mode)),
            ) from error

    def still_to_ask(self, side: Side) -> dict[Mode, list[Question]]:
        """The questions that a model has not answered yet, by mode."""
        done = {mode: self.answers(side, mode).keys() for mode in MODES}
        return {mode: [one for one in self.questions if one.key not in done[mode]] for mode in MODES}

    def add(self, side: Side, mode: Mode, generated: Sequence[Generated], texts: Sequence[str]) -> None:
        """Keep answers as they come."""
        add_rows(
            self.file(side, mode),
            [
                {"key": one.key, "output": text, "ended": one.ended, "ids": list(one.ids)}
                for one, text in zip(generated, texts, strict=True)
            ],
        )

    def in_order(self, side: Side, mode: Mode) -> list[Answer]:
        """The answers in the order of the questions; all of them have to be there."""
        answers = self.answers(side, mode)
        missing = sum(question.key not in answers for question in self.questions)
        if missing:
            raise UserError(
                f"{self.path} lacks {missing:,} of {len(self.questions):,} answers ({side}, {mode}).",
                "Run simpo eval --generate again with the same options: it goes on where it stopped.",
            )
        return [answers[question.key] for question in self.questions]

    def write_formats(self, written: float) -> None:
        """The files that AlpacaEval and Arena-Hard read; `written` is a time in seconds since 1970."""
        for mode in MODES:
            arena = self.path / "arena_hard" / mode
            write_lines(arena / "question.jsonl", arena_hard_questions(self.questions))
            for side in SIDES:
                answers, name = self.in_order(side, mode), self.name_of(side)
                write_json(
                    self.path / "alpaca_eval" / mode / f"{name}.json", alpaca_eval_rows(self.questions, answers, name)
                )
                rows = arena_hard_answers(self.questions, answers, name, written)
                write_lines(arena / "model_answer" / f"{name}.jsonl", rows)


def _question_row(question: Question) -> dict[str, Any]:
    return {
        "key": question.key,
        "where": question.where,
        "messages": [{"role": turn.role, "content": turn.content} for turn in question.turns],
        "ids": list(question.ids),
        "labels": question.labels,
    }


def _question(row: Mapping[str, Any]) -> Question:
    turns = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
    return Question(row["key"], turns, tuple(row["ids"]), row["where"], dict(row["labels"]))
