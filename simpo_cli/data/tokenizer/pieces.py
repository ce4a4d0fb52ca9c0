"""The text of each token where it stands, for people who want to see how a text was cut into tokens."""

from collections.abc import Sequence

from simpo_cli.data.tokenizer.text_tokenizer import TextTokenizer

UNFINISHED = "\ufffd"
"""The text of a token with only some bytes of a character; the token with the last of them has it whole."""

_MOST_BYTES = 4  # of a character in UTF-8


def token_pieces(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of the tokens before it.

    A token by itself may read differently: tokenizers drop the space in front of a text, and a character may be spread
    over several tokens. So each one is decoded behind the one that was shown before it. What the pieces of a text give
    together is the text, but for `UNFINISHED` ones.

    Args:
        tokenizer: knows the tokens.
        ids: (n,) tokens of a text, special ones spelled out.

    Returns:
        (n,) texts; empty for a token that adds none.
    """
    pieces: list[str] = []
    shown, start = 0, 0  # tokens whose text is settled, and the first of those that are decoded again as context
    for end in range(1, len(ids) + 1):
        before, text = tokenizer.decode(ids[start:shown]), tokenizer.decode(ids[start:end])
        if text.endswith(UNFINISHED) and end - shown < _MOST_BYTES:
            pieces.append(UNFINISHED)
            continue
        pieces.append(text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[shown:end]))
        start, shown = shown, end
    return pieces
