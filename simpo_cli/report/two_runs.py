"""Two runs side by side: what differs between them, and what the held-out pairs that they share say of that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simpo_cli.errors import UserError
from simpo_cli.evaluate.matching import Matched, match, match_in_order, swapped_in_words
from simpo_cli.formatting import (
    LEVEL,
    Measured,
    border_in_words,
    excludes_zero,
    p_in_words,
    percent,
    points_cell,
    thousands,
)
from simpo_cli.recipe.dump import flat
from simpo_cli.recipe.schema import DataSource, Recipe
from simpo_cli.report.figures import Floats
from simpo_cli.report.run_files import Row, RunFiles
from simpo_cli.report.run_tables import shown_value
from simpo_cli.report.verdict import NOTHING, TESTS
from simpo_cli.statistics import Comparison, balanced_difference, compare_accuracy, length_strata, mean, proportion

_NAMES = ("name", "output_dir")  # of any two runs they differ
_NOT_SET = "not set"


@dataclass(frozen=True)
class SharedPairs:
    """Held-out pairs that both runs scored, in the order of the first run.

    Attributes:
        prompts: (P,) the hash of each pair's prompt.
        first, second: (P,) the rows of evals-pairs.jsonl.
        same_tokens: both runs cut the texts into the same tokens, so that nats a token compare.
    """

    prompts: Sequence[str]
    first: Sequence[Row]
    second: Sequence[Row]
    same_tokens: bool

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def right(self) -> tuple[Floats, Floats]:
        """(P,) of each run: 1 where the chosen response is the likelier one after training, 0.5 where equal, else 0."""
        first, second = ((np.sign(_gaps(rows)) + 1) / 2 for rows in (self.first, self.second))
        return first, second

    @property
    def lengths(self) -> tuple[list[int], list[int]]:
        """(P,) scored tokens of the chosen and of the rejected responses, as the first run cut them."""
        return [row["chosen_tokens"] for row in self.first], [row["rejected_tokens"] for row in self.first]

    @property
    def gained(self) -> Floats:
        """(P,) how much further apart the second run holds chosen and rejected, in nats a token."""
        return _gaps(self.second) - _gaps(self.first)


@dataclass(frozen=True)
class TwoRuns:
    """Two runs and what they share.

    Attributes:
        first, second: the runs; the second is held against the first.
        shared: None where no held-out pair was scored by both, after training.
        swapped: held-out pairs that the two have with chosen and rejected the other way round.
        by_place: pairs had to be matched by the place of their records, because a run does not tell what they say.
    """

    first: RunFiles
    second: RunFiles
    shared: SharedPairs | None
    swapped: int
    by_place: bool

    @property
    def accuracies(self) -> tuple[Measured, Measured]:
        """Of each run on the shared pairs."""
        assert self.shared is not None
        first, second = (proportion(right, self.shared.prompts).as_json() for right in self.shared.right)
        return first, second

    @property
    def comparison(self) -> Comparison:
        """Accuracy of the second run against the first, on the shared pairs."""
        assert self.shared is not None
        return compare_accuracy(*self.shared.right, self.shared.prompts)

    @property
    def balanced(self) -> Measured | None:
        """The same freed of length; None where too few chosen responses are longer, or shorter, or tokens differ."""
        assert self.shared is not None
        if not self.shared.same_tokens:
            return None
        found = balanced_difference(*self.shared.right, *self.shared.lengths, self.shared.prompts)
        return None if found is None else found.as_json()

    @property
    def balanced_accuracies(self) -> tuple[Measured, Measured] | None:
        """Of each run, freed of length; None as for `balanced`."""
        assert self.shared is not None
        if not self.shared.same_tokens:
            return None
        lengths = self.shared.lengths
        found = [length_strata(right, *lengths, self.shared.prompts)["balanced"] for right in self.shared.right]
        if found[0] is None or found[1] is None:
            return None
        return found[0].as_json(), found[1].as_json()

    @property
    def margins(self) -> tuple[Measured, Measured] | None:
        """Mean of chosen less rejected of each run, in nats a token; None where tokens differ."""
        assert self.shared is not None
        if not self.shared.same_tokens:
            return None
        first, second = (mean(_gaps(rows), self.shared.prompts) for rows in (self.shared.first, self.shared.second))
        return first.as_json(), second.as_json()

    @property
    def gain(self) -> Measured | None:
        """Mean of `SharedPairs.gained`; None where tokens differ."""
        assert self.shared is not None
        return mean(self.shared.gained, self.shared.prompts).as_json() if self.shared.same_tokens else None


def compare_runs(first: RunFiles, second: RunFiles) -> TwoRuns:
    """Find the held-out pairs that both runs scored.

    A pair is the same where its texts are; in runs that do not tell (before 0.2), where its prompt and the place of its
    record are, of which the folder is left aside.

    Raises:
        UserError: both are one run.
    """
    if first.path.resolve() == second.path.resolve():
        raise UserError(f"{first.path} and {second.path} are one run.", "Name two runs.")
    by_place = not all("pair" in row for run in (first, second) for row in run.pairs)
    if by_place:
        matched = Matched(match_in_order(_places(first.pairs), _places(second.pairs)), 0)
    else:
        matched = match([row["pair"] for row in first.pairs], [row["pair"] for row in second.pairs])
    shared = None
    if matched.positions:
        ours, theirs = zip(*((first.pairs[i], second.pairs[j]) for i, j in matched.positions), strict=True)
        same_tokens = first.receipt.get("tokenizer_sha256") == second.receipt.get("tokenizer_sha256")
        shared = SharedPairs([row["prompt"] for row in ours], ours, theirs, same_tokens)
    return TwoRuns(first, second, shared, matched.swapped, by_place)


def comparison_verdict(runs: TwoRuns) -> str:
    """What the shared pairs say, in a sentence or two."""
    if runs.shared is None:
        return f"{_why_nothing(runs)} So no test compares them: what follows are their recipes and their curves."
    told, shown = runs.comparison, [percent(measured["value"]) for measured in runs.accuracies]
    difference = points_cell(told.difference.as_json())
    count = f"n = {thousands(len(runs.shared))} pairs of {thousands(len(set(runs.shared.prompts)))} prompts"
    sentence = (
        f"On the same held-out pairs B is right in {shown[1]} and A in {shown[0]}: {difference.text} "
        f"points (95 % CI {difference.below}, {count}, {p_in_words(told.p_value)}, {TESTS[told.test]})"
        + ("" if is_told(told) else f", {NOTHING}")
    )
    border = border_in_words(told.difference.as_json(), told.p_value)
    said = (f"{sentence}.{_balanced_words(runs.balanced)}", border, "One run of each: another seed may say otherwise.")
    return " ".join(filter(None, said))


def is_told(comparison: Comparison) -> bool:
    """Whether the difference is more than chance."""
    return excludes_zero(comparison.difference.as_json()) and comparison.p_value < LEVEL


def recipe_differences(runs: TwoRuns) -> list[tuple[str, str, str]]:
    """(key, value of the first, value of the second) wherever the recipes say something else, names aside.

    What they say counts, not how: a path by what lies there, gamma in either way, a default like the same value.
    """
    same = _same_content(runs)
    if runs.first.recipe is None or runs.second.recipe is None:  # one is of another version: as the files have it
        first, second = runs.first.values, runs.second.values
    else:
        first, second = _meant(runs.first.recipe), _meant(runs.second.recipe)
    rows = _differences(first, second, leave=_NAMES)
    return [row for row in rows if row[0] not in same]


def other_differences(runs: TwoRuns) -> list[tuple[str, str, str]]:
    """The same of what is not in a recipe: data and model that were read, machine, versions."""
    return _differences(_facts(runs.first), _facts(runs.second))


def caveats(runs: TwoRuns) -> list[str]:
    """What a reader of the comparison should know beside it."""
    said = list(filter(None, [swapped_in_words(runs.swapped)]))
    if runs.shared is None:
        return said
    for name, run in (("A", runs.first), ("B", runs.second)):
        if len(run.pairs) > len(runs.shared):
            said.append(
                f"{thousands(len(runs.shared))} of the {thousands(len(run.pairs))} held-out pairs of {name} are "
                "shared; the others are left out here."
            )
    if runs.by_place:
        same_files = _held_out_files(runs.first) == _held_out_files(runs.second)
        said.append(
            "A run does not tell what its held-out pairs say, so they were matched by prompt and place of the record: "
            "where a response was changed, or chosen and rejected swapped, the runs were not asked the same"
            + ("." if same_files else ", and the files are not the same.")
        )
    if not runs.shared.same_tokens:
        said.append("The tokenizers differ, so log-probs per token do not compare; accuracy does.")
    return said


def _why_nothing(runs: TwoRuns) -> str:
    without = [name for name, run in (("A", runs.first), ("B", runs.second)) if not run.pairs]
    if without:
        return f"{' and '.join(without)} scored no held-out pairs at the end."
    return "The runs share no held-out pairs."


def _balanced_words(balanced: Measured | None) -> str:
    if balanced is None:
        return ""
    low, high = balanced["ci"]
    end = "" if low is not None and (low > 0 or high < 0) else f", {NOTHING}"
    return f" Length-balanced: {points_cell(balanced)}{end}."


def _places(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Of each pair its prompt and its place without the folder."""
    return [(row["prompt"], row["where"].rsplit("/", 1)[-1]) for row in rows]


def _meant(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe, each in one way."""
    meant = flat(asdict(recipe))
    del meant["loss.gamma_beta_ratio"]
    meant["loss.gamma"] = recipe.loss.margin
    for key, named in (("data.train", recipe.data.train), ("data.eval", recipe.data.eval)):
        sources = [DataSource(path=named)] if isinstance(named, str) else named or []
        meant[key] = [source.path for source in sources]
        meant |= {f"source {number} of {key}": _beside_path(source) for number, source in enumerate(sources, start=1)}
    return meant


def _beside_path(source: DataSource) -> dict[str, Any]:
    """What a source says beside its path, defaults aside."""
    default = asdict(DataSource(path=source.path))
    return {key: value for key, value in asdict(source).items() if value != default[key]}


def _same_content(runs: TwoRuns) -> tuple[str, ...]:
    """Keys whose files are the same in both runs, whatever they are called."""
    looked_at: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "model.path": lambda receipt: sorted(receipt["model"]["files"].values()),
        "data.train": lambda receipt: _identities_of(receipt["data"]["train"]),
        "data.eval": lambda receipt: _identities_of(receipt["data"].get("eval") or {}),
        "data.chat_template": lambda receipt: receipt.get("template_sha256"),
    }
    both = runs.first.receipt, runs.second.receipt
    seen = {key: [look(receipt) for receipt in both] for key, look in looked_at.items()}
    return tuple(key for key, (one, other) in seen.items() if one and one == other)


def _identities_of(source: Mapping[str, Any]) -> list[str]:
    return [file["identity"] for file in source.get("files", [])]


def _gaps(rows: Sequence[Row]) -> Floats:
    """(P,) chosen less rejected after training, nats a token."""
    return np.array([row["chosen_after"] - row["rejected_after"] for row in rows], dtype=np.float64)


def _held_out_files(run: RunFiles) -> list[str]:
    data = run.receipt["data"]
    return sorted(file["identity"] for file in (data.get("eval") or data["train"])["files"])


def _facts(run: RunFiles) -> dict[str, Any]:
    receipt, data = run.receipt, run.receipt["data"]
    facts: dict[str, Any] = {
        "model files": _short(receipt["model"]["files"].values()) or receipt["model"].get("revision"),
        "tokenizer": _short([receipt.get("tokenizer_sha256", "")]),
        "template": _short([receipt.get("template_sha256", "")]),
        "training files": _short(file["identity"] for file in data["train"]["files"]),
        "pairs trained on": data["train"]["records"]["trained"],
        "steps": receipt["plan"]["steps"],
        "packing": (receipt.get("self_check") or {}).get("packing"),
    }
    facts |= {key: receipt["hardware"].get(key) for key in ("device", "threads", "cpu_capability", "compute")}
    return {**facts, **receipt["versions"]}


def _short(digests: Any) -> str:
    return ", ".join(digest[:12] for digest in digests)


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], leave: Sequence[str] = ()
) -> list[tuple[str, str, str]]:
    keys = [*first, *(key for key in second if key not in first)]
    rows = [(key, first.get(key, _NOT_SET), second.get(key, _NOT_SET)) for key in keys if key not in leave]
    return [(key, _shown(one), _shown(other)) for key, one, other in rows if one != other]


def _shown(value: Any) -> str:
    return _NOT_SET if value is None else shown_value(value)
