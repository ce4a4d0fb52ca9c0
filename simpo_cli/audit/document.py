"""The JSON document of `simpo stats`: versioned, the same bytes for the same input."""

from collections.abc import Mapping
from typing import Any

from simpo_cli.audit.examine import NO_LIMIT, Examination, Tokens
from simpo_cli.audit.findings import Finding
from simpo_cli.audit.lengths import describe, whole_mean

SCHEMA_VERSION = 1

_PREDICTS = 0.05  # how far from one half the whole interval must lie before length is said to predict the label


def stats_document(
    examination: Examination, *, version: str, longer_wins: Mapping[str, Any], mean_difference: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that `simpo stats` reports.

    Args:
        examination: what was seen.
        version: of this program.
        longer_wins: the share of pairs whose chosen response is the longer one, ties one half.
        mean_difference: the mean of chosen minus rejected length. Both are {value, ci: [low, high], n}.
    """
    reader = examination.reader
    chosen, rejected = examination.chosen_len, examination.rejected_len
    findings = [*examination.findings]
    if (length := _length_finding(longer_wins, examination)) is not None:
        findings.append(length)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "simpo", "version": version},
        "input": {
            "files": [{"path": file.path, "identity": file.identity, "bytes": file.size} for file in reader.files],
            "decision": reader.decision,
            "records_read": reader.records_read,
            "prompts": examination.num_prompts,
            "no_signal": dict(sorted(examination.no_signal.items())),
            "malformed": len(examination.refused),
            "warnings": dict(sorted(reader.warnings.counts.items())),
            "tokens": None if examination.tokens is None else _limits(examination.tokens),
        },
        "unit": "words" if examination.tokens is None else "tokens",
        "count": examination.count,
        "avg_chosen_len": whole_mean(chosen),
        "avg_rejected_len": whole_mean(rejected),
        "columns": {
            "chosen_len": describe(chosen),
            "rejected_len": describe(rejected),
            "prompt_len": describe(examination.prompt_len),
            "difference": {**describe(chosen - rejected), "mean_ci": mean_difference["ci"]},
        },
        "bias": {**longer_wins, "ties": int((chosen == rejected).sum())},
        "findings": [finding.as_json() for finding in sorted(findings, key=lambda f: (f.severity, f.code))],
    }


def _limits(tokens: Tokens) -> dict[str, Any]:
    is_cut = tokens.data.max_length < NO_LIMIT
    return {
        "tokenizer": tokens.tokenizer.where,
        "max_length": tokens.data.max_length if is_cut else None,
        "max_prompt_length": tokens.data.max_prompt_length if is_cut else None,
    }


def length_predicts(low: float, high: float) -> bool:
    """Whether the interval of "the longer wins" lies clearly on one side of a coin's 0.5."""
    return high < 0.5 - _PREDICTS or low > 0.5 + _PREDICTS


def _length_finding(longer_wins: Mapping[str, Any], examination: Examination) -> Finding | None:
    value, (low, high) = longer_wins["value"], longer_wins["ci"]
    if value is None or low is None or high is None:
        return None
    if not length_predicts(low, high):
        return None
    longer = examination.chosen_len > examination.rejected_len
    shorter = examination.chosen_len < examination.rejected_len
    word, count = ("longer", longer.sum()) if value > 0.5 else ("shorter", shorter.sum())
    hint = (
        f"The {word} answer is the chosen one in {count:,} of {longer_wins['n']:,} pairs: a model can win by length "
        "alone, so read its accuracy length-balanced."
    )
    return Finding("LEN001", "warning", int(count), hint)
