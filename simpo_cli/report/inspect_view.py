"""What `simpo inspect` shows a person: how a pair becomes tokens, and how its log-probs become a loss.

The borders of tokens are seen, long stretches are shortened, and no text of others is obeyed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.data.tokenized_view import UNFINISHED
from simpo_cli.formatting import fixed, thousands
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import LossRecipe, loss_terms
from simpo_cli.report.console import Console, encodable, print_wrapped, printable

BORDER = "│"
NEWLINE = "⏎"

SHADES = (
    (math.log(1 / 2), "bold green", "p over 1/2"),
    (math.log(1 / 10), "bold", "1/10"),
    (math.log(1 / 100), "bold yellow", "1/100"),
    (-math.inf, "bold red", "less"),
)
"""From the likeliest tokens to the least: the lowest log-prob of a shade, its style, and what the legend calls it."""

Piece = list[tuple[str, str]]  # what must stay on one line: texts with their styles
Extent = tuple[int, int]  # how many tokens of the beginning and of the end are shown where there are more

_NOT_MUCH = 8  # tokens that are not worth a remark about what is left out
LABEL_WIDTH = 10
PROMPT: Extent = (24, 48)  # how the prompt ends says most: the header of the answer is there
RESPONSE: Extent = (48, 24)
NUM_LEAST_LIKELY = 5

REMARKS = {
    "answer not as the template writes it": "the template would change the answer: it stands as it is in the record",
    "special token kept as text": "a special token that the text spells out is kept as text",
    "second BOS left out": "template and tokenizer both put a BOS in front: one is left out",
    "tokenized apart": "prompt and responses are tokenized apart, as in generation: a token would straddle them",
    "tools unknown to the template": "the template has no place for the definitions of tools",
}
"""What the encoder counts, in a sentence."""


def sign(text: str) -> str:
    """A token's text on one line: newlines as a sign, everything else that is not printed as its escape."""
    return printable(text.replace("\r\n", "\\r" + NEWLINE).replace("\n", NEWLINE))


def shade(logp: float | None) -> str:
    """The style of a token of this log-prob; `bold` where there is none."""
    if logp is None:
        return "bold"
    return next((style for least, style, _ in SHADES if logp >= least), SHADES[-1][1])


def token_lines(
    tokens: Sequence[Mapping[str, Any]], width: int, encoding: str, *, extent: Extent | None, style: str | None = None
) -> list[Text]:
    """Tokens in lines of at most `width` cells.

    Args:
        tokens: {"id", "text"} of each, and "logp" where it is scored.
        width: cells of a line.
        encoding: of the stream; what it lacks is shown by stand-ins.
        extent: how much to show; None shows all.
        style: of all tokens, without borders between them, as a text is read; None has borders, and shades by log-prob.
    """
    head, tail = (len(tokens), 0) if extent is None else extent
    left_out = len(tokens) - head - tail
    if left_out <= _NOT_MUCH:
        head, left_out = len(tokens), 0
    border = [(encodable(BORDER, encoding), "dim")] if style is None else []
    pieces: list[Piece] = []
    for number, token in enumerate(tokens):
        if head <= number < head + left_out:
            if number == head:
                pieces.append([(encodable(f"… {left_out:,} tokens …", encoding), "dim"), *border])
        elif style is None or token["text"] != UNFINISHED:  # else the character is whole at its last token
            text = encodable(sign(token["text"]) or f"<{token['id']}>", encoding)
            piece = (text, shade(token.get("logp")) if style is None else style)
            pieces.append([piece, *(border if number + 1 < len(tokens) else [])])
    return _filled(pieces, width)


def _filled(pieces: Sequence[Piece], width: int) -> list[Text]:
    """Pieces one behind the other; one that does not fit goes to the next line, one that fits no line is broken."""
    lines = [Text()]
    for piece in pieces:
        needed = sum(cell_len(text) for text, _ in piece)
        if lines[-1] and lines[-1].cell_len + needed > width:
            lines.append(Text())
        for text, style in piece:
            for part in text if needed > width else [text]:
                if lines[-1].cell_len + cell_len(part) > width:
                    lines.append(Text())
                lines[-1].append(part, style)
    return lines


def print_inspection(console: Console, document: Mapping[str, Any], *, full: bool = False) -> None:
    """Print what `simpo inspect --json` prints as text; unless `full`, long prompts and responses are shortened."""
    # it gives gamma both ways, and either is enough
    loss = {key: value for key, value in document["objective"].items() if key != "gamma_beta_ratio"}
    objective = Objective(LossRecipe(**loss))
    _print_heading(console, document, objective)
    for pair in document["pairs"]:
        console.print()
        scored = document["model"] is not None and pair["left_out"] is None
        _print_pair(console, pair, objective, scored=scored, full=full)


def _print_heading(console: Console, document: Mapping[str, Any], objective: Objective) -> None:
    tokenizer = document["tokenizer"]
    print_wrapped(console, Text(), document["recipe"], style="bold")
    _line(console, "data", document["decision"])
    limits = f"cut at {thousands(tokenizer['max_length'])} (prompts at {thousands(tokenizer['max_prompt_length'])})"
    _line(console, "tokens", f"of {tokenizer['path']} · {tokenizer['used']} · {limits}")
    _line(console, "reward", "r = beta × m, m = the sum of a response's log-probs / its tokens: length is divided out")
    _line(console, "loss", loss_terms(objective.loss))
    if document["model"] is not None:
        _line(console, "model", f"{document['model']['path']} · {document['model']['packing']}")
        if console.color_system is not None:
            legend = [(f"{name}  ", style) for _, style, name in SHADES]
            console.print(Text.assemble((" " * LABEL_WIDTH), *legend, ("by the token's probability", "dim")))
    elif document["no_model"]:
        _line(console, "model", f"no log-probs: {document['no_model']}", style="yellow")


def _print_pair(console: Console, pair: Mapping[str, Any], objective: Objective, *, scored: bool, full: bool) -> None:
    print_wrapped(console, Text(), f"pair {thousands(pair['number'])} · {pair['where']}", style="bold")
    if pair["left_out"] is not None:
        _line(console, "left out", f"training does not use this pair: {pair['left_out']}", style="yellow")
    for remark in pair["remarks"]:
        _line(console, "note", REMARKS.get(remark, remark), style="yellow")
    if pair["prompt"] is None:
        return
    prompt = pair["prompt"]
    bos = f"begins with BOS {prompt['bos']}" if prompt["bos"] is not None else "no BOS in front"
    cut = f" · the oldest {_tokens(prompt['num_cut'])} cut off" if prompt["num_cut"] else ""
    _line(console, "prompt", f"{_tokens(prompt['num_tokens'])}, seen and not scored · {bos}{cut}")
    _print_tokens(console, prompt, None if full else PROMPT, "dim")
    for side in ("chosen", "rejected"):
        response = pair[side]
        if response["num_cut"]:
            end = f"the last {_tokens(response['num_cut'])} cut off, with the end token"
        elif response["end"] is not None:
            end = f"ends with {response['end']}"
        else:
            end = "NO END TOKEN: nothing teaches the model to stop"
        _line(console, side, f"{_tokens(response['num_tokens'])} scored · {end}")
        _print_tokens(console, response, None if full else RESPONSE)
        if scored:
            _print_scores(console, response, objective.loss.beta)
    if scored:
        _print_loss(console, pair, objective)


def _print_scores(console: Console, response: Mapping[str, Any], beta: float) -> None:
    """From the log-probs of the tokens to the reward, and which tokens cost most."""
    mean = _fixed(response["logp_mean"], 3)
    reward = f"reward {beta:g} × {mean} = {_fixed(response['reward'], 3)}"
    divided = f"{_fixed(response['logp_sum'], 3)} / {_tokens(response['num_tokens'])}"
    _line(console, "", f"sum of log-probs {divided} = m {mean} · {reward}")
    tokens = list(enumerate(response["tokens"], start=1))
    tokens.sort(key=lambda numbered: -math.inf if numbered[1]["logp"] is None else numbered[1]["logp"])
    least = [f"'{sign(token['text'])}' {_fixed(token['logp'], 2)} at {at}" for at, token in tokens[:NUM_LEAST_LIKELY]]
    print_wrapped(console, Text(" " * LABEL_WIDTH), f"least likely {' · '.join(least)}", style="dim")


def _print_loss(console: Console, pair: Mapping[str, Any], objective: Objective) -> None:
    gamma = objective.gamma
    margin = math.nan if pair["margin"] is None else pair["margin"]
    chosen, rejected = (_fixed(pair[side]["reward"], 3) for side in ("chosen", "rejected"))
    rejected = f"({rejected})" if rejected.startswith("-") else rejected
    reached = f"{'past' if pair['past_target'] else 'not past'} the target, gamma {fixed(gamma, 3)}"
    _line(console, "margin", f"r(chosen) - r(rejected) = {chosen} - {rejected} = {fixed(margin, 3)}: {reached}")
    terms = f"d = margin - gamma = {fixed(margin - gamma, 3)} · {objective.formula} = {_fixed(pair['loss'], 3)}"
    _line(console, "loss", terms, style="bold")


def _fixed(value: float | None, digits: int) -> str:
    return "nan" if value is None else fixed(value, digits)  # JSON has no NaN


def _tokens(count: int) -> str:
    return f"{thousands(count)} token{'' if count == 1 else 's'}"


def _line(console: Console, label: str, text: str, *, style: str = "") -> None:
    print_wrapped(console, Text(label.ljust(LABEL_WIDTH), "dim"), text, style=style)


def _print_tokens(console: Console, part: Mapping[str, Any], extent: Extent | None, style: str | None = None) -> None:
    width = max(8, console.width - LABEL_WIDTH)
    for line in token_lines(part["tokens"], width, console.encoding, extent=extent, style=style):
        console.print(Text.assemble(" " * LABEL_WIDTH, line), soft_wrap=True)
