"""The folder of answers: a manifest that says how they were made, answers by model and mode, and the files that
AlpacaEval and Arena-Hard read.

A folder holds the answers of one manifest. A call with the same one resumes where the last stopped; a call with another
is refused, because answers made in different ways do not belong in one table.

AlpacaEval (`alpaca_eval --model_outputs FILE --reference_outputs FILE`): a JSON list of {instruction, output,
generator, dataset}. Arena-Hard-Auto v2 (`gen_judgment.py`): `question.jsonl` with {uid, category, prompt}, and a file
`model_answer/MODEL.jsonl` of {uid, ans_id, model, messages, tstamp, metadata}, where the last message's content is
{"answer": ...} and metadata counts what its style control reads: token_len, header_count, list_count, bold_count.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simpo_cli.data.pair import Message
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.files import disk_faults, object_in, replacing, rows_of
from simpo_cli.recipe.tree import flat

Mode = Literal["greedy", "sampled"]
MODES: tuple[Mode, ...] = ("greedy", "sampled")
Side = Literal["base", "trained"]
SIDES: tuple[Side, ...] = ("base", "trained")

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PROMPTS = "prompts.jsonl"

_CODE = re.compile("```[^`]*```")
_SHORT = 40  # characters of a value that is shown where it is another; hashes are longer


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What two headings do not say alike, in words and in order, such as `decoding.seed is 2, was 1`."""
    old, new = flat(before), flat(now)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    are_short = {key: all(len(str(one.get(key))) <= _SHORT for one in (old, new)) for key in keys}
    return ", ".join(
        f"{key} is {new.get(key)}, was {old.get(key)}" if are_short[key] else f"{key} differs" for key in keys
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one prompt.

    Attributes:
        key: the prompt's.
        text: what a person reads: its tokens without the end token, as text, white space at both ends left out.
        ids: its tokens without the end token.
        ended: whether the model ended it; else it was cut at max_new_tokens.
    """

    key: str
    text: str
    ids: tuple[int, ...]
    ended: bool


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; a last line that a kill cut short, or that is being written, is left out.

    Raises:
        UserError: another line is no row.
    """
    if not file.is_file():
        return []
    content = file.read_bytes()
    return list(rows_of(content[: content.rfind(b"\n") + 1], file))


def add_rows(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add rows, handed to the system before this returns; a last line that a kill cut short goes first."""
    with file.open("a+b") as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            if stream.read() != b"\n":
                stream.seek(0)
                stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(_lines(rows).encode())


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def alpaca_eval_rows(questions: Sequence[Question], answers: Sequence[Answer], name: str) -> list[dict[str, str]]:
    """One model's answers as AlpacaEval's model outputs, in the order of the questions."""
    return [
        {
            "instruction": one.text,
            "output": answer.text,
            "generator": name,
            "dataset": one.labels.get("dataset", "simpo"),
        }
        for one, answer in zip(questions, answers, strict=True)
    ]


def arena_hard_questions(questions: Sequence[Question]) -> list[dict[str, str]]:
    """The rows of question.jsonl; a prompt without a uid of its own has its hash."""
    return [
        {"uid": _uid(one), "category": one.labels.get("category", "simpo"), "prompt": one.text} for one in questions
    ]


def arena_hard_answers(
    questions: Sequence[Question], answers: Sequence[Answer], name: str, written: float
) -> list[dict[str, Any]]:
    """The rows of model_answer/NAME.jsonl; `written` is a time in seconds since 1970."""
    return [
        {
            "uid": _uid(question),
            "ans_id": hashlib.sha256(f"{name} {question.key} {answer.text}".encode()).hexdigest()[:22],
            "model": name,
            "messages": [*_messages(question), {"role": "assistant", "content": {"answer": answer.text}}],
            "tstamp": written,
            "metadata": {"token_len": len(answer.ids), **markdown_counts(answer.text)},
        }
        for question, answer in zip(questions, answers, strict=True)
    ]


def _uid(question: Question) -> str:
    return question.labels.get("uid", question.key)


def _messages(question: Question) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in question.turns]


def markdown_counts(text: str) -> dict[str, dict[str, int]]:
    """Headers, list items and bold stretches outside of code blocks, by kind."""
    prose = _CODE.sub("``````", text)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, prose, re.MULTILINE))

    return {
        "header_count": {f"h{level}": count(rf"^#{{{level}}}\s") for level in range(1, 7)},
        "list_count": {"ordered": count(r"^\s*\d+\.\s"), "unordered": count(r"^\s*[-*+]\s")},
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    }


def write_json(file: Path, value: Any) -> None:
    """A JSON document, whole or not at all."""
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines, whole or not at all."""
    write_text(file, _lines(rows))


def write_text(file: Path, text: str) -> None:
    """A file of text, whole or not at all; folders on the way are made."""
    with disk_faults(f"{file} cannot be written", ", and run the same command again"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(text)


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
            if words := differing({name: found.manifest.get(name) for name in manifest}, manifest):
                raise UserError(
                    f"{path} holds answers that were made otherwise: {words}.",
                    "Name another folder with --answers, or move this one away.",
                )
            return found
        # what a call that was killed before its first answer leaves
        started = {MANIFEST, PROMPTS, f".{MANIFEST}", f".{PROMPTS}"}
        if path.exists() and (not path.is_dir() or {entry.name for entry in path.iterdir()} - started):
            raise UserError(f"{path} exists and holds no answers.", "Name another folder with --answers.")
        rows = [
            {"key": one.key, "where": one.where, "messages": _messages(one), "ids": one.ids, "labels": one.labels}
            for one in questions
        ]
        write_lines(path / PROMPTS, rows)
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
            questions = []
            for row in read_rows(path / PROMPTS):
                turns = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
                questions.append(Question(row["key"], turns, tuple(row["ids"]), row["where"], dict(row["labels"])))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} cannot be read as a folder of answers: {error}.", "Generate the answers again elsewhere."
            ) from error
        return cls(path, manifest, tuple(questions))

    def file(self, side: Side, mode: Mode) -> Path:
        """Where a model's answers are."""
        return self.path / f"{side}.{mode}.jsonl"

    def answers(self, side: Side, mode: Mode) -> dict[str, Answer]:
        """The answers so far, by the key of their prompt."""
        file = self.file(side, mode)
        try:
            return {
                row["key"]: Answer(row["key"], row["output"], tuple(row["ids"]), bool(row["ended"]))
                for row in read_rows(file)
            }
        except (KeyError, TypeError) as error:
            fix = "Remove the file; its answers are made again."
            raise UserError(f"a row lacks {error}.", fix, where=str(file)) from error

    def still_to_ask(self, side: Side) -> dict[Mode, list[Question]]:
        """The questions that a model has not answered yet, of the modes in which there are any."""
        done = {mode: self.answers(side, mode) for mode in MODES}
        left = {mode: [one for one in self.questions if one.key not in done[mode]] for mode in MODES}
        return {mode: questions for mode, questions in left.items() if questions}

    def add(self, side: Side, mode: Mode, answers: Sequence[Answer]) -> None:
        """Keep answers as they come."""
        rows = [{"key": one.key, "output": one.text, "ended": one.ended, "ids": one.ids} for one in answers]
        add_rows(self.file(side, mode), rows)

    def in_order(self, side: Side, mode: Mode) -> list[Answer]:
        """The answers in the order of the questions; all of them have to be there."""
        answers = self.answers(side, mode)
        missing = sum(question.key not in answers for question in self.questions)
        if missing:
            raise UserError(
                f"{self.path} lacks {missing:,} of {len(self.questions):,} answers ({side}, {mode}).",
                "Run simpo eval --generate again with the same options: it resumes where it stopped.",
            )
        return [answers[question.key] for question in self.questions]

    def write_formats(self, written: float) -> None:
        """The files that AlpacaEval and Arena-Hard read; `written` is a time in seconds since 1970."""
        for mode in MODES:
            arena = self.path / "arena_hard" / mode
            write_lines(arena / "question.jsonl", arena_hard_questions(self.questions))
            for side in SIDES:
                answers, name = self.in_order(side, mode), self.manifest["models"][side]["name"]
                alpaca = alpaca_eval_rows(self.questions, answers, name)
                write_json(self.path / "alpaca_eval" / mode / f"{name}.json", alpaca)
                rows = arena_hard_answers(self.questions, answers, name, written)
                write_lines(arena / "model_answer" / f"{name}.jsonl", rows)
