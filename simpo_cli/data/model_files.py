"""Files of a model's folder that are JSON or text; whoever wrote the folder, a damaged one is the user's to mend."""

import json
from pathlib import Path
from typing import Any

from simpo_cli.data.writing import exit_code_of
from simpo_cli.errors import UserError

_DAMAGED = "The model folder is damaged; fetch it again."


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read: {error}.", _DAMAGED, where=str(path), exit_code=exit_code_of(error)
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; an empty one where there is no such file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not valid JSON: {error}.", _DAMAGED, where=str(path)) from error
    if not isinstance(content, dict):
        raise UserError("is not a JSON object.", _DAMAGED, where=str(path))
    return content
