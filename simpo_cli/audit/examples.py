"""A few pairs of each finding, for people to read: fetched by a second pass, because the first keeps no texts."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from simpo_cli.audit.examine import Examination
from simpo_cli.audit.findings import Positions
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair

NUM_EXAMPLES = 3


def collect_examples(
    examination: Examination, read_again: Callable[[], PairReader]
) -> Mapping[str, Sequence[PreferencePair]]:
    """The first pairs of each finding that is about pairs, by code; those of one prompt, perhaps at odds, are together.

    Args:
        examination: what was found.
        read_again: opens the same sources once more, as they were read for the examination.
    """
    wanted: defaultdict[int, list[str]] = defaultdict(list)
    for found in examination.findings:
        of_measured: Positions = examination.numbers[_by_prompt(found.pairs, examination)[:NUM_EXAMPLES]]
        of_others = examination.left_out.positions(found.code)
        for number in [*of_measured.tolist(), *of_others.tolist()][:NUM_EXAMPLES]:
            if found.code != "FMT001":  # refused; each of these is shown with its own reason
                wanted[number].append(found.code)
    examples: defaultdict[str, list[PreferencePair]] = defaultdict(list)
    last = max(wanted, default=-1)
    if last >= 0:
        for number, pair in enumerate(read_again()):
            for code in wanted.get(number, ()):
                examples[code].append(pair)
            if number == last:
                break
    return examples


def _by_prompt(pairs: Positions, examination: Examination) -> Positions:
    """The pairs in order of their prompts' first appearance among them."""
    _, first, prompt = np.unique(examination.prompts[pairs], return_index=True, return_inverse=True)
    ordered: Positions = pairs[np.argsort(first[prompt], kind="stable")]
    return ordered
