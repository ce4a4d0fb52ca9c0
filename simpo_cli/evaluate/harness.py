"""Results of lm-evaluation-harness: its `results_*.json`, with the standard errors that it gives."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.files import MalformedError, parse

_PATTERN = "results_*.json"
_NORMAL = 1.959964
SCHEMA_VERSION = 1


Place = tuple[str, str, str]
"""Task, metric, and the filter that it was taken through (`none` for most)."""


@dataclass(frozen=True, slots=True)
class HarnessScore:
    """One number as the harness gives it; None is what it does not say.

    Attributes:
        stderr: standard error of the value.
        n: questions that were asked.
        shots: examples in the prompt.
    """

    value: float
    stderr: float | None
    n: int | None
    shots: int | None
    higher_is_better: bool | None


Scores = Mapping[Place, HarnessScore]


def _files_under(folder: Path) -> list[Path]:
    """The result files under a folder, by the time in their names."""
    return sorted(folder.rglob(_PATTERN), key=lambda file: (file.name, str(file)))


def is_harness(path: Path) -> bool:
    """Whether a path is a file of results, or a folder of them that is nothing else: no model, no run."""
    if path.is_file():
        return path.name.startswith("results_") and path.suffix == ".json"
    is_other = any((path / name).exists() for name in ("run.json", "config.json", "adapter_config.json"))
    return path.is_dir() and not is_other and bool(_files_under(path))


def read_harness(path: Path) -> list[tuple[str, Scores]]:
    """The models of a file or folder of results, in the order of their first file, with their newest numbers.

    Raises:
        UserError: there is no result file, or one is damaged or of something else.
    """
    files = [path] if path.is_file() else _files_under(path)
    if not files:
        raise UserError(f"{path} holds no {_PATTERN}.", "Name the folder that lm_eval --output_path wrote.")
    found: dict[str, dict[Place, HarnessScore]] = {}
    for file in files:
        document = _document(file)
        scores = found.setdefault(_model_of(document, file), {})
        for task, numbers in document["results"].items():
            scores.update(_scores(str(task), numbers, document, file))  # a later file goes before an earlier one
    return list(found.items())


def _document(file: Path) -> dict[str, Any]:
    try:
        document = parse(file.read_bytes(), finite=False)
    except (OSError, MalformedError) as error:
        raise UserError(f"cannot be read: {error}.", "Run lm_eval again, or move it away.", where=str(file)) from error
    if not isinstance(document, dict) or not isinstance(document.get("results"), dict):
        fix = "Name the folder that lm_eval wrote."
        raise UserError("holds no results of lm-evaluation-harness.", fix, where=str(file))
    return document


def _model_of(document: Mapping[str, Any], file: Path) -> str:
    if isinstance(name := document.get("model_name"), str) and name:
        return name
    config = document.get("config")
    arguments = config.get("model_args") if isinstance(config, dict) else None
    if isinstance(arguments, dict):
        return str(arguments.get("pretrained", file.parent.name))
    given = dict(part.split("=", 1) for part in str(arguments or "").split(",") if "=" in part)
    return given.get("peft") or given.get("pretrained") or file.parent.name


def _scores(task: str, numbers: Any, document: Mapping[str, Any], file: Path) -> Iterator[tuple[Place, HarnessScore]]:
    if not isinstance(numbers, dict):
        raise UserError(f"the results of {task} are no object.", "Run lm_eval again.", where=str(file))
    for name, value in numbers.items():
        metric, _, by = name.partition(",")
        if metric.endswith("_stderr") or (number := _number(value)) is None:
            continue  # alias, sample_len and the like are texts, or counts without a filter
        if not by and f"{metric}_stderr" not in numbers and metric not in ("acc", "acc_norm"):
            continue
        stderr = numbers.get(f"{metric}_stderr,{by}" if by else f"{metric}_stderr")
        yield (
            (task, metric, by or "none"),
            HarnessScore(
                value=number,
                stderr=_number(stderr),  # "N/A" where there is none
                n=_at(document, "n-samples", task, "effective"),
                shots=_at(document, "n-shot", task),
                higher_is_better=_at(document, "higher_is_better", task, metric),
            ),
        )


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _at(document: Any, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, int | float) else None


def harness_document(models: Sequence[tuple[str, Scores]]) -> dict[str, Any]:
    """Two or more models side by side: the JSON of `simpo eval FOLDER`.

    Every model is compared with the first. The standard error of a difference is sqrt(a^2 + b^2), as of independent
    samples: both models answer the same questions, so the true one is usually smaller, and the interval is careful.
    """
    names = [name for name, _ in models]
    rows = []
    for place in dict.fromkeys(place for _, known in models for place in known):
        scores = [known.get(place) for _, known in models]
        documents = [None if score is None else asdict(score) for score in scores]
        directions = [document.pop("higher_is_better") for document in documents if document is not None]
        rows.append(
            {
                **dict(zip(("task", "metric", "filter"), place, strict=True)),
                "higher_is_better": directions[0],
                "scores": documents,
                "differences": [_difference(scores[0], score) for score in scores[1:]],
            }
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "lm-evaluation-harness",
        "models": names,
        "compared_with": names[0],
        "rows": rows,
    }


def _difference(base: HarnessScore | None, other: HarnessScore | None) -> dict[str, Any] | None:
    """None where a model lacks the number, or where it was asked in another way."""
    if base is None or other is None or base.shots != other.shots:
        return None
    value = other.value - base.value
    if base.stderr is None or other.stderr is None:
        return {"value": value, "stderr": None, "ci": [None, None]}
    stderr = math.hypot(base.stderr, other.stderr)
    return {"value": value, "stderr": stderr, "ci": [value - _NORMAL * stderr, value + _NORMAL * stderr]}
