"""One side of a recipe's data, training or evaluation, as tokens with the account of every record.

Tokens are kept under a key of all that they depend on: the names and bytes of the files, how they are to be read, every
data setting but those that only choose among the pairs, the tokenizer with its templates, and the code that does it:
ours by its source, which nobody can forget to count up, and the libraries by their versions. They are made a batch at a
time: what is in memory does not grow with the files. What is not in the cache is read once: the digests of the files
are taken while they are read.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import simpo_cli
from simpo_cli.data.encode import encode_batches, pair_batches
from simpo_cli.data.file_bytes import open_regular
from simpo_cli.data.hub import hub_identity
from simpo_cli.data.load import PairReader, require_few, stopped_by
from simpo_cli.data.pair import EncodedPair, EncodedPairs, PreferencePair, prompt_key
from simpo_cli.data.sources import HubData, LocalFile, Role, locate
from simpo_cli.data.store.cache import Origin, fetch
from simpo_cli.data.store.pairs import Account, PairWriter, StoredPairs
from simpo_cli.data.text_notes import notes_of, own_markers
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource
from simpo_cli.stages import stage
from simpo_cli.versions import installed_version

_LIBRARIES = ("tokenizers", "jinja2", "numpy", "pyarrow", "datasets")
_OF_THE_READING = ("split", "columns", "labels", "direction", "max_pairs")
_NOT_OF_THE_TOKENS = (
    *("train", "eval", "holdout"),
    *("columns", "labels", "direction"),  # each source has taken them over
    "chat_template",  # the template itself is part of the tokenizer
)
_SAMPLES = 8

Files = Sequence[LocalFile | HubData]


@dataclass(frozen=True)
class EncodedSource:
    """One side of the data as tokens, with the account of its records."""

    pairs: StoredPairs  # in the order of the sources, each source as often as it is to be repeated
    repeated: int  # how many of the pairs are repeats
    account: Account
    origin: Origin


def encode_source(
    sources: Sequence[DataSource], role: Role, data: DataRecipe, tokenizer: TextTokenizer
) -> EncodedSource:
    """Tokenize one side of the data, or take its tokens from the cache.

    Raises:
        UserError: a file or record is refused, no usable pair is left, or the tokens cannot be written.
    """
    started = time.perf_counter()
    listed = data.sources(sources)
    located = [[found] if isinstance(found := locate(source, role), HubData) else found for source in listed]
    files = [file for of_source in located for file in of_source]

    def make(folder: Path) -> tuple[Account, str]:
        reader = PairReader(listed, role=role, on_bad_record=data.on_bad_record, on_no_signal=data.on_no_signal)
        account = make_tokens(reader, tokenizer, data, folder)
        return account, _contents_key(files, _identities_read(account))

    key = _making_key(listed, located, data, tokenizer)
    entry, origin = fetch(key, lambda: _contents_key(files, {}), make, started)
    counts = entry.account.pairs_of_source
    of_sources = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
    order = np.concatenate([np.tile(of, source.repeat) for of, source in zip(of_sources, listed, strict=True)])
    repeated = len(order) - sum(counts)
    pairs = entry.pairs.select(order) if repeated else entry.pairs
    return EncodedSource(pairs, repeated, entry.account, origin)


# The key


def _making_key(
    sources: Sequence[DataSource], located: Sequence[Files], data: DataRecipe, tokenizer: TextTokenizer
) -> str:
    """32 hex digits of all that tokens depend on but the bytes of the files; how often a source is repeated plays none.

    Raises UserError where a file is missing, or may not be read.
    """
    parts = {
        "sources": [
            {
                "files": [(file.name, _size(file)) for file in files],
                **{name: getattr(source, name) for name in _OF_THE_READING},
            }
            for source, files in zip(sources, located, strict=True)
        ],
        "settings": {name: value for name, value in asdict(data).items() if name not in _NOT_OF_THE_TOKENS},
        "tokenizer": tokenizer.identity,
        "code": _code_identity(),
    }
    return _digest(parts)[:32]


def _contents_key(files: Files, known: Mapping[str, str]) -> str:
    """32 hex digits of what tells the contents of files, in their order; those not `known` by name are read for it."""
    return _digest([(file.name, known.get(file.name) or _identity(file)) for file in files])[:32]


def _identities_read(account: Account) -> dict[str, str]:
    """What tells the content of each file that was read; one that was read twice has to be the same."""
    identities: dict[str, str] = {}
    for name, identity, _ in account.files:
        if identities.setdefault(name, identity) != identity:
            raise UserError("was changed while it was read.", "Run again when nothing writes to it.", where=name)
    return identities


def _size(file: LocalFile | HubData) -> int | None:
    if isinstance(file, HubData):
        return None
    with open_regular(file.path, file.name) as stream:
        return os.fstat(stream.fileno()).st_size


def _identity(file: LocalFile | HubData) -> str:
    if isinstance(file, HubData):
        return hub_identity(file.name, file.split)
    with open_regular(file.path, file.name) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]


@cache
def _code_identity() -> str:
    """The code that makes pairs and tokens of files, and what it rests on."""
    root = Path(simpo_cli.__file__).parent
    sources = {str(file.relative_to(root)): file.read_text("utf-8") for file in sorted((root / "data").rglob("*.py"))}
    libraries = {name: installed_version(name) for name in _LIBRARIES}
    return _digest([simpo_cli.__version__, sources, libraries, sys.version_info[:2]])


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


# The making


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
