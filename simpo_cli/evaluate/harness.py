"""Results of lm-evaluation-harness: its `results_*.json`, with the standard errors that it gives."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo_cli.errors import UserError
from simpo_cli.files import MalformedError, parse

_PATTERN = "results_*.json"
_NORMAL = 1.959964
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class HarnessScore:
    """One number of one task.

    Attributes:
        task: as the harness names it.
        metric, by: what is measured, and the filter it was taken through (`none` for most).
        value: as the harness gives it.
        stderr: its standard error, or None where the harness gives none.
        n: questions that were asked, or None.
        shots: examples in the prompt, or None.
        higher_is_better: None where the harness does not say.
    """

    task: str
    metric: str
    by: str
    value: float
    stderr: float | None
    n: int | None
    shots: int | None
    higher_is_better: bool | None


Place = tuple[str, str, str]
"""Task, metric and filter."""


@dataclass(frozen=True)
class HarnessResults:
    """What one model scored: of each task, metric and filter the newest."""

    model: str
    scores: Mapping[Place, HarnessScore]


def harness_files(path: Path) -> list[Path]:
    """The result files under a folder, by the time in their names; a file alone is one. Empty where there are none."""
    if path.is_file():
        return [path] if path.suffix == ".json" else []
    return sorted(path.rglob(_PATTERN), key=lambda file: (file.name, str(file)))


def is_harness(path: Path) -> bool:
    """Whether a path is a file of results, or a folder of them that is nothing else: no model, no run."""
    if path.is_file():
        return path.name.startswith("results_") and path.suffix == ".json"
    is_other = any((path / name).exists() for name in ("run.json", "config.json", "adapter_config.json"))
    return path.is_dir() and not is_other and bool(harness_files(path))


def read_harness(path: Path) -> list[HarnessResults]:
    """The models of a folder of results, in the order of their first file.

    Raises:
        UserError: there is no result file, or one is damaged or of something else.
    """
    found: dict[str, dict[Place, HarnessScore]] = {}
    files = harness_files(path)
    if not files:
        raise UserError(f"{path} holds no {_PATTERN}.", "Name the folder that lm_eval --output_path wrote.")
    for file in files:
        document = _document(file)
        scores = found.setdefault(_model_of(document, file), {})
        for task, numbers in document["results"].items():
            for score in _scores(str(task), numbers, document, file):
                scores[score.task, score.metric, score.by] = score  # a later file goes before an earlier one
    return [HarnessResults(model, scores) for model, scores in found.items()]


def _document(file: Path) -> dict[str, Any]:
    try:
        document = parse(file.read_bytes(), finite=False)
    except (OSError, MalformedError) as error:
        raise UserError(f"cannot be read: {error}.", "Run lm_eval again, or move it away.", where=str(file)) from error
    if not isinstance(document, dict) or not isinstance(document.get("results"), dict):
        raise UserError(
            "holds no results of lm-evaluation-harness.", "Name the folder that lm_eval wrote.", where=str(file)
        )
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


def _scores(task: str, numbers: Any, document: Mapping[str, Any], file: Path) -> list[HarnessScore]:
    if not isinstance(numbers, dict):
        raise UserError(f"the results of {task} are no object.", "Run lm_eval again.", where=str(file))
    found = []
    for name, value in numbers.items():
        metric, _, by = name.partition(",")
        if metric.endswith("_stderr") or (number := _number(value)) is None:
            continue  # alias, sample_len and the like are texts, or counts without a filter
        if not by and f"{metric}_stderr" not in numbers and metric not in ("acc", "acc_norm"):
            continue
        stderr = numbers.get(f"{metric}_stderr,{by}" if by else f"{metric}_stderr")
        found.append(
            HarnessScore(
                task=task,
                metric=metric,
                by=by or "none",
                value=number,
                stderr=_number(stderr),  # "N/A" where there is none
                n=_at(document, "n-samples", task, "effective"),
                shots=_at(document, "n-shot", task),
                higher_is_better=_at(document, "higher_is_better", task, metric),
            )
        )
    return found


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _at(document: Any, *keys: str) -> Any:
    for key in keys:
        document = document.get(key) if isinstance(document, dict) else None
    return document if isinstance(document, int | float) else None


def harness_document(models: list[HarnessResults]) -> dict[str, Any]:
    """Two or more models side by side: the JSON of `simpo eval FOLDER`.

    Every model is compared with the first. The standard error of a difference is sqrt(a^2 + b^2), as of independent
    samples: both models answer the same questions, so the true one is usually smaller, and the interval is careful.
    """
    first = models[0]
    places = dict.fromkeys(place for model in models for place in model.scores)
    rows = []
    for place in places:
        scores = [model.scores.get(place) for model in models]
        known = next(score for score in scores if score is not None)
        rows.append(
            {
                "task": known.task,
                "metric": known.metric,
                "filter": known.by,
                "higher_is_better": known.higher_is_better,
                "scores": [None if score is None else _score(score) for score in scores],
                "differences": [_difference(scores[0], score) for score in scores[1:]],
            }
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "lm-evaluation-harness",
        "models": [model.model for model in models],
        "compared_with": first.model,
        "rows": rows,
    }


def _score(score: HarnessScore) -> dict[str, Any]:
    return {"value": score.value, "stderr": score.stderr, "n": score.n, "shots": score.shots}


def _difference(base: HarnessScore | None, other: HarnessScore | None) -> dict[str, Any] | None:
    """None where a model lacks the number, or where it was asked in another way."""
    if base is None or other is None or base.shots != other.shots:
        return None
    value = other.value - base.value
    if base.stderr is None or other.stderr is None:
        return {"value": value, "stderr": None, "ci": [None, None]}
    stderr = math.hypot(base.stderr, other.stderr)
    return {"value": value, "stderr": stderr, "ci": [value - _NORMAL * stderr, value + _NORMAL * stderr]}
