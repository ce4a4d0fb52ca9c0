"""What the texts of pairs show by themselves, measured batch by batch: each pair alone, whatever the others are.

So it does not matter which process measures a batch, or when; see `processes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simpo_cli.audit.features import Differences, SurfaceDifferences
from simpo_cli.audit.identity import Hashes, pair_hashes
from simpo_cli.audit.signatures import SIGNATURE_BYTES, SignatureList, Signatures
from simpo_cli.audit.texts import asked_text, num_words, prompt_text, trouble_in
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.scripts import num_letters, num_unspaced

Counts = NDArray[np.int32]

_BEGINNING = 500  # characters of a response, enough to know its script


@dataclass(frozen=True, slots=True)
class TextMeasures:
    """What the texts of n pairs show.

    Attributes:
        codes: (n,) the findings that each pair belongs to.
        words, characters: (n, 3) of prompt, chosen and rejected; all 0 where a tokenizer counts the lengths.
        letters: (n, 2) of the beginnings of both responses: those of scripts without spaces, and all; 0 likewise.
        hashes: (n, 3) of prompt, chosen and rejected.
        surface: (n, features) what the surface of the two responses differs in.
        signatures: (n, 3, 64) of prompt, chosen and rejected.
    """

    codes: Sequence[tuple[str, ...]]
    words: Counts
    characters: Counts
    letters: Counts
    hashes: Hashes
    surface: Differences
    signatures: Signatures


def measure(pairs: Sequence[PreferencePair], *, own: tuple[str, ...] | None) -> TextMeasures:
    """Measure the texts of pairs.

    Args:
        pairs: at least one.
        own: the markers of the tokenizer, which are not looked for (see `own_markers`); it counts the lengths and knows
            its own special tokens. None without one: words and characters are counted, and special tokens that are
            widely used are looked for.
    """
    surface, signatures = SurfaceDifferences(), SignatureList()
    for pair in pairs:
        surface.add(pair.chosen, pair.rejected)
        signatures.add(asked_text(pair), pair.chosen, pair.rejected)
    counts = np.zeros((len(pairs), 8), dtype=np.int32)
    if own is None:
        counts[:] = [_counts(pair) for pair in pairs]
    return TextMeasures(
        codes=[tuple(trouble_in(pair, own=own)) for pair in pairs],
        words=counts[:, :3],
        characters=counts[:, 3:6],
        letters=counts[:, 6:],
        hashes=np.array([pair_hashes(pair) for pair in pairs], dtype=np.uint64),
        surface=surface.rows,
        signatures=signatures.rows.reshape(-1, 3, SIGNATURE_BYTES),
    )


def _counts(pair: PreferencePair) -> tuple[int, ...]:
    """Words, then characters of prompt, chosen and rejected; then letters, as `TextMeasures` says."""
    responses = (pair.chosen, pair.rejected)
    texts = (prompt_text(pair), *responses)
    beginnings = [text[:_BEGINNING] for text in responses]
    return (
        *map(num_words, texts),
        *map(len, texts),
        sum(map(num_unspaced, beginnings)),
        sum(map(num_letters, beginnings)),
    )
