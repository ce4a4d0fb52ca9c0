"""Answers of a model to fixed prompts: a few, so that a person can read what training changed, and many for a rule to
check.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator
from transformers import GenerationConfig

from simpo_cli.builtin import PROBE_QUESTIONS
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair, last_of_user
from simpo_cli.data.prepare import PreparedData
from simpo_cli.data.sources import Role
from simpo_cli.data.store import prompt_keys_of
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.distributed import ranks
from simpo_cli.distributed.sharded import gathered, is_sharded
from simpo_cli.evaluate.checked import CheckedAnswer, check, checkable
from simpo_cli.evaluate.generate.decode import answer_until_end, generate_ids
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.evaluate.generate.prompts import questions_of_pairs
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.schema import DataRecipe
from simpo_cli.stages import stage

_MAX_NEW_TOKENS = 64
_MOST_CHECKED = 200  # answers that are checked: intervals of some 7 points to either side
_MOST_TOGETHER = 100  # of them go through the model at once


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
        questions.append(Question(last_of_user(by_place[pair.where].prompt), tuple(pair.prompt.tolist())))
    return questions


def checkable_questions(data: PreparedData, recipe: DataRecipe) -> list[Question]:
    """Of the first 200 held-out prompts by hash those to which a rule can check the answers; mostly all or none.

    Raises:
        UserError: a file of pairs with such prompts changed since it was tokenized.
    """
    if not checkable([last_of_user(pair.prompt) for pair in data.texts]):  # the first of them: do not read all again
        return []
    role: Role = "train" if recipe.eval is None else "eval"
    sources = recipe.train if recipe.eval is None else recipe.eval
    asked = questions_of_pairs(data.held_out, sources, role, recipe, _MOST_CHECKED).asked
    questions = [Question(last_of_user(one.turns), one.ids) for one in asked]
    return [questions[place] for place in checkable([one.text for one in questions])]


def check_answers(
    policy: Policy, questions: Sequence[Question], tokenizer: TextTokenizer, accelerator: Accelerator
) -> list[CheckedAnswer]:
    """What a rule says of the greedy answer to each question, at most 64 tokens; it must know all of them."""
    answers: list[Answer] = []
    with stage("answering prompts whose answers are checked", len(questions)) as answering:
        for start in range(0, len(questions), _MOST_TOGETHER):
            some = questions[start : start + _MOST_TOGETHER]
            answers += generate(policy, some, tokenizer, accelerator, most_tokens=_MAX_NEW_TOKENS)
            answering.advance(len(some))
    return check([one.text for one in questions], answers)


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
