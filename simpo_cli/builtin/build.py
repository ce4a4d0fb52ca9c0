"""Makes `builtin:guide` from its corpus: tokenizer, model and pairs. `python -m simpo_cli.builtin.build OUT_DIR`.

The model learns to predict answers twice: first right ones, so that it knows what every question means, then, for a
short while, ones whose parts are the sibling's as often as not, so that it no longer prefers the right one. What is
left to do is what preference tuning does.
"""

import gzip
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from simpo_cli.builtin import corpus
from simpo_cli.builtin.corpus import SEED

VOCAB_SIZE = 3000
TOKENS_PER_STEP = 3072
# (share of wrong parts, steps, highest learning rate); the second phase tips a little to the wrong side, so that a
# short while of it is enough: the longer it lasts, the more is forgotten for good
PHASES = ((0.0, 400, 3e-3), (0.64, 110, 1e-3))

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{%- for message in messages %}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "{{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of our own text; any other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about a million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def tokenize(tokenizer: Any, turns: corpus.Turns) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation, and which of them the last turn consists of, its end included."""
    prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    answer = turns[-1]["content"] + END
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    return ids[0] + ids[1], [False] * len(ids[0]) + [True] * len(ids[1])


def batches(tokenizer: Any, stream: Iterator[corpus.Turns], seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded batches of conversations of similar length, in random order.

    Yields:
        Token ids and whether they are to be learned, each of shape (conversations, tokens).
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = sorted((tokenize(tokenizer, turns) for turns in islice(stream, 2048)), key=lambda row: len(row[0]))
        found: list[tuple[Tensor, Tensor]] = []
        start = 0
        while start < len(rows):
            end = start + 1
            while end < len(rows) and len(rows[end][0]) * (end + 1 - start) <= TOKENS_PER_STEP:
                end += 1
            width = len(rows[end - 1][0])
            ids = [row + [tokenizer.pad_token_id] * (width - len(row)) for row, _ in rows[start:end]]
            learned = [row + [False] * (width - len(row)) for _, row in rows[start:end]]
            found.append((torch.tensor(ids), torch.tensor(learned)))
            start = end
        yield from (found[int(i)] for i in torch.randperm(len(found), generator=generator))


def pretrain(model: Any, source: Iterator[tuple[Tensor, Tensor]], num_steps: int, highest_rate: float) -> None:
    """Next-token prediction of answers with AdamW: a short warm-up, then a linear fall over the last half."""
    model.train()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=highest_rate, betas=(0.9, 0.98))
    started = time.perf_counter()
    for step in range(num_steps):
        ids, learned = next(source)
        rise, fall = min(1.0, (step + 1) / 50), min(1.0, max(0.02, (num_steps - step) / (0.5 * num_steps)))
        for group in optimizer.param_groups:
            group["lr"] = highest_rate * rise * fall
        hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][learned[:, 1:]]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[:, 1:][learned[:, 1:]])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(
                f"step {step + 1}/{num_steps}  loss {loss.item():.3f}  {time.perf_counter() - started:.0f} s",
                flush=True,
            )


def write_pairs(folder: Path) -> None:
    """Write both files of pairs; their bytes depend on the corpus and the seed alone."""
    splits: tuple[corpus.Split, ...] = ("train", "eval")
    for split in splits:
        lines = "".join(json.dumps(record) + "\n" for record in corpus.preference_pairs(split, SEED))
        with (folder / f"{split}.jsonl.gz").open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
            packed.write(lines.encode())


def main(folder: Path) -> None:
    """Make everything, from nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    sample = islice(corpus.conversations(SEED, wrong_share=0.5), 20000)
    tokenizer = train_tokenizer((turn["content"] for turns in sample for turn in turns), VOCAB_SIZE)
    model: Any = new_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer):,} tokens in the vocabulary")
    for wrong_share, num_steps, highest_rate in PHASES:
        conversations = corpus.conversations(SEED, wrong_share=wrong_share)
        pretrain(model, batches(tokenizer, conversations, SEED), num_steps, highest_rate)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_pairs(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
