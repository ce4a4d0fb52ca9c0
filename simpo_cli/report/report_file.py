"""Reports written with --output: JSON documents of ours, which may replace one another and nothing else."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpo_cli.errors import ExitCode, UserError


def require_replaceable(path: Path) -> None:
    """Refuse to write over a file that is not a report.

    Raises:
        UserError: the path is a folder, or a file that holds something else.
    """
    if path.is_dir():
        raise UserError(f"--output {path} is a folder.", "Name a file.")
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not (isinstance(content, dict) and "schema_version" in content):
        raise UserError(f"--output {path} exists and is not a report of simpo.", "Name another file.")


def write_report(path: Path, document: Mapping[str, Any]) -> None:
    """Write a report, whole or not at all."""
    require_replaceable(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(
            json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"--output {path} cannot be written: {error.strerror}.",
            "Name a file in a folder that exists and can be written.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error
