"""Pairs to tokens and the account of their records, as files, and as a sequence that reads a pair when it is asked for.

Tokens are made a batch at a time: what is in memory does not grow with the files.

`pairs.bin` holds for each pair its tokens (prompt, chosen, rejected, int32), behind them its place as UTF-8, and the
digest of its texts; `rows.bin` holds what is asked of all pairs at once, 40 bytes each. Tokens are read by position and
not mapped into memory: pages of a mapping count as memory of this process, and a mapped file that is cut short ends it.
"""

import hashlib
import operator
import os
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.encode import encode_batches, pair_batches
from simpo_cli.data.load import PairReader, require_few, stopped_by
from simpo_cli.data.pair import BadRecord, EncodedPair, EncodedPairs, Message, PreferencePair, prompt_key
from simpo_cli.data.text_notes import notes_of, own_markers
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe
from simpo_cli.stages import stage


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of every record of the training or the evaluation side; every record is counted once."""

    decision: str  # how the files were understood, in words
    files: list[tuple[str, str, int]]  # what was read: path, sha256 or hub commit, size
    records_read: int  # records of any kind
    pairs_of_source: list[int]  # pairs that each source gave, in the order of the sources, repeats left aside
    dropped: Counter[str]  # pairs without signal, by reason, before and after tokenizing
    refused: list[BadRecord]  # malformed records, each with the reason (only with on_bad_record: skip)
    counts: Counter[str]  # pairs with a property worth telling, such as `prompt cut`
    needed: dict[str, Counter[int]]  # what pairs would need to stay whole, as `EncodedPairs.needed`
    warnings: Counter[str]  # things in the files that are worth telling and stop nothing, with their number
    samples: list[PreferencePair]  # as text: the first of each of the lowest prompt hashes whose prompt is not cut
    content: str  # digest of the tokens in their order; two sides with equal ones train alike
    remarks: list[str] = field(default_factory=list)  # what else is worth saying of the files
    examples: list[str] = field(default_factory=list)  # a pair of each file that goes by label or score

    def as_json(self) -> dict[str, Any]:
        """The account as the manifest of a cache entry holds it."""
        lists = {name: [asdict(one) for one in getattr(self, name)] for name in ("refused", "samples")}
        files = [list(file) for file in self.files]
        needed = {limit: {str(tokens): n for tokens, n in counts.items()} for limit, counts in self.needed.items()}
        return {**vars(self), **lists, "files": files, "needed": needed}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Account":
        """The account of what `as_json` gave; KeyError or TypeError where that is something else."""
        changed = {
            "files": [(path, identity, size) for path, identity, size in kept["files"]],
            "refused": [BadRecord(**record) for record in kept["refused"]],
            "samples": [_pair(sample) for sample in kept["samples"]],
            "needed": {
                limit: Counter({int(tokens): n for tokens, n in counts.items()})
                for limit, counts in kept["needed"].items()
            },
            **{name: Counter(kept[name]) for name in ("dropped", "counts", "warnings")},
        }
        return cls(**{**kept, **changed})


def _pair(sample: dict[str, Any]) -> PreferencePair:
    prompt = sample["prompt"]
    turns = prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
    return PreferencePair(**{**sample, "prompt": turns})


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
        ("file", "u1"),  # which of the files in hand holds the pair; 0 on disk
    ],
    align=True,
)
_INT32 = np.dtype("<i4")
_KEY_BYTES = 16  # of a pair_key

Rows = NDArray[Any]  # of ROW
Lengths = NDArray[np.int64]


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
            rows[i] = (self._end, int(pair.prompt_key, 16), *counts, len(place), int(ids.max()), cut, 0)
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


class _TokenFile:
    """An open pairs.bin; it stays readable when its name is gone, and is closed with the last sequence that uses it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, _close, self.descriptor)

    def read(self, start: int, size: int) -> bytes:
        try:
            data = os.pread(self.descriptor, size, start)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        if len(data) != size:
            raise OSError(f"{TOKENS} is shorter than it was")
        return data


def _close(descriptor: int) -> None:
    with suppress(OSError):  # nothing was written through it
        os.close(descriptor)


class StoredPairs(Sequence[EncodedPair]):
    """Pairs in files, made into objects one at a time; a slice or a selection shares the files. `rows`: (n,) of ROW."""

    def __init__(self, files: Sequence[_TokenFile], rows: Rows) -> None:
        self._files = tuple(files)
        self.rows = rows

    @classmethod
    def open(cls, folder: Path) -> "StoredPairs":
        """The pairs that a `PairWriter` has written."""
        return cls([_TokenFile(folder / TOKENS)], np.fromfile(folder / ROWS, dtype=ROW))

    @property
    def descriptor(self) -> int:
        """The descriptor of the first file, for a lock that lasts as long as the pairs are in use."""
        return self._files[0].descriptor

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, index: slice) -> "StoredPairs": ...
    def __getitem__(self, index: int | slice) -> "EncodedPair | StoredPairs":
        if isinstance(index, slice):
            return StoredPairs(self._files, self.rows[index])
        return self._pair(self.rows[operator.index(index)])

    def __iter__(self) -> Iterator[EncodedPair]:
        return map(self._pair, self.rows)

    def _pair(self, row: Any) -> EncodedPair:
        start, key, prompt, chosen, rejected, place, _, cut, file = row.item()
        num_ids = prompt + chosen + rejected
        data = self._files[file].read(start, num_ids * _INT32.itemsize + place + _KEY_BYTES)
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

    def select(self, positions: NDArray[np.int64]) -> "StoredPairs":
        """The pairs at these positions, in their order; a position may occur more than once."""
        return StoredPairs(self._files, self.rows[positions])

    def __add__(self, other: "StoredPairs") -> "StoredPairs":
        """These pairs, then the others."""
        rows = np.concatenate((self.rows, other.rows))
        rows["file"][len(self) :] += len(self._files)
        return StoredPairs((*self._files, *other._files), rows)


def lengths_of(pairs: Sequence[EncodedPair]) -> Lengths:
    """(n, 3) tokens of prompt, chosen and rejected; of stored pairs without reading any."""
    if isinstance(pairs, StoredPairs):
        return np.stack([pairs.rows[part].astype(np.int64) for part in ("prompt", "chosen", "rejected")], axis=1)
    counts = [(len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in pairs]
    return np.array(counts, dtype=np.int64).reshape(-1, 3)


def prompt_keys_of(pairs: Sequence[EncodedPair]) -> NDArray[Any]:
    """(n,) a hash of each pair's prompt: equal where the prompts are, and in the order of `EncodedPair.prompt_key`.

    Those of stored pairs are uint64, without reading any pair; others are text.
    """
    if isinstance(pairs, StoredPairs):
        keys: NDArray[Any] = pairs.rows["prompt_key"]
        return keys
    return np.array([pair.prompt_key for pair in pairs], dtype=np.str_)


def highest_ids_of(pairs: Sequence[EncodedPair]) -> NDArray[np.int64]:
    """(n,) the highest token id of each pair."""
    if isinstance(pairs, StoredPairs):
        return pairs.rows["highest_id"].astype(np.int64)
    parts = ((pair.prompt, pair.chosen, pair.rejected) for pair in pairs)
    return np.array([max(int(part.max()) for part in three if len(part)) for three in parts], dtype=np.int64)


# Their making

_SAMPLES = 8


def make_tokens(reader: PairReader, tokenizer: TextTokenizer, data: DataRecipe, folder: Path) -> Account:
    """Read, render and tokenize every pair of the sources once, and write the tokens into a folder.

    Args:
        reader: must not have been read before.
        folder: an empty folder.

    Raises:
        UserError: a file or record is refused, or no usable pair is left.
    """
    writer = PairWriter(folder)
    total, samples, pairs_of_source = EncodedPairs(), dict[str, PreferencePair](), []
    own, noted = own_markers(tokenizer, rendered=data.rendered), Counter[str]()
    with closing(writer), stage("tokenizing pairs") as tokenizing:
        for source in reader.sources:
            before = writer.num_pairs
            batches = ((batch, batch) for batch in pair_batches(reader.read_source(source)))
            for batch, encoded in encode_batches(batches, tokenizer, data):
                tokenizing.advance(len(batch))
                if encoded.bad and data.on_bad_record == "error":
                    raise stopped_by(encoded.bad)
                total.add_counts(encoded)
                require_few(total.bad)
                noted.update(note for pair in batch for note in notes_of(pair, own))
                _keep_samples(samples, batch, encoded.pairs)
                writer.add(encoded.pairs)
            pairs_of_source.append(writer.num_pairs - before)
        reader.require_pairs()
    return Account(
        decision=reader.decision,
        files=[(file.path, file.identity, file.size) for file in reader.files],
        records_read=reader.records_read,
        pairs_of_source=pairs_of_source,
        dropped=Counter(reader.dropped.counts) + total.dropped,
        refused=reader.bad_records + total.bad,
        counts=total.counts,
        needed=total.needed,
        warnings=Counter(reader.warnings.counts) + noted,
        samples=[samples[key] for key in sorted(samples)],
        content=writer.content.hexdigest(),
        remarks=reader.remarks,
        examples=reader.examples,
    )


def _keep_samples(
    kept: dict[str, PreferencePair], texts: Sequence[PreferencePair], encoded: Sequence[EncodedPair]
) -> None:
    """Keep the first pair of each of the lowest prompt hashes, as text; what is held out begins with these."""
    for pair in encoded:
        key = pair.prompt_key
        if pair.prompt_cut or key in kept or (len(kept) == _SAMPLES and key > max(kept)):
            continue
        kept[key] = next(text for text in texts if text.where == pair.where and prompt_key(text) == key)
        if len(kept) > _SAMPLES:
            del kept[max(kept)]
