"""What became of the records of one side of the data, as a file beside their tokens."""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simpo_cli.data.pair import Message, PreferencePair
from simpo_cli.data.raw import BadRecord

ACCOUNT, REFUSED = "account.json", "refused.jsonl"


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of every record of the training or the evaluation side; every record is counted once.

    Attributes:
        decision: how the files were understood, in words.
        files: what was read: path, sha256 or hub commit, size.
        records_read: records of any kind.
        pairs_of_source: pairs that each source gave, in the order of the sources, repeats left aside.
        dropped: pairs without signal, by reason, before and after tokenizing.
        refused: malformed records, each with the reason (only with on_bad_record: skip).
        counts: pairs with a property worth telling, such as `prompt cut`.
        needed: what cut pairs would need to be whole, as `EncodedPairs.needed`.
        warnings: things in the files that are worth telling and stop nothing, with their number.
        samples: the texts of a few pairs: the first of each of the lowest prompt hashes whose prompt is not cut.
        content: digest of the tokens in their order; two sides with equal digests train alike, wherever they lie.
    """

    decision: str
    files: list[tuple[str, str, int]]
    records_read: int
    pairs_of_source: list[int]
    dropped: Counter[str]
    refused: list[BadRecord]
    counts: Counter[str]
    needed: dict[str, Counter[int]]
    warnings: Counter[str]
    samples: list[PreferencePair]
    content: str

    def write(self, folder: Path) -> None:
        """Write the account into a folder."""
        with (folder / REFUSED).open("x", encoding="ascii") as file:
            for record in self.refused:
                file.write(json.dumps(asdict(record)) + "\n")
        kept = {**vars(self), "samples": [asdict(sample) for sample in self.samples]}
        del kept["refused"]
        (folder / ACCOUNT).write_text(json.dumps(kept, indent=1) + "\n", encoding="ascii")

    @classmethod
    def read(cls, folder: Path) -> "Account":
        """Read what `write` has written; a damaged file raises ValueError, KeyError or TypeError."""
        kept: dict[str, Any] = json.loads((folder / ACCOUNT).read_text(encoding="ascii"))
        with (folder / REFUSED).open(encoding="ascii") as file:
            refused = [BadRecord(**json.loads(line)) for line in file]
        kept["files"] = [(path, identity, size) for path, identity, size in kept["files"]]
        kept["samples"] = [_pair(sample) for sample in kept["samples"]]
        for name in ("dropped", "counts", "warnings"):
            kept[name] = Counter(kept[name])
        kept["needed"] = {
            limit: Counter({int(tokens): count for tokens, count in counts.items()})
            for limit, counts in kept["needed"].items()
        }
        return cls(**kept, refused=refused)


def _pair(sample: dict[str, Any]) -> PreferencePair:
    prompt = sample["prompt"]
    turns = prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
    return PreferencePair(**{**sample, "prompt": turns})
