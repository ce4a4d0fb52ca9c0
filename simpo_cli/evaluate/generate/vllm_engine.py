"""Answers through vLLM, where it is installed: the same tokens go in, the same end tokens stop it.

It is used by its documented interface (`vllm.LLM`, `vllm.SamplingParams`, prompts as `prompt_token_ids`) and has not
been run by us: a stand-in in the tests checks what it is asked for.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from simpo_cli.evaluate.generate.decoding import Decoding, Generated, Mode, until_end
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.model.load import ModelSource


def is_installed() -> bool:
    """Whether vLLM can be imported; it is not imported to find out."""
    return importlib.util.find_spec("vllm") is not None


def answers_of(
    source: ModelSource, asked: Mapping[Mode, Sequence[Question]], decoding: Decoding
) -> Iterator[tuple[Mode, list[Generated]]]:
    """All answers of a mode at once: the engine batches by itself. The card's memory is given back at the end."""
    import vllm
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    longest = max(len(question.ids) for questions in asked.values() for question in questions)
    engine = vllm.LLM(
        model=str(source.folder),
        seed=decoding.seed,
        max_model_len=longest + decoding.max_new_tokens,
        trust_remote_code=bool(source.code),
        generation_config="vllm",  # not the sampling that the model's folder suggests
    )
    try:
        for mode, questions in asked.items():
            if questions:
                yield mode, _answers(engine, questions, decoding, mode)
    finally:
        del engine
        cleanup_dist_env_and_memory()


def _answers(engine: Any, questions: Sequence[Question], decoding: Decoding, mode: Mode) -> list[Generated]:
    import vllm

    settings = [
        vllm.SamplingParams(
            temperature=0.0 if mode == "greedy" else decoding.temperature,
            max_tokens=decoding.max_new_tokens,
            stop_token_ids=list(decoding.end_ids),
            seed=seed_of(question.key, decoding),
            detokenize=False,
        )
        for question in questions
    ]
    prompts = [{"prompt_token_ids": list(question.ids)} for question in questions]
    outputs = engine.generate(prompts, settings, use_tqdm=False)
    answers = []
    for question, output in zip(questions, outputs, strict=True):
        ids = until_end(question.key, output.outputs[0].token_ids, decoding.end_ids).ids
        answers.append(Generated(question.key, ids, output.outputs[0].finish_reason == "stop"))
    return answers


def seed_of(key: str, decoding: Decoding) -> int:
    """The seed of one prompt: the same whatever else is asked."""
    return (int(key, 16) ^ decoding.seed) % 2**31
