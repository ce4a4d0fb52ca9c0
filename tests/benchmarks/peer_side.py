"""TRL's CPO trainer as a program that takes turns: python -m tests.benchmarks.peer_side WORK.json

Runs in the peer's own environment and imports nothing of ours but the files beside it. The trainer's own `train()`
runs, with its own tokenizing, collator, data loader, forward pass, loss, clipping and fused AdamW; between two
optimizer steps a callback waits for the next turn.

What it does with SimPO, read in its source (TRL 1.16.0, trl/experimental/cpo/cpo_trainer.py):

- `simpo_gamma` is gamma, not gamma / beta: `cpo_loss` takes simpo_gamma / beta off the difference of the mean log-probs
  and multiplies by beta, which is Eq. 6 of the paper.
- `cpo_alpha` weighs an NLL term that is on by default; 0 switches it off.
- `tokenize_row` tokenizes prompt + response together and splits behind the prompt's own tokens, adds a BOS and an EOS
  where none is, cuts each response to max_length less the prompt, and never cuts a prompt. So it is given prompts that
  are cut already.
- `concatenated_forward` pads chosen and rejected to the longest of both, stacks them as 2 x micro-batch rows, and takes
  the logits of every position, prompt and padding included. The mean of a response is taken over its own tokens.
- the loss of a micro-batch is its mean, divided by the number of micro-batches: the mean over the step's pairs when all
  micro-batches have the same number of pairs, as here.
- gradient checkpointing and bf16 are on by default. Both are set here: checkpointing off, precision as asked.
"""

import sys
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.cpo import CPOConfig, CPOTrainer

from tests.benchmarks.machine import finish, peak_bytes, versions
from tests.benchmarks.process import peak_resident_bytes
from tests.benchmarks.turns import Channel, Turn
from tests.benchmarks.work import Work, WorkPair

_IGNORED = -100  # label of a token that is not scored


class PeerTrainer(CPOTrainer):  # type: ignore[misc]
    """The trainer as it is; it only keeps the loss of each micro-batch, which `train` would add up and round."""

    def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **keywords)
        self.step_losses.append(loss)
        return loss


class TakeTurns(TrainerCallback):  # type: ignore[misc]
    """Waits for a turn before each optimizer step and answers behind it.

    The clock starts when the turn comes, before the trainer fetches and collates the step's batches, and stops when the
    optimizer has moved and the gradients are cleared.
    """

    def __init__(self, channel: Channel, pairs_per_step: int) -> None:
        self.channel = channel
        self.pairs_per_step = pairs_per_step
        self.trainer: PeerTrainer | None = None
        self.turn: Turn | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - the trainer's names
        self.turn = self.channel.wait()
        control.should_training_stop = self.turn is None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.trainer is not None
        assert self.turn is not None
        finish(args.device)
        measured = self.turn.measured()
        metrics = self.trainer._stored_metrics["train"]
        self.channel.say(
            **measured,
            pairs=self.pairs_per_step,
            loss=sum(loss.item() for loss in self.trainer.step_losses),
            logps_chosen=fmean(metrics["logps/chosen"]),
            logps_rejected=fmean(metrics["logps/rejected"]),
            microbatches=len(self.trainer.step_losses),
            peak_bytes=peak_bytes(args.device),
        )
        self.trainer.step_losses.clear()
        metrics.clear()
        if state.global_step < state.max_steps:
            self.turn = self.channel.wait()
            control.should_training_stop = self.turn is None


def features_of(pair: WorkPair) -> dict[str, list[int]]:
    """The columns that `tokenize_row` makes, from ids instead of text."""
    columns: dict[str, list[int]] = {}
    for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        columns[f"{name}_input_ids"] = pair.prompt + response
        columns[f"{name}_attention_mask"] = [1] * (len(pair.prompt) + len(response))
        columns[f"{name}_labels"] = [_IGNORED] * len(pair.prompt) + response
    columns["prompt_input_ids"] = pair.prompt
    columns["prompt_attention_mask"] = [1] * len(pair.prompt)
    return columns


def scored_ids(row: dict[str, Any]) -> dict[str, list[int]]:
    """Which tokens a row of the trainer's data set scores, and behind which prompt each response stands."""
    ids = {}
    for name in ("chosen", "rejected"):
        masked = row[f"{name}_labels"].count(_IGNORED)
        ids[f"{name}_prompt"] = row[f"{name}_input_ids"][:masked]
        ids[name] = row[f"{name}_labels"][masked:]
    return ids


def make_trainer(work: Work, folder: str, callback: TakeTurns) -> tuple[PeerTrainer, int]:
    """The trainer over the pairs of the work, and how many of them had to be given as ids.

    Every pair is given as text. Where the trainer's own tokenizing does not arrive at the pair's ids, because the text
    of a cut prompt is tokenized differently or holds the literal of a special token, its row is replaced.
    """
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    config = CPOConfig(
        output_dir=folder,
        loss_type="simpo",
        cpo_alpha=0.0,
        beta=work.beta,
        simpo_gamma=work.gamma,
        max_length=work.max_length,
        per_device_train_batch_size=work.microbatch,
        gradient_accumulation_steps=work.pairs_per_step // work.microbatch,
        num_train_epochs=1,
        learning_rate=work.learning_rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=work.precision == "bf16",
        gradient_checkpointing=False,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )
    names = ("prompt", "chosen", "rejected")
    texts = [dict(zip(names, pair.texts or ("a", "b", "c"), strict=True)) for pair in work.pairs]
    trainer = PeerTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(texts),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.step_losses = []
    callback.trainer = trainer
    rows = list(trainer.train_dataset)
    replaced = 0
    for i, pair in enumerate(work.pairs):
        if scored_ids(rows[i]) != pair.scored:
            rows[i] = {**rows[i], **features_of(pair)}
            replaced += 1
    if replaced:
        trainer.train_dataset = Dataset.from_list(rows)
    return trainer, replaced


def main() -> None:
    """Build the trainer, say what it will score, train by turns."""
    channel = Channel()
    work = Work.load(Path(sys.argv[1]))
    torch.set_num_threads(work.threads)
    libraries = peak_resident_bytes()
    with tempfile.TemporaryDirectory() as folder:
        trainer, replaced = make_trainer(work, folder, TakeTurns(channel, work.pairs_per_step))
        channel.say(
            num_parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
            libraries_bytes=libraries,
            scored=[scored_ids(row) for row in trainer.train_dataset],
            given_as_ids=replaced,
            versions=versions("trl", "torch", "transformers", "accelerate", "tokenizers", "datasets"),
        )
        trainer.train()


if __name__ == "__main__":
    main()
