"""What texts say of how a file was made: each kind in several forms, and texts that only look like it."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.data.pair import Message, PreferencePair, RecordNote
from simpo_cli.data.prepare import describe_losses, prepare_tokenizer
from simpo_cli.data.store import encode_source
from simpo_cli.data.text_notes import (
    END_TOKENS,
    TURN_MARKERS,
    notes_of,
    num_letters,
    num_unspaced,
    own_markers,
    repeated_prompts,
)
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.recipe.schema import DataRecipe, ModelRecipe, Recipe
from tests.tiny import byte_level_tokenizer, chatml_tokenizer, save_tokenizer

ASKED = "Where does the river Tagus end?"
GOOD = ("It reaches the sea at Lisbon.", "In the mountains.")


def notes(chosen: str, rejected: str = GOOD[1], prompt: str | Sequence[tuple[str, str]] = ASKED) -> list[str]:
    turns = prompt if isinstance(prompt, str) else tuple(Message(role, text) for role, text in prompt)
    return [note.finding for note in notes_of(PreferencePair(turns, chosen, rejected, ""))]


def test_nothing_is_said_of_a_plain_pair() -> None:
    assert notes(*GOOD) == []
    assert notes("", "", [("system", ""), ("user", ASKED)]) == []


# The prompt in front of both answers


@pytest.mark.parametrize(
    ("prompt", "lead"),
    [
        (ASKED, f"{ASKED} "),
        (ASKED, f"  {ASKED}\n\n"),
        (f"{ASKED}\n", f"{ASKED}\n"),
        (ASKED, ASKED.replace(" ", "  ") + " "),
        ("Read this:\n\nThe Tagus.\nWhere does it end?", "Read this: The Tagus. Where does it end? "),
        ("Read this. Where does it end?", "Human: Read this.\nWhere does it end?\n\nAssistant: "),
        (ASKED, f"Human: {ASKED}\n\nAssistant: "),
        (ASKED, f"User: {ASKED}\nAssistant:"),
        (ASKED, f"### Instruction:\n{ASKED}\n\n### Response:\n"),
        (ASKED, f"Question: {ASKED}\n\nAnswer: "),
        (ASKED, f"[INST] {ASKED} [/INST] "),
        (ASKED, f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"),
        ("太加斯河在哪里入海？", "太加斯河在哪里入海？"),
        ("太加斯河在哪里入海？", "问：太加斯河在哪里入海？\n"),
        ([("user", ASKED)], f"{ASKED} "),
        ([("system", "Be brief."), ("user", ASKED)], f"{ASKED}\n"),
        ([("user", "Name a river."), ("assistant", "Tagus."), ("user", ASKED)], f"{ASKED}\n"),
        (
            [("user", "Name a river, please."), ("assistant", "Tagus."), ("user", "And its end?")],
            "Human: Name a river, please.\n\nAssistant: Tagus.\n\nHuman: And its end?\n\nAssistant: ",
        ),
    ],
)
def test_a_repeated_prompt(prompt: str | list[tuple[str, str]], lead: str) -> None:
    assert "TPL003" in notes(lead + GOOD[0], lead + GOOD[1], prompt)
    assert "TPL003" not in notes(lead + GOOD[0], GOOD[1], prompt)  # one side alone is another matter
    assert "TPL003" not in notes(GOOD[0], lead + GOOD[1], prompt)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("Hi", "Hi! How can I help?", "Hi there."),
        ("Good morning", "Good morning! What is new?", "Good morning."),
        ("早上好", "早上好！有什么事？", "早上好。"),
        ("Tell me more", "Tell me moreover that", "Tell me moreover this"),  # in the middle of a word
        ("Tell me more", "Tell  me moreover that", "Tell  me moreover this"),
        ("Tell me more", "Tellme more.", "Tellme more!"),
        ("Tell me all of it", "Tell me", "Tell me all"),
        (ASKED, f"You ask: {ASKED} At Lisbon.", f"You ask: {ASKED} Nowhere."),  # a sentence of its own in front
        (ASKED, f"At Lisbon. {ASKED}", f"Nowhere. {ASKED}"),
    ],
)
def test_what_only_looks_like_a_repeated_prompt(prompt: str, chosen: str, rejected: str) -> None:
    assert "TPL003" not in notes(chosen, rejected, prompt)


@pytest.mark.parametrize("lead", [f"{ASKED} ", f"Human: {ASKED}\n\nAssistant: ", f"### Question:{ASKED}\n### Answer: "])
def test_the_answers_begin_behind_it_and_its_header(lead: str) -> None:
    pair = PreferencePair(ASKED, lead + GOOD[0], lead + GOOD[1], "")
    starts = repeated_prompts(pair)
    assert starts is not None
    assert (pair.chosen[starts[0] :], pair.rejected[starts[1] :]) == GOOD


# Markers and end tokens


@pytest.mark.parametrize("token", END_TOKENS)
def test_an_end_token_that_is_spelled_out(token: str) -> None:
    assert notes(f"At Lisbon.{token}") == ["EOS002"]
    assert notes(GOOD[0], f"Nowhere.{token}\n") == ["EOS002"]
    assert notes(f"At Lisbon.{token} And more.") == ["EOS002"]


@pytest.mark.parametrize("marker", [*TURN_MARKERS, "### Instruction:", "### Response :", "### Human:"])
def test_markers_of_templates(marker: str) -> None:
    assert "TPL004" in notes(f"One.\n{marker}\nTwo.")
    assert "TPL004" in notes(*GOOD, prompt=f"{marker}\n{ASKED}")
    assert "TPL004" in notes(*GOOD, prompt=[("system", f"{marker} be brief"), ("user", ASKED)])


# Messages and missing values as text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps({"role": "assistant", "content": "At Lisbon."}), True),
        (json.dumps([{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "There."}]), True),
        (json.dumps({"from": "gpt", "value": "At Lisbon."}), True),
        (json.dumps({"content": "At Lisbon.", "role": "assistant"}, indent=2), True),
        (str({"role": "assistant", "content": "At Lisbon."}), True),
        (json.dumps({"role": "admin", "name": "Ana"}), False),
        (json.dumps({"city": "Lisbon"}), False),
        ('Send {"role": "user", "content": "x"} to it.', False),
    ],
)
def test_messages_as_text(text: str, says: bool) -> None:
    assert notes(text) == (["FMT002"] if says else [])
    assert notes(GOOD[0], text) == (["FMT002"] if says else [])


@pytest.mark.parametrize("word", ["NaN", "nan", "None", "null", "NULL", "<NA>", " NaT\n"])
def test_missing_values_as_text(word: str) -> None:
    assert notes(word) == ["EMP004"]
    assert notes(*GOOD, prompt=word) == ["EMP004"]
    assert notes(*GOOD, prompt=[("system", word), ("user", ASKED)]) == ["EMP004"]


@pytest.mark.parametrize(
    "text",
    [
        *("At <s>Porto</s> Lisbon.", "One.\n## Response", "A ### Response: in the middle", "One.\n### Responses"),
        *("a <b> [INSTALL] x[|y| > 1]", "1 <| 2 |> 3", "none", "None of them.", "Nan", "No", ""),
    ],
)
def test_texts_that_only_look_like_it(text: str) -> None:
    assert notes(text) == []


# With a tokenizer, and on the first screen of a run


def first_screen(folder: Path, model: Path, records: list[dict[str, object]], **data: object) -> str:
    path = folder / "prefs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = Recipe(
        name="a",
        model=ModelRecipe(path=str(model)),
        data=DataRecipe(train=str(path), **data),  # type: ignore[arg-type]
    )
    return describe_losses(encode_source(recipe.data.train, "train", recipe.data, prepare_tokenizer(recipe)))


def test_the_first_screen_of_a_run_says_it(tmp_path: Path) -> None:
    chatml_tokenizer(tmp_path / "model")
    texts = [
        (ASKED, f"{ASKED} {GOOD[0]}", f"{ASKED} {GOOD[1]}"),
        (ASKED, f"{GOOD[0]}</s>", GOOD[1]),
        (ASKED, json.dumps({"role": "assistant", "content": "x"}), GOOD[1]),
        (f"[INST] {ASKED} [/INST]", *GOOD),
        ("null", *GOOD),
    ]
    records = [dict(zip(("prompt", "chosen", "rejected"), one, strict=True)) for one in texts]
    said = first_screen(tmp_path, tmp_path / "model", [*records, *records[:1]])  # type: ignore[list-item]
    sought = ("EMP004", "EOS002", "FMT002", "TPL003", "TPL004")
    for note in (note for note in RecordNote if note.finding in sought):
        assert f"{2 if note.finding == 'TPL003' else 1} {note}" in said


def test_own_markers_in_rendered_texts_are_right(tmp_path: Path) -> None:
    chatml_tokenizer(tmp_path / "model")
    prompt = f"<|im_start|>user\n{ASKED}<|im_end|>\n<|im_start|>assistant\n"
    record = {"prompt": prompt, "chosen": f"{GOOD[0]}<|im_end|>", "rejected": f"{GOOD[1]}<|im_end|>"}
    said = first_screen(tmp_path, tmp_path / "model", [record], rendered=True)
    assert "EOS002" not in said
    assert "TPL004" not in said
    foreign = {**record, "prompt": f"[INST] {ASKED} [/INST]"}  # rendered, and not for this model
    assert "(TPL004)" in first_screen(tmp_path, tmp_path / "model", [foreign], rendered=True)
    bare = {**record, "prompt": ASKED}  # text in front of the real one
    assert "(EOS002)" in first_screen(tmp_path, tmp_path / "model", [bare])


def test_headings_are_the_form_of_a_model_without_a_template(tmp_path: Path) -> None:
    save_tokenizer(
        tmp_path / "model", byte_level_tokenizer(("<|end|>",)), bos=None, eos="<|end|>", pad=None, template=None
    )
    tokenizer = load_tokenizer(str(tmp_path / "model"))
    prompt = f"### Instruction:\n{ASKED}\n\n### Response:\n"
    pair = PreferencePair(prompt, *GOOD, "")
    assert list(notes_of(pair)) == [RecordNote.OTHER_TEMPLATE]
    assert list(notes_of(pair, own_markers(tokenizer, rendered=False))) == []
    assert list(notes_of(PreferencePair(f"[INST] {ASKED}", *GOOD, ""), own_markers(tokenizer, rendered=False))) != []


# Letters, and scripts without spaces between words


@pytest.mark.parametrize(
    ("text", "unspaced"),
    [
        ("the iron one, naïve café — “yes” 20 °C", 0),
        ("Кошка сидит на окне", 0),
        ("नमस्ते दुनिया", 0),
        ("고양이는 창가에 앉아 있다", 0),  # Korean sets spaces
        ("مرحبا بالعالم", 0),
        ("猫坐在窗台上。", 6),
        ("ネコは窓に座る、ｶﾅ", 9),
        ("แมวนั่ง", 7),
        ("ແມວນັ່ງ", 7),
        ("ឆ្មា", 4),
        ("ကြောင်", 6),
        ("𠀀 and 猫", 2),
        ("", 0),
        ("\ud800猫", 1),  # half a character
    ],
)
def test_what_has_no_spaces(text: str, unspaced: int) -> None:
    assert num_unspaced(text) == unspaced


def test_every_han_kana_and_thai_character_is_one() -> None:
    names = ("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "HIRAGANA", "KATAKANA LETTER", "THAI", "LAO", "KHMER")
    for number in range(0x80, 0x30000):
        name = unicodedata.name(chr(number), "")
        if name.startswith(names) and chr(number).isalpha() and number < 0x1A000:  # not letters of old documents
            assert num_unspaced(chr(number)) == 1, name
        if name.startswith(("LATIN", "GREEK", "CYRILLIC", "HANGUL", "ARABIC", "DEVANAGARI", "HEBREW")):
            assert num_unspaced(chr(number)) == 0, name


@given(st.text())
def test_letters(text: str) -> None:
    assert num_letters(text) == sum(c.isalpha() if c.isascii() else True for c in text)
    assert num_unspaced(text) <= num_letters(text)
