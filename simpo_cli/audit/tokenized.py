"""Pairs measured in tokens: by the encoder that training uses, with what it notes of each of them, and which repeat."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from simpo_cli.audit.columns import Column
from simpo_cli.audit.duplicates import PairIdentities
from simpo_cli.audit.measures import TextMeasures
from simpo_cli.audit.reading import Account, MeasuredBatch, MeasuredPairs, ReadPair
from simpo_cli.data.encode import EncodedPairs, cut_warnings, encode_batches
from simpo_cli.data.load import stopped_by
from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe

FEW_TOKENS = 4

_CODE_OF_REASON = {"responses identical after the cut": "TRU004", "over the length limits": "TRU005"}
_CODE_OF_COUNT = {"special token kept as text": "TOK001", "second BOS left out": "TOK002"}


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch on its way to the tokenizer: its texts' measures, the pairs with a signal as text, and their rows."""

    texts: TextMeasures
    usable: Sequence[ReadPair]
    rows: Sequence[int]


def in_tokens(
    batches: Iterator[MeasuredBatch], tokenizer: TextTokenizer, data: DataRecipe, account: Account
) -> Iterator[MeasuredPairs]:
    """The pairs that training would see, with their lengths; the others go into the account.

    Raises:
        UserError: a pair is refused where the recipe stops at such.
    """
    ends, total = tokenizer.end_ids_under(data.chat_template_kwargs), EncodedPairs()
    for batch, encoded in encode_batches(_with_signal(batches, account), tokenizer, data):
        if encoded.bad and data.on_bad_record == "error":
            raise stopped_by(encoded.bad)
        for bad in encoded.bad:
            account.refused.add(bad)
        account.no_signal.update(encoded.dropped)
        for limit, counts in encoded.needed.items():
            total.needed[limit] += counts
        reasons = {where: reason for reason in encoded.dropped for where in encoded.places[reason]}
        noted = [(code, set(encoded.places.get(what, ()))) for what, code in _CODE_OF_COUNT.items()]
        reads, codes, lengths, rows = [], [], [], []
        left = iter(encoded.pairs)
        pair = next(left, None)
        for read, row in zip(batch.usable, batch.rows, strict=True):
            where = read.pair.where
            if pair is None or pair.where != where:
                code = _CODE_OF_REASON.get(reasons[where], "EMP002") if where in reasons else "FMT001"
                account.left_out.add(code, read.number, where)
                continue
            of_tokens = [*_cuts(pair), *_lost_ends(pair, ends, account)]
            if min(len(pair.chosen), len(pair.rejected)) < FEW_TOKENS:
                of_tokens.append("EMP003")
            of_tokens += [code for code, places in noted if where in places]
            reads.append(read)
            codes.append((*read.codes, *batch.texts.codes[row], *of_tokens))
            lengths.append((len(pair.prompt), len(pair.chosen), len(pair.rejected)))
            rows.append(row)
            pair = next(left, None)
        counts_of_tokens = np.array(lengths, dtype=np.int32).reshape(-1, 1, 3)
        yield MeasuredPairs(reads, codes, counts_of_tokens, batch.texts, np.array(rows, dtype=np.int64))
    account.details |= _cut_details(total.needed, data)


def _cut_details(needed: Mapping[str, Counter[int]], data: DataRecipe) -> dict[str, str]:
    """A sentence for each finding about cuts where many are cut: the limits that would help."""
    sentences = {limit: f"{sentence}." for limit, sentence in cut_warnings(needed, data).items()}
    prompts, answers = (sentences.get(limit, "") for limit in ("max_prompt_length", "max_length"))
    return {"TRU001": answers, "TRU002": answers, "TRU003": prompts, "TRU005": f"{prompts} {answers}".strip()}


def _with_signal(batches: Iterator[MeasuredBatch], account: Account) -> Iterator[tuple[_Batch, list[PreferencePair]]]:
    """Batches of pairs that have a signal as text; the reader has counted the others."""
    for reads, texts in batches:
        rows = []
        for row, read in enumerate(reads):
            code = next((code for code in read.codes if code in ("EMP001", "DUP003")), None)
            if code is None:
                rows.append(row)
            else:
                account.left_out.add(code, read.number, read.pair.where)
        usable = [reads[row] for row in rows]
        yield _Batch(texts, usable, rows), [read.pair for read in usable]


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


def repeated_and_contradictory(pairs: Sequence[EncodedPair]) -> tuple[int, int]:
    """How many pairs occurred before, and to how many the opposite occurs too, as training sees them.

    Only pairs that share their prompt are read, and 32 bytes are kept of each. A record that a recipe repeats is one.
    """
    _, prompt, count = np.unique(prompt_keys_of(pairs), return_inverse=True, return_counts=True)
    places, hashes = Column(np.uint64), Column(np.uint64, (3,))
    for i in np.flatnonzero(count[prompt] > 1).tolist():
        pair = pairs[i]
        places.add(xxhash.xxh3_64_intdigest(pair.where.encode("utf-8", "surrogatepass")))
        responses = (xxhash.xxh3_64_intdigest(ids.tobytes()) for ids in (pair.chosen, pair.rejected))
        hashes.add([(int(prompt[i]), *responses)])
    _, first = np.unique(places.rows, return_index=True)
    identities = PairIdentities(hashes.rows[first])
    return len(identities.duplicates()), len(identities.contradictions())
