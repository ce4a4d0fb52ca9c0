"""Every finding that there is: its stable code, what it means, why it ruins runs, and what to do about it.

A code never changes its meaning and is never used again for another; scripts and CI go by it.
"""

from simpo_cli.audit.catalogue import pairs, texts
from simpo_cli.audit.catalogue.entry import Entry, Needs, Severity

__all__ = ["CATALOGUE", "Entry", "Needs", "Severity"]

_ENTRIES = (*pairs.ENTRIES, *texts.ENTRIES)

CATALOGUE = {entry.code: entry for entry in _ENTRIES}
"""All entries by their codes."""

assert len(CATALOGUE) == len(_ENTRIES), "a code is there twice"
