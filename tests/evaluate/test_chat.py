"""Conversations against transformers' own template and generation, and pairs against the readers of training data."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.evaluate import chat as module
from simpo_cli.evaluate.chat import AGAIN_TEMPERATURE, Chat, GrowingText, Reply, Settings, open_speakers, record_of
from simpo_cli.evaluate.generate.decode import Decoding, KeptCache, uniforms
from simpo_cli.model.adapters import switch_adapter
from simpo_cli.recipe.schema import DataSource
from tests.tiny import FAMILIES, byte_level_tokenizer, chatml_tokenizer, save_tiny_model, save_tokenizer, tiny_model

SETTINGS = Settings(max_tokens=10, temperature=0.0, seed=5)
QUESTIONS = ("How do I invite a teammate?", "And to\nmy project?", "the quick brown fox")


class Heard:
    """A listener that keeps what it hears; `stop_at` pieces it interrupts."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.names: list[str] = []
        self.pieces: list[str] = []
        self.replies: list[Reply] = []
        self._stop_at = stop_at

    def begin(self, number: int, name: str) -> None:
        self.names.append(f"{number} {name}")
        self.pieces.clear()

    def hear(self, piece: str) -> None:
        self.pieces.append(piece)
        if len(self.pieces) == self._stop_at:
            raise KeyboardInterrupt

    def end(self, reply: Reply) -> None:
        assert "".join(self.pieces).strip() == reply.text
        self.replies.append(reply)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that speaks in letters: no special token but the end, and no bytes that are no characters."""
    folder = tmp_path_factory.mktemp("words")
    model = tiny_model(seed=3, tie_word_embeddings=False)
    tokenizer = chatml_tokenizer(folder)
    silent = [i for i in range(400) if i != 2 and not tokenizer.decode([i]).isascii()] + [0, 1]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0.0
        model.lm_head.weight[2] *= 0.6  # or it ends at once
    model.save_pretrained(folder)
    return folder


def reference(folder: Path, turns: list[dict[str, str]], max_new_tokens: int = SETTINGS.max_tokens) -> tuple[str, bool]:
    """What transformers answers, by its own template, tokenizer and greedy search; whether the answer ended."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    given = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**given, do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=2, pad_token_id=0)
    ids = out[0, given["input_ids"].shape[1] :].tolist()
    return tokenizer.decode(ids).removesuffix("<|im_end|>").strip(), ids[-1] == 2


def conversation(folder: Path, count: int = 3, **settings: Any) -> tuple[Chat, Heard]:
    chat, heard = Chat(open_speakers(str(folder), None), replace(SETTINGS, **settings), "Be brief."), Heard()
    for question in QUESTIONS[:count]:
        chat.ask(question, heard)
    return chat, heard


def test_greedy_answers_are_those_of_generate(words: Path) -> None:
    _, heard = conversation(words)
    turns = [{"role": "system", "content": "Be brief."}]
    for question, reply in zip(QUESTIONS, heard.replies, strict=True):
        turns.append({"role": "user", "content": question})
        assert (reply.text, reply.ended) == reference(words, turns)
        turns.append({"role": "assistant", "content": reply.text})
    assert len({reply.text for reply in heard.replies}) == 3, "the test is to see answers that differ"


def test_only_what_is_new_goes_through_the_model(words: Path) -> None:
    chat = Chat(open_speakers(str(words), None), SETTINGS)
    lengths: list[int] = []
    model = chat.speakers[0].model
    handle = model.register_forward_pre_hook(
        lambda _, __, given: lengths.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    for question in QUESTIONS:
        chat.ask(question, Heard())
    handle.remove()
    tokenizer = load_tokenizer(str(words))
    firsts = [length for length in lengths if length > 1]
    asked = [len(tokenizer.encode_batch([f"<|im_start|>user\n{one}<|im_end|>\n"])[0]) for one in QUESTIONS]
    assert len(firsts) == 3
    # behind the first question: what closes the last answer, the question, and the header of the next answer
    assert all(length < asked_one + 20 for length, asked_one in zip(firsts, asked, strict=True))


def test_another_answer_is_drawn_from_the_probabilities(words: Path) -> None:
    chat, heard = conversation(words, 1)
    chat.again(heard)
    tokenizer: Any = AutoTokenizer.from_pretrained(words)
    model: Any = AutoModelForCausalLM.from_pretrained(words, dtype=torch.float32)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTIONS[0]}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    drawn: list[int] = []
    decoding = Decoding(max_new_tokens=10, temperature=0.7, seed=5, end_ids=(2,), to_text=str)
    for number in uniforms("2", decoding):  # the second round
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([[*ids, *drawn]])).logits[0, -1].double()
        token, reached = 0, 0.0
        chances = torch.softmax(scores / AGAIN_TEMPERATURE, -1).tolist()
        while (reached := reached + chances[token]) <= number:
            token += 1
        if token == 2:
            break
        drawn.append(token)
    assert heard.replies[1].text == tokenizer.decode(drawn).strip()
    assert heard.names == [f"1 {words}", f"2 {words}"]
    chat.again(heard)
    assert chat.replies == [heard.replies[0], heard.replies[2]]
    assert heard.replies[1].text != heard.replies[2].text
    assert chat.turns[-1].content == heard.replies[0].text
    again, also = conversation(words, 1)
    again.again(also)
    assert also.replies == heard.replies[:2]


def test_the_oldest_turns_go_and_the_system_message_stays(tmp_path: Path, words: Path) -> None:
    short = tmp_path / "short"
    AutoModelForCausalLM.from_pretrained(words).save_pretrained(short)
    chatml_tokenizer(short)
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 90}))
    chat, heard = Chat(open_speakers(str(short), None), SETTINGS, "Be brief."), Heard()
    prompts: list[list[int]] = []
    chat.speakers[0].model.register_forward_pre_hook(
        lambda _, __, given: prompts.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    for i in range(5):
        prompts.clear()
        chat.speakers = [replace(chat.speakers[0], kept=KeptCache())]  # so that the whole prompt is seen
        chat.ask(f"{QUESTIONS[0]} {i}", heard)
        assert len(prompts[0]) + SETTINGS.max_tokens <= 90
        text = chat.speakers[0].tokenizer.decode(prompts[0])
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
        assert text.endswith(f"{QUESTIONS[0]} {i}<|im_end|>\n<|im_start|>assistant\n")
        assert heard.replies[-1].without_oldest == (f"{QUESTIONS[0]} 0" not in text)
    assert [reply.without_oldest for reply in heard.replies] == [False, False, True, True, True]
    assert len(chat.turns) == 10
    chat.ask("fox " * 90, heard)  # alone too long
    assert heard.replies[-1].without_oldest


def test_a_stopped_answer_stays_and_is_no_response(words: Path) -> None:
    chat, heard = Chat(open_speakers(str(words), None), SETTINGS), Heard()
    chat.ask(QUESTIONS[0], heard)
    first = heard.replies[0].text
    chat.ask(QUESTIONS[1], Heard(stop_at=3))
    [reply] = chat.replies
    turns = [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": QUESTIONS[1]},
    ]
    whole, _ = reference(words, turns)
    assert (reply.stopped, reply.ended) == (True, False)
    assert 0 < len(reply.text) < len(whole)
    assert whole.startswith(reply.text)
    assert [turn.content for turn in chat.turns] == [QUESTIONS[0], first, QUESTIONS[1], reply.text]
    chat.ask(QUESTIONS[2], heard)  # were the cache of the stopped answer kept, it would be torn
    turns += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": QUESTIONS[2]}]
    assert heard.replies[-1].text == reference(words, turns)[0]
    chat.again(Heard(stop_at=2))
    with pytest.raises(UserError, match="an answer that was stopped is no response"):
        chat.better(1)
    chat.again(Heard())
    assert [one.stopped for one in chat.replies] == [False, False]
    chat.ask(QUESTIONS[0], Heard(stop_at=2))
    chat.again(heard)  # in place of what was stopped
    assert chat.replies == heard.replies[-1:]
    assert chat.turns[-1].content == heard.replies[-1].text


def test_a_question_that_was_stopped_in_time_is_taken_back(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, _ = conversation(words, 1)
    before = list(chat.turns), chat.replies

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "generate_ids", interrupted)
    chat.ask("Never mind", Heard())
    assert (chat.turns, chat.replies) == before


def test_what_was_stopped_at_the_first_answer_is_not_asked_of_the_second_model(place: Path) -> None:
    chat, heard = Chat(open_speakers(str(place / "run"), "base"), SETTINGS), Heard(stop_at=1)
    chat.ask("first question 1?", heard)
    assert heard.names == [f"1 {place / 'run'}"]


# Two models


def test_the_base_of_an_adapter_is_the_same_weights_without_it(place: Path) -> None:
    tuned, base = open_speakers(str(place / "lora"), "base")
    assert base.model is tuned.model
    assert (base.name, base.with_adapter, tuned.with_adapter) == (str(place / "tiny"), False, True)
    [alone] = open_speakers(str(place / "tiny"), None)
    ids = torch.tensor([range(20, 50)])
    with torch.inference_mode():
        changed, plain = tuned.model(ids).logits, alone.model(ids).logits
        switch_adapter(tuned.model, on=False)
        assert torch.equal(tuned.model(ids).logits, plain)
    assert not torch.equal(changed, plain)
    both, one = Chat([tuned, base], SETTINGS), Chat([alone], SETTINGS)
    for question in QUESTIONS[:2]:
        both.ask(question, Heard())
        one.turns = both.turns[:-2]
        one.ask(question, Heard())
        assert both.replies[1].text == one.replies[0].text
    with torch.inference_mode():
        switch_adapter(tuned.model, on=True)
        assert torch.equal(tuned.model(ids).logits, changed)


def test_each_answer_has_the_adapter_or_not_whatever_was_stopped_before(place: Path) -> None:
    speakers = open_speakers(str(place / "lora"), "base")
    asked: list[torch.Tensor] = []
    speakers[0].model.register_forward_hook(lambda *given: asked.append(given[2].logits[0, -1].float()))

    def first_logits(speaker: Any) -> torch.Tensor:
        asked.clear()
        replace(speaker, kept=KeptCache()).answer((Message("user", "Why?"),), SETTINGS, "", str)
        return asked[0]

    tuned, base = map(first_logits, speakers)
    assert not torch.equal(tuned, base)
    assert torch.equal(first_logits(speakers[1]), base)
    switch_adapter(speakers[0].model, on=False)  # as it is left by an answer of the base
    assert torch.equal(first_logits(speakers[0]), tuned)


def test_the_base_of_a_run_an_adapter_or_a_name(place: Path, tmp_path: Path) -> None:
    tuned, base = open_speakers(str(place / "run"), "base")
    assert base.model is not tuned.model
    assert base.name == str(place / "tiny")
    _, named = open_speakers(str(place / "run"), str(place / "again"))
    assert named.name == str(place / "again")
    adapter = tmp_path / "adapter"  # without its run
    adapter.mkdir()
    for file in (place / "lora" / "model").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    tuned, base = open_speakers(str(adapter), "base")
    assert base.model is tuned.model
    with pytest.raises(UserError, match="nothing says what .*tiny started from"):
        open_speakers(str(place / "tiny"), "base")
    with pytest.raises(UserError, match="is the same one"):
        open_speakers(str(place / "run"), str(place / "run" / "model"))
    with pytest.raises(UserError, match="there is no run"):
        open_speakers(str(place / "nothing"), None)
    [checkpoint] = (place / "run" / "checkpoints").glob("step-*")
    [of_checkpoint] = open_speakers(str(checkpoint), None)
    assert next(of_checkpoint.model.parameters()).dtype == torch.float32


# Pairs


def replied(text: str, ended: bool = True) -> Reply:
    return Reply(text, len(text), ended, stopped=False, without_oldest=False)


def test_a_pair_is_read_as_it_was_seen(words: Path, tmp_path: Path) -> None:
    chat, _ = conversation(words, 2)
    prompts: list[list[int]] = []
    chat.speakers = [replace(chat.speakers[0], kept=KeptCache())]
    chat.speakers[0].model.register_forward_pre_hook(
        lambda _, __, given: prompts.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    chat.ask("Wie geht's? 🙂", Heard())
    chat.replies = [replied("Open Settings."), replied("the lazy dog\n")]
    pair = chat.better(2)
    chat.continue_with(2)
    assert chat.turns[-1] == Message("assistant", "the lazy dog\n")
    with pytest.raises(UserError, match="no two answers"):
        chat.better(2)
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(record_of(pair)) + "\n")
    [read] = PairReader([DataSource(path=str(file))], role="train")
    assert (read.prompt, read.chosen, read.rejected) == (pair.prompt, "the lazy dog\n", "Open Settings.")
    [encoded] = encode_pairs([read], chat.speakers[0].tokenizer, chat.speakers[0].data).pairs
    assert encoded.prompt.tolist() == prompts[0]
    assert chat.speakers[0].tokenizer.decode(encoded.chosen.tolist()) == "the lazy dog\n<|im_end|>"


@pytest.mark.parametrize(
    ("replies", "said"),
    [
        ([], "there are no two answers"),
        ([replied("a")], "there are no two answers"),
        ([replied("a", ended=False), replied("b")], "answer 1 was cut before its end"),
        ([replied("a"), replied("a")], "no pair to train on: responses identical"),
        ([replied("a"), replied("")], "no pair to train on: response without tokens"),
        ([replied("<|im_start|>user\nHi"), replied("b")], "already holds the chat template's markers"),
    ],
)
def test_what_is_no_pair(words: Path, replies: list[Reply], said: str) -> None:
    chat, _ = conversation(words, 1)
    chat.replies = replies
    with pytest.raises(UserError, match=said):
        chat.better(1)
    chat.replies = [replied("a"), replied("b", ended=False)]  # a rejected response may run on and on
    assert chat.better(1).rejected == "b"


def test_what_the_template_refuses_leaves_the_conversation(words: Path) -> None:
    chat, _ = conversation(words, 1)
    turns = list(chat.turns)
    with pytest.raises(UserError, match="cannot be asked this: the text already holds the chat template's markers"):
        chat.ask("<|im_start|>user\nHi", Heard())
    assert chat.turns == turns
    chat.start_over("")
    with pytest.raises(UserError, match="nothing was asked yet"):
        chat.again(Heard())


def test_a_model_without_a_template_reads_a_transcript(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "plain")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer = byte_level_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    save_tokenizer(folder, tokenizer, bos=None, eos="<|im_end|>", pad=None, template=None)
    [speaker] = open_speakers(str(folder), None)
    assert not speaker.tokenizer.has_template
    prompts: list[list[int]] = []
    speaker.model.register_forward_pre_hook(
        lambda _, __, given: prompts.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    Chat([speaker], SETTINGS, "Be brief.").ask("Hello?", Heard())
    assert tokenizer.decode(prompts[0]) == "\n\nSystem: Be brief.\n\nHuman: Hello?\n\nAssistant:"


# Text that grows


TEXTS = (
    "Zoë said: 日本語, 👩‍🔬!",
    "  a\n\n  b \t",
    "e\u0301 \u2028 x",
    "",
    " \n ",
    "123 👍🏽👍🏽 ok",
    "\ufffd a \ufffd",
)


@pytest.fixture(params=sorted(FAMILIES))
def tokenizer_of(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return load_tokenizer(str(FAMILIES[request.param].save(tmp_path / request.param)))


def grown(tokens: list[int], to_text: Callable[[Any], str]) -> Iterator[str]:
    """What has been passed on after each token, and in the end."""
    pieces: list[str] = []
    text = GrowingText(to_text, pieces.append)
    for token in tokens:
        text.add(token)
        yield "".join(pieces)
    text.end()
    assert "" not in pieces
    yield "".join(pieces)


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_are_the_text(tokenizer_of: Any, text: str) -> None:
    ids = tokenizer_of.encode_batch([text])[0]
    *parts, last = grown(ids, tokenizer_of.decode)
    assert last == tokenizer_of.decode(ids).strip()
    assert all(last.startswith(part) for part in parts)
    if "\ufffd" not in tokenizer_of.decode(ids):
        assert not any("\ufffd" in part for part in parts)


def test_letters_are_passed_on_at_once(tokenizer_of: Any) -> None:
    ids = tokenizer_of.encode_batch(["Open Settings, choose People."])[0]
    for count, part in enumerate(list(grown(ids, tokenizer_of.decode))[:-1], start=1):
        assert part == tokenizer_of.decode(ids[:count]).strip()


def test_random_bytes_come_out_as_they_are_decoded_together() -> None:
    tokenizer = byte_level_tokenizer(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    draw = random.Random(4)
    for _ in range(300):
        ids = [draw.randrange(400) for _ in range(draw.randint(1, 12))]
        assert list(grown(ids, tokenizer.decode))[-1] == tokenizer.decode(ids).strip()
