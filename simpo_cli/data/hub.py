"""Data sets of the hub, through `datasets`; the only place where data may touch the network."""

import os
from collections.abc import Iterator
from itertools import chain
from typing import Any

from simpo_cli.data import network
from simpo_cli.data.message_cells import with_messages
from simpo_cli.data.raw import BadRecord, FileReceipt, RawRecord
from simpo_cli.data.table_records import BATCH, records_of
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.stages import stage


def read_hub(name: str, split: str | None, receipt: FileReceipt) -> Iterator[RawRecord | BadRecord]:
    """The rows of a hub data set, in order.

    Args:
        name: the id, organisation/name.
        split: which split; may be left out where there is only one.
        receipt: gets the commit that was read.

    Raises:
        UserError: the hub cannot be reached, or does not have the data set or the split.
    """
    rows = _load(name, split, receipt)
    place = f"{name} ({split})" if split else name
    batches = rows.with_format("arrow").iter(BATCH)
    tables = (records_of(batch, number * BATCH, place) for number, batch in enumerate(batches))
    yield from with_messages(chain.from_iterable(tables), receipt)


def hub_identity(name: str, split: str | None) -> str:
    """What tells the content of a hub data set: the commit that would be read.

    Raises:
        UserError: as for `read_hub`.
    """
    receipt = FileReceipt(name)
    _load(name, split, receipt)
    return receipt.identity


def _load(name: str, split: str | None, receipt: FileReceipt) -> Any:
    """The table of one split; the commit goes into the receipt."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    network.require_obtainable(name, "dataset")  # before the library is imported, which takes seconds
    import datasets
    import huggingface_hub.constants

    if network.is_offline():  # or its client would try again and again
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        with stage(f"fetching {name} from the hub"):
            revision = None if network.is_offline() else _commit(name)
            split = split or _only_split(datasets.get_dataset_split_names(name, revision=revision), name)
            rows = datasets.load_dataset(name, split=split, revision=revision)
    except UserError:
        raise
    except Exception as error:  # datasets, huggingface_hub, httpx and OSError each raise their own
        raise _not_given(name, split, error) from error
    receipt.identity = revision or f"from the cache, fingerprint {rows._fingerprint}"
    return rows


def _commit(name: str) -> str | None:
    import huggingface_hub

    return huggingface_hub.HfApi().dataset_info(name).sha


def _only_split(splits: list[str], name: str) -> str:
    if len(splits) == 1:
        return splits[0]
    raise UserError(
        f"has the splits {', '.join(splits)}.",
        f"Say which in the recipe: data.train: [{{path: {name}, split: {splits[0]}}}].",
        where=name,
    )


def _not_given(name: str, split: str | None, error: Exception) -> UserError:
    said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    if "split" in said.lower() and isinstance(error, ValueError):
        return UserError(f"has no split {split}: {said}", "Check `split` in the recipe.", where=name)
    if network.is_offline():
        return network.not_here(name, "dataset")
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "DatasetNotFoundError", "GatedRepoError"):
        return UserError(
            "is no file or folder here, and the hub does not show a data set of that name.",
            "Check the name; private and gated data sets need a login (hf auth login).",
            where=name,
            exit_code=ExitCode.ENVIRONMENT,
        )
    return UserError(
        f"is no file or folder here, and the hub cannot be reached ({kind}).",
        network.how_to_fetch(name, "dataset"),
        where=name,
        exit_code=ExitCode.ENVIRONMENT,
    )
