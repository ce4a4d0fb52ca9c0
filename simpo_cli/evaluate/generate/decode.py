"""Letting a model answer, by transformers in batches with a KV cache, or by vLLM; each prompt draws from random numbers
of its own.

Prompts of like length are answered together, padded on the left. A model sees the same tokens at the same positions
whatever it is batched with, so that greedy answers change with the batch only by the rounding of its matrix products:
where two tokens are equally likely to the last bits, another batch may take the other, and the answer goes on from
there. With one thread and the same batches they are the same bits.

vLLM is used by its documented interface (`vllm.LLM`, `vllm.SamplingParams`, prompts as `prompt_token_ids`) and has not
been run by us: a stand-in in the tests checks what it is asked for.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer

from simpo_cli.evaluate.generate.folder import Answer, Mode
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.model.backend import available_bytes, backend_of, multiplies_in_bf16
from simpo_cli.model.device import device_type
from simpo_cli.model.load import Load, load_model
from simpo_cli.model.source import ModelSource
from simpo_cli.stages import stage

_MOST_ROWS = 32
_CACHE_SHARE = 0.5  # of the free memory; the rest is for activations and logits


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How answers are drawn.

    Attributes:
        max_new_tokens: most tokens of an answer, its end token counted.
        temperature: divides the logits of sampled answers. Nothing else changes the distribution: no top-p, no top-k,
            no penalty, whatever the model's generation config suggests.
        seed: of the sampled answers.
        end_ids: tokens that end an answer, sorted.
        to_text: what makes text of an answer's tokens.
    """

    max_new_tokens: int
    temperature: float
    seed: int
    end_ids: tuple[int, ...]
    to_text: Callable[[Sequence[int]], str]


def uniforms(key: str, decoding: Decoding) -> NDArray[np.float64]:
    """(max_new_tokens,) random numbers in [0, 1) of one prompt: the same whatever else is asked, for either model."""
    draw = np.random.Generator(np.random.Philox(key=np.frombuffer(_digest(key, decoding)[:16], dtype=np.uint64)))
    return draw.random(decoding.max_new_tokens)


def _digest(key: str, decoding: Decoding) -> bytes:
    """What the random numbers of a prompt follow from."""
    return hashlib.sha256(f"{decoding.seed} {key}".encode()).digest()


def answer_until_end(
    key: str, ids: Sequence[int], end_ids: Collection[int], to_text: Callable[[Sequence[int]], str]
) -> Answer:
    """The answer up to its end token; behind it there is only padding."""
    end = next((place for place, token in enumerate(ids) if token in end_ids), None)
    answer = tuple(ids[:end])
    return Answer(key, to_text(answer).strip(), answer, ended=end is not None)


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
        reached = torch.softmax(scores.to(self._numbers.dtype) / self._temperature, dim=-1).cumsum(-1)
        drawn = self._numbers[:, step : step + 1] * reached[:, -1:]  # the sum is 1 only to rounding
        # the first token whose sum is above the number: one of probability 0 is never taken
        token = torch.searchsorted(reached, drawn, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)


def open_for_answers(source: ModelSource, load: Load | None = None) -> Any:
    """The causal language model, with adapters in place, on its device.

    A saved model is held in the type it was saved in where the device computes in that, and in float32 elsewhere; one
    that `load` reads, as of a checkpoint, always in float32. Its own sampling defaults are put aside: see `Decoding`.
    """
    kind = device_type()
    device = torch.device(kind)
    if load is not None:
        model: Any = load(source, torch.float32, device)
    else:
        in_bf16 = multiplies_in_bf16(kind)
        model = load_model(source, "stored" if in_bf16 else torch.float32, device)
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return causal.eval().requires_grad_(False)


def answers_of(
    source: ModelSource, asked: Mapping[Mode, Sequence[Question]], decoding: Decoding, load: Load | None = None
) -> Iterator[tuple[Mode, list[Answer]]]:
    """Answers batch by batch, the shortest prompts of each mode first."""
    model = open_for_answers(source, load)
    weight = next(model.parameters())
    for mode, questions in asked.items():
        rows = rows_that_fit(model.config.get_text_config(), weight.device, questions, decoding, weight.dtype)
        for batch in batches_by_length(questions, rows):
            yield mode, answer_batch(model, batch, decoding, mode)


def batches_by_length(questions: Sequence[Question], rows: int) -> list[Sequence[Question]]:
    """The prompts, the shortest first, so many at once."""
    by_length = sorted(questions, key=lambda question: (len(question.ids), question.key))
    return [by_length[start : start + rows] for start in range(0, len(by_length), rows)]


def answer_batch(model: Any, questions: Sequence[Question], decoding: Decoding, mode: Mode) -> list[Answer]:
    """Answers to prompts that go through the model together."""
    device = next(model.parameters()).device
    prompts = [question.ids for question in questions]
    processors: list[Any] = []
    if mode == "sampled":
        numbers = torch.from_numpy(np.stack([uniforms(question.key, decoding) for question in questions]))
        numbers = numbers.to(device, backend_of(device).widest)
        processors = [InverseDraw(numbers, decoding.temperature, max(map(len, prompts)))]
    name = f"{mode} answers to {len(questions)} prompts: generating tokens"
    with torch.inference_mode():
        rows = generate_ids(model, prompts, device, decoding.max_new_tokens, decoding.end_ids, processors, name)
    ends, to_text = decoding.end_ids, decoding.to_text
    return [answer_until_end(one.key, ids, ends, to_text) for one, ids in zip(questions, rows, strict=True)]


def generate_ids(
    causal: Any,
    prompts: Sequence[Sequence[int]],
    device: torch.device,
    max_new_tokens: int,
    end_ids: Iterable[int],
    processors: Sequence[Any] = (),
    name: str = "generating tokens",
    on_tokens: Callable[[list[int]], object] | None = None,
    kept: "KeptCache | None" = None,
) -> list[list[int]]:
    """The tokens that a model takes greedily after each prompt, one by one; behind an end token there is only padding.

    All prompts go through the model together, shorter ones padded on the left. That is exact for models that follow
    their attention mask, to the rounding of the sums.

    Args:
        causal: a causal language model of transformers whose generation config suggests nothing.
        processors: what changes the scores before the likeliest token is taken.
        name: of the stage that counts the tokens.
        on_tokens: called with the newest token of each row, as soon as it is there.
        kept: what a conversation has in the cache already, for one prompt alone.
    """
    ends, longest = sorted(end_ids), max(map(len, prompts))
    pad = ends[0] if ends else 0
    with stage(name, max_new_tokens) as generating:

        def count(ids: Tensor, _: Any, **__: Any) -> Tensor:  # asked after every token whether to stop
            generating.advance()
            if on_tokens is not None:
                on_tokens(ids[:, -1].tolist())
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
            synced_gpus=False,  # one rank answers, also of a model that was sharded and is gathered now
            return_dict_in_generate=True,
            past_key_values=None if kept is None else kept.take(prompts[0]),
        )
    if kept is not None:
        kept.keep(output.sequences[0].tolist(), output.past_key_values)
    rows: list[list[int]] = output.sequences[:, longest:].tolist()
    return rows


class KeptCache:
    """The keys and values of a conversation's last prompt and answer, with which its next prompt mostly begins."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._cache: Any = None

    def take(self, ids: Sequence[int]) -> Any:
        """The cache of what a prompt begins with, or None; it is given away, as a stopped answer leaves it torn."""
        cache, self._cache = self._cache, None
        ends = [place for place, pair in enumerate(zip(ids, self._ids, strict=False)) if pair[0] != pair[1]]
        # one token at least is computed anew: the answer begins with what the model says behind it
        shared = min([*ends, len(self._ids), len(ids) - 1])
        if cache is None or shared == 0:
            return None
        if shared < len(self._ids):
            cache.crop(shared - len(self._ids))
        return cache

    def keep(self, ids: list[int], cache: Any) -> None:
        """Keep what was computed of a prompt and its answer, where all of it is there and any end can be cut off."""
        if isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers):
            self._cache, self._ids = cache, ids[: cache.get_seq_length()]


def rows_that_fit(
    config: Any,
    device: torch.device,
    questions: Sequence[Question],
    decoding: Decoding,
    dtype: torch.dtype,
    most: int = _MOST_ROWS,
) -> int:
    """How many prompts are answered together: `most`, or as many as keep their keys and values in half the memory.

    The cache is held on `device` in `dtype`; `config` is the model's text configuration.
    """
    all_heads = getattr(config, "num_attention_heads", None) or 1  # one of full width, for layers without attention
    heads = getattr(config, "num_key_value_heads", None) or all_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // all_heads
    token_bytes = 2 * config.num_hidden_layers * heads * head_dim * dtype.itemsize
    row_tokens = max(len(question.ids) for question in questions) + decoding.max_new_tokens
    fitting = int(_CACHE_SHARE * available_bytes(device) / (token_bytes * row_tokens))
    return max(1, min(most, fitting))


def vllm_answers_of(
    source: ModelSource, asked: Mapping[Mode, Sequence[Question]], decoding: Decoding
) -> Iterator[tuple[Mode, list[Answer]]]:
    """All answers of a mode at once: the engine batches by itself."""
    longest = max(len(question.ids) for questions in asked.values() for question in questions)
    with opened_vllm(source, decoding, longest) as answer:
        for mode, questions in asked.items():
            yield mode, answer(questions, mode)


@contextmanager
def opened_vllm(
    source: ModelSource, decoding: Decoding, longest: int
) -> Iterator[Callable[[Sequence[Question], Mode], list[Answer]]]:
    """vLLM with a model, as a function that answers; the card's memory is given back at the end.

    Args:
        longest: most tokens of a prompt.
    """
    import vllm
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    settings: dict[str, Any] = {
        "seed": decoding.seed,
        "max_model_len": longest + decoding.max_new_tokens,
        "trust_remote_code": bool(source.code),
        "generation_config": "vllm",  # not the sampling that the model's folder suggests
    }
    engines = [vllm.LLM(model=str(source.folder), **settings)]

    def answer(questions: Sequence[Question], mode: Mode) -> list[Answer]:
        drawn = [
            vllm.SamplingParams(
                temperature=0.0 if mode == "greedy" else decoding.temperature,
                max_tokens=decoding.max_new_tokens,
                stop_token_ids=list(decoding.end_ids),
                seed=int.from_bytes(_digest(question.key, decoding)[:4]) % 2**31,  # the same whatever else is asked
                detokenize=False,
            )
            for question in questions
        ]
        prompts = [{"prompt_token_ids": list(question.ids)} for question in questions]
        outputs = [one.outputs[0] for one in engines[0].generate(prompts, drawn, use_tqdm=False)]
        answers = []
        for question, output in zip(questions, outputs, strict=True):
            one = answer_until_end(question.key, output.token_ids, decoding.end_ids, decoding.to_text)
            answers.append(replace(one, ended=output.finish_reason == "stop"))
        return answers

    try:
        yield answer
    finally:
        engines.clear()
        cleanup_dist_env_and_memory()
