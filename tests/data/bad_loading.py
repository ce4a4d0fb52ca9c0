"""Loading a file that has something wrong with it: refused as a person's mistake, or with its bad records left out."""

from typing import Any

import pytest

from simpo_cli.data.load import LoadedPairs, load_pairs
from simpo_cli.errors import ExitCode, UserError


def refusal(path: str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_pairs(path, role="train", **options)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    return caught.value


def skipped(path: str) -> LoadedPairs:
    return load_pairs(path, role="train", on_bad_record="skip")
