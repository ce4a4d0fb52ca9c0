"""Pairs as text to pairs as tokens, in batches: rendered, tokenized, then ended, cut and judged."""

from collections.abc import Iterable, Iterator, Sequence

from simpo_cli.data.encode.rendering import Texts, render
from simpo_cli.data.encode.rules import EncodedPairs, Rules, refusal
from simpo_cli.data.encode.settling import settle
from simpo_cli.data.encode.tokenizing import tokenize
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.raw import RecordError
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe

_BATCH = 512  # pairs tokenized together: enough to keep the library's threads busy, little to hold
_BATCH_CHARACTERS = 4_000_000


def encode_pairs(pairs: Sequence[PreferencePair], tokenizer: TextTokenizer, data: DataRecipe) -> EncodedPairs:
    """Render, tokenize, split, cut.

    Args:
        pairs: the pairs as text.
        tokenizer: the model's tokenizer with the template that the recipe chose.
        data: lengths, template variables and what to do with trouble.

    Returns:
        What became of the pairs. Where the recipe stops at bad records, no pair is looked at behind the batch with the
        first ones: the caller is about to stop.

    Raises:
        UserError: a pair without signal, or over the limits, where the recipe asks to stop; or template variables that
            the template does not have.
    """
    tokenizer.require_known(data.chat_template_kwargs)
    rules = Rules.of(data, tokenizer)
    result = EncodedPairs()
    for batch in in_batches(pairs):
        rendered: list[tuple[PreferencePair, Texts]] = []
        for pair in batch:
            try:
                rendered.append((pair, render(pair, rules)))
            except RecordError as error:
                result.bad.append(refusal(pair, error))
        tokenized = tokenize([texts for _, texts in rendered], tokenizer)
        for (pair, texts), ids in zip(rendered, tokenized, strict=True):
            if isinstance(ids, RecordError):
                result.bad.append(refusal(pair, ids))
            else:
                settle(pair, texts, ids, rules, result)
        if result.bad and data.on_bad_record == "error":
            break
    return result


def in_batches(pairs: Iterable[PreferencePair]) -> Iterator[list[PreferencePair]]:
    """Consecutive pairs, as many together as are tokenized together."""
    batch: list[PreferencePair] = []
    held = 0
    for pair in pairs:
        batch.append(pair)
        held += pair.num_characters
        if len(batch) == _BATCH or held >= _BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
