"""run.json vouches for itself: its last entry is the sha256 of everything before it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from simpo_cli.train.run_folder import document_text

SEAL = "sha256"
REOPENED = "reopened"
"""Hashes of the recipes with which the run was to be gone on with since this run.json told of it."""


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A document with the hash of its content as its last entry."""
    return {**content, SEAL: hashlib.sha256(json.dumps(content).encode()).hexdigest()}


def is_as_sealed(data: bytes) -> bool:
    """Whether a file is, byte for byte, a sealed document as a run writes it."""
    try:
        content = json.loads(data)
        seal = content.pop(SEAL)
        # what reads back as it was and is spelt as we spell it has not lost a bit anywhere
        return bool(sealed(content)[SEAL] == seal and document_text(sealed(content)).encode() == data)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return False
