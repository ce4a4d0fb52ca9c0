"""Batches to tokens with more than one on its way, so that the tokenizer does not wait for the rest of the work."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from simpo_cli.data.encode.pairs import encode_pairs
from simpo_cli.data.encode.rules import EncodedPairs
from simpo_cli.data.pair import PreferencePair
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe

AHEAD = 2
"""Batches that are tokenized while another one is looked at."""

Batch = TypeVar("Batch")


def encode_ahead(
    batches: Iterator[tuple[Batch, Sequence[PreferencePair]]], tokenizer: TextTokenizer, data: DataRecipe
) -> Iterator[tuple[Batch, EncodedPairs]]:
    """Batches of pairs with their tokens, in order.

    While the library tokenizes, which it does on all cores and without the interpreter's lock, other batches are read,
    rendered and looked at. What goes wrong is raised in the order of the batches, whichever thread saw it first.

    Args:
        batches: what the caller wants back with the tokens, and the pairs to encode.
        tokenizer, data: as for `encode_pairs`.

    Raises:
        UserError: as `encode_pairs` does, or as the batches do when they are read.
    """
    waiting: deque[tuple[Batch, Future[EncodedPairs]]] = deque()
    stopped: UserError | None = None
    with ThreadPoolExecutor(max_workers=AHEAD) as threads:
        while stopped is None:
            try:
                batch, pairs = next(batches)
            except StopIteration:
                break
            except UserError as error:
                stopped = error
                continue
            waiting.append((batch, threads.submit(encode_pairs, pairs, tokenizer, data)))
            if len(waiting) > AHEAD:
                batch, encoded = waiting.popleft()
                yield batch, encoded.result()
        while waiting:
            batch, encoded = waiting.popleft()
            yield batch, encoded.result()
    if stopped is not None:
        raise stopped
