"""A pair as training sees it, token by token, with what the cut took away and why a pair may be left out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.load import stopped_by
from simpo_cli.data.pair import EncodedPair, EncodedPairs, PreferencePair
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe

UNFINISHED = "\ufffd"
"""The text of a token with only some bytes of a character; the token with the last of them has it whole."""

_MOST_BYTES = 4  # of a character in UTF-8


def token_pieces(tokenizer: TextTokenizer, ids: Sequence[int]) -> list[str]:
    """(n,) what each of n tokens adds to the text of the tokens before it; empty where it adds nothing.

    A token by itself may read differently: tokenizers drop the space in front of a text, and a character may be spread
    over several tokens. So each one is decoded behind the one that was shown before it. What the pieces of a text give
    together is the text, but for `UNFINISHED` ones.
    """
    pieces: list[str] = []
    done, start = 0, 0  # tokens whose text is known, and the first of those that are decoded again as context
    for end in range(1, len(ids) + 1):
        before, text = tokenizer.decode(ids[start:done]), tokenizer.decode(ids[start:end])
        if text.endswith(UNFINISHED) and end - done < _MOST_BYTES:
            pieces.append(UNFINISHED)
            continue
        pieces.append(text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[done:end]))
        start, done = done, end
    return pieces


_NO_LIMIT = 2**31 - 1
_CONTEXT = 8  # tokens of the prompt that say how the first one behind it reads
_SHOWN_OTHERWISE = ("prompt cut", "chosen cut", "rejected cut", "no end token")


@dataclass(frozen=True, slots=True)
class TokenView:
    """One part of a pair."""

    ids: tuple[int, ...]  # (n,) its tokens
    pieces: tuple[str, ...]  # (n,) the text of each where it stands
    num_cut: int  # tokens that the length limits took away: the oldest of a prompt, the last ones of a response
    end: str = ""  # the end token's text where the part ends with it; empty for prompts


@dataclass(frozen=True, slots=True)
class PairView:
    """One pair."""

    number: int  # its place among the pairs that were read, 1 for the first
    pair: PreferencePair  # as the record holds it
    encoded: EncodedPair | None  # as the model sees it; None where training leaves it out
    left_out: str = ""  # why it does, such as `responses identical after the cut`; empty where it is trained on
    bos: str = ""  # the text of the BOS token in front; empty without one
    prompt: TokenView | None = None  # the tokens; None where there are none to show
    chosen: TokenView | None = None  # the same
    rejected: TokenView | None = None  # the same
    remarks: tuple[str, ...] = ()  # what the encoder counts of it, such as `tokenized apart`


def view_pair(number: int, pair: PreferencePair, tokenizer: TextTokenizer, data: DataRecipe) -> PairView:
    """Encode one pair as training does and keep what the encoder says of it.

    Args:
        data: lengths, template variables and rules. A pair without signal, or over the limits, is shown as left out
            also where training would stop at it.

    Raises:
        UserError: the template or the rules refuse the pair, and the recipe stops at such records.
    """
    encoded = _encode(pair, tokenizer, data)
    if encoded.bad:
        if data.on_bad_record == "error":
            raise stopped_by(encoded.bad)
        return PairView(number, pair, None, encoded.bad[0].problem)
    whole = _encode(pair, tokenizer, replace(data, max_length=_NO_LIMIT, max_prompt_length=_NO_LIMIT - 1))
    cut = next(iter([*encoded.pairs, *whole.pairs]), None)
    uncut = next(iter(whole.pairs), cut)
    reason = next(iter(encoded.dropped), "")
    if cut is None or uncut is None:  # empty without any limit
        return PairView(number, pair, None, reason)
    ends = tokenizer.end_ids_under(data.chat_template_kwargs)
    before = cut.prompt.tolist()
    return PairView(
        number=number,
        pair=pair,
        encoded=None if reason else cut,
        left_out=reason,
        bos=_named(tokenizer, before[0]) if tokenizer.bos_id is not None and before[0] == tokenizer.bos_id else "",
        prompt=_part(tokenizer, before, [], len(uncut.prompt)),
        chosen=_part(tokenizer, cut.chosen.tolist(), before, len(uncut.chosen), ends),
        rejected=_part(tokenizer, cut.rejected.tolist(), before, len(uncut.rejected), ends),
        remarks=tuple(sorted(what for what in encoded.counts if what not in _SHOWN_OTHERWISE)),
    )


def _encode(pair: PreferencePair, tokenizer: TextTokenizer, data: DataRecipe) -> EncodedPairs:
    lenient = replace(data, on_no_signal="drop", overlong="drop" if data.overlong == "error" else data.overlong)
    return encode_pairs([pair], tokenizer, lenient)


def _part(
    tokenizer: TextTokenizer, ids: list[int], before: list[int], length: int, ends: frozenset[int] = frozenset()
) -> TokenView:
    """The tokens `ids` behind those `before` them; `length` is what their number would be without limits."""
    context = before[-_CONTEXT:]
    pieces = token_pieces(tokenizer, [*context, *ids])[len(context) :]
    num_cut = length - len(ids)
    ended = ids[-1] in ends and not num_cut
    return TokenView(tuple(ids), tuple(pieces), num_cut, _named(tokenizer, ids[-1]) if ended else "")


def _named(tokenizer: TextTokenizer, token: int) -> str:
    return tokenizer.decode([token])


def tokens_in_words(tokenizer: TextTokenizer, data: DataRecipe) -> str:
    """How texts become tokens, in words: by which template, with which BOS and ends."""
    if tokenizer.has_template and not data.rendered:
        how = f"by {data.chat_template}" if data.chat_template is not None else "by its chat template"
    elif data.rendered:
        how = "texts are rendered already (data.rendered)"
    else:
        how = "plain text, no template"
    bos = "no BOS" if tokenizer.bos_id is None else f"BOS {_named(tokenizer, tokenizer.bos_id)}"
    ends = " or ".join(_named(tokenizer, end) for end in sorted(tokenizer.end_ids_under(data.chat_template_kwargs)))
    return f"{how} · {bos} · answers end with {ends or 'no token'}"
