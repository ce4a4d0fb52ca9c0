"""The reading of files into stored tokens, and the account of every record that was met on the way.

Tokens are made a batch at a time: what is in memory does not grow with the files.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simpo_cli.data.encode import encode_batches, pair_batches
from simpo_cli.data.load import PairReader, require_few, stopped_by
from simpo_cli.data.pair import BadRecord, EncodedPair, EncodedPairs, Message, PreferencePair, prompt_key
from simpo_cli.data.store.pairs import PairWriter
from simpo_cli.data.text_notes import notes_of, own_markers
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.recipe.schema import DataRecipe
from simpo_cli.stages import stage

_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Account:
    """The account of every record of the training or the evaluation side; every record is counted once."""

    decision: str  # how the files were understood, in words
    files: list[tuple[str, str, int]]  # what was read: path, sha256 or hub commit, size
    records_read: int  # records of any kind
    pairs_of_source: list[int]  # pairs that each source gave, in the order of the sources, repeats left aside
    dropped: Counter[str]  # pairs without signal, by reason, before and after tokenizing
    refused: list[BadRecord]  # malformed records, each with the reason (only with on_bad_record: skip)
    counts: Counter[str]  # pairs with a property worth telling, such as `prompt cut`
    needed: dict[str, Counter[int]]  # what pairs would need to stay whole, as `EncodedPairs.needed`
    warnings: Counter[str]  # things in the files that are worth telling and stop nothing, with their number
    samples: list[PreferencePair]  # as text: the first of each of the lowest prompt hashes whose prompt is not cut
    content: str  # digest of the tokens in their order; two sides with equal ones train alike
    remarks: list[str] = field(default_factory=list)  # what else is worth saying of the files
    examples: list[str] = field(default_factory=list)  # a pair of each file that goes by label or score

    def as_json(self) -> dict[str, Any]:
        """The account as the manifest of a cache entry holds it."""
        lists = {name: [asdict(one) for one in getattr(self, name)] for name in ("refused", "samples")}
        files = [list(file) for file in self.files]
        needed = {limit: {str(tokens): n for tokens, n in counts.items()} for limit, counts in self.needed.items()}
        return {**vars(self), **lists, "files": files, "needed": needed}

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> "Account":
        """The account of what `as_json` gave; KeyError or TypeError where that is something else."""
        changed = {
            "files": [(path, identity, size) for path, identity, size in kept["files"]],
            "refused": [BadRecord(**record) for record in kept["refused"]],
            "samples": [_pair(sample) for sample in kept["samples"]],
            "needed": {
                limit: Counter({int(tokens): n for tokens, n in counts.items()})
                for limit, counts in kept["needed"].items()
            },
            **{name: Counter(kept[name]) for name in ("dropped", "counts", "warnings")},
        }
        return cls(**{**kept, **changed})


def _pair(sample: dict[str, Any]) -> PreferencePair:
    prompt = sample["prompt"]
    turns = prompt if isinstance(prompt, str) else tuple(Message(**turn) for turn in prompt)
    return PreferencePair(**{**sample, "prompt": turns})


def make_tokens(reader: PairReader, tokenizer: TextTokenizer, data: DataRecipe, folder: Path) -> Account:
    """Read, render and tokenize every pair of the sources once, and write the tokens into a folder.

    Args:
        reader: must not have been read before.
        folder: an empty folder.

    Raises:
        UserError: a file or record is refused, or no usable pair is left.
    """
    writer = PairWriter(folder)
    total, samples, pairs_of_source = EncodedPairs(), dict[str, PreferencePair](), []
    own, noted = own_markers(tokenizer, rendered=data.rendered), Counter[str]()
    with closing(writer), stage("tokenizing pairs") as tokenizing:
        for source in reader.sources:
            before = writer.num_pairs
            batches = ((batch, batch) for batch in pair_batches(reader.read_source(source)))
            for batch, encoded in encode_batches(batches, tokenizer, data):
                tokenizing.advance(len(batch))
                if encoded.bad and data.on_bad_record == "error":
                    raise stopped_by(encoded.bad)
                total.add_counts(encoded)
                require_few(total.bad)
                noted.update(note for pair in batch for note in notes_of(pair, own))
                _keep_samples(samples, batch, encoded.pairs)
                writer.add(encoded.pairs)
            pairs_of_source.append(writer.num_pairs - before)
        reader.require_pairs()
    return Account(
        decision=reader.decision,
        files=[(file.path, file.identity, file.size) for file in reader.files],
        records_read=reader.records_read,
        pairs_of_source=pairs_of_source,
        dropped=Counter(reader.dropped.counts) + total.dropped,
        refused=reader.bad_records + total.bad,
        counts=total.counts,
        needed=total.needed,
        warnings=Counter(reader.warnings.counts) + noted,
        samples=[samples[key] for key in sorted(samples)],
        content=writer.content.hexdigest(),
        remarks=reader.remarks,
        examples=reader.examples,
    )


def _keep_samples(
    kept: dict[str, PreferencePair], texts: Sequence[PreferencePair], encoded: Sequence[EncodedPair]
) -> None:
    """Keep the first pair of each of the lowest prompt hashes, as text; what is held out begins with these."""
    for pair in encoded:
        key = pair.prompt_key
        if pair.prompt_cut or key in kept or (len(kept) == _SAMPLES and key > max(kept)):
            continue
        kept[key] = next(text for text in texts if text.where == pair.where and prompt_key(text) == key)
        if len(kept) > _SAMPLES:
            del kept[max(kept)]
