"""What a run has written, read back strictly: the one place where run.json and the logs beside it are believed.

Others may have written them, or damaged them: what is not of its shape is refused by name. A shape names the keys that
somebody here uses, with types and bounds; others may hold any JSON.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le, Len
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from simpo_cli.errors import UserError
from simpo_cli.files import MalformedError, parse, rows_of
from simpo_cli.run.folder import EVAL_PAIRS, EVAL_SAMPLES, EVALS, IDENTITY, METRICS, NOTES, PROGRESS, RUN

SCHEMA_VERSION = 2
"""Of run.json."""
_MOST = 2**53  # what is more is exact in no other reader
_MOST_BYTES = 256_000_000


def _object(name: str, fields: Mapping[str, Any]) -> Any:
    """The type of a JSON object: keys, several in a text, and the type of their values; with `?` one may be missing."""
    keys = {key: kind for names, kind in fields.items() for key in names.split()}
    typed = {key.rstrip("?"): NotRequired[kind] if key.endswith("?") else kind for key, kind in keys.items()}
    shape: Any = TypedDict(name, typed)  # type: ignore[misc]  # a name that is no literal
    return with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))(shape)


def _list_of(item: Any) -> Any:
    return list[item]


def _dict_of(item: Any) -> Any:
    return dict[str, item]


_Count = Annotated[int, Ge(0), Le(_MOST)]
_Positive = Annotated[int, Ge(1), Le(_MOST)]
_Number = Annotated[float, Ge(-1e100), Le(1e100)]
_Seconds = Annotated[float, Ge(0), Le(1e100)]
_Probability = Annotated[float, Ge(0), Le(1)]

_Share = _object("Share", {"value": _Probability, "ci": Annotated[list[_Number], Len(2, 2)], "n": _Count})
_Measured = _object("Measured", {"value": _Number, "ci": Annotated[list[_Number | None], Len(2, 2)], "n": _Count})
_Lengths = _object(
    "Lengths",
    {
        "chosen_longer chosen_shorter balanced": _Share | None,
        "spearman": _Measured | _Number | None,  # a number in runs of before 0.2
    },
)
_Scored = _object(
    "Scored",
    {
        "pairs prompts": _Count,
        "effective_prompts?": _Number,
        "accuracy target_reached": _Share,
        "margin loss logps/chosen logps/rejected": _Measured,
        "ties": _Count,
        "length": _Lengths,
        "baselines": _object("Baselines", {"longer_wins? surface?": _Share | None}),
    },
)
_Difference = _object(
    "Difference",
    {
        "accuracy": _Measured,
        "p_value": _Probability,
        "test": Literal["mcnemar-exact", "sign-flip-by-prompt"],
        "length_balanced?": _Measured | None,
    },
)
_Checked = _object(
    "Checked",
    {
        "rule": str,
        "prompts": _Positive,
        "exact ended": _object(
            "CheckedShare", {"before after": _Share, "difference": _Measured, "p_value": _Probability}
        ),
        "parts": _object("CheckedParts", {"before after difference": _Measured, "p_value": _Probability}),
    },
)
_Outcome = _object(
    "Outcome",
    {
        "steps?": _Count,
        "seconds?": _Seconds,
        "error?": str,
        "before? after?": _Scored,
        "difference?": _Difference,
        "answers?": _list_of(_object("Answer", {"question before after": str})),
        "checked?": _Checked,
        "export?": _object("Kept", {"kept_share rounded_back_share": _Number}) | None,
        "looks?": _Positive,
        "suggestions?": _list_of(_object("Suggestion", {"overrides": list[str], "why": str})),
    },
)
_Records = _object(
    "Records", {"read repeated trained held_out not_reached refused": _Count, "dropped": dict[str, _Count]}
)
_Source = _object(
    "Source",
    {
        "decision": str,
        "files": _list_of(_object("File", {"path identity": str, "size": _Count})),
        "records": _Records,
        "counts": dict[str, _Count],
    },
)
_Model = _object(
    "Model",
    {
        "name": str,
        "revision": str | None,
        "files": dict[str, str],
        "parameters trainable_parameters": _Count,
        "weights_dtype": str,
        "code?": dict[str, str],
    },
)
_Alert = _object(
    "Alert",
    {
        "code key": str,
        "limit": _Number,
        "step last_step times": _Count,
        "sentence": str,
        "remedy": Annotated[str, Len(1)],
    },
)
_SelfCheck = _object(
    "SelfCheck",
    {
        "packing": str,
        "why_padded": str | None,
        "difference": _object("Deviation", {"tokens": _Count, "highest": _Number, "gradient": _Number | None}) | None,
    },
)
_Receipt = _object(
    "Receipt",
    {
        "schema_version?": Annotated[int, Ge(1), Le(SCHEMA_VERSION)],
        "status": Literal["running", "done", "stopped", "failed"],
        "step?": _Count,
        "started": str,
        "seed": int,
        "command": str,
        "resumed?": _list_of(_object("Resumed", {"at": str, "from_step": _Count, "not_bit_exact": list[str]})),
        "recipe_sha256?": str,
        "recipe_origins?": dict[str, str],
        "reopened?": list[str],
        "tokenizer_sha256? template_sha256?": str,
        "versions": dict[str, str | None],
        "hardware": _object("Hardware", {"device": str, "threads": _Count, "cpu_capability compute platform": str}),
        "model": _Model,
        "plan": _object("Plan", {"steps": _Count, "pairs_per_step": _Positive}),
        "data": _object(
            "Data", {"train": _Source, "eval": _Source | None, "train_pairs_with_held_out_prompts?": _Count}
        ),
        "self_check?": _SelfCheck | None,
        "health?": _list_of(_Alert),
        "outcome?": _Outcome | None,
        "files?": _dict_of(_object("Facts", {"size": _Count, "sha256": str})),
    },
)
_EvalsRow = _object(
    "EvalsRow",
    {
        "step pairs": _Count,
        "loss accuracy accuracy_low accuracy_high margin logps/chosen_delta logps/rejected_delta": _Number,
        "probe_pairs": _Count,
    },
)
_PairRow = _object(
    "PairRow",
    {
        "where prompt": str,
        "pair?": Annotated[str, Len(32, 32)],
        "chosen_tokens rejected_tokens": _Count,
        "chosen_before rejected_before chosen_after rejected_after": _Number,
    },
)
_Progress = _object(
    "Progress",
    {
        "seconds": _Seconds,
        "evaluated_at": Annotated[int, Ge(-1), Le(_MOST)],
        "lines": dict[str, _Count],
        "self_check": dict[str, Any],
        "answers_before": list[str],
        "chosen_before rejected_before": list[_Number] | None,
        "digests?": dict[str, str],
        "health?": dict[str, Any],
        "checked_before?": _list_of(_object("CheckedAnswer", {"exact ended": bool, "parts": _Probability})) | None,
    },
)
_Files = list[Annotated[list[str], Len(2, 2)]]
_Identity = _object(
    "Identity",
    {
        "recipe": dict[str, Any],
        "data": _object("IdentityData", {"train": _Files, "eval": _Files | None}),
        "model": _object("IdentityModel", {"revision": str | None, "files": Any, "code?": dict[str, str]}),
        "tokenizer template": str,
        "plan": _object(
            "IdentityPlan", {"train_pairs held_out_pairs": _Count, "tokens?": str, "rendered_at?": str | None}
        ),
        "machine": dict[str, Any],
    },
)
_SHAPES: dict[str, TypeAdapter[Any]] = {
    RUN: TypeAdapter(_Receipt),
    METRICS: TypeAdapter(_object("MetricsRow", {"step": _Count, "loss": _Number})),
    EVALS: TypeAdapter(_EvalsRow),
    EVAL_PAIRS: TypeAdapter(_PairRow),
    EVAL_SAMPLES: TypeAdapter(_object("SampleRow", {"line": _Positive, "why prompt chosen rejected": str})),
    NOTES: TypeAdapter(_object("NoteRow", {"label text": str, "code?": str})),
    PROGRESS: TypeAdapter(_Progress),
    IDENTITY: TypeAdapter(_Identity),
}


class LaterVersionError(MalformedError):
    """It is what a later version writes."""


def read_receipt(run: Path) -> dict[str, Any]:
    """run.json.

    Raises:
        UserError: it is missing, damaged, or of a later version.
    """
    file = run / RUN
    try:
        return receipt_of(_bytes_of(file))
    except LaterVersionError as error:
        raise UserError(f"{error}.", "Update simpo: pip install -U simpo-cli", where=str(file)) from error
    except MalformedError as error:
        raise UserError(f"is not what a run writes: {error}.", "Restore the file.", where=str(file)) from error


def receipt_of(data: bytes) -> dict[str, Any]:
    """The content of run.json.

    Raises:
        MalformedError: it is not what a run writes.
    """
    content = parse(data)
    version = content.get("schema_version") if isinstance(content, dict) else None
    if type(version) is int and version > SCHEMA_VERSION:
        raise LaterVersionError(f"was written by a later version of simpo (schema_version {version})")
    receipt = of_shape(RUN, content)
    outcome = receipt.get("outcome") or {}
    parts = {"before", "after", "difference"} & outcome.keys()
    if len(parts) not in (0, 3):
        raise MalformedError(f"outcome has {' and '.join(sorted(parts))} and not the rest of before, after, difference")
    return receipt


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a log of a run; a last line that is being written is left out, and a missing file has none.

    Raises:
        UserError: a line is none of this log.
    """
    if not file.is_file():
        return []
    whole, _, rest = _bytes_of(file).rpartition(b"\n")
    rows = list(rows_of(whole, file, lambda line: of_shape(file.name, parse(line))))
    with suppress(MalformedError):
        rows += [of_shape(file.name, parse(rest))] if rest else []
    return rows


def code_of_old(text: str) -> str:
    """The code of the finding that a line of notes.jsonl tells of, of a version that wrote none beside the text."""
    code, _, rest = text.partition(" ")
    return code if rest and len(code) == 6 and code[:3].isupper() and code[3:].isdigit() else ""


def of_shape(name: str, content: Any) -> dict[str, Any]:
    """The same content, which has the shape of a document of this name.

    Raises:
        MalformedError: it has not.
    """
    try:
        _SHAPES[name].validate_python(content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)[0]
        known = _keys(content) | ({found["loc"][-1]} if found["type"] == "missing" else set())
        key = ".".join(str(part) for part in found["loc"] if isinstance(part, int) or part in known)
        wanted = "is missing" if found["type"] == "missing" else found["msg"][0].lower() + found["msg"][1:]
        raise MalformedError(f"{key or 'the whole'}: {wanted}") from error
    document: dict[str, Any] = content
    return document


def _keys(content: Any) -> set[str]:
    """The names in a document and of what it may hold: pydantic also names the alternatives it has tried."""
    found: set[str] = set()
    level = [content]
    while level:
        value = level.pop()
        if isinstance(value, dict):
            found |= value.keys()
            level += value.values()
        elif isinstance(value, list):
            level += value
    return found


def _bytes_of(file: Path) -> bytes:
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UserError(
                f"is over {_MOST_BYTES / 1e6:.0f} MB.", "Restore what the run has written.", where=str(file)
            )
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", "Restore the file.", where=str(file)) from error
