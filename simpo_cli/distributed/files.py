"""Files that all ranks write and read together: a folder that every host sees, and one checkpoint of several processes.

Whole tensors are dealt to the ranks; each writes and hashes a file of its own, and the first writes the one manifest
over all of them. A file that is read again is hashed by one rank. So time is divided by the ranks, no rank holds more
than its shards, one whole tensor and the piece of it that comes in, and any number of ranks reads what any number has
written.

What fails on one rank is told by it once all have come to the same place, and then raised by all.
"""

import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from simpo_cli.data.plan import shares_of
from simpo_cli.distributed import ranks
from simpo_cli.distributed.sharded import is_sharded, local
from simpo_cli.files import sync
from simpo_cli.run.checkpoint import CheckpointWriter, NewCheckpoint
from simpo_cli.run.checkpoint import commit as commit_alone
from simpo_cli.run.folder import RunFolder, require_token
from simpo_cli.run.manifest import Checkpoint, DamagedCheckpointError, FileFacts


def require_shared(folder: RunFolder) -> None:
    """Refuse a run folder that not all hosts see: the first rank writes a token there, which all have to read.

    Raises:
        UserError: names a rank and its host (exit code 4).
    """
    if ranks.world_size() == 1:
        return
    what = f"looking for the run folder {folder.path}"

    def leave_token() -> list[str]:
        name, token = f".shared.{os.getpid()}", secrets.token_hex()  # a name that the next run would remove
        folder.write_text(name, token)
        return [name, token]

    name, token = ranks.from_first(leave_token, what)
    try:
        ranks.together(lambda: require_token(folder.path / name, token), what)
    finally:
        if ranks.is_first():
            with suppress(OSError):
                (folder.path / name).unlink()


# Writing

_PIECE = 2**26  # bytes that are gathered at once, from all ranks together


def commit(
    parent: Path,
    step: int,
    write: Callable[[CheckpointWriter], None],
    conclude: Callable[[CheckpointWriter], None],
    facts: Mapping[str, Any],
) -> None:
    """Write one checkpoint by all ranks, all of it or nothing.

    Args:
        parent: the folder of the checkpoints, which every host sees.
        step: steps done.
        write: writes the files of this rank; where it gathers tensors, it fails only after the last of them.
        conclude: writes what the first rank adds.
        facts: what else the manifest says; JSON values.

    Raises:
        OSError: the disk of a rank did not take it; what was there before is as it was.
    """
    if ranks.world_size() == 1:

        def write_all(files: CheckpointWriter) -> None:
            write(files)
            conclude(files)

        commit_alone(parent, step, write_all, facts)
        return
    new, what = NewCheckpoint(parent, step), f"saving the checkpoint of step {step}"

    def write_part() -> dict[str, Any]:
        write(files)
        sync(folder)  # a host vouches for what it has written
        return {name: asdict(written) for name, written in files.files.items()}

    def finish() -> None:
        conclude(files)
        new.finish(files, facts)

    try:
        folder = Path(_on_each(lambda: str(new.begin()) if ranks.is_first() else "", what)[0])
        files = CheckpointWriter(folder)
        for written in _on_each(write_part, what):
            files.files |= {name: FileFacts(**of_file) for name, of_file in written.items()}
        _on_each(lambda: finish() if ranks.is_first() else None, what)
    except BaseException:
        if ranks.is_first():
            new.abandon()
        raise


def _on_each(work: Callable[[], Any], what: str) -> list[Any]:
    """What the work of each rank returns; an OSError of one is raised by all, and says whose it is."""
    raised: OSError | None = None
    answer: dict[str, Any] = {}
    try:
        answer["result"] = work()
    except OSError as error:
        raised = error
        answer["error"] = [error.errno, error.strerror or str(error), socket.gethostname()]
    answers = ranks.exchange(answer, what)
    for rank, one in enumerate(answers):
        if "error" in one:
            number, reason, host = one["error"]
            raise OSError(number, f"rank {rank} on {host}: {reason}" if rank > 0 else reason) from raised
    return [one["result"] for one in answers]


def deal(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names for each rank, of about as many bytes: the largest first, each to the rank that has least.

    The names of a rank are in falling order of size, so that those of one place in all lists are of similar size.
    """
    names = sorted(sizes)
    shares = shares_of([sizes[name] for name in names], ranks.world_size())
    return [[names[i] for i in share] for share in shares]


def in_turns(tensors: Mapping[str, Tensor], dealt: Sequence[Sequence[str]]) -> Iterator[Tensor]:
    """The tensors that were dealt to this rank, whole; one that was gathered is good until the next is asked for.

    Every rank has to come to the end, since gathering is a collective. The ranks gather one tensor each, by turns, and
    then all are written at the same time.
    """
    own = dealt[ranks.rank()]
    room = max(
        (ranks.world_size() * _shard_bytes(tensors[name]) for name in own if is_sharded(tensors[name])), default=0
    )
    buffer = torch.empty(room, dtype=torch.uint8)
    for turn in zip_longest(*dealt):
        mine: Tensor | None = None
        for owner, name in enumerate(turn):
            if name is not None:
                tensor = _gather(tensors[name], owner, buffer) if is_sharded(tensors[name]) else tensors[name]
                mine = tensor if owner == ranks.rank() else mine
        if mine is not None:
            yield mine


def _gather(tensor: Tensor, owner: int, buffer: Tensor) -> Tensor | None:
    """A sharded tensor whole in the owner's buffer, which is on the host; None on the other ranks. A collective."""
    size = _shard_bytes(tensor)
    shard = local(tensor).detach().reshape(-1).view(torch.uint8)
    if len(shard) < size:  # the last ranks have fewer rows
        shard = torch.cat([shard, shard.new_zeros(size - len(shard))])
    is_owner = owner == ranks.rank()
    rows = buffer[: ranks.world_size() * size].view(ranks.world_size(), size) if is_owner else buffer[:0]
    step = max(_PIECE // ranks.world_size(), 1)
    for start in range(0, size, step):
        piece = shard[start : start + step]
        places = [row[start : start + step] for row in rows]
        arriving = [place if place.device == piece.device else torch.empty_like(piece) for place in places]
        dist.gather(piece, arriving if is_owner else None, dst=owner)
        for place, arrived in zip(places, arriving, strict=True):
            if arrived is not place:
                place.copy_(arrived)
    return rows.view(-1)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape) if is_owner else None


def _shard_bytes(tensor: Tensor) -> int:
    """Bytes of the largest shard of a tensor that is sharded by rows."""
    rows = tensor.shape[0]
    return -(-rows // ranks.world_size()) * (tensor.nbytes // max(rows, 1))


# Reading


def verify(checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """Read files of a checkpoint to their end, each of them on one rank.

    Raises:
        DamagedCheckpointError: on all ranks, where one file is not what was saved.
    """
    sizes = {name: written.size for name, written in checkpoint.manifest.files.items() if name in names}
    reason: str | None = None
    try:
        for name in deal(sizes)[ranks.rank()]:
            with checkpoint.open(name):
                pass
    except DamagedCheckpointError as error:
        reason = error.reason
    if damage := first_problem(reason, f"verifying {checkpoint.folder}"):
        raise DamagedCheckpointError(checkpoint.folder, damage)


def first_problem(problem: str | None, what: str) -> str | None:
    """The problem of the lowest rank that has one."""
    return next((one for one in ranks.exchange(problem, what) if one is not None), None)
