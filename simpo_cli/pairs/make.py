"""`simpo pairs make`: preference pairs out of answers, with a count of every prompt that gives none, and why.

From the scores of a prompt's answers s_1 .. s_n, of which only those count that ended and say something:

    worst   chosen argmax s, rejected argmin s
    low     rejected is the answer nearest to mean(s) - 2 sd(s): the lowest ones teach less, as they are the easiest to
            tell apart (Xiao et al. 2025, arXiv:2502.16825)
    delta   chosen of a stronger model, rejected of a weaker one, without scores: the difference teaches even where
            neither answer is good (Geng et al. 2025, arXiv:2507.06187)

Equal scores never make a pair. A bar (`min_score`) keeps out prompts whose best answer is a bad one: without it the
model learns to prefer the less bad of two wrong answers, and how it does on the pairs says nothing of its answers.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

from simpo_cli import __version__
from simpo_cli.audit.catalogue import CATALOGUE
from simpo_cli.audit.clean import codes_by_number
from simpo_cli.audit.document import stats_document
from simpo_cli.audit.duplicates import Prompts, read_prompts
from simpo_cli.audit.examine import Examination, examine
from simpo_cli.data.file_bytes import sha256_of
from simpo_cli.data.load import PairReader, source_named
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import Answer, write_json, write_text
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.files import object_in
from simpo_cli.pairs.samples import SampleFolder
from simpo_cli.pairs.scorer import ScorerKind
from simpo_cli.recipe.schema import DataSource

SCHEMA_VERSION = 1
Rejected = Literal["worst", "low"]

TOO_FEW = "fewer than two answers that ended and have a score"
ALL_EQUAL = "all scores are equal"
UNDER_BAR = "the best score is under the bar"
UNDER_MARGIN = "the margin is too small"
SAME_TEXT = "both answers are the same text"
ONE_MODEL = "only one model answered it with an answer that ended"
IN_EVALUATION = "the prompt is in the evaluation data"
UNMATCHED = "left out so that lengths match"


class NoPairsError(UserError):
    """No pair is left of the answers."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """How pairs are made.

    Attributes:
        rejected: which answer is the rejected one.
        min_margin: score of the chosen answer less that of the rejected one must be above this.
        min_score: the chosen answer must reach this; None sets no bar.
        match_lengths: leave out pairs, by hash of the prompt, until the chosen answer is as often the longer one, in
            tokens, as it is the shorter one.
        evaluation: files whose prompts must not be among the pairs'.
    """

    rejected: Rejected = "worst"
    min_margin: float = 0.0
    min_score: float | None = None
    match_lengths: bool = False
    evaluation: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair before it is looked at beside the others; without scores where two models made it."""

    question: Question
    chosen: Answer
    rejected: Answer
    scores: tuple[float, float] | None


@dataclass(frozen=True)
class MadePairs:
    """What was written, what `simpo stats` says of it, and the account."""

    document: dict[str, Any]
    examination: Examination


def make_pairs(
    folder: SampleFolder, weaker: SampleFolder | None, kind: ScorerKind | None, making: Making, output: Path
) -> MadePairs:
    """Make the pairs of a folder of answers and write them, as JSON lines; beside them FILE.made.json says how.

    Args:
        weaker: answers of a weaker model to the same prompts, which become the rejected ones.
        kind: whose scores count; None takes those that are there.

    Raises:
        UserError: scores are missing, the file may not be written, or no pair is left.
    """
    require_writable(output)
    ledger: Counter[str] = Counter()
    if weaker is None:
        kind = _kind_of(folder, kind)
        candidates = list(_by_score(folder, kind, making, ledger))
        num_prompts = len(folder.questions)
    else:
        candidates = list(_by_model(folder, weaker, ledger))
        num_prompts = len({one.key for one in (*folder.questions, *weaker.questions)})
    evaluation = _evaluation_prompts(making.evaluation)
    kept = _without_repeats(candidates, evaluation, ledger) if candidates else []
    if making.match_lengths:
        kept = _matched(kept, ledger)
    if not kept:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in ledger.most_common())
        raise NoPairsError(
            f"no pair is left of {num_prompts:,} prompts ({reasons}).",
            "Sample more answers to a prompt or at a higher temperature, or lower --min-score and --min-margin.",
            where=str(folder.path),
        )
    assert len(kept) + ledger.total() == num_prompts, "every prompt is accounted for"
    text = _as_lines(kept)
    account = {
        "schema_version": SCHEMA_VERSION,
        "kind": "made pairs",
        "tool": f"simpo {__version__}",
        "file": str(output),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "replaces": sha256_of(output) if output.is_file() else None,
        "answers": str(folder.path),
        "weaker": None if weaker is None else str(weaker.path),
        "scorer": None if kind is None else _scorer_of(folder, kind),
        "making": asdict(making),
        "prompts": num_prompts,
        "pairs": len(kept),
        "without_pair": dict(ledger.most_common()),
        "chosen_longer": _longer(kept),
    }
    write_json(account_of(output), account)  # first: whatever is killed in between, the file is known as ours
    write_text(output, text)
    examination = examine(PairReader([source_named(str(output))], role="train"), evaluation=evaluation)
    return MadePairs({**account, "audit": stats_document(examination, version=__version__)}, examination)


def require_writable(output: Path) -> None:
    """Refuse (UserError) a file that exists and is not, byte for byte, what an earlier call wrote."""
    if output.is_dir():
        raise UserError(f"-o {output} is a folder.", "Name a file: prefs.jsonl")
    if output.suffix not in (".jsonl", ".ndjson"):
        raise UserError(f"-o {output} does not end in .jsonl.", "Pairs are written as JSON lines: name it so.")
    if not output.exists():
        return
    try:
        account = object_in(account_of(output).read_bytes())
        if sha256_of(output) in (account["sha256"], account["replaces"]):
            return
    except (OSError, ValueError, KeyError):
        pass
    raise UserError(f"-o {output} exists and is not what simpo pairs make wrote.", "Name another file.")


def account_of(output: Path) -> Path:
    """Where the account of a file of pairs is."""
    return output.with_name(output.name + ".made.json")


def _kind_of(folder: SampleFolder, kind: ScorerKind | None) -> ScorerKind:
    kinds = folder.scored_by()
    if not kinds:
        raise UserError(
            f"the answers of {folder.path} have no scores.",
            f"Score them first: simpo pairs score {folder.path} --rule FILE.py:function",
        )
    if kind is None:
        if len(kinds) > 1:
            raise UserError(f"{folder.path} has scores by {' and by '.join(kinds)}.", f"Say which: --by {kinds[0]}")
        return kinds[0]
    if kind not in kinds:
        raise UserError(
            f"{folder.path} has no scores by {kind}, but by {' and '.join(kinds)}.", f"Use --by {kinds[0]}."
        )
    return kind


def _scorer_of(folder: SampleFolder, kind: ScorerKind) -> dict[str, Any]:
    heading, _ = folder.scores(kind)
    return {key: value for key, value in heading.items() if key != "schema_version"}


def _by_score(folder: SampleFolder, kind: ScorerKind, making: Making, ledger: Counter[str]) -> Iterator[Candidate]:
    """The best answer of each prompt against a worse one."""
    _, scores = folder.scores(kind)
    of_prompt: dict[str, list[tuple[float, Answer]]] = {one.key: [] for one in folder.questions}
    for number, (_, answer) in folder.answers():
        value = scores[answer.key, number].value
        if value is not None and answer.ended and answer.text:
            of_prompt[answer.key].append((value, answer))
    for question in folder.questions:
        found = choose(of_prompt[question.key], making)
        if isinstance(found, str):
            ledger[found] += 1
        else:
            (best, chosen), (worse, rejected) = found
            yield Candidate(question, chosen, rejected, (best, worse))


def choose(
    scored: Sequence[tuple[float, Answer]], making: Making
) -> tuple[tuple[float, Answer], tuple[float, Answer]] | str:
    """Chosen and rejected answer of a prompt, each with its score, or why there is no pair.

    Of answers with equal scores the first is taken.
    """
    if len(scored) < 2:
        return TOO_FEW
    values = [value for value, _ in scored]
    chosen = max(scored, key=lambda one: one[0])
    if min(values) == chosen[0]:
        return ALL_EQUAL
    if making.min_score is not None and chosen[0] < making.min_score:
        return UNDER_BAR
    worse = [one for one in scored if one[0] < chosen[0]]
    if making.rejected == "worst":
        rejected = min(worse, key=lambda one: one[0])
    else:
        low = fmean(values) - 2 * pstdev(values)
        rejected = min(worse, key=lambda one: abs(one[0] - low))
    if chosen[0] - rejected[0] <= making.min_margin:
        return UNDER_MARGIN
    return SAME_TEXT if chosen[1].text == rejected[1].text else (chosen, rejected)


def _by_model(stronger: SampleFolder, weaker: SampleFolder, ledger: Counter[str]) -> Iterator[Candidate]:
    """The first answer of the stronger model against the first of the weaker one."""
    if stronger.manifest["model"]["sha256"] == weaker.manifest["model"]["sha256"]:
        raise UserError(f"{weaker.path} holds answers of the same model.", "Name answers of a weaker one.")
    firsts: list[dict[str, Answer]] = []
    for folder in (stronger, weaker):
        found: dict[str, Answer] = {}
        for _, (_, answer) in folder.answers():
            if answer.ended and answer.text:
                found.setdefault(answer.key, answer)
        firsts.append(found)
    questions = {one.key: one for one in (*weaker.questions, *stronger.questions)}
    for key, question in questions.items():
        chosen, rejected = firsts[0].get(key), firsts[1].get(key)
        if chosen is None or rejected is None:
            ledger[ONE_MODEL] += 1
        elif chosen.text == rejected.text:
            ledger[SAME_TEXT] += 1
        else:
            yield Candidate(question, chosen, rejected, None)


def _evaluation_prompts(names: Sequence[str]) -> Prompts | None:
    if not names:
        return None
    sources: list[DataSource] = [source_named(name) for name in names]
    return read_prompts(PairReader(sources, role="eval", on_no_signal="keep"))


def _without_repeats(
    candidates: Sequence[Candidate], evaluation: Prompts | None, ledger: Counter[str]
) -> list[Candidate]:
    """Those that are left when the audit has taken out what `simpo stats --write-clean` would, and leaks."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "candidates.jsonl")
        write_text(file, _as_lines(candidates))
        found = examine(PairReader([source_named(str(file))], role="train"), evaluation=evaluation)
    codes = codes_by_number(found, also=("LEK001", "LEK002"))
    kept = []
    for number, candidate in enumerate(candidates):
        if number in codes:
            first = codes[number][0]
            ledger[IN_EVALUATION if first.startswith("LEK") else f"{first} {CATALOGUE[first].title}"] += 1
        else:
            kept.append(candidate)
    return kept


def _matched(candidates: Sequence[Candidate], ledger: Counter[str]) -> list[Candidate]:
    """As many pairs with the longer chosen answer as with the shorter one; those of equal length stay."""
    sides: dict[int, list[Candidate]] = {-1: [], 0: [], 1: []}
    for one in candidates:
        sides[_sign(one)].append(one)
    size = min(len(sides[-1]), len(sides[1]))
    kept = {one.question.key for one in sides[0]}
    for side in (-1, 1):
        by_hash = sorted(sides[side], key=lambda one: hashlib.sha256(f"match {one.question.key}".encode()).digest())
        kept |= {one.question.key for one in by_hash[:size]}
    ledger[UNMATCHED] += len(candidates) - len(kept)
    return [one for one in candidates if one.question.key in kept]


def _sign(candidate: Candidate) -> int:
    longer_by = len(candidate.chosen.ids) - len(candidate.rejected.ids)
    return (longer_by > 0) - (longer_by < 0)


def _longer(candidates: Sequence[Candidate]) -> dict[str, int]:
    """How often the chosen answer is longer, as long and shorter, in tokens of the model that wrote them."""
    signs = Counter(map(_sign, candidates))
    return {"longer": signs[1], "equal": signs[0], "shorter": signs[-1]}


def _as_lines(candidates: Sequence[Candidate]) -> str:
    return "".join(json.dumps(_record(one), ensure_ascii=False) + "\n" for one in candidates)


def _record(candidate: Candidate) -> Mapping[str, Any]:
    """A pair as the loader reads it: it has the tokens that the answers were drawn after."""
    question = candidate.question
    turns = [turn.as_record() for turn in question.turns]
    record: dict[str, Any] = {
        "prompt": turns[0]["content"] if question.is_text else turns,
        "chosen": candidate.chosen.text,
        "rejected": candidate.rejected.text,
    }
    if not question.is_text:
        record |= {side: [{"role": "assistant", "content": record[side]}] for side in ("chosen", "rejected")}
    if candidate.scores is not None:
        record |= dict(zip(("score_chosen", "score_rejected"), candidate.scores, strict=True))
    return record | {"prompt_key": question.key}
