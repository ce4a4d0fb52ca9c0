"""A CUDA device played by a CPU, for code that copies on a stream beside everything else.

What a card does when nobody waits is not known: a copy may be done at once, or not before somebody waits for its end.
Both are played. Memory of the card cannot be touched from the host, and every buffer of the host is full of other
bytes at first, so that a byte that is read too early, or written over too early, is another one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor


class OnCard(torch.Tensor):
    """A tensor that says that it is on a card, and lets only copies between card and host through."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", 0)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.numpy:
            raise AssertionError("memory of a card was touched from the host")
        if func is Tensor.cpu:
            return args[0].as_subclass(Tensor).clone()
        if func is Tensor.copy_:
            to, source = args
            PlayedCard.copy(lambda: _plain(to).copy_(_plain(source)), non_blocking=kwargs.get("non_blocking", False))
            return to
        return super().__torch_function__(func, types, args, kwargs)


def _plain(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


class _Stream:
    def __init__(self, _device: torch.device | None = None) -> None:
        self.begun: list[Callable[[], Any]] = []  # copies that nobody has waited for
        self.waits_for: list[_Stream] = []

    def wait_stream(self, other: "_Stream") -> None:
        self.waits_for.append(other)

    def synchronize(self) -> None:
        self.run(len(self.begun))

    def run(self, count: int) -> None:
        done, self.begun = self.begun[:count], self.begun[count:]
        for copy in done:
            copy()


class _Event:
    """The end of what a stream had to do when it was recorded; waiting for one that was not recorded is no wait."""

    def __init__(self) -> None:
        self._stream: _Stream | None = None

    def record(self, stream: _Stream) -> None:
        self._stream, self._last = stream, (stream.begun or [None])[-1]

    def synchronize(self) -> None:
        if self._stream is not None and self._last in self._stream.begun:
            self._stream.run(self._stream.begun.index(self._last) + 1)


class PlayedCard:
    """What stands in the place of torch.cuda.

    Attributes:
        late: copies are done when somebody waits for them; else when they begin.
        copies: how many there were on a stream of their own.
    """

    late = False
    copies = 0
    main = _Stream()
    _now = main

    @classmethod
    def copy(cls, do: Callable[[], Any], *, non_blocking: bool) -> None:
        if not non_blocking or cls._now is cls.main:
            assert not non_blocking, "a copy that nobody waits for is on the stream of everything else"
            do()
            return
        assert cls._now.waits_for == [cls.main], "it may begin before the tensor is computed"
        cls.copies += 1
        if cls.late:
            cls._now.begun.append(do)
        else:
            do()


@contextmanager
def played_card(*, late: bool) -> Iterator[type[PlayedCard]]:
    """A card for a while."""
    empty = torch.empty

    @contextmanager
    def on(stream: _Stream) -> Iterator[None]:
        PlayedCard._now = stream
        yield
        PlayedCard._now = PlayedCard.main

    def pinned(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made = empty(*shape, **options)
        return made.fill_(0xA5) if pin_memory else made

    PlayedCard.late, PlayedCard.copies = late, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", pinned)
        patch.setattr(torch.cuda, "Stream", _Stream)
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "stream", on)
        patch.setattr(torch.cuda, "current_stream", lambda _=None: PlayedCard.main)
        yield PlayedCard
