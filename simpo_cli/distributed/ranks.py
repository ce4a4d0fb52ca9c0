"""The ranks of a run: which one this process is, and what all of them agree on.

A run of one process has one rank, and everything here is then immediate. With several, numbers travel in collectives of
torch.distributed, and decisions as JSON through the store that the processes met in: who waits there holds no
collective open, so that one rank may tokenize or export for as long as it takes.

Every rank makes the same calls in the same order. A rank that fails alone leaves the others waiting, so what may fail
on one of them is done `together`.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from simpo_cli.distributed.place import Place, as_json, from_json, place_in
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.run.stop import Stopped, StopRequest

_SECONDS_TO_BE_HEARD = 3.0  # after a time-out, for the others to say that they wait too
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "recvValue failed")
_TIMED_OUT = ("Timed out", "timed out", "timeout", "Timeout")

Result = TypeVar("Result")


class LostRanksError(UserError):
    """Other ranks have ended or hang (exit code 4). Where they have ended, the cause is told by one of them."""

    def __init__(self, problem: str, fix: str, *, is_consequence: bool) -> None:
        super().__init__(problem, fix, exit_code=ExitCode.ENVIRONMENT)
        self.is_consequence = is_consequence


class _Group:
    """The store of the processes, and how many exchanges there were."""

    def __init__(self, store: Store, place: Place, timeout: float) -> None:
        self.store, self.place, self.timeout = store, place, timeout
        self.exchanges = 0


_group: _Group | None = None


def join(device: str, timeout: float, *, alone: bool = False) -> None:
    """Meet the other processes, where a launcher has started several.

    Args:
        device: the type of what the run computes on.
        timeout: seconds after which a rank that does not answer is given up.
        alone: make a group of one where there are no others, as torch's FSDP2 needs one.

    Raises:
        UserError: they do not come together (exit code 4), or there are fewer cards than processes.
    """
    global _group
    place = place_in()
    if _group is not None:
        return
    several = place is not None and place.world_size > 1
    if device not in ("cpu", "cuda") and (several or alone):
        raise UserError(
            f"several processes, and fsdp2, are for CUDA cards and for CPUs; this runs on {device}.",
            "Train in one process without distributed.strategy, or on the CPU: ACCELERATE_USE_CPU=true.",
        )
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    if place is None or place.world_size == 1:
        if alone:
            store = HashStore()
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
            _group = _Group(store, Place(0, 1, 0, 1), timeout)
        return
    if device == "cuda":
        _require_card(place)
        torch.cuda.set_device(place.local_rank)
    if not dist.is_available() or (device == "cuda" and not dist.is_nccl_available()):
        raise UserError(
            f"this torch lacks {'NCCL' if dist.is_available() else 'torch.distributed'}, which several processes need.",
            "Install a build of torch for this machine that has it, or train with distributed.num_processes=1.",
            exit_code=ExitCode.ENVIRONMENT,
        )
    waited = timedelta(seconds=timeout)
    try:
        store, rank, size = next(rendezvous("env://", timeout=waited))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=waited)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise UserError(
            f"rank {place.rank} of {place.world_size} on {socket.gethostname()} does not meet the others at {address}: "
            f"{_first_line(error)}",
            "The port may be in use, or a host out of reach: start again, or give the launcher another of them.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
    _group = _Group(PrefixStore("simpo", store), place, timeout)


def _require_card(place: Place) -> None:
    """Refuse to be one process more than there are cards; the first such process of a host tells it."""
    cards = torch.cuda.device_count()
    if place.local_rank >= cards:
        error = UserError(
            f"process {place.local_rank + 1} of this host finds no card for itself: it sees {cards}.",
            "Start one process a card, and let each of them see all cards (srun: without --gpus-per-task).",
        )
        error.is_shared = place.local_rank > cards
        raise error


def leave() -> None:
    """Forget the others."""
    global _group
    if _group is not None:
        _group = None
        dist.destroy_process_group()


def world_size() -> int:
    """Processes of the run; 1 without a launcher."""
    return 1 if _group is None else _group.place.world_size


def rank() -> int:
    """Which of them this one is."""
    return 0 if _group is None else _group.place.rank


def local_size() -> int:
    """How many processes of the run this host has; accelerate changes what the environment says of it."""
    return 1 if _group is None else _group.place.local_size


def is_first() -> bool:
    """Whether this process is the one that draws, logs, locks and writes."""
    return rank() == 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The tensor, whose numbers are now those of all ranks added up; exact where only one of them is not 0."""
    if _group is not None:
        dist.all_reduce(tensor)
    return tensor


def exchange(value: Any, what: str) -> list[Any]:
    """What each rank says, by rank: JSON values.

    Args:
        what: is being done, for the message when a rank does not come.

    Raises:
        LostRanksError: a rank is gone, or does not come within the time-out.
    """
    if _group is None:
        return [value]
    return [json.loads(text) for text in _said_by(range(world_size()), json.dumps(value), what, _group.timeout)]


def together(work: Callable[[], Result], what: str) -> Result:
    """Do something on every rank, after which all continue or none: a UserError of one is raised by all.

    There may be no collective in it. Where several fail, the error is that of the lowest rank.
    """
    if _group is None:
        return work()
    try:
        result, error = work(), None
    except UserError as raised:
        result, error = None, _shared(raised)
    said = exchange(None if error is None else as_json(error), what)
    if error is not None:
        raise error
    for number, failed in enumerate(said):
        if failed is not None:
            raise from_json(failed, number)
    return result  # type: ignore[return-value]


def from_first(work: Callable[[], Result], what: str) -> Result:
    """What the first rank computes, which alone does; the others wait, without a limit, as long as it lives.

    The result is a JSON value; a UserError is raised by all.
    """
    if _group is None:
        return work()
    said: dict[str, Any] = {}
    error: Exception | None = None
    if is_first():
        try:
            said = {"result": work()}
        except UserError as raised:
            error, said = _shared(raised), {"error": as_json(raised)}
        except Exception as raised:  # our bug, or no memory: the others need not wait for what does not come
            error, said = raised, {"crash": True}
    [text] = _said_by([0], json.dumps(said) if is_first() else None, what, None)
    if error is not None:
        raise error
    said = json.loads(text)
    if "error" in said:
        raise from_json(said["error"], 0)
    if "crash" in said:
        raise _gone()
    result: Result = said["result"]
    return result


def require_not_stopped(stop: StopRequest) -> None:
    """Stop here, on all ranks, if one of them was asked to.

    Raises:
        Stopped: it was.
    """
    if _group is None:
        stop.check()
    elif number := max(exchange(stop.number, "looking at the signals")):
        raise Stopped(number)


def smallest(number: int, what: str) -> int:
    """The smallest of the numbers that the ranks have."""
    return int(min(exchange(number, what)))


def require_same(facts: Mapping[str, Any], what: str) -> None:
    """Refuse ranks that have not been given the same.

    Args:
        facts: by the name that a message gives them: JSON values, short ones.

    Raises:
        UserError: names what differs, and the ranks with their hosts.
    """
    said = exchange({"host": socket.gethostname(), "facts": dict(facts)}, what)
    for name, value in said[0]["facts"].items():
        others = [number for number, one in enumerate(said) if one["facts"].get(name) != value]
        if others:
            first = others[0]
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            theirs, ours = said[first]["facts"].get(name), value
            error = UserError(
                f"rank {first} on {said[first]['host']}{more} has another {name} than rank 0 on {said[0]['host']}: "
                f"{theirs}, not {ours}.",
                "All hosts need the same command, versions, recipe, data and model.",
            )
            raise _shared(error)


def explained(error: BaseException) -> LostRanksError | None:
    """What an error of a collective means: others that are gone, or that hang; None for every other error."""
    if _group is None or not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if any(part in text for part in _TIMED_OUT):
        return _hanging("a collective of torch")
    if isinstance(error, dist.DistError) or any(part in text for part in _LOST):
        return _gone()
    return None


def _said_by(numbers: Any, value: str | None, what: str, timeout: float | None) -> list[str]:
    """What those ranks say in this exchange, as soon as all of them have."""
    assert _group is not None
    _group.exchanges += 1
    keys = [f"{_group.exchanges}/{number}" for number in numbers]
    started = time.monotonic()
    try:
        if value is not None:
            _group.store.set(f"{_group.exchanges}/{rank()}", value)
        while True:
            try:
                _group.store.wait(keys, timedelta(seconds=10 if timeout is None else min(10.0, timeout)))
                break
            except dist.DistStoreError:  # not there yet
                if timeout is not None and time.monotonic() - started > timeout:
                    missing = [number for number in numbers if not _group.store.check([f"{_group.exchanges}/{number}"])]
                    raise _hanging(what, missing) from None
        return [text.decode() for text in _group.store.multi_get(keys)]
    except dist.DistError as error:
        raise _gone() from error


def _hanging(what: str, missing: list[int] | None = None) -> LostRanksError:
    """The error of ranks that do not answer: those that do not say within seconds that they wait as well."""
    assert _group is not None
    if missing is None:
        try:
            _group.store.set(f"waiting/{rank()}", "")
            time.sleep(_SECONDS_TO_BE_HEARD)
            missing = [number for number in range(world_size()) if not _group.store.check([f"waiting/{number}"])]
        except dist.DistError:
            missing = [0]  # whose process holds the store
    who = f"rank {', '.join(map(str, missing))}" if missing else "a rank"
    return LostRanksError(
        f"{who} did not answer for {_group.timeout:g} s (distributed.timeout): {what} was not finished.",
        "What was saved is kept: see what that process does, then run the same command with --resume.",
        is_consequence=False,
    )


def _gone() -> LostRanksError:
    return LostRanksError(
        "another process of this run has ended.",
        "What was saved is kept; its own message says why.",
        is_consequence=True,
    )


def _shared(error: UserError) -> UserError:
    """The error, which all ranks are going to raise."""
    error.is_shared = True
    return error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
