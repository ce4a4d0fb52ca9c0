"""Answers of a model to a few fixed prompts, so that a person can read what training changed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from simpo_cli.builtin import PROBE_QUESTIONS
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.model.policy import Policy

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
    answers = generate(policy, questions, tokenizer, accelerator, most_tokens=_MAX_NEW_TOKENS)
    return [one.text if one.ended else f"{one.text} ..." for one in answers]


def generate(
    policy: Policy,
    questions: Sequence[Question],
    tokenizer: TextTokenizer,
    accelerator: Accelerator,
    *,
    most_tokens: int,
) -> list[Answer]:
    """The most likely answer to each question, word by word, cut after `most_tokens`."""
    was_training = policy.training
    policy.eval()
    answers = []
    try:
        with torch.no_grad(), accelerator.autocast(), policy.untouched() as causal:
            for question in questions:
                prompt = torch.tensor([question.ids], device=accelerator.device)
                output = causal.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=most_tokens,
                    do_sample=False,
                    eos_token_id=sorted(tokenizer.end_ids) or None,
                    pad_token_id=min(tokenizer.end_ids, default=0),
                )
                ids = output[0, len(question.ids) :].tolist()
                ended = bool(ids) and ids[-1] in tokenizer.end_ids
                ids = ids[:-1] if ended else ids
                answers.append(Answer(tokenizer.decode(ids).strip(), tuple(ids), ended))
    finally:
        policy.train(was_training)
    return answers
