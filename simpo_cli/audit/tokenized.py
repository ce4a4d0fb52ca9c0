"""Pairs measured in tokens: by the encoder that training uses, with what it notes of each of them."""

from collections.abc import Iterator
from itertools import islice

from simpo_cli.audit.reading import Account, MeasuredPair, ReadPair
from simpo_cli.data.encode import encode_ahead
from simpo_cli.data.load import stopped_by
from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe

FEW_TOKENS = 4
_BATCH = 512  # pairs tokenized at a time

_DROPPED = {"responses identical after the cut": "TRU004", "over the length limits": "TRU005"}
_NOTED = {"special token kept as text": "TOK001", "second BOS left out": "TOK002"}


def in_tokens(
    pairs: Iterator[ReadPair], tokenizer: TextTokenizer, data: DataRecipe, account: Account
) -> Iterator[MeasuredPair]:
    """The pairs that training would see, with their lengths; the others go into the account.

    Raises:
        UserError: a pair is refused where the recipe stops at such.
    """
    ends = _end_ids(tokenizer, data)
    for usable, encoded in encode_ahead(_batches(pairs, account), tokenizer, data):
        if encoded.bad and data.on_bad_record == "error":
            raise stopped_by(encoded.bad)
        account.refused += encoded.bad
        account.no_signal.update(encoded.dropped)
        reasons = {where: reason for reason in encoded.dropped for where in encoded.places[reason]}
        noted = [(code, set(encoded.places.get(what, ()))) for what, code in _NOTED.items()]
        left = iter(encoded.pairs)
        tokens = next(left, None)
        for read in usable:
            where = read.pair.where
            if tokens is None or tokens.where != where:
                reason = reasons.get(where)
                code = "FMT001" if reason is None else _DROPPED.get(reason, "EMP002")
                account.left_out.add(code, read.number, where)
                continue
            seen = [*_cuts(tokens), *_lost_ends(tokens, ends, account)]
            if min(len(tokens.chosen), len(tokens.rejected)) < FEW_TOKENS:
                seen.append("EMP003")
            seen += [code for code, places in noted if where in places]
            lengths = len(tokens.prompt), len(tokens.chosen), len(tokens.rejected)
            yield MeasuredPair(read, *lengths, codes=(*read.codes, *seen))
            tokens = next(left, None)


def _batches(pairs: Iterator[ReadPair], account: Account) -> Iterator[tuple[list[ReadPair], list[PreferencePair]]]:
    """Pairs that have a signal as text, some hundred at a time."""
    while batch := list(islice(pairs, _BATCH)):
        usable = [read for read in batch if not _left_out_as_text(read, account)]
        yield usable, [read.pair for read in usable]


def _end_ids(tokenizer: TextTokenizer, data: DataRecipe) -> frozenset[int]:
    """The tokens that end a response, as the encoder sees it."""
    own = tokenizer.turn_marks(data.chat_template_kwargs).end_id if tokenizer.has_template else None
    return tokenizer.end_ids | ({own} if own is not None else set())


def _left_out_as_text(read: ReadPair, account: Account) -> bool:
    """Whether a pair has no signal already as text; the reader has counted it."""
    for code in read.codes:
        if code in ("EMP001", "DUP003"):
            account.left_out.add(code, read.number, read.pair.where)
            return True
    return False


def _cuts(pair: EncodedPair) -> Iterator[str]:
    if pair.chosen_cut or pair.rejected_cut:
        yield "TRU001" if pair.chosen_cut and pair.rejected_cut else "TRU002"
    if pair.prompt_cut:
        yield "TRU003"


def _lost_ends(pair: EncodedPair, ends: frozenset[int], account: Account) -> Iterator[str]:
    lost = [int(side[-1]) not in ends for side in (pair.chosen, pair.rejected)]
    account.no_end[0] += lost[0]
    account.no_end[1] += lost[1]
    account.num_cut += (lost[0] and pair.chosen_cut) + (lost[1] and pair.rejected_cut)
    if any(lost):
        yield "EOS001"
