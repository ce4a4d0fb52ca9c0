"""Answers and scores that are broken off anywhere and come out the same; folders that are not what they should be."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo_cli.errors import UserError
from simpo_cli.pairs.samples import BatchLog, SampleFolder, locked
from simpo_cli.pairs.score import score
from simpo_cli.pairs.scorer import Answered, Score
from tests.pairs.folders import Made, write_answers


def _rows(batch: int) -> list[dict[str, Any]]:
    return [{"key": f"{batch}", "number": number, "output": "ä" * batch} for number in range(3)]


@given(st.integers(0, 6), st.integers(0, 400), st.integers(1, 3), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_a_log_that_is_cut_anywhere_loses_no_whole_batch(
    tmp_path_factory: pytest.TempPathFactory, num_batches: int, cut: int, num_ranks: int, cut_rank: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    heading = {"who": "me", "ümlaut": "ß"}
    for batch in range(num_batches):
        BatchLog(folder, "answers", heading, rank=batch % num_ranks).add(batch, _rows(batch))
    file = folder / f".answers.{cut_rank % num_ranks}.log"
    whole = set(range(num_batches))
    if file.is_file():
        content = file.read_bytes()[:cut]
        file.write_bytes(content)
        kept = content.count(b"\n") - 1  # the first line is the heading
        own = [batch for batch in range(num_batches) if batch % num_ranks == cut_rank % num_ranks]
        whole -= set(own[max(kept, 0) :])
    log = BatchLog(folder, "answers", heading)
    done = log.done()
    assert set(done) == whole
    for batch in set(range(num_batches)) - whole:
        log.add(batch, _rows(batch))
    done = log.done()
    assert done == {batch: _rows(batch) for batch in range(num_batches)}
    log.finish(row for batch in sorted(done) for row in done[batch])
    lines = (folder / "answers.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [row for batch in range(num_batches) for row in _rows(batch)]
    assert [one.name for one in folder.iterdir()] == ["answers.jsonl"]


def test_a_log_of_something_else_is_not_continued(tmp_path: Path) -> None:
    BatchLog(tmp_path, "scores.rule", {"rule": "a.py:f", "sha256": "1"}).add(0, _rows(0))
    with pytest.raises(UserError, match="begun otherwise: sha256 is 2, was 1"):
        BatchLog(tmp_path, "scores.rule", {"rule": "a.py:f", "sha256": "2"}).done()


class _Counting:
    """A scorer that gives the number of words, and breaks off before a batch."""

    kind: Any = "rule"
    batch_size = 3
    has_scored = False

    def __init__(self, most: int | None = None, version: str = "1") -> None:
        self.identity = {"kind": "rule", "rule": "words", "version": version}
        self.most, self.batches = most, 0

    def score(self, answers: Any) -> list[Score]:
        if self.batches == self.most:
            raise KeyboardInterrupt
        self.batches += 1
        words = [len(one.answer.text.split()) for one in answers]
        return [Score(None, "too long") if count > 8 else Score(float(count)) for count in words]

    def close(self) -> None:
        pass


def _folder(path: Path) -> Path:
    rng = random.Random(1)
    return write_answers(
        path, {f"question {place}": [Made("word " * rng.randint(1, 10)) for _ in range(4)] for place in range(7)}
    )


@pytest.mark.parametrize("most", [0, 1, 5, 9])
def test_scores_that_were_broken_off_come_out_the_same(tmp_path: Path, most: int) -> None:
    unbroken = SampleFolder.open(_folder(tmp_path / "unbroken"))
    document = score(unbroken, _Counting(), print)
    broken = SampleFolder.open(_folder(tmp_path / "broken"))
    with pytest.raises(KeyboardInterrupt):
        score(broken, _Counting(most), print)
    assert broken.scored_by() == []
    again = _Counting()
    resumed = score(broken, again, print)
    assert again.batches == 10 - most
    assert again.has_scored == (most > 0)
    assert broken.scores_file("rule").read_bytes() == unbroken.scores_file("rule").read_bytes()
    assert {**resumed, "folder": ""} == {**document, "folder": ""}
    assert score(broken, _Counting(0), print) == resumed  # all there: nobody is asked


def test_what_scores_say_is_counted(tmp_path: Path) -> None:
    folder = SampleFolder.open(_folder(tmp_path / "answers"))
    document = score(folder, _Counting(), print)
    words = [len(one.answer.text.split()) for _, one in folder.answers()]
    known = [count for count in words if count <= 8]
    assert document["without_score"] == {"too long": len(words) - len(known)}
    assert len(known) < len(words)
    assert document["score"]["value"] == pytest.approx(sum(known) / len(known))
    assert (document["score"]["n"], document["lowest"], document["highest"]) == (len(known), min(known), max(known))
    with pytest.raises(UserError, match="scores of something else: version is 2, was 1"):
        score(folder, _Counting(version="2"), print)


def test_two_processes_do_not_work_on_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(UserError, match="another process works on"), locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("manifest.json", "{", "cannot be read as a folder of answers"),
        ("manifest.json", '{"kind": "answers", "schema_version": 1}', "it holds answers, of version 1"),
        ("prompts.jsonl", "", "holds 0 prompts of 7"),
        ("prompts.jsonl", '{"key": "a"}\n', "cannot be read as a folder of answers: it lacks 'messages'"),
        ("answers.jsonl", "", "holds 0 answers of 28"),
        ("answers.jsonl", '{"key": "x", "number": 0}\n', "answers.jsonl:1: is no answer, or not to these prompts"),
        ("answers.jsonl", None, "does not hold all its answers yet"),
    ],
)
def test_damaged_folders_are_refused_in_a_sentence(
    tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    folder = _folder(tmp_path / "answers")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        SampleFolder.open(folder).answers()


_VALUES = (None, True, -1, 3, 10**400, 1e308, "x", "\ud800", [], [1], {}, {"a": 1})


def _places(value: Any, *path: str) -> list[tuple[str, ...]]:
    inner = [place for key, one in value.items() for place in _places(one, *path, key)] if type(value) is dict else []
    return [path, *inner] if path else inner


@pytest.mark.parametrize("file", ["manifest.json", "prompts.jsonl", "answers.jsonl", "scores.rule.jsonl"])
def test_whatever_stands_in_a_file_that_we_wrote_it_is_read_or_refused(tmp_path: Path, file: str) -> None:
    score(SampleFolder.open(_folder(tmp_path / "answers")), _Counting(), print)
    text = (tmp_path / "answers" / file).read_text("utf-8")
    whole = [text] if file == "manifest.json" else text.splitlines(keepends=True)
    for line in (0, 1) if len(whole) > 1 else (0,):
        for path in _places(json.loads(whole[line])):
            for value in _VALUES:
                row = inner = json.loads(whole[line])
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = value
                lines = [*whole[:line], json.dumps(row) + "\n", *whole[line + 1 :]]
                (tmp_path / "answers" / file).write_text("".join(lines), encoding="utf-8")
                _read_or_refused(tmp_path / "answers")
    for lines in ([], whole[:-1], [*whole, whole[-1]], [*whole, "[]\n"]):
        (tmp_path / "answers" / file).write_text("".join(lines), encoding="utf-8")
        _read_or_refused(tmp_path / "answers")
    (tmp_path / "answers" / file).unlink()
    (tmp_path / "answers" / file).mkdir()
    _read_or_refused(tmp_path / "answers")


def _read_or_refused(folder: Path) -> None:
    """A score for each answer, all of them of the kinds that they should be, or one sentence."""
    try:
        opened = SampleFolder.open(folder)
        _, scores = opened.scores("rule")
        answers = opened.answers()
    except UserError:
        return
    assert {(one.answer.key, number) for number, one in answers} == scores.keys()
    assert all(isinstance(one.value, float | None) for one in scores.values())
    assert all(one.answer.text.encode() and isinstance(one.answer.ended, bool) for _, one in answers)


@pytest.mark.parametrize(
    "batch",
    [
        {"x": 1},
        {"batch": [1], "rows": []},
        {"batch": 0, "rows": 3},
        {"batch": 0, "rows": [1]},
        {"batch": 0, "rows": []},
        {"batch": 99, "rows": []},
        {"batch": 0, "rows": [{"key": "other", "number": number, "score": 1.0} for number in range(3)]},
    ],
    ids=str,
)
def test_a_damaged_batch_of_a_log_is_refused(tmp_path: Path, batch: dict[str, Any]) -> None:
    folder = SampleFolder.open(_folder(tmp_path / "answers"))
    with pytest.raises(KeyboardInterrupt):
        score(folder, _Counting(1), print)
    (log,) = folder.path.glob(".scores.rule.*.log")
    heading, whole = log.read_text("utf-8").splitlines()
    log.write_text(f"{heading}\n{json.dumps(batch)}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"log:2: is no batch of this work\."):
        score(folder, _Counting(), print)
    log.write_text(f"{heading}\n{whole}\n", encoding="utf-8")
    assert score(folder, _Counting(), print)["answers"] == 28


def test_answers_are_found_by_the_hash_of_their_prompt(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "answers")
    before = {(one.question.text, number): one.answer for number, one in SampleFolder.open(folder).answers()}
    file = folder / "prompts.jsonl"
    file.write_text("".join(reversed(file.read_text("utf-8").splitlines(keepends=True))), encoding="utf-8")
    after = {(one.question.text, number): one.answer for number, one in SampleFolder.open(folder).answers()}
    assert after == before
    assert all(isinstance(one, Answered) for _, one in SampleFolder.open(folder).answers())
