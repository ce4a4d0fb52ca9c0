"""Pairs in batches: cut by number and size, and worked on ahead of the caller with the results in their order."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from simpo_cli.errors import UserError

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Batch = TypeVar("Batch")
Work = TypeVar("Work")
Result = TypeVar("Result")

PAIRS_PER_BATCH = 512  # measured or tokenized together: enough to keep threads and processes busy, little to hold


def in_batches(
    items: Iterable[Item], num_characters: Callable[[Item], int], *, most_characters: int, most_items: int | None = None
) -> Iterator[list[Item]]:
    """Consecutive items, some hundred together, fewer where their texts are long.

    Args:
        most_characters: a batch ends with the item that reaches them.
    """
    most_items = PAIRS_PER_BATCH if most_items is None else most_items
    batch: list[Item] = []
    held = 0
    for item in items:
        batch.append(item)
        held += num_characters(item)
        if len(batch) == most_items or held >= most_characters:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def results_in_order(
    batches: Iterator[tuple[Batch, Work]], submit: Callable[[Work], "Future[Result]"], *, most_ahead: int
) -> Iterator[tuple[Batch, Result]]:
    """Batches with the results of their work, while batches behind them are read and worked on.

    Args:
        batches: what the caller wants back with the result, and the work.
        most_ahead: batches behind the one that the caller has, at most.

    Raises:
        UserError: a batch cannot be read or worked on; in the order of the batches, whichever was seen first.
    """
    waiting: deque[tuple[Batch, Future[Result]]] = deque()
    unread: UserError | None = None
    while unread is None:
        try:
            batch, work = next(batches)
        except StopIteration:
            break
        except UserError as error:  # what came before it goes first
            unread = error
            break
        waiting.append((batch, submit(work)))
        if len(waiting) > most_ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()
    if unread is not None:
        raise unread


def end_with_the_parent() -> None:
    """A process of the pool waits for work for ever; this ends it when whoever gives work is gone."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
