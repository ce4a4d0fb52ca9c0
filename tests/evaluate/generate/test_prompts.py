"""What is asked: each prompt once, from pairs or from the files that other tools use."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.prompts import Questions, questions_of_file, questions_of_pairs
from simpo_cli.recipe.schema import DataRecipe, DataSource
from tests.data.pair_files import load_pairs
from tests.tiny import chatml_tokenizer

DATA = DataRecipe(train="x", max_length=400, max_prompt_length=120)
Ask = Callable[..., Questions]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    chatml_tokenizer(folder)
    return load_tokenizer(str(folder))


@pytest.fixture
def ask(tmp_path: Path, tokenizer: TextTokenizer) -> Ask:
    def asked(content: object, most: int | None = None) -> Questions:
        file = tmp_path / "prompts.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return questions_of_file(str(file), tokenizer, DATA, most)

    return asked


def test_every_form_of_a_prompt_is_the_same_question(ask: Ask, tokenizer: TextTokenizer) -> None:
    forms = [
        ["How do I invite?"],
        [{"prompt": "How do I invite?"}],
        [{"instruction": "How do I invite?", "output": "So.", "generator": "g", "dataset": "helpful_base"}],
        [{"messages": [{"role": "user", "content": "How do I invite?"}]}],
        [{"uid": "u1", "category": "hard_prompt", "subcategory": "s", "prompt": "How do I invite?"}],
        [{"question_id": "q1", "turns": [{"content": "How do I invite?"}]}],
        '{"prompt": "How do I invite?"}\n',
    ]
    questions = [ask(form).asked for form in forms]
    assert {(one.key, one.ids, one.text) for (one,) in questions} == {
        (questions[0][0].key, questions[0][0].ids, "How do I invite?")
    }
    assert tokenizer.decode(questions[0][0].ids).endswith("How do I invite?<|im_end|>\n<|im_start|>assistant\n")
    assert questions[2][0].labels == {"dataset": "helpful_base"}
    assert questions[4][0].labels == {"uid": "u1", "category": "hard_prompt"}


def test_prompts_are_asked_once_and_in_order(ask: Ask) -> None:
    questions = ask(["b?", "a?", "b?", "c?", "x " * 200])
    assert [one.text for one in questions.asked] == ["b?", "a?", "c?"]
    assert questions.left_out == {"asked already": 1, "over data.max_prompt_length": 1}
    assert [one.text for one in ask(["b?", "a?", 3], most=2).asked] == ["b?", "a?"]


def test_a_conversation_is_shown_as_one(ask: Ask) -> None:
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "And?")]
    (question,) = ask([{"prompt": [{"role": role, "content": text} for role, text in turns]}]).asked
    assert question.turns == tuple(Message(*turn) for turn in turns)
    assert question.text == "System: Be brief.\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: And?"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"question": "a"}], "holds no prompt"),
        ([{"prompt": "a", "instruction": "b"}], "holds prompt and instruction"),
        ([{"prompt": 3}], "expected text or a list of messages, got number"),
        ([{"prompt": "  "}], "is blank"),
        ([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}], "the assistant's"),
        ([{"turns": [{"content": "a"}, {"content": "b"}]}], "more than one question"),
        ([3], "expected an object, got number"),
        (["<|im_start|>user\nHow?"], "already holds the chat template's markers"),
        (["x " * 200], "no prompt is left to ask"),
        ("", "it is empty"),
        ("{", "cut off"),
    ],
)
def test_what_cannot_be_asked(ask: Ask, content: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(content)


def test_a_file_that_is_not_there(tokenizer: TextTokenizer) -> None:
    with pytest.raises(UserError, match="there is no file of prompts nowhere.json"):
        questions_of_file("nowhere.json", tokenizer, DATA, None)


def test_held_out_prompts_are_chosen_by_hash_and_have_the_tokens_of_their_pairs(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    rows = [{"prompt": f"question {i % 9}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(12)]
    rows.append({"prompt": "x " * 200, "chosen": "yes", "rejected": "no"})
    chosen = []
    for name, ordered in (("a", rows), ("b", rows[::-1])):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ordered), encoding="utf-8")
        pairs = encode_pairs(load_pairs(str(file), role="eval").pairs, tokenizer, DATA).pairs
        questions = questions_of_pairs(pairs, [DataSource(path=str(file))], "eval", DATA, 4)
        assert len(questions.asked) == 4
        assert questions.left_out == {"asked already": 3, "over data.max_prompt_length": 1}
        by_place = {pair.where: pair for pair in pairs}
        assert all(by_place[one.where].prompt.tolist() == list(one.ids) for one in questions.asked)
        chosen.append([(one.key, one.text, one.ids) for one in questions.asked])
    assert chosen[0] == chosen[1], "the order of the file plays no part"


def test_a_file_that_changed_since_it_was_scored(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"prompt": f"question {i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pairs = encode_pairs(load_pairs(str(file), role="eval").pairs, tokenizer, DATA).pairs
    file.write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="changed since its pairs were scored"):
        questions_of_pairs(pairs, [DataSource(path=str(file))], "eval", DATA, 3)
