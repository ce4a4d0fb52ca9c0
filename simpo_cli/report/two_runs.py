"""A page of two runs side by side: what differs between them, their curves, and what the held-out pairs that they share
say of that.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from simpo_cli import __version__
from simpo_cli.errors import UserError
from simpo_cli.evaluate.metrics import Matched, PairScores, compare_scores, match, match_in_order
from simpo_cli.evaluate.tables import (
    MEASURES,
    NOTHING,
    OTHER_TOKENS,
    difference_table,
    evidence,
    is_clear,
    swapped_in_words,
)
from simpo_cli.formatting import (
    LOG_PROB_DIGITS,
    Cell,
    Measured,
    border_in_words,
    excludes_zero,
    number_cell,
    percent,
    points_cell,
    share_cell,
    thousands,
)
from simpo_cli.recipe.tree import differences
from simpo_cli.report import figures as drawn
from simpo_cli.report.figures import HELD_OUT, INK, Curve, Floats, Line, Show, TitledFigure
from simpo_cli.report.page import Section, render, require_replaceable_page, write_page
from simpo_cli.report.run_files import Row as PairRow
from simpo_cli.report.run_files import RunFiles, read_run
from simpo_cli.report.run_page import moment, pair_column, shown_value
from simpo_cli.report.verdict import tone_of, verdict
from simpo_cli.statistics import as_json, length_strata, mean, proportion
from simpo_cli.table import Row, Table

_NAMES = ("name", "output_dir")  # of any two runs they differ
_NOT_SET = "not set"
_SHOWN_DIFFERENCES = 5

Kind = Literal["mean", "points", "exact"]
Difference = tuple[str, str, str]  # key, value of the first, value of the second
_CURVES: tuple[tuple[str, str, Show, Kind], ...] = (
    ("Held-out accuracy", "accuracy", percent, "points"),
    ("Held-out loss", "loss", drawn.three_digits, "points"),
    ("Held-out margin", "margin", drawn.two_digits, "points"),
    ("Drift of chosen log-probs", "logps/chosen_delta", drawn.signed, "points"),
    ("Training loss", "loss", drawn.three_digits, "mean"),
    ("Training margin", "rewards/margins", drawn.two_digits, "mean"),
    ("Gradient norm", "grad_norm", drawn.two_digits, "mean"),
    ("Learning rate", "learning_rate", "{:.2g}".format, "exact"),
)
"""Title, key of its rows, how a value is written, and how it is drawn."""


@dataclass(frozen=True)
class SharedPairs:
    """What the P held-out pairs say that both runs scored after training."""

    pairs: int
    prompts: int
    accuracies: Sequence[Measured]  # of each run
    # the second run less the first, with the keys of `simpo eval`; rewards are left out, since the two may have other
    # objectives, and log-probs where tokens differ
    difference: Mapping[str, Any]
    balanced: Sequence[Measured] | None  # freed of length; None where too few chosen are longer, or shorter
    margins: Sequence[Measured] | None  # mean of chosen less rejected, nats per token; None where tokens differ
    gained: Floats | None  # (P,) how much further apart the second run holds the two; None where tokens differ


@dataclass(frozen=True)
class TwoRuns:
    """Two runs, of which the second is held against the first, and what they share."""

    first: RunFiles
    second: RunFiles
    shared: SharedPairs | None  # None where no held-out pair was scored by both
    swapped: int  # held-out pairs that the two have with chosen and rejected the other way round
    by_place: bool  # pairs were matched by the place of their records, because a run does not tell what they say

    @property
    def named(self) -> tuple[tuple[str, RunFiles], ...]:
        """Both, under the letters that they have here."""
        return ("A", self.first), ("B", self.second)


def compare_runs(first: RunFiles, second: RunFiles) -> TwoRuns:
    """Find the held-out pairs that both runs scored, and compare the runs on them.

    A pair is the same where its texts are; in runs that do not tell (before 0.2), where its prompt and the place of its
    record are, of which the folder is left aside.

    Raises:
        UserError: both are one run.
    """
    if first.path.resolve() == second.path.resolve():
        raise UserError(f"{first.path} and {second.path} are one run.", "Name two runs.")
    by_place = not all("pair" in row for run in (first, second) for row in run.pairs)
    if by_place:
        places = ([(row["prompt"], row["where"].rsplit("/", 1)[-1]) for row in run.pairs] for run in (first, second))
        matched = Matched(match_in_order(*places), 0)
    else:
        matched = match([row["pair"] for row in first.pairs], [row["pair"] for row in second.pairs])
    shared = None
    if matched.positions:
        ours, theirs = zip(*((first.pairs[i], second.pairs[j]) for i, j in matched.positions), strict=True)
        same_tokens = first.receipt.get("tokenizer_sha256") == second.receipt.get("tokenizer_sha256")
        shared = _compare(ours, theirs, same_tokens=same_tokens)
    return TwoRuns(first, second, shared, matched.swapped, by_place)


def _compare(first: Sequence[PairRow], second: Sequence[PairRow], *, same_tokens: bool) -> SharedPairs:
    prompts = tuple(row["prompt"] for row in first)
    chosen, rejected = (np.array([row[f"{side}_tokens"] for row in first]) for side in ("chosen", "rejected"))
    lengths, groups = (chosen, rejected), np.array(prompts)
    both = [
        PairScores(pair_column(rows, "chosen_after"), pair_column(rows, "rejected_after"), lengths, groups)
        for rows in (first, second)
    ]
    gaps = [scores.chosen - scores.rejected for scores in both]
    difference = {**as_json(compare_scores(both[0], both[1], None)), "same_tokens": same_tokens}
    strata = [length_strata(one.correct, one.longer_by, prompts)["balanced"] for one in both] if same_tokens else [None]
    if same_tokens:
        difference["margin_per_token"] = mean(gaps[1] - gaps[0], prompts).as_json()
        difference["logps/chosen_delta"] = mean(both[1].chosen - both[0].chosen, prompts).as_json()
        difference["logps/rejected_delta"] = mean(both[1].rejected - both[0].rejected, prompts).as_json()
    else:
        difference["length_balanced"] = None
    return SharedPairs(
        pairs=len(prompts),
        prompts=len(set(prompts)),
        accuracies=[proportion(one.correct, prompts).as_json() for one in both],
        difference=difference,
        balanced=None if None in strata else [one.as_json() for one in strata if one is not None],
        margins=[mean(gap, prompts).as_json() for gap in gaps] if same_tokens else None,
        gained=gaps[1] - gaps[0] if same_tokens else None,
    )


def comparison_verdict(runs: TwoRuns) -> str:
    """What the shared pairs say, in a sentence or two."""
    shared = runs.shared
    if shared is None:
        without = " and ".join(name for name, run in runs.named if not run.pairs)
        why = f"{without} scored no held-out pairs at the end." if without else "The runs share no held-out pairs."
        return f"{why} So no test compares them: what follows are their recipes and their curves."
    difference, (first, second) = shared.difference, (percent(measured["value"]) for measured in shared.accuracies)
    gain, balanced = difference["accuracy"], difference["length_balanced"]
    sentences = [
        f"On the same held-out pairs B is right in {second} and A in {first}: {points_cell(gain).text} points "
        f"(95 % CI {evidence(difference, shared.pairs, shared.prompts)})"
        + ("." if is_clear(difference) else f", {NOTHING}.")
    ]
    if balanced is not None:
        end = "" if excludes_zero(balanced) else f", {NOTHING}"
        sentences.append(f"Length-balanced: {points_cell(balanced)}{end}.")
    sentences += [border_in_words(gain, difference["p_value"]), "One run of each: another seed may say otherwise."]
    return " ".join(filter(None, sentences))


def caveats(runs: TwoRuns) -> list[str]:
    """What a reader of the comparison should know beside it."""
    found = list(filter(None, [swapped_in_words(runs.swapped)]))
    if runs.shared is None:
        return found
    for name, run in runs.named:
        if len(run.pairs) > runs.shared.pairs:
            found.append(
                f"{thousands(runs.shared.pairs)} of the {thousands(len(run.pairs))} held-out pairs of {name} are "
                "shared; the others are left out here."
            )
    if runs.by_place:
        same_files = _held_out_files(runs.first) == _held_out_files(runs.second)
        found.append(
            "A run does not tell what its held-out pairs say, so they were matched by prompt and place of the record: "
            "where a response was changed, or chosen and rejected swapped, the runs were not asked the same"
            + ("." if same_files else ", and the files are not the same.")
        )
    if not runs.shared.difference["same_tokens"]:
        found.append(OTHER_TOKENS)
    return found


def recipe_differences(runs: TwoRuns) -> list[Difference]:
    """Wherever the recipes say something else, names aside.

    What they say counts, not how: a path by what lies there, gamma in either way, a default like the same value.
    """
    first, second, same = runs.first.recipe, runs.second.recipe, _same_content(runs)
    if first is None or second is None:  # one is of another version: as the files have it
        rows = _differences(runs.first.values, runs.second.values)
    else:
        found = differences(first, second, items=True)
        found.pop("loss.gamma_beta_ratio", None)  # gamma says it
        rows = [(key, _shown(first_value), _shown(second_value)) for key, (first_value, second_value) in found.items()]
    return [row for row in rows if re.sub(r"\.\d+\.path$", "", row[0]) not in same]


def _same_content(runs: TwoRuns) -> tuple[str, ...]:
    """Keys whose files are the same in both runs, whatever they are called."""
    first, second = (
        {
            "model.path": sorted(run.receipt["model"]["files"].values()),
            "data.train": _identities_of(run.receipt["data"]["train"]),
            "data.eval": _identities_of(run.receipt["data"].get("eval") or {}),
            "data.chat_template": run.receipt.get("template_sha256"),
        }
        for _, run in runs.named
    )
    return tuple(key for key, content in first.items() if content and content == second[key])


def _identities_of(source: Mapping[str, Any]) -> list[str]:
    return [file["identity"] for file in source.get("files", [])]


def _held_out_files(run: RunFiles) -> list[str]:
    data = run.receipt["data"]
    return sorted(_identities_of(data.get("eval") or data["train"]))


def _facts(run: RunFiles) -> dict[str, Any]:
    receipt, data = run.receipt, run.receipt["data"]

    def short(digests: Iterable[str]) -> str:
        return ", ".join(digest[:12] for digest in digests)

    facts: dict[str, Any] = {
        "model files": short(receipt["model"]["files"].values()) or receipt["model"].get("revision"),
        "tokenizer": receipt.get("tokenizer_sha256", "")[:12],
        "template": receipt.get("template_sha256", "")[:12],
        "training files": short(_identities_of(data["train"])),
        "pairs trained on": data["train"]["records"]["trained"],
        "steps": receipt["plan"]["steps"],
        "packing": (receipt.get("self_check") or {}).get("packing"),
    }
    facts |= {key: receipt["hardware"].get(key) for key in ("device", "threads", "cpu_capability", "compute")}
    return {**facts, **receipt["versions"]}


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Difference]:
    """Of all keys but `_NAMES`, in the order of the first."""
    keys = (key for key in {**first, **second} if key not in _NAMES)
    rows = [(key, first.get(key, _NOT_SET), second.get(key, _NOT_SET)) for key in keys]
    return [(key, _shown(one), _shown(other)) for key, one, other in rows if one != other]


def _shown(value: Any) -> str:
    return _NOT_SET if value is None else shown_value(value)


def write_comparison(first: Path, second: Path, output: Path | None) -> tuple[Path, TwoRuns]:
    """Write the page of two runs, by default as SECOND/against-FIRST.html, and return its path with what it is about.

    Raises:
        UserError: one is no run, both are one, or the page cannot be written.
    """
    target = second / f"against-{first.resolve().name}.html" if output is None else output
    require_replaceable_page(target, "--output")
    runs = compare_runs(read_run(first), read_run(second))
    write_page(target, comparison_page(runs), named="--output")
    return target, runs


def comparison_page(runs: TwoRuns) -> str:
    """The page, made at this moment."""
    shared, heading = runs.shared, f"{runs.second.name} against {runs.first.name}"
    recipe, others = recipe_differences(runs), _differences(_facts(runs.first), _facts(runs.second))
    about = [Row(f"{letter} · {run.name}", (Cell(verdict(run), str(run.path)),)) for letter, run in runs.named]
    sections = [
        Section(
            "",
            verdict=comparison_verdict(runs),
            tone="warning" if shared is None else tone_of(shared.difference),
            alerts=caveats(runs),
        ),
        Section("What each run says of itself", texts=[Table(("",), about)]),
        *([] if shared is None else [_shared_section(shared)]),
        Section(
            "What differs in the recipes",
            texts=[_table(recipe)] if recipe else [],
            remarks=[] if recipe else ["Nothing, names aside."],
        ),
    ]
    if others:
        sections.append(Section("What else differs", texts=[_table(others)]))
    if curves := [figure for curve in _CURVES if (figure := _curve_figure(runs, *curve)) is not None]:
        remark = (
            "Curves of training are running means over 4 % of the steps; batches hold different pairs. Bands are 95 % "
            "intervals. Each run is scored on all of its own held-out pairs, and margins are in units of its own "
            "reward (beta)."
        )
        sections.append(Section("Curves", figures=curves, remarks=[remark]))
    return render(
        "sections.html.jinja",
        title=f"simpo: {heading}",
        heading=heading,
        sections=sections,
        end=f"Made by simpo {__version__} at {moment(datetime.now(UTC))} from run.json, recipe.yaml and the .jsonl "
        "files of both runs.",
    )


def comparison_lines(runs: TwoRuns) -> list[tuple[str, str]]:
    """The page in a few lines for the terminal: label and text."""
    lines = [(name, f"{run.path} · {verdict(run)}") for name, run in runs.named]
    lines.append(("B - A", comparison_verdict(runs)))
    lines += [("note", caveat) for caveat in caveats(runs)]
    changed = recipe_differences(runs)
    listed = "; ".join(f"{key} {one} / {other}" for key, one, other in changed[:_SHOWN_DIFFERENCES])
    more = f"; and {len(changed) - _SHOWN_DIFFERENCES} more" if len(changed) > _SHOWN_DIFFERENCES else ""
    return [*lines, ("recipes", (listed or "the same, names aside") + more)]


def _shared_section(shared: SharedPairs) -> Section:
    rows = [Row("accuracy", tuple(map(share_cell, shared.accuracies)))]
    if shared.balanced is not None:
        rows.append(Row(MEASURES["length.balanced"][0], tuple(map(share_cell, shared.balanced))))
    if shared.margins is not None:
        cells = tuple(number_cell(margin, LOG_PROB_DIGITS) for margin in shared.margins)
        rows.append(Row("margin, nats/token", cells))
    table = difference_table(shared.difference)
    remarks = [one for one in table.remarks if one.kind not in ("units", "border")]
    remark = (
        "Small numbers are 95 % intervals. Both columns are the saved models after training, scored at the end of "
        "their own runs. Differences are of the same pairs, so they are surer than two intervals that overlap make "
        "them look."
    )
    return Section(
        "On the same held-out pairs",
        tables=[Table(("A", "B"), rows, title="after training"), replace(table, title="B - A", remarks=remarks)],
        figures=_gained_figure(shared),
        remarks=[remark],
    )


def _table(found: list[Difference]) -> Table:
    return Table(("A", "B"), [Row(key, (Cell(first), Cell(second))) for key, first, second in found])


def _curve_figure(runs: TwoRuns, title: str, key: str, show: Show, kind: Kind) -> TitledFigure | None:
    """One number of both runs by step, or by pairs seen where steps hold unlike numbers; None where neither has it."""
    sizes = [int(run.receipt["plan"]["pairs_per_step"]) for _, run in runs.named]
    by_pairs = sizes[0] != sizes[1]
    lines, most = [], 0.0
    for (name, run), size, colour in zip(runs.named, sizes, (INK, HELD_OUT), strict=True):
        scale, rows = size if by_pairs else 1, run.evals if kind == "points" else run.metrics
        ends = [Curve.of(rows, f"{key}_{end}", scale) for end in ("low", "high")]
        lines.append(Line(name, Curve.of(rows, key, scale), colour, kind, (ends[0], ends[1])))
        most = max(most, scale * run.steps_done)
    is_drift = key.endswith("_delta")  # which begins at 0 and says something from its second point on
    if not any(len(line.curve) > is_drift for line in lines):
        return None
    return drawn.curve_figure(
        title,
        lines,
        show,
        most,
        name=f"two-{title}",
        level=(0.5, "random baseline") if show is percent else None,
        has_zero=is_drift,
        unit="pairs seen" if by_pairs else "step",
    )


def _gained_figure(shared: SharedPairs) -> list[TitledFigure]:
    """How much further apart B holds each shared pair than A; none where that cannot be compared."""
    if shared.gained is None:
        return []
    share, average = percent(float((shared.gained > 0).mean())), drawn.signed(float(shared.gained.mean()))
    figure = drawn.histogram_figure(
        "Pair by pair",
        "gained",
        [("pairs", shared.gained, HELD_OUT)],
        "margin of B - margin of A, nats a token",
        f"Difference of the margins of each shared pair: mean {average} nats a token.",
        f"Right of 0 B holds the pair further apart than A: {share} of them (n = {shared.pairs:,}).",
    )
    return [figure]
