"""A small reward model for trials of `simpo pairs score`, and not a good one: it has seen a few hundred pairs.

    python -m tests.benchmarks.reward_model --model FOLDER --data PAIRS.json --output FOLDER

Puts a head of one output on the first layers of a causal model, and trains the head and the last of these layers by the
loss of Bradley and Terry, -log sigmoid(r_chosen - r_rejected). Pairs with a text over --tokens are left out. What is
saved is read again by `RewardModel`, as a scoring would, and its accuracy on held-out pairs is printed.
"""

import argparse
import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from simpo_cli import statistics
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import PreferencePair, prompt_key, prompt_messages
from simpo_cli.data.tokenizer import EncodingError, TemplateError, TextTokenizer, load_tokenizer
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.pairs.reward_model import RewardModel, conversation_ids
from simpo_cli.pairs.scorer import Answered

_SEED = 0
_PAIRS_PER_STEP = 4
_HEAD_RATE, _LAYER_RATE = 1e-3, 1e-4


class ReadPair(NamedTuple):
    """A pair and the tokens of both conversations, each with its answer."""

    pair: PreferencePair
    chosen: list[int]
    rejected: list[int]


def main() -> None:
    """Read the command line, train, save, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the folder of a causal model with a chat template")
    parser.add_argument("--data", required=True, help="a file of pairs")
    parser.add_argument("--output", required=True, type=Path, help="the folder to write")
    parser.add_argument("--pairs", type=int, default=200, help="to train on")
    parser.add_argument("--held-out", type=int, default=50, help="pairs of other prompts, to measure with")
    parser.add_argument("--steps", type=int, default=60, help=f"of {_PAIRS_PER_STEP} pairs")
    parser.add_argument("--tokens", type=int, default=256, help="most of a conversation with its answer")
    parser.add_argument("--layers", type=int, default=12, help="that are kept, the first ones")
    parser.add_argument("--trained-layers", type=int, default=4, help="the last of them")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    held_out, pairs = _chosen(options.data, tokenizer, options.tokens, options.held_out, options.pairs)
    print(f"{len(pairs)} pairs to train on, {len(held_out)} held out, of at most {options.tokens} tokens a text")
    torch.manual_seed(_SEED)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=1, num_hidden_layers=options.layers, dtype=torch.float32
    )
    _train(model, pairs, options.steps, options.trained_layers)
    model.save_pretrained(options.output)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(options.output)
    print(f"held-out accuracy: {_accuracy(options.output, held_out)}")


def _chosen(
    data: str, tokenizer: TextTokenizer, most_tokens: int, num_held_out: int, num_pairs: int
) -> tuple[list[ReadPair], list[ReadPair]]:
    """Held-out pairs and pairs to train on, of other prompts, drawn from those that fit."""
    by_prompt: dict[str, list[ReadPair]] = {}
    for pair in PairReader(data, role="train", on_bad_record="skip"):
        turns = prompt_messages(pair.prompt)
        try:
            read = ReadPair(pair, *(conversation_ids(tokenizer, turns, text) for text in (pair.chosen, pair.rejected)))
        except (TemplateError, EncodingError):
            continue
        if max(len(read.chosen), len(read.rejected)) <= most_tokens:
            by_prompt.setdefault(prompt_key(pair), []).append(read)
    prompts = sorted(by_prompt)
    random.Random(_SEED).shuffle(prompts)
    held_out: list[ReadPair] = []
    while prompts and len(held_out) < num_held_out:
        held_out += by_prompt[prompts.pop()]
    pairs = list(itertools.chain.from_iterable(by_prompt[prompt] for prompt in prompts))[:num_pairs]
    if not pairs:
        raise SystemExit(f"{data} holds too few pairs whose texts have at most {most_tokens} tokens.")
    return held_out, pairs


def _train(model: Any, pairs: Sequence[ReadPair], steps: int, num_layers: int) -> None:
    model.requires_grad_(False)
    last = [*model.base_model.layers[-num_layers:], model.base_model.norm]
    layers = [one for module in last for one in module.requires_grad_(True).parameters()]
    head = list(model.score.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW([{"params": head, "lr": _HEAD_RATE}, {"params": layers, "lr": _LAYER_RATE}])
    draw, started = random.Random(_SEED), time.monotonic()
    for step in range(1, steps + 1):
        batch = draw.sample(pairs, min(_PAIRS_PER_STEP, len(pairs)))
        rewards = torch.stack([_rewards(model, one) for one in batch])  # (pairs, 2)
        loss = -logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.3f}, {time.monotonic() - started:.0f} s", flush=True)


def _rewards(model: Any, pair: ReadPair) -> Tensor:
    """(2,) rewards of the chosen and the rejected response, each read by itself."""
    return torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in (pair.chosen, pair.rejected)])


def _accuracy(folder: Path, pairs: Sequence[ReadPair]) -> str:
    """How often the saved model prefers the chosen response, a tie counting one half."""
    scorer = RewardModel(str(folder))
    won, keys = list[float](), list[str]()
    for pair, _, _ in pairs:
        question = Question(prompt_key(pair), prompt_messages(pair.prompt), (), pair.where)
        texts = [Answer(question.key, text, (), ended=True) for text in (pair.chosen, pair.rejected)]
        chosen, rejected = (score.value for score in scorer.score([Answered(question, one) for one in texts]))
        assert chosen is not None
        assert rejected is not None
        won.append(0.5 if chosen == rejected else float(chosen > rejected))
        keys.append(question.key)
    found = statistics.proportion(won, keys)
    return f"{found.value:.3f}, 95 % interval {found.low:.3f} to {found.high:.3f}, n = {found.n}"


if __name__ == "__main__":
    main()
