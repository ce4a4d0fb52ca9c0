"""The results as a page: tables and a plot, made of docs/benchmarks.json without measuring anything again.

python -m tests.benchmarks.page [FOLDER]
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

Row = dict[str, Any]

_INTRODUCTION = """# Benchmarks

Written by `{kind}` on {date}, which anyone can repeat; the raw numbers are in [benchmarks.json](benchmarks.json).
Numbers are medians with the range over the measured steps in brackets.{incomplete}

{facts}

What is compared: our training step, and that of the CPO trainer of TRL with `loss_type="simpo"` and `cpo_alpha=0`.
Both train {model} with full float32 weights on the same pairs in the same order (a sample by hash, seed
{seed}), beta {beta:g}, gamma {gamma:g}, at most {max_length} tokens of prompt and response, prompts cut to
{max_prompt_length}, fused AdamW, gradients clipped at 1, no checkpointing of activations, no logging, nothing saved.
Each side is a process of its own; they take turns step by step (A B A B), and the one that waits is idle. The first
step of each is a warm-up on the shortest pairs of the sample and is not counted. Before anything is timed it is checked
that both sides score the same tokens and find the same loss.

The trainer of TRL runs as it is: `train()` with its own tokenizing, collator, loader and loss. It never cuts a prompt,
so it is given prompts that are cut already. Its defaults for gradient checkpointing and bf16 are switched off.
"""


def write_page(results: Row, folder: Path) -> None:
    """Write benchmarks.md and benchmarks.svg."""
    (folder / "benchmarks.md").write_text(page(results), encoding="utf-8")
    plot(results, folder / "benchmarks.svg")


def page(results: Row) -> str:
    """The whole page as Markdown."""
    incomplete = "" if results["complete"] else "\n\n**The measurement was stopped before its end.**"
    parts = [_INTRODUCTION.format(**results, **results["settings"], incomplete=incomplete, facts=facts(results))]
    if results["versus"]:
        parts += ["## Against TRL, float32\n", "![pairs a second and peak memory of both sides](benchmarks.svg)\n"]
        parts += [speed_table(results), memory_table(results), checks(results)]
    parts += [share_section(results)]
    if results.get("precision"):
        parts.append(precision_section(results["precision"]))
    if results.get("alone"):
        parts.append(growth_section(results["alone"]))
    return "\n".join(parts)


def facts(results: Row) -> str:
    """Machine and versions, one line each."""
    sessions = [*results["versus"], *filter(None, [results.get("precision")])]
    if not sessions:
        return ""
    machine = sessions[0]["machine"]
    lines = [
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['memory_gb']:g} GB, {machine['system']}"
        + (f", {machine['card']}" if "card" in machine else "")
        + (f" ({', '.join(machine['instructions'])})" if machine["instructions"] else "")
    ]
    for who, called in (("ours", "Our side"), ("peer", "Peer")):
        for side in sessions[0]["sides"]:
            if side["who"] == who:
                found = ", ".join(f"{name} {number}" for name, number in side["versions"].items())
                lines.append(f"- {called}: {found}, Python {machine['python']}")
                break
    return "\n".join(lines)


def rates(side: Row) -> list[float]:
    """Pairs a second of each measured step."""
    return [row["pairs"] / row["seconds"] for row in side["steps"]]


def ratios(side: Row, other: Row) -> list[float]:
    """How many times as fast a side is as the other, round by round, on the same pairs."""
    return [b["seconds"] / a["seconds"] for a, b in zip(side["steps"], other["steps"], strict=True)]


def extra_bytes(side: Row) -> int:
    """Peak memory above weights, gradients and both moments of Adam."""
    return int(side["peak_bytes"] - side["state_bytes"])


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and range, such as `2.50 (2.41..2.66)`."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def _giga(number: float, digits: int = 0) -> str:
    return f"{number / 1e9:.{digits}f}"


def _ours(session: Row) -> Row:
    return next(side for side in session["sides"] if side["who"] == "ours")


def _peers(session: Row) -> list[Row]:
    return [side for side in session["sides"] if side["who"] == "peer"]


def speed_table(results: Row) -> str:
    """Pairs a second of both sides and their ratio."""
    rows = [("data", "pairs a step", "n", "side", "pairs a second", "ours is faster by", "work, times ours")]
    for session in results["versus"]:
        ours = _ours(session)
        start = (session["title"], str(session["pairs_per_step"]), str(session["rounds"]))
        rows.append((*start, "ours", spread(rates(ours), 3), "", ""))
        for peer in _peers(session):
            work = f"{sum(peer['counted_flops']) / sum(ours['counted_flops']):.1f}"
            times = spread(ratios(ours, peer)) + " times"
            rows.append(("", "", "", _called(peer), spread(rates(peer), 3), times, work))
        for missing in session["not_run"]:
            rows.append(("", "", "", f"TRL, micro-batch {missing['microbatch']}", _why(missing), "", ""))
    return table(rows) + (
        "\n`work` is counted, not measured: operations of the padded rows over those that the method needs.\n"
    )


def _called(side: Row) -> str:
    return "ours" if side["who"] == "ours" else f"TRL, micro-batch {side['microbatch']}"


def _why(missing: Row) -> str:
    need = f"{_giga(missing['predicted_bytes'])} GB"
    return f"left to bench-full: would need {need}" if missing["fits"] else f"not run: would need {need}"


def memory_table(results: Row) -> str:
    """Peak memory above the state, both sides."""

    def libraries(who: str) -> str:
        sides = [side for session in results["versus"] for side in session["sides"] if side["who"] == who]
        return _giga(median(side["libraries_bytes"] for side in sides), 2)

    rows = [("data", "side", "peak of the process, GB", "above the state, GB", "ours is", "predicted peak, GB")]
    for session in results["versus"]:
        ours = _ours(session)
        for side in session["sides"]:
            share = f"{100 * extra_bytes(ours) / extra_bytes(side):.0f} %" if side["who"] == "peer" else ""
            predicted = session["predicted_peaks"].get(side["name"])
            rows.append(
                (
                    session["title"] if side is ours else "",
                    _called(side),
                    _giga(side["peak_bytes"], 2),
                    _giga(extra_bytes(side), 2),
                    share,
                    "" if predicted is None else _giga(predicted, 1),
                )
            )
    return (
        "Peak resident memory of each process over all its steps. The state is 16 bytes a parameter:\n"
        "weights, gradients and both moments of AdamW. What is above it holds the libraries too, on both sides:\n"
        f"{libraries('ours')} GB on ours, {libraries('peer')} GB on TRL's.\n\n"
    ) + table(rows)


def checks(results: Row) -> str:
    """What was checked before and while measuring."""
    peer = results.get("peer_memory", {})
    lines = ["What was checked, and what was left out:\n"]
    for session in results["versus"]:
        tokens = session["mean_tokens"]
        given = max((side["given_as_ids"] for side in session["sides"]), default=0)
        idle = max(row["idle_cpu_seconds"] for side in session["sides"] for row in side["steps"])
        threads = session["machine"]["threads"]
        got = [row["cpu_seconds"] / row["seconds"] / threads for side in session["sides"] for row in side["steps"]]
        system = [row["system_seconds"] / row["cpu_seconds"] for side in session["sides"] for row in side["steps"]]
        later = max(session["later_differences"], default=0.0)
        lines.append(
            f"- {session['title']}: {session['same_tokens']} pairs with the same tokens on both sides (mean prompt "
            f"{tokens['prompt']:.0f}, chosen {tokens['chosen']:.0f}, rejected {tokens['rejected']:.0f}), {given} of "
            f"them given to TRL as ids because its tokenizing of their text differs; loss and mean log-probs differ by "
            f"{session['first_step_difference']:.0e} in the first step, by at most {later:.0e} later. "
            f"{session['too_long']} of the file's {session['pairs_in_file']} pairs were left out on both sides: longer "
            f"than {peer.get('longest_row', '?')} tokens. Steps got {100 * min(got):.0f} to {100 * max(got):.0f} % of "
            f"{threads} threads, of which the system took {100 * min(system):.0f} to {100 * max(system):.0f} % (mostly "
            f"pages of memory); a side that waited used at most {idle:.2f} s of processor time a turn."
        )
    if peer:
        lines.append(
            f"- TRL's memory was predicted from three small batches: {peer['fixed'] / 1e9:.2f} GB, "
            f"{peer['per_token'] / 1e6:.2f} MB a padded token and {peer['per_score']:.0f} bytes a position of the "
            f"square of scores. With rows of up to {peer['longest_row']} tokens micro-batch 4 stays within "
            f"{results['settings']['memory_limit_bytes'] / 1e9:.1f} GB."
        )
    return "\n".join(lines) + "\n"


def shares(steps: Sequence[Row], flops: Sequence[int], speeds: Sequence[float]) -> list[float]:
    """Needed operations a second over the machine's own speed, which is the best seen in the same session."""
    return [count / row["seconds"] / max(speeds) for row, count in zip(steps, flops, strict=True)]


def share_section(results: Row) -> str:
    """How much of the machine's own speed a step reaches, and what planning costs."""
    head = "data | pairs a step | n | GFLOP a step | share of the machine's speed | machine, GFLOP/s | plan and packing"
    rows: list[Sequence[str]] = [head.split(" | ")]
    parts = [(session, _ours(session)["steps"], session["product_speeds"]["fp32"]) for session in results["versus"]]
    if (alone := results.get("alone")) and alone["steps"]:
        parts.append(({**alone, "title": f"{alone['title']}, alone"}, alone["steps"], alone["product_speeds"]))
    for session, steps, speeds in parts:
        plan = [100 * row["plan_seconds"] / row["seconds"] for row in steps]
        rows.append(
            (
                session["title"],
                str(session["pairs_per_step"]),
                str(len(steps)),
                _giga(median(session["needed_flops"])),
                spread([100 * share for share in shares(steps, session["needed_flops"], speeds)], 1) + " %",
                f"{_giga(max(speeds))} ({_giga(min(speeds))})",
                spread(plan, 3) + " %",
            )
        )
    return (
        "## Share of the machine's own speed\n\n"
        "The floating-point operations that the method needs (`tests/benchmarks/flops.py`: every prompt once, no\n"
        "padding, logits only where a response token is predicted, nothing computed twice) over the time of the whole\n"
        "step, optimizer included, as a share of the speed of a 2048 x 2048 float32 product measured between steps\n"
        "(best, and the lowest in brackets). Plan and packing: choosing the pairs, cutting them into micro-batches,\n"
        "making their tensors.\n\n"
    ) + table(rows)


def precision_section(session: Row) -> str:
    """bf16 autocast beside float32, weights not moving."""
    first = _ours(session)
    pairs = sum(row["pairs"] for row in first["steps"])
    rows = [("side", "n", "pairs a second", "times our float32", "loss", "differs by", "share", "machine, GFLOP/s")]
    for side in session["sides"]:
        loss = sum(row["loss"] * row["pairs"] for row in side["steps"]) / pairs
        base = sum(row["loss"] * row["pairs"] for row in first["steps"]) / pairs
        speeds = session["product_speeds"][side["precision"]]
        share = spread([100 * share for share in shares(side["steps"], session["needed_flops"], speeds)], 1) + " %"
        rows.append(
            (
                f"{_called(side)}, {side['precision']}",
                str(len(side["steps"])),
                spread(rates(side), 3),
                "" if side is first else spread(ratios(side, first)),
                f"{loss:.5f}",
                "" if side is first else f"{100 * (loss / base - 1):+.3f} %",
                share if side["who"] == "ours" else "",
                _giga(max(speeds)),
            )
        )
    return (
        "## bf16 autocast\n\n"
        f"{session['title']}, {pairs} pairs in steps of {session['pairs_per_step']}, weights float32 and not moving "
        "(learning rate 0), so that the\nlosses differ by the arithmetic alone. The share is that of the machine's own "
        "product in the same precision.\n\n"
    ) + table(rows)


def growth_section(alone: Row) -> str:
    """How our step's time grows."""
    parts = [
        "## How time grows\n\n"
        "Our side alone, made-up tokens, seconds of a whole step; both responses have the length given.\n"
    ]
    titles = {"response": "with the response", "prompt": "with the prompt", "pairs": "with the number of pairs"}
    for what, points in alone["growth"].items():
        rows: list[tuple[str, ...]] = [
            (titles[what], "pairs", "prompt", "response", "n", "seconds", "GFLOP", "GFLOP/s")
        ]
        for point in points:
            seconds = [row["seconds"] for row in point["steps"]]
            flops = point["needed_flops"]
            sizes = (str(point[name]) for name in ("pairs", "prompt", "response"))
            speed = _giga(flops / median(seconds))
            rows.append(("", *sizes, str(len(seconds)), spread(seconds), _giga(flops), speed))
        parts.append(table(rows))
    return "\n".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in Markdown, the head first."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines) + "\n"


@contextmanager
def plot_file(file: Path, columns: int, width: float) -> Iterator[Any]:
    """Axes side by side to draw in, which become an SVG file; the same drawing gives the same file."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "simpo"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(width, 3.6), layout="constrained")
    yield axes
    for one in figure.axes:
        one.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)


def plot(results: Row, file: Path) -> None:
    """Pairs a second and memory above the state, by data set and side."""
    with plot_file(file, 2, 10.0) as axes:
        _draw(results["versus"], *axes)


def _draw(sessions: Sequence[Row], left: Any, right: Any) -> None:
    names = list(dict.fromkeys(_called(side) for session in sessions for side in session["sides"]))
    width = 0.8 / max(1, len(names))
    places = [(place, side) for place, session in enumerate(sessions) for side in session["sides"]]
    for number, name in enumerate(names):
        for place, side in places:
            if _called(side) == name:
                at = place + (number - (len(names) - 1) / 2) * width
                for axes, values in ((left, rates(side)), (right, [extra_bytes(side) / 1e9])):
                    middle = median(values)
                    around = [[middle - min(values)], [max(values) - middle]]
                    axes.bar(at, middle, width, color=f"C{number}", yerr=around, label=name if place == 0 else None)
    for axes, label in ((left, "pairs a second"), (right, "peak memory above the state, GB")):
        axes.set_xticks(range(len(sessions)), [session["title"].replace(" ", "\n", 1) for session in sessions])
        axes.set_ylabel(label)
    if sessions:
        left.legend(frameon=False)


def main() -> None:
    """Make the page again from the results of an earlier call."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    write_page(json.loads((folder / "benchmarks.json").read_text(encoding="utf-8")), folder)


if __name__ == "__main__":
    main()
