"""Which prompts are asked, and which of them are held out."""

import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.builtin import corpus
from simpo_cli.data.pair import Message
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.prompts import Prompted, key_of, prompts_in
from simpo_cli.pairs.prompts import prompts_of, prompts_of_round, split_prompts, write_prompts
from simpo_cli.recipe.composition import compose

Lines = list[dict[str, Any]]


def _write(file: Path, rows: Lines) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def _pairs(count: int, name: str = "pair") -> Lines:
    return [{"prompt": f"{name} {number}?", "chosen": "yes", "rejected": "no"} for number in range(count)]


def _recipe(folder: Path, **pairs: Any) -> Any:
    file = folder / "round.yaml"
    recipe = {"name": "r", "model": {"path": "m"}, "data": {"train": "-", **pairs.pop("data", {})}, "pairs": pairs}
    file.write_text(json.dumps(recipe), encoding="utf-8")
    return compose(str(file)).recipe


def test_pairs_are_refused_as_prompts_unless_they_are_asked_for(tmp_path: Path) -> None:
    file = _write(tmp_path / "prefs.jsonl", _pairs(3))
    with pytest.raises(UserError, match=r"prefs\.jsonl:1: is a pair, and prompts are wanted\."):
        list(prompts_of(file, of_pairs=False))
    assert [one.prompt for one in prompts_of(file, of_pairs=True)] == ["pair 0?", "pair 1?", "pair 2?"]


def test_the_built_in_prompts_are_those_that_no_pair_asks() -> None:
    asked = [one.prompt[-1].content for one in prompts_of("builtin:guide", of_pairs=False)]  # type: ignore[union-attr]
    taken = [one.prompt[-1].content for one in prompts_of("builtin:guide", of_pairs=True)]  # type: ignore[union-attr]
    held_out = {row["prompt"][-1]["content"] for row in corpus.preference_pairs("eval", corpus.SEED)}
    assert (len(asked), len(taken)) == (3400, 2000)
    assert len(set(asked) | set(taken)) == 5400
    assert not held_out & {*asked, *taken}


def test_prompts_come_back_from_their_file_with_all_that_they_are(tmp_path: Path) -> None:
    call = json.dumps({"content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]})
    prompts = [
        Prompted("a text\nof two lines", "", {"answer": 42}),
        Prompted((Message("system", "be kind"), Message("user", "hi")), "", {"uid": "u1"}),
        Prompted((Message("user", "call it"), Message("assistant", "{}", call), Message("tool", "3")), "", {}),
    ]
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    read = list(prompts_in(str(tmp_path / "prompts.jsonl")))
    assert [one.prompt for one in read[:2]] == [one.prompt for one in prompts[:2]]
    assert [one.record for one in read] == [{"answer": 42}, {"uid": "u1"}, {}]
    assert [turn.as_record() for turn in read[2].prompt] == [  # type: ignore[union-attr]
        turn.as_record()
        for turn in prompts[2].prompt  # type: ignore[union-attr]
    ]


def test_held_out_prompts_are_never_asked(tmp_path: Path) -> None:
    prompts = _write(tmp_path / "prompts.jsonl", [{"prompt": f"question {number}"} for number in range(50)])
    held_out, asked = split_prompts(_recipe(tmp_path, prompts=prompts, held_out_prompts=12))
    assert (len(held_out), len(asked)) == (12, 38)
    assert len({key_of(one.prompt) for one in (*held_out, *asked)}) == 50
    evaluation = _write(tmp_path / "eval.jsonl", [*_pairs(20), *_pairs(15, "question")])
    _write(tmp_path / "prompts.jsonl", [{"prompt": f"question {number}?"} for number in range(50)])
    held_out, asked = split_prompts(_recipe(tmp_path, prompts=prompts, held_out_prompts=12, data={"eval": evaluation}))
    kept = {one.prompt for one in asked}
    assert kept == {f"question {number}?" for number in range(15, 50)}  # none of data.eval, held out or not
    assert len(held_out) == 12
    assert not kept & {one.prompt for one in held_out}


def test_the_order_of_the_file_means_nothing_and_the_seed_does(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {number}"} for number in range(40)]
    prompts = _write(tmp_path / "prompts.jsonl", rows)
    first = split_prompts(_recipe(tmp_path, prompts=prompts, held_out_prompts=10))
    _write(tmp_path / "prompts.jsonl", rows[::-1])
    second = split_prompts(_recipe(tmp_path, prompts=prompts, held_out_prompts=10))
    assert [[one.prompt for one in part] for part in first] == [[one.prompt for one in part] for part in second]


def test_every_round_asks_other_prompts_until_all_were_asked() -> None:
    asked = [Prompted(str(number), "", {}) for number in range(10)]
    rounds = [[int(str(one.prompt)) for one in prompts_of_round(asked, number, 4)] for number in (1, 2, 3, 4)]
    assert rounds == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1], [2, 3, 4, 5]]
    assert len(prompts_of_round(asked, 1, 99)) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "0 prompts"), ("", "holds no records: it is empty"), (None, "there is no file of prompts")],
)
def test_without_prompts_there_is_a_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "prompts.jsonl"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        split_prompts(_recipe(tmp_path, prompts=str(file)))


def test_a_dialogue_written_as_text_is_asked_as_the_conversation_that_a_pair_of_it_is(tmp_path: Path) -> None:
    text = "\n\nHuman: hi\n\nAssistant: Hello.\n\nHuman: and now?\n\nAssistant:"
    (asked,) = prompts_of(_write(tmp_path / "prompts.jsonl", [{"prompt": text}]), of_pairs=False)
    file = _write(tmp_path / "prefs.jsonl", [{"prompt": text, "chosen": "Go on.", "rejected": "Stop."}])
    (of_pair,) = prompts_of(file, of_pairs=True)
    assert asked.prompt == of_pair.prompt == (Message("user", "hi"), Message("assistant", "Hello."), *asked.prompt[2:])


@pytest.mark.parametrize("value", ["1e999", "[" * 63 + "]" * 63], ids=["infinite", "deep"])
def test_what_a_folder_of_answers_cannot_keep_is_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(f'{{"prompt": "hi?", "x": {value}}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"prompts\.jsonl:1: cannot be kept: "):
        list(prompts_of(str(tmp_path / "prompts.jsonl"), of_pairs=False))
