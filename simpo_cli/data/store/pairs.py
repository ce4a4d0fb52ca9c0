"""Tokenized pairs as files, and as a sequence that reads a pair when it is asked for.

`pairs.bin` holds for each pair its tokens (prompt, chosen, rejected, int32), behind them its place as UTF-8, and the
digest of its texts; `rows.bin` holds what is asked of all pairs at once, 40 bytes each. Both are read by position, the
rows of all pairs a block at a time: what a process holds does not grow with the pairs, and what the system keeps of the
files serves every process of the host. They are not mapped into memory: pages of a mapping count as memory of this
process, and a mapped file that is cut short, or whose server goes away, ends it.
"""

import hashlib
import operator
import os
import struct
import weakref
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.pair import EncodedPair

TOKENS, ROWS = "pairs.bin", "rows.bin"

ROW = np.dtype(
    [
        ("start", "<i8"),  # offset of the pair's tokens, bytes
        ("prompt_key", "<u8"),
        ("prompt", "<i4"),  # numbers of tokens
        ("chosen", "<i4"),
        ("rejected", "<i4"),
        ("place", "<i4"),  # bytes of the place
        ("highest_id", "<i4"),
        ("cut", "u1"),  # bits: prompt, chosen, rejected
    ],
    align=True,
)
_ROW = struct.Struct("<qQiiiiiB3x")  # the same, for one row
_INT32 = np.dtype("<i4")
_KEY_BYTES = 16  # of a pair_key
_BLOCK = 1 << 14  # rows in memory at once
_FEW = 1 << 16  # rows of a file that are held in memory: 2.6 MB
_MANY = 64  # runs of a block, above which
_NEAR = 64  # rows no further apart are read in one go; what lies between takes less time than another call

Rows = NDArray[Any]  # of ROW
Lengths = NDArray[np.int64]
Positions = NDArray[np.int64]


class PairWriter:
    """Writes pairs into a folder, batch by batch; `content` is a digest of the tokens, without places and texts."""

    def __init__(self, folder: Path) -> None:
        self._tokens = (folder / TOKENS).open("xb")
        self._rows = (folder / ROWS).open("xb")
        self._end = 0
        self.content = hashlib.sha256()
        self.num_pairs = 0

    def add(self, pairs: Sequence[EncodedPair]) -> None:
        """Append pairs."""
        rows = np.zeros(len(pairs), dtype=ROW)
        for i, pair in enumerate(pairs):
            ids = np.concatenate((pair.prompt, pair.chosen, pair.rejected)).astype(_INT32, copy=False)
            tokens, place = ids.tobytes(), pair.where.encode("utf-8", "surrogatepass")
            counts = len(pair.prompt), len(pair.chosen), len(pair.rejected)
            cut = pair.prompt_cut | pair.chosen_cut << 1 | pair.rejected_cut << 2
            rows[i] = (self._end, int(pair.prompt_key, 16), *counts, len(place), int(ids.max()), cut)
            self._tokens.write(tokens)
            self._tokens.write(place)
            self._tokens.write(bytes.fromhex(pair.pair_key))
            self.content.update(np.array(counts, dtype=_INT32).tobytes())
            self.content.update(tokens)
            self._end += len(tokens) + len(place) + _KEY_BYTES
        self._rows.write(rows.tobytes())
        self.num_pairs += len(pairs)

    def close(self) -> None:
        """Write what is left, and let go of the files."""
        self._tokens.close()
        self._rows.close()


class _File:
    """An open file that is read by position."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, _close, self.descriptor)

    def read(self, start: int, size: int) -> bytes:
        try:
            data = os.pread(self.descriptor, size, start)
        except OSError as error:
            raise self._named(error) from error
        self._require(len(data) == size)
        return data

    def read_into(self, array: NDArray[np.uint8], start: int) -> None:
        try:
            num_bytes = os.preadv(self.descriptor, [array.data], start)
        except OSError as error:
            raise self._named(error) from error
        self._require(num_bytes == array.nbytes)

    def _named(self, error: OSError) -> OSError:
        return OSError(error.errno, error.strerror, str(self._path))

    def _require(self, is_whole: bool) -> None:
        if not is_whole:
            raise OSError(f"{self._path.name} is shorter than it was")


def _close(descriptor: int) -> None:
    with suppress(OSError):  # nothing was written through it
        os.close(descriptor)


class _PairFiles:
    """The open files of a folder; readable when their names are gone, closed with the last sequence that uses them."""

    def __init__(self, folder: Path) -> None:
        self.tokens, self.rows = _File(folder / TOKENS), _File(folder / ROWS)
        self.num_pairs = os.fstat(self.rows.descriptor).st_size // ROW.itemsize
        self.held = np.fromfile(folder / ROWS, dtype=ROW) if self.num_pairs <= _FEW else None  # then looked up faster

    def pair_at(self, number: int) -> EncodedPair:
        """The pair of a row."""
        if self.held is not None:
            return self.pair_of(self.held[number].item())
        return self.pair_of(_ROW.unpack(self.rows.read(number * _ROW.size, _ROW.size)))

    def pair_of(self, row: tuple[Any, ...]) -> EncodedPair:
        """The pair that a row, as the tuple of its fields, says where to find."""
        start, key, prompt, chosen, rejected, place, _, cut = row
        num_ids = prompt + chosen + rejected
        data = self.tokens.read(start, num_ids * _INT32.itemsize + place + _KEY_BYTES)
        ids = np.frombuffer(data, dtype=_INT32, count=num_ids)
        return EncodedPair(
            prompt=ids[:prompt],
            chosen=ids[prompt : prompt + chosen],
            rejected=ids[prompt + chosen :],
            prompt_key=f"{key:016x}",
            where=data[num_ids * _INT32.itemsize : -_KEY_BYTES].decode("utf-8", "surrogatepass"),
            prompt_cut=bool(cut & 1),
            chosen_cut=bool(cut & 2),
            rejected_cut=bool(cut & 4),
            pair_key=data[-_KEY_BYTES:].hex(),
        )


class StoredPairs(Sequence[EncodedPair]):
    """Pairs in files, made into objects one at a time; a slice or a selection shares the files.

    Which pairs these are is held as runs of consecutive rows, not pair by pair: a hundred million less two thousand
    that are held out are two thousand runs. The rows of several files are numbered one file after the other.

    Args:
        ends: (runs,) where each run ends in this sequence.
        shifts: (runs,) the number of a run's first row less its position in this sequence.
    """

    def __init__(self, files: Sequence[_PairFiles], ends: Positions, shifts: Positions) -> None:
        self._files, self._ends, self._shifts = tuple(files), ends, shifts
        self._file_ends = list(accumulate(file.num_pairs for file in files))
        self._quick = ends.data, shifts.data  # one element of these is read faster
        self._length = int(ends[-1]) if len(ends) else 0

    @classmethod
    def open(cls, folder: Path) -> "StoredPairs":
        """The pairs that a `PairWriter` has written."""
        files = _PairFiles(folder)
        return cls([files], np.array([files.num_pairs]), np.array([0]))

    @property
    def descriptor(self) -> int:
        """The descriptor of the first file, for a lock that lasts as long as the pairs are in use."""
        return self._files[0].tokens.descriptor

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredPairs": ...
    def __getitem__(self, index: int | slice) -> "EncodedPair | StoredPairs":
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            return self._between(first, last) if step == 1 else self.select(np.arange(first, last, step))
        position, (ends, shifts) = range(self._length)[operator.index(index)], self._quick
        number = position + shifts[bisect_right(ends, position)]
        file = bisect_right(self._file_ends, number)
        return self._files[file].pair_at(number - self._first_row(file))

    def __iter__(self) -> Iterator[EncodedPair]:
        for numbers in self._numbers_in_blocks():
            files = np.searchsorted(self._file_ends, numbers, side="right")
            for file, row in zip(files.tolist(), self._rows(numbers).tolist(), strict=True):
                yield self._files[file].pair_of(row)

    def in_blocks(self) -> Iterator[Rows]:
        """The rows of all pairs in their order, a block at a time."""
        return map(self._rows, self._numbers_in_blocks())

    def column(self, name: str) -> NDArray[Any]:
        """(n,) a field of all rows."""
        column = np.empty(len(self), dtype=ROW[name])
        done = 0
        for rows in self.in_blocks():
            column[done : done + len(rows)] = rows[name]
            done += len(rows)
        return column

    def select(self, positions: Positions) -> "StoredPairs":
        """The pairs at these positions, in their order; a position may occur more than once."""
        if not len(positions):
            return self[:0]
        numbers = self._numbers(positions)
        begins = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 2) != 1)
        return StoredPairs(self._files, np.append(begins[1:], len(numbers)), numbers[begins] - begins)

    def without(self, positions: Positions) -> "StoredPairs":
        """The pairs but those at these positions, each given once."""
        bounds = np.unique(np.concatenate(([0], self._ends, positions, positions + 1)))
        kept = ~np.isin(bounds[:-1], positions)
        begins, lengths = bounds[:-1][kept], np.diff(bounds)[kept]
        ends = np.cumsum(lengths)
        return StoredPairs(self._files, ends, self._numbers(begins) - (ends - lengths))

    def __add__(self, other: "StoredPairs") -> "StoredPairs":
        """These pairs, then the others."""
        ends, shifts = other._ends + len(self), other._shifts - len(self)
        files = self._files
        if other._files != files:
            files, shifts = (*files, *other._files), shifts + self._file_ends[-1]
        return StoredPairs(files, np.concatenate((self._ends, ends)), np.concatenate((self._shifts, shifts)))

    def _between(self, first: int, last: int) -> "StoredPairs":
        begin, end = self._ends.searchsorted(first, side="right"), self._ends.searchsorted(max(first, last)) + 1
        of = slice(begin, end if first < last else begin)
        return StoredPairs(self._files, np.minimum(self._ends[of], last) - first, self._shifts[of] + first)

    def _numbers_in_blocks(self) -> Iterator[Positions]:
        """The numbers of all rows in their order, a block at a time."""
        for first in range(0, len(self), _BLOCK):
            block = self._between(first, min(first + _BLOCK, len(self)))
            yield np.arange(len(block)) + np.repeat(block._shifts, np.diff(block._ends, prepend=0))

    def _numbers(self, positions: Positions) -> Positions:
        """(n,) the numbers of the rows at these positions."""
        numbers: Positions = positions + self._shifts[self._ends.searchsorted(positions, side="right")]
        return numbers

    def _rows(self, numbers: Positions) -> Rows:
        """(n,) the rows of these numbers, of which there is at least one; rows close together are read in one go."""
        if len(self._files) == 1 and (held := self._files[0].held) is not None:
            return held.take(numbers)
        files, steps = np.searchsorted(self._file_ends, numbers, side="right"), np.diff(numbers)
        is_end = (steps != 1) | (np.diff(files) != 0)
        if is_end.sum() > _MANY:
            is_end &= (steps < 1) | (steps > _NEAR) | (np.diff(files) != 0)
        rows = np.empty((len(numbers), ROW.itemsize), dtype=np.uint8)  # numpy copies bytes faster than fields
        for begin, end in pairwise([0, *(np.flatnonzero(is_end) + 1).tolist(), len(numbers)]):
            file, first, last = int(files[begin]), int(numbers[begin]), int(numbers[end - 1])
            place = (first - self._first_row(file)) * ROW.itemsize
            if last - first < end - begin:
                self._files[file].rows.read_into(rows[begin:end], place)
            else:
                between = np.empty((last - first + 1, ROW.itemsize), dtype=np.uint8)
                self._files[file].rows.read_into(between, place)
                between.take(numbers[begin:end] - first, axis=0, out=rows[begin:end])
        return rows.view(ROW)[:, 0]

    def _first_row(self, file: int) -> int:
        """The number of a file's first row."""
        return self._file_ends[file - 1] if file else 0


def lengths_in_blocks(pairs: Sequence[EncodedPair]) -> Iterator[Lengths]:
    """(some, 3) tokens of prompt, chosen and rejected, until all pairs had their turn; of stored ones reads no pair."""
    if isinstance(pairs, StoredPairs):
        for rows in pairs.in_blocks():
            yield np.stack([rows[part].astype(np.int64) for part in ("prompt", "chosen", "rejected")], axis=1)
    else:
        counts = [(len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in pairs]
        yield np.array(counts, dtype=np.int64).reshape(-1, 3)


def lengths_of(pairs: Sequence[EncodedPair]) -> Lengths:
    """(n, 3) tokens of prompt, chosen and rejected; of stored pairs without reading any."""
    return np.concatenate([np.empty((0, 3), dtype=np.int64), *lengths_in_blocks(pairs)])


def prompt_keys_in_blocks(pairs: Sequence[EncodedPair]) -> Iterator[NDArray[Any]]:
    """What `prompt_keys_of` gives, a block of pairs at a time."""
    if isinstance(pairs, StoredPairs):
        return (rows["prompt_key"] for rows in pairs.in_blocks())
    return iter([prompt_keys_of(pairs)])


def prompt_keys_of(pairs: Sequence[EncodedPair]) -> NDArray[Any]:
    """(n,) a hash of each pair's prompt: equal where the prompts are, and in the order of `EncodedPair.prompt_key`.

    Those of stored pairs are uint64, without reading any pair; others are text.
    """
    if isinstance(pairs, StoredPairs):
        return pairs.column("prompt_key")
    return np.array([pair.prompt_key for pair in pairs], dtype=np.str_)


def repeated_prompt_keys_of(pairs: Sequence[EncodedPair]) -> NDArray[Any]:
    """The hashes of prompts that several pairs have, rising."""
    keys = prompt_keys_of(pairs)
    keys.sort()
    return np.unique(keys[1:][keys[1:] == keys[:-1]])


def positions_of_prompts(pairs: Sequence[EncodedPair], keys: NDArray[Any]) -> Iterator[Positions]:
    """Where the pairs are whose prompt has one of these hashes, which rise and occur once; a block at a time."""
    done = 0
    for block in prompt_keys_in_blocks(pairs) if len(keys) else ():
        yield done + np.flatnonzero(keys.take(keys.searchsorted(block), mode="clip") == block)
        done += len(block)


def highest_ids_of(pairs: Sequence[EncodedPair]) -> NDArray[np.int32]:
    """(n,) the highest token id of each pair."""
    if isinstance(pairs, StoredPairs):
        return pairs.column("highest_id")
    parts = ((pair.prompt, pair.chosen, pair.rejected) for pair in pairs)
    return np.array([max(int(part.max()) for part in three if len(part)) for three in parts], dtype=np.int32)
