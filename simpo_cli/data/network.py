"""Whether the hub can be reached: asked once and briefly, so that a missing network is said at once."""

import os
import socket
import threading
from functools import cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.stages import stage

_SECONDS = 1.0  # to find the hub's address and to be let in


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
