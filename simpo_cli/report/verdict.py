"""What a run achieved in one sentence, made only from the tests that it stored; and what to know beside it."""

from collections.abc import Mapping
from typing import Any

from simpo_cli.evaluate.tables import checked_change, checked_in_words, gain_in_words, is_clear, unbeaten
from simpo_cli.formatting import (
    LOG_PROB_DIGITS,
    LOSS_DIGITS,
    border_in_words,
    few_prompts,
    fixed,
    percent,
    percent_range,
    thousands,
)
from simpo_cli.report.run_files import RunFiles

KEPT_ENOUGH = 0.8


def verdict(run: RunFiles) -> str:
    """The sentence, and how many seeds stand behind it."""
    outcome = run.outcome
    match run.state:
        case "done" if "difference" in outcome:
            border = border_in_words(outcome["difference"]["accuracy"], outcome["difference"]["p_value"])
            return " ".join(filter(None, (gain_in_words(outcome), border, checked_in_words(outcome), "One seed.")))
        case "done" if "not_measured" in outcome:
            return f"Not measured: {outcome['not_measured']}. Nothing says whether the model got better.{_loss(run)}"
        case "done":
            return f"No pairs were held out, so nothing says whether the model got better.{_loss(run)} One seed."
        case "training":
            return f"Still training: step {_progress(run)}.{_so_far(run)} The tests come at the end."
        case "failed":
            error = _ended(str(outcome.get("error", "unknown")))
            return f"The run failed after step {_progress(run)}: {error}{_so_far(run)}"
        case "stopped" if "error" in outcome:
            error = _ended(str(outcome["error"]))
            return f"The run ended early, after step {_progress(run)}: {error}{_so_far(run)}"
        case "stopped":
            return f"The run was stopped after step {_progress(run)}, with everything saved.{_so_far(run)}"
        case _:
            return f"The process ended after step {_progress(run)} without saying why.{_so_far(run)}"


def tone(run: RunFiles) -> str:
    """good where accuracy rose beyond doubt, error where it fell so or the run failed, warning otherwise.

    Not good where the model's own answers became worse: then accuracy misleads.
    """
    if run.state in ("failed", "lost"):
        return "error"
    if run.state != "done" or "difference" not in run.outcome:
        return "warning"
    found = tone_of(run.outcome["difference"])
    got_worse = "checked" in run.outcome and checked_change(run.outcome["checked"]) < 0
    return "warning" if got_worse and found == "good" else found


def tone_of(difference: Mapping[str, Any]) -> str:
    """good or error where accuracy is better or worse beyond doubt, else warning."""
    if not is_clear(difference):
        return "warning"
    return "good" if difference["accuracy"]["value"] > 0 else "error"


def alerts(run: RunFiles) -> list[str]:
    """What a reader of the verdict should know beside it, worst first."""
    outcome = run.outcome
    health = run.receipt.get("health", [])
    codes = {alert["code"] for alert in health}
    found = [_health(alert) for alert in health]
    found += [f"Try {' '.join(one['overrides'])}. {one['why']}." for one in outcome.get("suggestions", [])]
    if "after" in outcome:
        found += filter(None, [few_prompts(outcome["after"])])
        found += [remark.text for remark in unbeaten(outcome["after"])]
    kept = outcome.get("export")
    if kept is not None and kept["kept_share"] < KEPT_ENOUGH and "HEA006" not in codes:
        found.append(
            f"The saved model keeps {percent(kept['kept_share'])} of the change that training made, because its "
            f"weights are narrower; {percent(kept['rounded_back_share'])} of the changed weights fell back to their "
            "start. export.dtype=fp32 keeps all of it."
        )
    if run.evals and run.evals[-1]["logps/chosen_delta"] < 0 and not {"HEA001", "HEA002"} & codes:
        last = run.evals[-1]
        chosen, rejected = (fixed(last[f"logps/{side}_delta"], LOG_PROB_DIGITS) for side in ("chosen", "rejected"))
        found.append(
            f"The chosen responses became less likely: {chosen} nats a token on the {last['probe_pairs']} pairs of the "
            f"probe (rejected {rejected}). Only their distance is trained; loss.sft_weight holds the chosen ones up."
        )
    if shared := run.receipt["data"].get("train_pairs_with_held_out_prompts", 0):
        found.append(f"{thousands(shared)} training pairs have a prompt of the evaluation pairs.")
    return found


def _health(alert: Mapping[str, Any]) -> str:
    """An alert of the run's health, with how often it was seen."""
    often = "" if alert["times"] == 1 else f" Seen {thousands(alert['times'])} times up to step {alert['last_step']}."
    remedy = alert["remedy"][0].upper() + alert["remedy"][1:]
    return (
        f"{alert['code']} from step {alert['step']}: {alert['sentence']} (health.{alert['key']} {alert['limit']:g})."
        f"{often} {remedy}."
    )


def _so_far(run: RunFiles) -> str:
    if not run.evals:
        return _loss(run)
    first, last = run.evals[0], run.evals[-1]
    interval = percent_range(last["accuracy_low"], last["accuracy_high"])
    now = f"{percent(last['accuracy'])} (95 % CI {interval}, n = {thousands(last['pairs'])} pairs)"
    if last["step"] == first["step"]:
        return f" Held-out accuracy{' of the start model' if last['step'] == 0 else ''} is {now}."
    return f" Held-out accuracy after step {thousands(last['step'])}: {now}; before {percent(first['accuracy'])}."


def _loss(run: RunFiles) -> str:
    if len(run.metrics) < 2:
        return ""
    first, last = (fixed(run.metrics[at]["loss"], LOSS_DIGITS) for at in (0, -1))
    return f" The loss on the training pairs of a step went from {first} to {last}."


def _progress(run: RunFiles) -> str:
    return f"{thousands(run.steps_done)} of {thousands(run.num_steps)}"


def _ended(text: str) -> str:
    """A message as part of a paragraph: on one line, with a full stop."""
    line = " ".join(text.split())
    return line if line.endswith((".", "!", "?")) else f"{line}."
