"""The figures of a run's page: curves by step, and what became of each held-out pair."""

from collections.abc import Callable, Sequence

from simpo_cli.formatting import fixed, percent
from simpo_cli.objective import Objective
from simpo_cli.report.figures import (
    CHOSEN,
    HELD_OUT,
    INK,
    REJECTED,
    Curve,
    Line,
    TitledFigure,
    curve_figure,
    histogram_figure,
    interval_figure,
    signed,
    three_digits,
    two_digits,
)
from simpo_cli.report.run_files import RunFiles
from simpo_cli.report.run_tables import LengthRow, pair_column


def training_figures(run: RunFiles) -> list[TitledFigure]:
    """Curves of metrics.jsonl and evals.jsonl; empty where no step was taken."""
    if not run.metrics:
        return []

    def curves(
        title: str,
        key: str,
        show: Callable[[float], str],
        *,
        held_out: str = "",
        level: tuple[float, str] | None = None,
        is_exact: bool = False,
        is_from_zero: bool = False,
    ) -> TitledFigure:
        lines = [Line("training", Curve.of(run.metrics, key), kind="exact" if is_exact else "steps")]
        if held_out:
            ends = [Curve.of(run.evals, f"{held_out}_{end}") for end in ("low", "high")] if show is percent else None
            band = None if ends is None else (ends[0], ends[1])
            lines.append(Line("held out", Curve.of(run.evals, held_out), HELD_OUT, "points", band))
        caption = "Band: 95 % interval of the held-out pairs." if run.evals and show is percent else ""
        return curve_figure(
            title,
            lines,
            show,
            run.steps_done,
            name=key,
            level=level,
            caption=caption,
            is_from_zero=is_from_zero,
        )

    recipe = run.recipe
    gamma = None if recipe is None else (recipe.loss.margin, "gamma")
    limit = None if recipe is None else (recipe.train.max_grad_norm, "max_grad_norm")
    sides = (("chosen", CHOSEN), ("rejected", REJECTED))
    return [
        curves("Loss", "loss", three_digits, held_out="loss"),
        curves("Accuracy", "rewards/accuracies", percent, held_out="accuracy", level=(0.5, "random baseline")),
        curves("Reward margin", "rewards/margins", two_digits, held_out="margin", level=gamma),
        curve_figure(
            "Log-probs of training batches",
            [Line(side, Curve.of(run.metrics, f"logps/{side}"), colour, "mean") for side, colour in sides],
            three_digits,
            run.steps_done,
            caption="Nats a token; batches hold different pairs.",
        ),
        curves("Gradient norm", "grad_norm", two_digits, level=limit),
        curves("Learning rate", "learning_rate", lambda rate: f"{rate:.2g}", is_exact=True),
        curves("Tokens a second", "tokens_per_second", lambda speed: f"{speed:,.0f}", is_from_zero=True),
    ]


def drift_figures(run: RunFiles) -> list[TitledFigure]:
    """How log-probs moved on the fixed probe, from the second evaluation on, and on each held-out pair."""
    figures = []
    if len(run.evals) > 1:
        sides = (("chosen", CHOSEN), ("rejected", REJECTED))
        lines = [Line(side, Curve.of(run.evals, f"logps/{side}_delta"), colour, "points") for side, colour in sides]
        caption = f"Change since step 0 on the same {run.evals[-1]['probe_pairs']} held-out pairs, nats a token."
        figures.append(
            curve_figure("Drift during the run", lines, signed, run.steps_done, caption=caption, has_zero=True)
        )
    if run.pairs:
        chosen, rejected = (
            pair_column(run, f"{side}_after") - pair_column(run, f"{side}_before") for side in ("chosen", "rejected")
        )
        means, fell = [signed(float(side.mean())) for side in (chosen, rejected)], percent(float((chosen < 0).mean()))
        figures.append(
            histogram_figure(
                "What training did to each response",
                "changes",
                (("chosen", chosen, CHOSEN), ("rejected", rejected, REJECTED)),
                "change of the log-prob, nats a token",
                f"Change of the log-probs of the held-out pairs: chosen {means[0]} and rejected {means[1]} nats a "
                "token on average.",
                f"Mean {means[0]} for chosen, {means[1]} for rejected; chosen fell in {fell} of the pairs "
                f"(n = {len(chosen):,}).",
            )
        )
    return figures


def margin_figure(run: RunFiles) -> TitledFigure | None:
    """Reward margins of the held-out pairs before and after; None where they, or the objective, are not known."""
    if not run.pairs or run.recipe is None:
        return None
    objective = Objective(run.recipe.loss)
    before, after = (
        objective.margin(pair_column(run, f"chosen_{when}"), pair_column(run, f"rejected_{when}"))
        for when in ("before", "after")
    )
    means = [fixed(float(margins.mean()), 2) for margins in (before, after)]
    past = [percent(float((margins > objective.gamma).mean())) for margins in (before, after)]
    return histogram_figure(
        "Margins of held-out pairs",
        "margins",
        (("before", before, INK), ("after", after, HELD_OUT)),
        "reward of chosen - reward of rejected",
        f"Margins of the held-out pairs: mean {means[0]} before and {means[1]} after; past gamma {past[0]} before and "
        f"{past[1]} after.",
        f"Right of 0 the pair is right; past gamma: {past[0]} before, {past[1]} after (n = {len(before):,}).",
        level=(objective.gamma, "gamma"),
    )


def length_figures(rows: Sequence[LengthRow]) -> list[TitledFigure]:
    """Accuracy with its interval by which response is the longer one, before and after; none without any pairs."""
    shares = [(row.label, [row.before, row.after] if row.before and row.after else []) for row in rows]
    if not any(both for _, both in shares):
        return []
    words = "; ".join(
        f"{label}: {percent(both[0]['value'])} before, {percent(both[1]['value'])} after"
        if both
        else f"{label}: too few"
        for label, both in shares
    )
    return [interval_figure(shares, ("before", "after"), f"Accuracy by length. {words}.")]
