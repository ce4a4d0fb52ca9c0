"""The hub: its data sets, through `datasets`, and files of its models; nothing else in `data` touches the network."""

import os
import socket
import threading
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from simpo_cli.data.csv_records import with_messages
from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.pair import Records
from simpo_cli.data.table_records import BATCH, records_of
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.stages import stage

_SECONDS = 1.0  # to find the hub's address and to be let in


def read_hub(name: str, split: str | None, receipt: FileReceipt) -> Records:
    """The rows of a hub data set, in order.

    Raises:
        UserError: the hub cannot be reached, or does not have the data set or the split.
    """
    rows = _load(name, split, receipt)
    place = f"{name} ({split})" if split else name
    batches = rows.with_format("arrow").iter(BATCH)
    tables = (records_of(batch, number * BATCH, place) for number, batch in enumerate(batches))
    yield from with_messages(chain.from_iterable(tables), receipt)


def hub_identity(name: str, split: str | None) -> str:
    """What tells the content of a hub data set: the commit that would be read. Raises UserError: as for `read_hub`."""
    receipt = FileReceipt(name)
    _load(name, split, receipt)
    return receipt.identity


def _load(name: str, split: str | None, receipt: FileReceipt) -> Any:
    """The table of one split; the commit goes into the receipt."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    require_obtainable(name, "dataset")  # before the library is imported, which takes seconds
    import datasets
    import huggingface_hub.constants

    if is_offline():  # or its client would try again and again
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        with stage(f"fetching {name} from the hub"):
            revision = None if is_offline() else _commit(name)
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
    if is_offline():
        return not_here(name, "dataset")
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
        how_to_fetch(name, "dataset"),
        where=name,
        exit_code=ExitCode.ENVIRONMENT,
    )


# Whether the hub can be reached


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network, or there is none."""
    return is_forbidden() or not hub_answers()


def is_forbidden() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")


@cache
def hub_answers() -> bool:
    """Whether a connection to the hub can be opened; behind a proxy that is believed. Asked once."""
    return _ask_hub()


def _ask_hub() -> bool:
    import huggingface_hub.constants

    if getproxies():
        return True
    address = urlsplit(huggingface_hub.constants.ENDPOINT)
    answered = threading.Event()

    def connect() -> None:
        try:
            port = address.port or (80 if address.scheme == "http" else 443)
            socket.create_connection((address.hostname or "", port), timeout=_SECONDS).close()
        except OSError:
            return
        answered.set()

    # looking up a name has no time limit of its own, and a name that is not found ends the wait
    asking = threading.Thread(target=connect, daemon=True)
    with stage("looking for the hub"):
        asking.start()
        asking.join(_SECONDS)
    return answered.is_set()


def require_obtainable(name: str, kind: Literal["model", "dataset"]) -> None:
    """Refuse an id of the hub that is not on this machine and cannot be fetched now.

    Raises:
        UserError: says how to fetch it elsewhere (exit code 4).
    """
    if not _may_be_cached(name, kind) and is_offline():
        raise not_here(name, kind)


def model_snapshot(name: str, revision: str | None, wanted: Sequence[str], *, fetch: bool = True) -> Path:
    """The local folder with files of a model of the hub, which is named by its commit.

    Args:
        wanted: patterns of names; no other file is fetched.
        fetch: whether what is not on this machine may be downloaded.

    Raises:
        UserError: the model is not here, and the hub did not give it (exit code 4).
    """
    import huggingface_hub

    try:
        is_local, patterns = not fetch or is_offline(), list(wanted)
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=patterns, local_files_only=is_local
        )
        return Path(folder)
    except Exception as error:  # the hub client raises many types, from httpx, OSError and its own
        if not fetch:
            raise UserError(
                f"the weights of {name} are not on this machine.",
                "simpo train and simpo eval fetch them.",
                exit_code=ExitCode.ENVIRONMENT,
            ) from error
        if is_offline():
            raise not_here(name, "model") from error
        raise UserError(
            f"{name} is not a folder here, and the model hub did not give it: {type(error).__name__}.",
            "Check the name and the network, or name a local folder; gated models need a login.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error


def not_here(name: str, kind: Literal["model", "dataset"]) -> UserError:
    """The error for an id of the hub that is not on this machine where there is no network."""
    why = "HF_HUB_OFFLINE forbids to fetch it" if is_forbidden() else "the hub cannot be reached"
    return UserError(
        f"{name} is not here, neither as a folder nor in the cache, and {why}.",
        how_to_fetch(name, kind),
        exit_code=ExitCode.ENVIRONMENT,
    )


def how_to_fetch(name: str, kind: Literal["model", "dataset"]) -> str:
    """What to type where there is a network."""
    folder = name.rpartition("/")[2]
    command = f"hf download {name} {'--repo-type dataset ' if kind == 'dataset' else ''}--local-dir {folder}"
    return f"Check the name; or fetch it where there is a network, and name the folder {folder}: {command}"


def _may_be_cached(name: str, kind: Literal["model", "dataset"]) -> bool:
    import huggingface_hub.constants

    owner, _, short = name.rpartition("/")
    places = [Path(huggingface_hub.constants.HF_HUB_CACHE, f"{kind}s--{owner}--{short}", "snapshots")]
    if kind == "dataset":
        prepared = os.environ.get("HF_DATASETS_CACHE") or str(Path(huggingface_hub.constants.HF_HOME, "datasets"))
        places.append(Path(prepared, f"{owner}___{short.lower()}"))
        places.append(Path(prepared, f"{owner}___{short}"))
    return any(place.is_dir() for place in places)
