"""How often the confirming half of some held-out pairs was looked at, by studies and by runs in one folder.

A number that is looked at often enough looks good once by chance, so what is confirmed says how often that was.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from simpo_cli.evaluate.generate.folder import add_rows, read_rows
from simpo_cli.run.receipt import now

LOOKS = "looks.jsonl"
"""Beside the runs and studies whose looks it counts."""


def count_look(of: Path, prompts: Sequence[str], seen: bytes) -> int:
    """Count a look, and say the how many-th at these pairs it is.

    Args:
        of: the folder of the run or study that looks.
        prompts: the key of each pair's prompt, in their order.
        seen: what was looked at; the same again, as after a resume, is no other look.

    Raises:
        UserError: the file of earlier looks is damaged.
        OSError: it cannot be written.
    """
    pairs, look = (hashlib.sha256(content).hexdigest()[:16] for content in ("".join(prompts).encode(), seen))
    file = of.parent / LOOKS
    looks = [row.get("look") for row in read_rows(file) if row.get("pairs") == pairs]
    if look not in looks:
        looks.append(look)
        add_rows(file, [{"pairs": pairs, "look": look, "by": str(of), "at": now()}])
    return looks.index(look) + 1
