"""Preference pairs as a sequence, for people who write Python instead of shell."""

from collections.abc import Iterator
from pathlib import Path
from typing import overload

import numpy as np

from simpo_cli.audit.columns import whole_mean
from simpo_cli.audit.measures import num_words
from simpo_cli.data.load import PairReader
from simpo_cli.data.messages import as_transcript
from simpo_cli.data.pair import PreferencePair, prompt_messages
from simpo_cli.errors import UserError, for_python


class PreferenceDataset:
    """The pairs of a file, folder, hub id or `builtin:guide`, as the commands read them.

    Every well-formed pair is there, in the file's order, also those that training drops because an answer is empty or
    the two are the same (`no_signal` counts them). UserError where it cannot be read, or a record is malformed.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            reader = PairReader(str(path), role="train", on_no_signal="keep")
            self.pairs = list(reader)
        except UserError as error:
            raise for_python(error) from error
        self.no_signal = reader.dropped.counts
        """Pairs that training drops, by reason."""

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> dict[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, str]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, str] | list[dict[str, str]]:
        """A pair as `prompt`, `chosen` and `rejected` texts; a slice gives a list of them."""
        if isinstance(index, slice):
            return [_texts(pair) for pair in self.pairs[index]]
        return _texts(self.pairs[index])

    def __iter__(self) -> Iterator[dict[str, str]]:
        return map(_texts, self.pairs)

    def stats(self) -> dict[str, int]:
        """How many pairs there are, and the mean words of chosen and rejected responses without their fraction."""
        words = np.array([(num_words(pair.chosen), num_words(pair.rejected)) for pair in self.pairs])
        means = dict(zip(("avg_chosen_len", "avg_rejected_len"), map(whole_mean, words.T), strict=True))
        return {"count": len(self.pairs), **means}


def _texts(pair: PreferencePair) -> dict[str, str]:
    """The prompt is what the user asked; with more than one turn, the conversation as a Human/Assistant transcript."""
    turns = prompt_messages(pair.prompt)
    prompt = turns[0].content if [turn.role for turn in turns] == ["user"] else as_transcript(turns)
    return {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
