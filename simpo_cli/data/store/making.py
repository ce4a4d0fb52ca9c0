"""Sources to a folder of tokens, a batch at a time: what is in memory does not grow with the files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from simpo_cli.data.encode import EncodedPairs, encode_ahead, in_batches
from simpo_cli.data.load import PairReader, require_few, stopped_by
from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.store.account import Account
from simpo_cli.data.store.pairs import PairWriter
from simpo_cli.data.text_notes import NOTES, notes_of, own_markers
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe

_SAMPLES = 8


def make_tokens(reader: PairReader, tokenizer: TextTokenizer, data: DataRecipe, folder: Path) -> Account:
    """Read, render and tokenize every pair of the sources once, and write tokens and account into a folder.

    Args:
        reader: gives the pairs; it must not have been read before.
        tokenizer: the model's tokenizer with the template that the recipe chose.
        data: lengths, template variables and what to do with trouble.
        folder: an empty folder.

    Raises:
        UserError: a file or record is refused, or no usable pair is left.
    """
    writer = PairWriter(folder)
    total, samples, pairs_of_source = EncodedPairs(), _Samples(), []
    own, noted = own_markers(tokenizer, rendered=data.rendered), Counter[str]()
    try:
        for source in reader.sources:
            before = writer.num_pairs
            batches = ((batch, batch) for batch in in_batches(reader.read_source(source)))
            for batch, encoded in encode_ahead(batches, tokenizer, data):
                if encoded.bad and data.on_bad_record == "error":
                    raise stopped_by(encoded.bad)
                total.bad += encoded.bad
                require_few(total.bad)
                total.dropped += encoded.dropped
                total.counts += encoded.counts
                for limit, counts in encoded.needed.items():
                    total.needed[limit] += counts
                noted.update(code for pair in batch for code in notes_of(pair, own))
                samples.add(batch, encoded.pairs)
                writer.add(encoded.pairs)
            pairs_of_source.append(writer.num_pairs - before)
        reader.require_pairs()
    finally:
        writer.close()
    account = Account(
        decision=reader.decision,
        files=[(file.path, file.identity, file.size) for file in reader.files],
        records_read=reader.records_read,
        pairs_of_source=pairs_of_source,
        dropped=Counter(reader.dropped.counts) + total.dropped,
        refused=reader.bad_records + total.bad,
        counts=total.counts,
        needed=total.needed,
        warnings=Counter(reader.warnings.counts) + Counter({f"{NOTES[code]} ({code})": noted[code] for code in noted}),
        samples=samples.in_order(),
        content=writer.content.hexdigest(),
    )
    account.write(folder)
    return account


class _Samples:
    """The first pair of each of the lowest prompt hashes, as text; what is held out begins with these."""

    def __init__(self) -> None:
        self._kept: dict[str, PreferencePair] = {}

    def add(self, texts: Sequence[PreferencePair], encoded: Sequence[EncodedPair]) -> None:
        """Take in a batch."""
        place = 0
        for pair in encoded:
            while texts[place].where != pair.where:  # those between were dropped or refused
                place += 1
            if pair.prompt_cut or pair.prompt_key in self._kept:
                continue
            if len(self._kept) == _SAMPLES:
                highest = max(self._kept)
                if pair.prompt_key > highest:
                    continue
                del self._kept[highest]
            self._kept[pair.prompt_key] = texts[place]

    def in_order(self) -> list[PreferencePair]:
        """The pairs in the order of their hashes."""
        return [self._kept[key] for key in sorted(self._kept)]
