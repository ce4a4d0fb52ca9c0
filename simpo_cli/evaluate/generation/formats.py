"""Answers in the files that AlpacaEval and Arena-Hard read.

AlpacaEval (`alpaca_eval --model_outputs FILE --reference_outputs FILE`): a JSON list of {instruction, output,
generator, dataset}. Arena-Hard-Auto v2 (`gen_judgment.py`): `question.jsonl` with {uid, category, prompt}, and a file
`model_answer/MODEL.jsonl` of {uid, ans_id, model, messages, tstamp, metadata}, where the last message's content is
{"answer": ...} and metadata counts what its style control reads: token_len, header_count, list_count, bold_count.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simpo_cli.data.writing import disk_faults, replacing
from simpo_cli.evaluate.generation.measures import Answer
from simpo_cli.evaluate.generation.prompts import Question

_CODE = re.compile("```[^`]*```")


def alpaca_eval_rows(questions: Sequence[Question], answers: Sequence[Answer], name: str) -> list[dict[str, str]]:
    """One model's answers as AlpacaEval's model outputs, in the order of the questions."""
    return [
        {
            "instruction": question.text,
            "output": answer.text,
            "generator": name,
            "dataset": question.labels.get("dataset", "simpo"),
        }
        for question, answer in zip(questions, answers, strict=True)
    ]


def arena_hard_questions(questions: Sequence[Question]) -> list[dict[str, str]]:
    """The rows of question.jsonl; a prompt without a uid of its own has its hash."""
    return [
        {
            "uid": _uid(question),
            "category": question.labels.get("category", "simpo"),
            "prompt": question.text,
        }
        for question in questions
    ]


def arena_hard_answers(
    questions: Sequence[Question], answers: Sequence[Answer], name: str, written: float
) -> list[dict[str, Any]]:
    """The rows of model_answer/NAME.jsonl.

    Args:
        questions, answers: of one model, in one order.
        name: the model's.
        written: when, in seconds since 1970.
    """
    return [
        {
            "uid": _uid(question),
            "ans_id": hashlib.sha256(f"{name} {question.key} {answer.text}".encode()).hexdigest()[:22],
            "model": name,
            "messages": [
                *({"role": turn.role, "content": turn.content} for turn in question.turns),
                {"role": "assistant", "content": {"answer": answer.text}},
            ],
            "tstamp": written,
            "metadata": {"token_len": len(answer.ids), **markdown_counts(answer.text)},
        }
        for question, answer in zip(questions, answers, strict=True)
    ]


def _uid(question: Question) -> str:
    return question.labels.get("uid", question.key)


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
    write_text(file, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def write_text(file: Path, text: str) -> None:
    """A file of text, whole or not at all; folders on the way are made."""
    with disk_faults(f"{file} cannot be written", ", and run the same command again"):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as stream:
            stream.write(text)
