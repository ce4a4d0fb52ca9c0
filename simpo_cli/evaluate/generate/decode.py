"""Letting a model answer, in batches with a KV cache; each prompt draws from random numbers of its own.

Prompts of like length are answered together, padded on the left. A model sees the same tokens at the same positions
whatever it is batched with, so that greedy answers change with the batch only by the rounding of its matrix products:
where two tokens are equally likely to the last bits, another batch may take the other, and the answer goes on from
there. With one thread and the same batches they are the same bits.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import StoppingCriteriaList

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
    prompts = [question.ids for question in questions]
    processors: list[Any] = []
    if mode == "sampled":
        numbers = torch.from_numpy(np.stack([uniforms(question.key, decoding) for question in questions]))
        processors = [InverseDraw(numbers.to(device), decoding.temperature, max(map(len, prompts)))]
    name = f"{mode} answers to {len(questions)} prompts: generating tokens"
    with torch.inference_mode():
        rows = generate_ids(
            model, prompts, device, decoding.max_new_tokens, decoding.end_ids, processors=processors, name=name
        )
    return [until_end(question.key, ids, decoding.end_ids) for question, ids in zip(questions, rows, strict=True)]


def generate_ids(
    causal: Any,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
    max_new_tokens: int,
    end_ids: Iterable[int],
    *,
    processors: Sequence[Any] = (),
    name: str = "generating tokens",
) -> list[list[int]]:
    """The tokens that a model takes greedily after each prompt, one by one; behind an end token there is only padding.

    All prompts go through the model together, shorter ones padded on the left. That is exact for models that follow
    their attention mask, to the rounding of the sums.

    Args:
        causal: a causal language model of transformers whose generation config suggests nothing.
        prompts: tokens, at least one prompt.
        device: the model's.
        max_new_tokens: most tokens of an answer.
        end_ids: tokens that end one.
        processors: what changes the scores before the likeliest token is taken.
        name: of the stage that counts the tokens.
    """
    ends, longest = sorted(end_ids), max(map(len, prompts))
    pad = ends[0] if ends else 0
    with stage(name, max_new_tokens) as generating:

        def count(ids: Tensor, _: Any, **__: Any) -> Tensor:  # asked after every token whether to stop
            generating.advance()
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        paddings = [longest - len(ids) for ids in prompts]
        padded = [[pad] * n + list(ids) for n, ids in zip(paddings, prompts, strict=True)]
        output = causal.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor([[0] * n + [1] * (longest - n) for n in paddings], device=device),
            logits_processor=list(processors),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=ends or None,
            pad_token_id=pad,
            stopping_criteria=StoppingCriteriaList([count]),
        )
    rows: list[list[int]] = output[:, longest:].tolist()
    return rows


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
