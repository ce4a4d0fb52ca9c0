"""What `simpo stats --model` adds to the screen: the model on the pairs at step 0, and what it means for a run."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from simpo_cli.formatting import fixed, interval_in_words, number_cell, share_cell, thousands
from simpo_cli.report.console import Console, encodable
from simpo_cli.report.summary import print_wrapped
from simpo_cli.report.text import blocks

LABEL_WIDTH = 19
WIDE = 60
MUCH_PULL = 0.25  # the weight of a pair that is past the target by a reward of 1.1


def print_start(console: Console, start: Mapping[str, Any]) -> None:
    """Print the key `model` of the document.

    Args:
        console: where to.
        start: accuracy, margins, loss and log-probs at step 0, and the suggestion.
    """
    console.print(Text("What could a run learn?", "bold"), soft_wrap=True)
    print_wrapped(console, Text("  "), scored_in_words(start))
    for label, text in start_rows(start):
        print_wrapped(console, Text(f"  {label.ljust(LABEL_WIDTH)}"), text)
        if label == "margin":
            _print_histogram(console, start["margin"]["histogram"], start["objective"]["gamma"])
    console.print()
    for sentence in start_in_words(start):
        print_wrapped(console, Text("  "), sentence)


def start_rows(start: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, each number under its name with its interval and what it is."""
    return [
        ("accuracy", f"{_share(start['accuracy'])}: the chosen response is the likelier one"),
        ("margin", f"{_mean(start['margin'], 2)}: beta × (m(chosen) - m(rejected))"),
        ("past gamma", f"{_share(start['target_reached'])}: such pairs teach little"),
        ("loss", _mean(start["loss"], 3)),
        ("gradient weight", f"{_mean(start['gradient_weight'], 2)}: 1 pulls fully, 0 has nothing left to pull"),
        ("chosen", f"{_mean(start['logps/chosen'], 3)} nats a token"),
        (
            "rejected",
            f"{_mean(start['logps/rejected'], 3)} nats a token; the nearer to 0, the more the responses are what this "
            "model would write itself",
        ),
    ]


def scored_in_words(start: Mapping[str, Any]) -> str:
    """Which pairs were scored, by which model, under which objective."""
    objective = start["objective"]
    count = f"{thousands(start['pairs'])} pairs of {thousands(start['prompts'])} prompts"
    if start["pairs"] < start["of_pairs"]:
        count += f", the first of {thousands(start['of_pairs'])} pairs by hash of the prompt"
    return (
        f"{start['model']} as it is, on {count}, cut at {thousands(start['max_length'])} tokens; "
        f"beta {objective['beta']:g}, gamma {objective['gamma']:g} (gamma/beta {objective['gamma_beta_ratio']:g})"
    )


def start_in_words(start: Mapping[str, Any]) -> list[str]:
    """Whether a run can learn from these pairs, and which gamma/beta to begin with, with the reasons."""
    weight, suggestion, objective = start["gradient_weight"]["value"], start["suggestion"], start["objective"]
    ratio, gamma = suggestion["gamma_beta_ratio"], suggestion["gamma"]
    below = _share(suggestion["below_target"])
    room = f"A pair pulls with {fixed(weight, 2)} of its full weight on average"
    if start["accuracy"]["ci"][1] < 0.5:
        room += ", and the model prefers the rejected response in most pairs: see first that the labels are right."
    elif weight >= MUCH_PULL:
        room += ": there is something to learn."
    else:
        room += ": most of what these pairs teach is known to this model already."
    advice = (
        f"gamma/beta {ratio:g} (gamma {gamma:g} at beta {objective['beta']:g}) is where to begin: {below} of the pairs"
    )
    if suggestion["wanted_ratio"] > ratio + 0.03:
        reason = "start below it. It is the most of the authors' set-ups; the histogram alone would give more."
    elif suggestion["wanted_ratio"] < ratio - 0.03:
        reason = "start below it. It is the least of the authors' set-ups; the histogram alone would give less."
    else:
        reason = "start below it and pull, the rest is past it."
    return [
        room,
        f"{advice} {reason}",
        "That is a rule of thumb from the histogram, no experiment: the authors found theirs (0.1 to 0.8) by search.",
    ]


def _print_histogram(console: Console, histogram: Mapping[str, Any], gamma: float) -> None:
    """The margins of the pairs as a figure one line high, with the places of 0 and gamma under it."""
    counts, edges = histogram["hist"], histogram["bin_edges"]
    low, high = f"{edges[0]:+.1f}", f"{edges[-1]:+.1f}"
    indent = " " * (2 + LABEL_WIDTH if console.width >= WIDE else 2)
    figure = encodable(blocks(counts), console.encoding)
    width = (edges[-1] - edges[0]) / len(counts) or 1.0
    at_gamma = min(len(counts) - 1, int((gamma - edges[0]) / width))
    console.print(Text.assemble(indent, (low, "dim"), " ", (figure, "cyan"), " ", (high, "dim")), soft_wrap=True)
    marks = " " * (len(indent) + len(low) + 1)
    if at_gamma == len(counts) // 2:
        under = " " * at_gamma + "^ 0 and gamma"
    else:
        under = " " * (len(counts) // 2) + "^0".ljust(at_gamma - len(counts) // 2) + "^gamma"
    console.print(Text(marks + under, "dim"), soft_wrap=True)


def _share(measured: Mapping[str, Any]) -> str:
    cell = share_cell(measured)
    return f"{cell.text} ({interval_in_words(cell)}, n = {thousands(measured['n'])})"


def _mean(measured: Mapping[str, Any], digits: int) -> str:
    cell = number_cell(measured, digits)
    return f"{cell.text} ({interval_in_words(cell)})"
