"""Records to pairs: which fields a file uses, decided once from its first records, and what each record then gives.

The decision is made for the whole file and can be read (`Layout.described`); a record that does not follow it is
refused, so that no record is ever read in another way than its neighbours.
"""

from simpo_cli.data.formats.detect import SAMPLE_RECORDS, detect
from simpo_cli.data.formats.direction import NoSignalError, UnknownLabelError
from simpo_cli.data.formats.layout import Layout
from simpo_cli.data.formats.pairs import to_pair

__all__ = ["SAMPLE_RECORDS", "Layout", "NoSignalError", "UnknownLabelError", "detect", "to_pair"]
