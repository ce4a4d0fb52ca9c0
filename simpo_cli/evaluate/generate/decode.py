"""Letting a model answer, in batches with a KV cache; each prompt draws from random numbers of its own.

Prompts of like length are answered together, padded on the left. A model sees the same tokens at the same positions
whatever it is batched with, so that greedy answers change with the batch only by the rounding of its matrix products:
where two tokens are equally likely to the last bits, another batch may take the other, and the answer goes on from
there. With one thread and the same batches they are the same bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from simpo_cli.evaluate.answers import counting
from simpo_cli.evaluate.generate.decoding import Decoding, Generated, Mode, uniforms, until_end
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.model.device import multiplies_in_bf16
from simpo_cli.model.load import Load, ModelSource, load_model
from simpo_cli.model.memory import available_bytes
from simpo_cli.stages import stage

_MOST_ROWS = 32
_CACHE_SHARE = 0.5  # of the free memory; the rest is for activations and logits


class InverseDraw:
    """A logits processor that draws by the inverse of the distribution function: one random number a row and step.

    The library's own sampling takes its numbers for the whole batch, so that an answer would change with the prompts
    beside it.

    Args:
        numbers: (rows, max_new_tokens) of `uniforms`.
        temperature: above 0.
        prompt_length: tokens of the padded prompt.
    """

    def __init__(self, numbers: Tensor, temperature: float, prompt_length: int) -> None:
        self._numbers, self._temperature, self._prompt_length = numbers, temperature, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocabulary) scores of which greedy search takes the token that was drawn."""
        step = input_ids.shape[1] - self._prompt_length
        reached = torch.softmax(scores.to(torch.float64) / self._temperature, dim=-1).cumsum(-1)
        drawn = self._numbers[:, step : step + 1] * reached[:, -1:]  # the sum is 1 only to rounding
        # the first token whose sum is above the number: one of probability 0 is never taken
        token = torch.searchsorted(reached, drawn, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def open_for_answers(source: ModelSource, load: Load | None = None) -> Any:
    """The causal language model, with adapters in place, on its device.

    A saved model is held in the type it was saved in where the device computes in that, and in float32 elsewhere. Its
    own sampling defaults are put aside: see `Decoding`.

    Args:
        source: the saved model.
        load: what reads it instead, in float32, as for a checkpoint.
    """
    from transformers import GenerationConfig

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if load is not None:
        model: Any = load(source, torch.float32, device)
    else:
        in_bf16 = multiplies_in_bf16(on_cuda=device.type == "cuda")
        model = load_model(source, "stored" if in_bf16 else torch.float32, device)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return causal.eval().requires_grad_(False)


def answers_of(
    source: ModelSource, asked: Mapping[Mode, Sequence[Question]], decoding: Decoding, load: Load | None = None
) -> Iterator[tuple[Mode, list[Generated]]]:
    """Answers batch by batch, the shortest prompts of each mode first."""
    model = open_for_answers(source, load)
    weight = next(model.parameters())
    for mode, questions in asked.items():
        if not questions:
            continue
        rows = rows_that_fit(model.config.get_text_config(), weight.device, questions, decoding, weight.dtype)
        by_length = sorted(questions, key=lambda question: (len(question.ids), question.key))
        for start in range(0, len(by_length), rows):
            yield mode, answer_batch(model, by_length[start : start + rows], decoding, mode)


def answer_batch(model: Any, questions: Sequence[Question], decoding: Decoding, mode: Mode) -> list[Generated]:
    """Answers to prompts that go through the model together."""
    device = next(model.parameters()).device
    longest = max(len(question.ids) for question in questions)
    prompts = torch.zeros(len(questions), longest, dtype=torch.long)
    seen = torch.zeros_like(prompts)
    for row, question in enumerate(questions):
        prompts[row, longest - len(question.ids) :] = torch.tensor(question.ids)
        seen[row, longest - len(question.ids) :] = 1
    processors: list[Any] = []
    if mode == "sampled":
        numbers = np.stack([uniforms(question.key, decoding) for question in questions])
        processors = [InverseDraw(torch.from_numpy(numbers).to(device), decoding.temperature, longest)]
    name = f"{mode} answers to {len(questions)} prompts: generating tokens"
    with torch.inference_mode(), stage(name, decoding.max_new_tokens) as generating:
        output = model.generate(
            input_ids=prompts.to(device),
            attention_mask=seen.to(device),
            logits_processor=processors,
            do_sample=False,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=list(decoding.end_ids) or None,
            pad_token_id=decoding.end_ids[0] if decoding.end_ids else 0,
            stopping_criteria=StoppingCriteriaList([counting(generating)]),
        )
    return [
        until_end(question.key, ids, decoding.end_ids)
        for question, ids in zip(questions, output[:, longest:].tolist(), strict=True)
    ]


def rows_that_fit(
    config: Any, device: torch.device, questions: Sequence[Question], decoding: Decoding, dtype: torch.dtype
) -> int:
    """How many prompts are answered together: 32, or as many as keep their cached keys and values in half the memory.

    Args:
        config: the model's text configuration.
        device, dtype: where and in what type the cache is held.
        questions: the prompts, at least one.
        decoding: how long an answer may get.
    """
    all_heads = getattr(config, "num_attention_heads", None) or 1  # one of full width, for layers without attention
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_dim * dtype.itemsize
    row_tokens = max(len(question.ids) for question in questions) + decoding.max_new_tokens
    fitting = int(_CACHE_SHARE * available_bytes(device) / (token_bytes * row_tokens))
    return max(1, min(_MOST_ROWS, fitting))
