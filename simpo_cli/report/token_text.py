"""Tokens on a terminal: their borders are seen, long stretches are shortened, and no text of others is obeyed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from simpo_cli.data.tokenizer.pieces import UNFINISHED
from simpo_cli.report.console import encodable, printable

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

_NOT_MUCH = 8  # tokens that are not worth a remark about what is left out


@dataclass(frozen=True, slots=True)
class Extent:
    """How many tokens of the beginning and of the end are shown where there are more."""

    head: int
    tail: int


def sign(text: str) -> str:
    """A token's text on one line: newlines as a sign, everything else that is not printed as its escape."""
    return printable(text.replace("\r\n", "\\r" + NEWLINE).replace("\n", NEWLINE))


def shade(logp: float | None) -> str:
    """The style of a token of this log-prob; `bold` where there is none."""
    if logp is None:
        return "bold"
    return next((style for least, style, _ in SHADES if logp >= least), SHADES[-1][1])


def token_lines(
    tokens: Sequence[Mapping[str, Any]],
    width: int,
    encoding: str,
    *,
    extent: Extent | None,
    style: str | None = None,
) -> list[Text]:
    """Tokens in lines of at most `width` cells.

    Args:
        tokens: {"id", "text"} of each, and "logp" where it is scored.
        width: cells of a line.
        encoding: of the stream; what it lacks is shown by stand-ins.
        extent: how much to show; None shows all.
        style: of all tokens, without borders between them, as a text is read; None has borders, and shades by log-prob.
    """
    border = [(encodable(BORDER, encoding), "dim")] if style is None else []
    shown = _shortened(tokens, extent)
    pieces: list[Piece] = []
    for number, token in enumerate(shown, start=1):
        if style is not None and not isinstance(token, int) and token["text"] == UNFINISHED:
            continue  # the character is whole at its last token
        if isinstance(token, int):
            piece = (encodable(f"… {token:,} tokens …", encoding), "dim")
        else:
            text = encodable(sign(token["text"]) or f"<{token['id']}>", encoding)
            piece = (text, shade(token.get("logp")) if style is None else style)
        pieces.append([piece, *(border if number < len(shown) else [])])
    return _filled(pieces, width)


def _shortened(tokens: Sequence[Mapping[str, Any]], extent: Extent | None) -> list[Mapping[str, Any] | int]:
    """The tokens to show, with the number of those left out in their place."""
    if extent is None or len(tokens) <= extent.head + extent.tail + _NOT_MUCH:
        return list(tokens)
    left_out = len(tokens) - extent.head - extent.tail
    return [*tokens[: extent.head], left_out, *tokens[len(tokens) - extent.tail :]]


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
