"""`simpo pairs score`: every answer of a folder gets a number, from a rule, a reward model or a judge.

Who scores is named on the command line alone. What the scores depend on stands in the first line of their file.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from simpo_cli import statistics
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import differing
from simpo_cli.pairs.samples import BatchLog, Row, SampleFolder, locked
from simpo_cli.pairs.scorer import Answered, Score, Scorer, ScorerKind
from simpo_cli.stages import stage

SCHEMA_VERSION = 1


def score(folder: SampleFolder, scorer: Scorer, say: Callable[[str], None]) -> dict[str, Any]:
    """Score what has no score yet, and return what the scores say; see `_document`.

    Raises:
        UserError: the folder holds scores of another scorer of this kind, or the scorer cannot go on.
    """
    with locked(folder.path):
        answers = folder.answers()
        heading = {"schema_version": SCHEMA_VERSION, **scorer.identity, "answers_sha256": folder.answers_sha256()}
        file = folder.scores_file(scorer.kind)
        if file.is_file():
            before, _ = folder.scores(scorer.kind)
            if words := differing(before, heading):
                raise UserError(
                    f"holds scores of something else: {words}.",
                    "Move the file away to have everything scored again; a folder holds one of each kind.",
                    where=str(file),
                )
            say(f"all {len(answers):,} scores are in {file}")
            return _document(folder, answers, scorer.kind)
        log = BatchLog(folder.path, file.stem, heading)
        batches = [answers[start : start + scorer.batch_size] for start in range(0, len(answers), scorer.batch_size)]
        done = log.done([[(one.answer.key, number) for number, one in batch] for batch in batches])
        scorer.has_scored = any(row["score"] is not None for rows in done.values() for row in rows)
        left = [number for number in range(len(batches)) if number not in done]
        resumed = f", {len(done):,} of {len(batches):,} batches are there" if done else ""
        say(f"scoring {len(answers):,} answers by {scorer.kind.replace('_', ' ')} into {file}{resumed}")
        with stage("scoring answers", len(batches)) as working:
            working.advance(len(done))
            for number in left:
                scores = scorer.score([one for _, one in batches[number]])
                rows = [_row(of, one, scored) for (of, one), scored in zip(batches[number], scores, strict=True)]
                log.add(number, rows)
                done[number] = rows
                working.advance()
        log.finish((row for number in range(len(batches)) for row in done[number]), heading)
    return _document(folder, answers, scorer.kind)


def _row(number: int, answered: Answered, score: Score) -> Row:
    row: Row = {"key": answered.answer.key, "number": number, "score": score.value}
    return row if score.value is not None else {**row, "reason": score.reason}


def _document(folder: SampleFolder, answers: Sequence[tuple[int, Answered]], kind: ScorerKind) -> dict[str, Any]:
    """What the scores of a folder's answers say, as JSON: who scored, how many answers have none and why, their mean.

    Means and shares are over answers, with intervals by prompt.
    """
    scorer, scores = folder.scores(kind)
    found = [(one.answer, scores[one.answer.key, number]) for number, one in answers]
    scored = [(answer.key, one.value) for answer, one in found if one.value is not None]
    keys, values = [key for key, _ in scored], [value for _, value in scored]
    by_prompt: dict[str, set[float]] = {}
    for key, value in scored:
        by_prompt.setdefault(key, set()).add(value)
    reasons = Counter(one.reason for _, one in found if one.value is None)
    ended = [float(answer.ended) for answer, _ in found]
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "scores",
        "folder": str(folder.path),
        "scorer": {key: value for key, value in scorer.items() if key not in ("schema_version", "answers_sha256")},
        "prompts": len(folder.questions),
        "answers": len(answers),
        "without_score": dict(sorted(reasons.items())),
        "score": statistics.mean(values, keys).as_json() if values else None,
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "ended": statistics.proportion(ended, [answer.key for answer, _ in found]).as_json(),
        "prompts_of_one_score": sum(len(different) == 1 for different in by_prompt.values()),
    }
