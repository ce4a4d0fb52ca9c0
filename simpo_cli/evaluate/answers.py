"""Answers of a model to a few fixed prompts, so that a person can read what training changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from transformers import GenerationConfig

from simpo_cli.builtin import PROBE_QUESTIONS
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair, prompt_messages
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.distributed import ranks
from simpo_cli.distributed.sharded import gathered, is_sharded
from simpo_cli.evaluate.generate.decode import answer_until_end, generate_ids
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.model.policy import Policy
from simpo_cli.stages import stage

_MAX_NEW_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as a person reads it and as the model gets it."""

    text: str
    ids: tuple[int, ...]


def builtin_questions(tokenizer: TextTokenizer) -> list[Question]:
    """The fixed questions of `builtin:guide`."""
    rendered = [tokenizer.render([Message("user", text)], generation_prompt=True) for text in PROBE_QUESTIONS]
    encoded = tokenizer.encode_batch(rendered)
    return [Question(text, tuple(ids)) for text, ids in zip(PROBE_QUESTIONS, encoded, strict=True)]


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
        turns = prompt_messages(by_place[pair.where].prompt)
        text = next((turn.content for turn in reversed(turns) if turn.role == "user"), "")
        questions.append(Question(text, tuple(pair.prompt.tolist())))
    return questions


def answer(
    policy: Policy, questions: Sequence[Question], tokenizer: TextTokenizer, accelerator: Accelerator
) -> list[str]:
    """The greedy answer to each question, at most 64 tokens; ` ...` marks one that was cut there."""
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
    """Greedy answers, token by token, cut after `most_tokens`; all questions go through the model at once.

    Of several ranks the first one's answers count; a sharded model is gathered whole for it.

    What the model's generation config suggests is put aside: a penalty on repetition would hide that it repeats itself.
    """
    if not questions:
        return []
    prompts, ends = [question.ids for question in questions], tokenizer.end_ids
    was_training = policy.training
    policy.eval()
    try:
        with torch.no_grad(), accelerator.autocast(), gathered(policy), policy.untouched() as causal:
            suggested, causal.generation_config = causal.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
            try:
                work = partial(generate_ids, causal, prompts, accelerator.device, most_tokens, ends)
                if is_sharded(policy):  # what its layers have run decides what FSDP2 prefetches: the same on all ranks
                    rows = work()
                    work = partial(list, rows)
                rows = ranks.from_first(work, "generating tokens")
            finally:
                causal.generation_config = suggested
    finally:
        policy.train(was_training)
    return [answer_until_end(one.text, ids, ends, tokenizer.decode) for one, ids in zip(questions, rows, strict=True)]
