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

Counts = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TextMeasures:
    """What the texts of n pairs show.

    Attributes:
        codes: (n,) the findings that each pair belongs to.
        words: (n, 3) words of prompt, chosen and rejected; all 0 where a tokenizer counts the lengths.
        hashes: (n, 3) of prompt, chosen and rejected.
        surface: (n, features) what the surface of the two responses differs in.
        signatures: (n, 3, 64) of prompt, chosen and rejected.
    """

    codes: Sequence[tuple[str, ...]]
    words: Counts
    hashes: Hashes
    surface: Differences
    signatures: Signatures


def measure(pairs: Sequence[PreferencePair], *, has_tokenizer: bool) -> TextMeasures:
    """Measure the texts of pairs.

    Args:
        pairs: at least one.
        has_tokenizer: whether there is a tokenizer, which counts the lengths and knows its own special tokens; else
            words are counted, and special tokens that are widely used are looked for.
    """
    surface, signatures = SurfaceDifferences(), SignatureList()
    for pair in pairs:
        surface.add(pair.chosen, pair.rejected)
        signatures.add(asked_text(pair), pair.chosen, pair.rejected)
    words = np.zeros((len(pairs), 3), dtype=np.int32)
    if not has_tokenizer:
        words[:] = [[num_words(text) for text in (prompt_text(pair), pair.chosen, pair.rejected)] for pair in pairs]
    return TextMeasures(
        codes=[tuple(trouble_in(pair, special_tokens=not has_tokenizer)) for pair in pairs],
        words=words,
        hashes=np.array([pair_hashes(pair) for pair in pairs], dtype=np.uint64),
        surface=surface.rows,
        signatures=signatures.rows.reshape(-1, 3, SIGNATURE_BYTES),
    )
