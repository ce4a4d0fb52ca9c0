"""Pairs of a file in memory, with the account of its records; and files that have something wrong with them."""

from collections.abc import Sequence
from typing import Any

import pytest

from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataSource


class LoadedPairs:
    """The pairs of all sources, repeated as the sources say, and what became of every record."""

    def __init__(self, reader: PairReader) -> None:
        self.pairs: list[PreferencePair] = []
        for source in reader.sources:
            self.pairs += list(reader.read_source(source)) * source.repeat
        reader.require_pairs()
        self.bad_records, self.records_read, self.decision = reader.bad_records, reader.records_read, reader.decision
        self.dropped, self.warnings = reader.dropped.counts, reader.warnings.counts
        self.files = [(file.path, file.identity, file.size) for file in reader.files]


def load_pairs(sources: str | Sequence[DataSource], **options: Any) -> LoadedPairs:
    return LoadedPairs(PairReader(sources, **options))


def refusal(path: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_pairs(path, role="train", **options)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    return caught.value


def skipped(path: str) -> LoadedPairs:
    return load_pairs(path, role="train", on_bad_record="skip")
