"""What a rule says of answers: against plain arithmetic, on answers drawn anew."""

import json
import math
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from scipy import stats

from simpo_cli.builtin.corpus import TABLES, questions, right_answer
from simpo_cli.data.pair import Message
from simpo_cli.evaluate.checked import CheckedAnswer, check, checkable, checked_document, compare_checked
from simpo_cli.evaluate.generate.folder import MODES, SIDES, Answer, AnswerFolder
from simpo_cli.evaluate.generate.measures import answers_document
from simpo_cli.evaluate.generate.prompts import Question
from tests.report.made_answers import MANIFEST

TOPICS = [(topic, siblings) for siblings in TABLES.siblings for topic in (siblings.first, siblings.second)]
ASKED = [questions(topic, siblings, "eval")[0] for topic, siblings in TOPICS]
RIGHT = [right_answer(topic, "short") for topic, _ in TOPICS]
FOREIGN = [f"What is {number} and {number}?" for number in range(100)]


def _answer(text: str, *, ended: bool = True) -> Answer:
    return Answer("", text, (), ended)


def test_a_rule_checks_where_it_knows_at_least_half_of_the_questions() -> None:
    assert checkable(ASKED) == list(range(len(ASKED)))
    assert checkable([FOREIGN[0], ASKED[0], ASKED[1], FOREIGN[1]]) == [1, 2]
    assert checkable([*ASKED[:2], *FOREIGN[:3]]) == []
    assert checkable(FOREIGN) == checkable([]) == []


def test_an_answer_is_wholly_right_only_if_the_model_ended_it() -> None:
    right, cut, other = check(ASKED[:1] * 3, [_answer(RIGHT[0]), _answer(RIGHT[0], ended=False), _answer(RIGHT[2])])
    assert right == CheckedAnswer(True, 1.0, True)
    assert cut == CheckedAnswer(False, 1.0, False)
    assert other == CheckedAnswer(False, 0.0, True)
    with pytest.raises(AssertionError, match="no question of builtin:guide"):
        check(FOREIGN[:1], [_answer("")])


def test_the_comparison_is_by_prompt() -> None:
    draw = random.Random(7)
    before, after = (
        [CheckedAnswer(draw.random() < share, draw.randrange(5) / 4, draw.random() < 0.9) for _ in range(40)]
        for share in (0.3, 0.6)
    )
    document = compare_checked({"before": before, "after": after})
    assert (document["rule"], document["prompts"]) == ("builtin:guide", 40)
    for key in ("exact", "ended"):
        one, other = ([getattr(answer, key) for answer in answers] for answers in (before, after))
        assert document[key]["before"]["value"] == sum(one) / 40
        assert document[key]["after"]["value"] == sum(other) / 40
        assert document[key]["difference"]["value"] == pytest.approx((sum(other) - sum(one)) / 40)
        changed = [new for old, new in zip(one, other, strict=True) if old != new]  # McNemar's test: a coin on these
        tail = sum(math.comb(len(changed), k) for k in range(min(sum(changed), len(changed) - sum(changed)) + 1))
        assert document[key]["p_value"] == pytest.approx(min(1.0, 2 * tail / 2 ** len(changed)))
    gains = [new.parts - old.parts for old, new in zip(before, after, strict=True)]
    found = document["parts"]["difference"]
    assert found["value"] == pytest.approx(sum(gains) / 40)
    assert found["ci"] == pytest.approx(stats.t.interval(0.95, 39, sum(gains) / 40, stats.sem(gains)))
    assert 0 < document["parts"]["p_value"] <= 1


def test_parts_that_are_all_alike_have_no_interval() -> None:
    same = [CheckedAnswer(False, 0.5, True)] * 3
    document = compare_checked({"before": same, "after": same})["parts"]
    assert document["difference"] == {"value": 0.0, "ci": [None, None], "n": 3}
    assert document["p_value"] == 1.0


def test_only_known_questions_count_and_each_with_its_own_answer() -> None:
    asked = [FOREIGN[0], *ASKED[:4]]
    base = [_answer(RIGHT[0]), *map(_answer, RIGHT[1:4]), _answer(RIGHT[0])]  # all by one place off
    trained = [_answer(""), *map(_answer, RIGHT[:3]), _answer(RIGHT[3] + " Gladly")]
    document = checked_document(asked, base, trained)
    assert document is not None
    assert document["prompts"] == document["exact"]["difference"]["n"] == 4
    assert (document["exact"]["base"]["value"], document["exact"]["trained"]["value"]) == (0.0, 0.75)
    assert checked_document(FOREIGN[:2], base[:2], trained[:2]) is None


def test_the_document_of_a_folder_has_it_for_each_mode(tmp_path: Path) -> None:
    asked = [
        Question(f"{number:016x}", (Message("system", "Be brief."), Message("user", text)), (1,), f"held:{number}")
        for number, text in enumerate(ASKED[:40])
    ]
    folder = AnswerFolder.make(tmp_path / "answers", MANIFEST, asked)
    right = {("base", "greedy"): 10, ("trained", "greedy"): 30, ("base", "sampled"): 5, ("trained", "sampled"): 25}
    for side in SIDES:
        for mode in MODES:
            said = [RIGHT[number] if number < right[side, mode] else "Hm." for number in range(40)]
            folder.add(side, mode, [Answer(one.key, text, (1, 2), True) for one, text in zip(asked, said, strict=True)])
    document = answers_document(folder.path)
    for mode, measures in document["measures"].items():
        exact: dict[str, Any] = measures["checked"]["exact"]
        assert [exact[side]["value"] for side in SIDES] == [right[side, mode] / 40 for side in SIDES]
    schema = json.loads((Path(__file__).parents[2] / "docs" / "answers.schema.json").read_text(encoding="utf-8"))
    validator = jsonschema.Draft202012Validator({"$defs": schema["$defs"], "$ref": "#/$defs/measures"})
    validator.validate(document["measures"]["greedy"])
    broken = {**document["measures"]["greedy"], "checked": {"rule": "builtin:guide"}}
    assert not validator.is_valid(broken)
