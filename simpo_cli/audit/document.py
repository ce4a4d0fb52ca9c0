"""The JSON document of `simpo stats`: versioned, the same bytes for the same input. docs/stats.md says every key."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit import surface
from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.audit.columns import describe, whole_mean
from simpo_cli.audit.examine import NO_LIMIT, Examination, Tokens
from simpo_cli.audit.findings import Finding, finding
from simpo_cli.audit.surface import SurfaceResult
from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.statistics import Measured, effective_prompts, longer_wins, mean

SCHEMA_VERSION = 2

_PREDICTS = 0.05  # how far from one half the whole interval must lie before something counts as predicting the label


def stats_document(examination: Examination, *, version: str) -> dict[str, Any]:
    """Everything that `simpo stats` reports; `model` is null until a model has scored the pairs."""
    chosen, rejected, prompts = examination.chosen_len, examination.rejected_len, examination.prompts
    length_rule = longer_wins(chosen - rejected, prompts)
    by_surface = surface.judge(examination.surface, prompts)
    findings = [*examination.findings, *_bias_findings(length_rule, by_surface, examination)]
    findings.sort(key=lambda found: (found.severity, found.code))
    looked_for = {code for code, entry in CATALOGUE.items() if entry.needs in examination.looked_for}
    passed = looked_for - {found.code for found in findings} - (set() if by_surface else {"SRF001"})
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "simpo", "version": version},
        "input": _input(examination),
        "unit": examination.unit,
        "count": examination.count,
        "avg_chosen_len": whole_mean(chosen),
        "avg_rejected_len": whole_mean(rejected),
        "columns": {
            "chosen_len": describe(chosen),
            "rejected_len": describe(rejected),
            "prompt_len": describe(examination.prompt_len),
            "difference": {**describe(chosen - rejected), "mean_ci": mean(chosen - rejected, prompts).as_json()["ci"]},
        },
        "bias": {
            **length_rule.as_json(),
            "ties": int((chosen == rejected).sum()),
            "surface": None if by_surface is None else by_surface.as_json(),
        },
        "sources": [
            {"path": file.path, **_part(examination, examination.file_of == number, findings)}
            for number, file in enumerate(examination.reader.files)
        ],
        "groups": _groups(examination, findings),
        "findings": [found.as_json() for found in findings],
        "passed": sorted(passed),
        "model": None,
    }


def _input(examination: Examination) -> dict[str, Any]:
    reader, evaluation = examination.reader, examination.evaluation
    return {
        "files": _files(reader.files),
        "decision": reader.decision,
        "remarks": reader.remarks,
        "records_read": reader.records_read,
        "prompts": examination.num_prompts,
        "effective_prompts": effective_prompts(np.unique(examination.prompts, return_inverse=True)[1]),
        "no_signal": dict(sorted(examination.no_signal.items())),
        "malformed": examination.refused.count,
        "warnings": dict(sorted(reader.warnings.counts.items())),
        "unspaced_share": examination.unspaced_share,
        "tokens": None if examination.tokens is None else _limits(examination.tokens),
        "evaluation": None
        if evaluation is None
        else {"files": _files(evaluation.files), "prompts": len(evaluation.hashes)},
    }


def _files(files: Iterable[FileReceipt]) -> list[dict[str, Any]]:
    return [{"path": file.path, "identity": file.identity, "bytes": file.size} for file in files]


def _limits(tokens: Tokens) -> dict[str, Any]:
    is_cut = tokens.data.max_length < NO_LIMIT
    return {
        "tokenizer": tokens.tokenizer.where,
        "max_length": tokens.data.max_length if is_cut else None,
        "max_prompt_length": tokens.data.max_prompt_length if is_cut else None,
    }


def _groups(examination: Examination, findings: list[Finding]) -> dict[str, Any] | None:
    """What the pairs of each value of a field give by themselves, the most frequent value first."""
    groups = examination.groups
    if groups is None:
        return None
    values = [
        {"value": name, **_part(examination, examination.group_of == number, findings)}
        for number, name in enumerate(groups.names)
    ]
    return {"field": groups.field, "values": sorted(values, key=lambda value: (-value["count"], value["value"]))}


def _part(examination: Examination, mine: NDArray[np.bool_], findings: list[Finding]) -> dict[str, Any]:
    """What some of the measured pairs give; findings by the number of these pairs that they concern."""
    count = int(mine.sum())
    chosen, rejected = examination.chosen_len[mine], examination.rejected_len[mine]
    prompts = examination.prompts[mine]
    concerned = {found.code: int(mine[found.pairs].sum()) for found in findings}
    return {
        "count": count,
        "prompts": len(np.unique(prompts)),
        "mean_chosen_len": float(chosen.mean()) if count else None,
        "mean_rejected_len": float(rejected.mean()) if count else None,
        "longer_wins": longer_wins(chosen - rejected, prompts).as_json() if count else None,
        "findings": {code: pairs for code, pairs in concerned.items() if pairs},
    }


def length_predicts(low: float, high: float) -> bool:
    """Whether the interval of "the longer wins" lies clearly on one side of the random baseline, 0.5."""
    return high < 0.5 - _PREDICTS or low > 0.5 + _PREDICTS


def _bias_findings(length_rule: Measured, by_surface: SurfaceResult | None, examination: Examination) -> list[Finding]:
    """What predicts the label without being the better answer."""
    findings = []
    if length_predicts(length_rule.low, length_rule.high):
        chosen, rejected = examination.chosen_len, examination.rejected_len
        word, right = ("longer", chosen > rejected) if length_rule.value > 0.5 else ("shorter", chosen < rejected)
        detail = f"The {word} answer is the chosen one in {right.sum():,} of {length_rule.n:,} pairs."
        findings.append(finding("LEN001", int(right.sum()), detail=detail))
    if by_surface is not None and by_surface.accuracy.low > 0.5 + _PREDICTS:
        right_count = round(by_surface.accuracy.value * by_surface.accuracy.n - by_surface.ties / 2)
        leads = surface.leading(by_surface.weights, most=3)
        detail = f"Of {by_surface.accuracy.n:,} unseen pairs {right_count:,} are told by the surface; it goes by " + (
            ", ".join(f"{'more' if weight > 0 else 'fewer'} {name}" for name, weight in leads) + "."
        )
        findings.append(finding("SRF001", right_count, detail=detail))
    return findings
