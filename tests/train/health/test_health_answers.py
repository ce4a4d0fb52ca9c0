"""Repetition is counted as the paper does, and the probe asks the same of a model as transformers would."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM

from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.evaluate.answers import Question
from simpo_cli.evaluate.generate.measures import repeated_share
from simpo_cli.model.policy import Policy
from simpo_cli.run.events import LOOPING, ProbeAnswer
from simpo_cli.train.health import AnswerProbe


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b c", 0.0),
        ("a b c d", 0.0),
        ("a b c d e f g h i j", 0.0),
        ("a a a a a a a", 0.75),  # four runs, one of them new
        ("a b a b a b a b", 0.6),  # five runs, abab and baba
        ("a b c d e a b c d e", 2 / 7),  # seven runs, abcd and bcde occur twice
    ],
)
def test_the_share_of_repeated_runs_of_four(text: str, share: float) -> None:
    assert repeated_share(text.split()) == pytest.approx(share)


def test_a_set_phrase_twice_is_no_loop_and_a_loop_is() -> None:
    words = list("to restore a deleted item")  # letters stand for words
    twice = [*words, *"; open a deleted"]
    loop = words + ["x", "y"] * 12
    for answer, loops in ((twice, False), (loop, True)):
        share = repeated_share(answer)
        assert (share >= LOOPING) == loops
        assert ProbeAnswer("How?", " ".join(answer), len(answer), share, True).loops == loops


def test_prompts_of_different_lengths_are_answered_as_each_alone(tiny_folder: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_folder))
    texts = ["How?", "How do I invite a teammate to the new project?", "Please open the settings."]
    questions = [Question(text, tuple(tokenizer.encode_batch([text])[0])) for text in texts]
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model.generation_config.repetition_penalty = 5.0
    policy = Policy(model, "shared_prefix").train()
    answers = AnswerProbe(questions, tokenizer, 9).ask(policy, Accelerator(cpu=True))
    assert policy.training
    assert policy.packing == "shared_prefix"
    assert model.generation_config.repetition_penalty == 5.0
    alone = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    for question, answer in zip(questions, answers, strict=True):
        ids = list(question.ids)
        for _ in range(9):  # the likeliest next token, again and again
            ids.append(int(alone(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in tokenizer.end_ids:
                break
        said = ids[len(question.ids) :]
        assert answer.ended == (said[-1] in tokenizer.end_ids)
        assert answer.tokens == len(said) - answer.ended
        assert answer.text == tokenizer.decode(said[: answer.tokens]).strip()
        assert answer.question == question.text


def test_nothing_held_out_asks_nothing(tiny_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    probe = AnswerProbe([], load_tokenizer(str(tiny_folder)), 9)
    assert probe.ask(Policy(model), Accelerator(cpu=True)) == ()
