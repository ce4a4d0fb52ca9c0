"""Answers of a model to a few fixed prompts, so that a person can read what training changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteriaList

from simpo_cli.builtin import PROBE_QUESTIONS
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.model.policy import Policy
from simpo_cli.stages import Stage, stage

_MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as a person reads it and as the model gets it."""

    text: str
    ids: tuple[int, ...]


def builtin_questions(tokenizer: TextTokenizer) -> list[Question]:
    """The fixed questions of `builtin:guide`."""
    return [
        Question(
            text, tuple(tokenizer.encode_batch([tokenizer.render([Message("user", text)], generation_prompt=True)])[0])
        )
        for text in PROBE_QUESTIONS
    ]


def held_out_questions(
    held_out: Sequence[EncodedPair], texts: Sequence[PreferencePair], count: int = 3
) -> list[Question]:
    """The first held-out prompts by hash, each with the text of its last user turn."""
    by_place = {pair.where: pair for pair in texts}
    questions: list[Question] = []
    seen: set[str] = set()
    for i in prompt_keys_of(held_out).argsort(kind="stable"):
        if len(questions) == count:
            break
        pair = held_out[i]
        if pair.prompt_key in seen or pair.prompt_cut or pair.where not in by_place:
            continue
        seen.add(pair.prompt_key)
        prompt = by_place[pair.where].prompt
        text = (
            prompt
            if isinstance(prompt, str)
            else next((turn.content for turn in reversed(prompt) if turn.role == "user"), "")
        )
        questions.append(Question(text, tuple(pair.prompt.tolist())))
    return questions


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model wrote: as text, as ids without the end token, and whether it came to an end by itself."""

    text: str
    ids: tuple[int, ...]
    ended: bool


def answer(
    policy: Policy,
    questions: Sequence[Question],
    tokenizer: TextTokenizer,
    accelerator: Accelerator,
) -> list[str]:
    """The most likely answer to each question, word by word, at most 64 tokens; ` ...` marks one that was cut there."""
    answers = []
    with stage("answering probe prompts", len(questions)) as answering:
        for question in questions:
            [one] = generate(policy, [question], tokenizer, accelerator, most_tokens=_MAX_NEW_TOKENS)
            answers.append(one.text if one.ended else f"{one.text} ...")
            answering.advance()
    return answers


def generate(
    policy: Policy,
    questions: Sequence[Question],
    tokenizer: TextTokenizer,
    accelerator: Accelerator,
    *,
    most_tokens: int,
) -> list[Answer]:
    """The most likely answers, word by word, cut after `most_tokens`; all questions go through the model at once.

    What the model's generation config suggests is put aside: a penalty on repetition would hide that it repeats itself.

    A question beside longer ones is padded at its left. That is exact for models that follow their attention mask, to
    the rounding of the sums, by which two words that are about equally likely may change places.
    """
    if not questions:
        return []
    ends, pad = tokenizer.end_ids, min(tokenizer.end_ids, default=0)
    longest = max(len(question.ids) for question in questions)
    rows = [[pad] * (longest - len(question.ids)) + list(question.ids) for question in questions]
    mask = [[0] * (longest - len(question.ids)) + [1] * len(question.ids) for question in questions]
    was_training = policy.training
    policy.eval()
    try:
        with (
            torch.no_grad(),
            accelerator.autocast(),
            policy.untouched() as causal,
            _plain(causal),
            stage("generating tokens", most_tokens) as generating,
        ):
            output = causal.generate(
                input_ids=torch.tensor(rows, device=accelerator.device),
                attention_mask=torch.tensor(mask, device=accelerator.device),
                max_new_tokens=most_tokens,
                do_sample=False,
                eos_token_id=sorted(ends) or None,
                pad_token_id=pad,
                stopping_criteria=StoppingCriteriaList([counting(generating)]),
            )
    finally:
        policy.train(was_training)
    return [_answer_of(row, tokenizer) for row in output[:, longest:].tolist()]


def counting(generating: Stage) -> Callable[..., Tensor]:
    """What `generate` asks after every token whether to stop: no, but one more is done."""

    def criterion(ids: Tensor, _: Any, **__: Any) -> Tensor:
        generating.advance()
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return criterion


@contextmanager
def _plain(causal: Any) -> Iterator[None]:
    suggested, causal.generation_config = causal.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        causal.generation_config = suggested


def _answer_of(ids: list[int], tokenizer: TextTokenizer) -> Answer:
    """What was generated up to the first end token; behind it the row is filled up."""
    end = next((at for at, token in enumerate(ids) if token in tokenizer.end_ids), None)
    return Answer(tokenizer.decode(ids[:end]).strip(), tuple(ids[:end]), ended=end is not None)
