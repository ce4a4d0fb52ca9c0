"""A run folder as `simpo train` leaves it, made up and small."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

RECIPE = """name: made-up
model:
  path: builtin:guide
data:
  train: builtin:guide
loss:
  beta: 2.0
  gamma: 1.0
"""


OBJECTIVE: dict[str, Any] = {
    "type": "sigmoid",
    "beta": 2.0,
    "gamma": 1.0,
    "gamma_beta_ratio": 0.5,
    "label_smoothing": 0.0,
    "sft_weight": 0.0,
}


def measured(value: float, low: float | None, high: float | None, n: int = 40) -> dict[str, Any]:
    return {"value": value, "ci": [low, high], "n": n}


def scored(accuracy: dict[str, Any], *, prompts: int = 40, model: str = "builtin:guide") -> dict[str, Any]:
    """The document of one evaluation."""
    return {
        "schema_version": 1,
        "model": model,
        "data": "prefs.jsonl",
        "pairs": accuracy["n"],
        "prompts": prompts,
        "loss": measured(0.9, 0.8, 1.0),
        "accuracy": accuracy,
        "ties": 0,
        "margin": measured(0.5, 0.4, 0.6),
        "target_reached": measured(0.25, 0.1, 0.4),
        "logps/chosen": measured(-1.25, -1.5, -1.0),
        "logps/rejected": measured(-1.5, -1.75, -1.25),
        "length": {
            "chosen_longer": measured(0.6, 0.4, 0.8, 20),
            "chosen_shorter": None,
            "balanced": None,
            "spearman": 0.125,
        },
        "baselines": {"longer_wins": measured(0.4, 0.3, 0.5), "surface": None},
    }


def outcome(
    gain: tuple[float, float, float],
    p_value: float,
    *,
    balanced: tuple[float, float, float] | None = None,
    prompts: int = 40,
    **more: Any,
) -> dict[str, Any]:
    """What a finished run has measured: accuracy 50 % before, and a gain with its interval."""
    after = 0.5 + gain[0]
    return {
        "steps": 4,
        "seconds": 75.0,
        "before": scored(measured(0.5, 0.4, 0.6), prompts=prompts),
        "after": scored(measured(after, after - 0.05, after + 0.05), prompts=prompts, model="runs/made-up/model"),
        "difference": {
            "accuracy": measured(*gain),
            "p_value": p_value,
            "test": "mcnemar-exact",
            "length_balanced": None if balanced is None else measured(*balanced, 30),
        },
        "answers": [{"question": "How?", "before": "Like that.", "after": "Like this."}],
        **more,
    }


def checked(before: float, after: float, interval: tuple[float, float], p_value: float) -> dict[str, Any]:
    """What a rule said of 40 answers: the shares of wholly right ones, and of right parts."""
    share = {
        "before": measured(before, before - 0.1, before + 0.1),
        "after": measured(after, after - 0.1, after + 0.1),
        "difference": measured(after - before, *interval),
        "p_value": p_value,
    }
    parts = {**share, "before": measured(before + 0.1, before, before + 0.2)}
    return {"rule": "builtin:guide", "prompts": 40, "exact": share, "parts": parts, "ended": share}


def step_row(step: int) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 4,
        "loss": 1.0 / step,
        "rewards/margins": 0.5 * step,
        "rewards/accuracies": 0.75,
        "logps/chosen": -1.0,
        "logps/rejected": -1.0 - step,
        "grad_norm": 2.0,
        "learning_rate": 1e-6,
        "tokens_per_second": 1500.0,
    }


def eval_row(step: int, accuracy: float, *, chosen_delta: float = 0.0) -> dict[str, Any]:
    return {
        "step": step,
        "pairs": 40,
        "prompts": 40,
        "loss": 0.9,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.1,
        "accuracy_high": accuracy + 0.1,
        "margin": 0.5,
        "logps/chosen_delta": chosen_delta,
        "logps/rejected_delta": -0.5,
        "probe_pairs": 40,
    }


def pair_row(number: int) -> dict[str, Any]:
    return {
        "where": f"prefs.jsonl:{number}",
        "prompt": f"{number:08x}",
        "pair": f"{number:016x}{number + 1000:016x}",
        "chosen_tokens": 5,
        "rejected_tokens": 5 + number % 2,
        "chosen_before": -1.0,
        "rejected_before": -1.0 - 0.01 * number,
        "chosen_after": -0.5 - 0.02 * number,
        "rejected_after": -1.0,
    }


def receipt_of(*, status: str = "done", **more: Any) -> dict[str, Any]:
    """run.json."""
    return {
        "schema_version": 1,
        "status": status,
        "started": "2026-01-02T03:04:05+00:00",
        "command": "simpo train made-up.yaml",
        "versions": {"python": "3.11.0", "simpo-cli": "0.1.0", "peft": None},
        "recipe_sha256": "0" * 64,
        "seed": 42,
        "model": {
            "name": "builtin:guide",
            "revision": None,
            "files": {"model.safetensors": "1" * 64},
            "parameters": 1_000_000,
            "trainable_parameters": 1_000_000,
            "weights_dtype": "float32",
        },
        "tokenizer_sha256": "2" * 64,
        "template_sha256": "3" * 64,
        "data": {
            "train": {
                "decision": "prompt, chosen, rejected",
                "files": [{"path": "prefs.jsonl", "identity": "4" * 64, "size": 1234}],
                "records": {
                    "read": 1250,
                    "repeated": 0,
                    "trained": 1200,
                    "held_out": 40,
                    "not_reached": 0,
                    "refused": 1,
                    "dropped": {"identical responses": 9},
                },
                "counts": {"prompt cut": 7},
            },
            "eval": None,
            "train_pairs_with_held_out_prompts": 0,
        },
        "plan": {"steps": 4, "pairs_per_step": 8, "tokens_per_microbatch": 1024},
        "hardware": {
            "device": "cpu, 2 cores",
            "threads": 1,
            "cpu_capability": "AVX2",
            "platform": "Linux",
            "compute": "fp32",
        },
        **more,
    }


def write_run(
    path: Path,
    *,
    status: str = "done",
    outcome: Mapping[str, Any] | None = None,
    steps: int = 4,
    evals: list[dict[str, Any]] | None = None,
    pairs: int = 0,
    samples: list[dict[str, Any]] | None = None,
    notes: list[dict[str, str]] | None = None,
    recipe: str = RECIPE,
    **receipt: Any,
) -> Path:
    """Write the folder.

    Args:
        path: where.
        status, outcome, receipt: of run.json.
        steps: lines of metrics.jsonl.
        evals: lines of evals.jsonl; none if not given.
        pairs: lines of evals-pairs.jsonl.
        samples: lines of evals-samples.jsonl.
        notes: lines of notes.jsonl.
        recipe: recipe.yaml.
    """
    path.mkdir(parents=True)
    document = receipt_of(status=status, **({} if outcome is None else {"outcome": outcome}), **receipt)
    (path / "run.json").write_text(json.dumps(document), encoding="utf-8")
    (path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    for name, rows in (
        ("metrics.jsonl", [step_row(step) for step in range(1, steps + 1)]),
        ("evals.jsonl", evals or []),
        ("evals-pairs.jsonl", [pair_row(number) for number in range(pairs)]),
        ("evals-samples.jsonl", samples or []),
        ("notes.jsonl", notes or []),
    ):
        if rows:
            (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
