"""The library's door: the names that users of the method know, over the code that the commands run.

from simpo_cli import PreferenceDataset, SimPOConfig, SimPOTrainer

dataset = PreferenceDataset("prefs.json")
trainer = SimPOTrainer(model, SimPOConfig(beta=2.0, gamma=1.0, lr=1e-6, batch_size=4), tokenizer)
loss = trainer.train_step(dataset[:4])
"""

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from simpo_cli.audit.dataset import PreferenceDataset
from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.formats import NoSignalError, detect, to_pair
from simpo_cli.data.pair import EncodedPair, PreferencePair, RecordError
from simpo_cli.data.plan import Packing, row_tokens_of_each
from simpo_cli.data.tokenizer import TextTokenizer, from_transformers, load_tokenizer
from simpo_cli.errors import ExitCode, UserError, for_python, in_python
from simpo_cli.model.attention.interface import why_not_shared
from simpo_cli.model.device import join_accelerator
from simpo_cli.model.load import apply_soft_cap, switch_off_dropout
from simpo_cli.model.policy import Policy
from simpo_cli.model.quantised import use_own_products
from simpo_cli.model.self_check import CheckPairs, SelfCheck, choose_packing
from simpo_cli.model.shares import Share
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import DataRecipe, DataSource, LossRecipe, LossType, TrainRecipe
from simpo_cli.recipe.validate import refused_value
from simpo_cli.stages import Pulse
from simpo_cli.train.optimizer import make_optimizer
from simpo_cli.train.step import accumulate, clip_gradients

__all__ = ["PreferenceDataset", "SimPOConfig", "SimPOTrainer"]

_SECONDS_OF_SILENCE = 3.0


@dataclass(frozen=True, kw_only=True)
class SimPOConfig:
    """What a step of SimPO depends on, with the authors' defaults.

    Attributes:
        beta: scale of the reward.
        gamma: target reward margin, in units of the reward (half of beta when it is not given).
        lr: learning rate, constant here: the schedule belongs to a run, see `simpo train`.
        batch_size: most pairs in memory at once; it never changes what a step computes.
        loss_type, label_smoothing, sft_weight: as in a recipe's `loss` section.
        max_length, max_prompt_length: as in a recipe's `data` section.
        max_grad_norm: gradients are scaled down to this norm.
        precision: arithmetic of forward and backward pass, as in a recipe's `train` section: `auto` is bf16 autocast
            where the device multiplies in it, else float32; where your program has an `Accelerator`, it is that one's.

    Raises:
        ValueError: a value is out of its range.
    """

    beta: float = 2.0
    gamma: float | None = None
    lr: float = 1e-6
    batch_size: int = 4
    loss_type: LossType = "sigmoid"
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    max_length: int = 2048
    max_prompt_length: int = 1800
    max_grad_norm: float = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    def __post_init__(self) -> None:
        refused = refused_value(
            loss=self._loss,
            data={"max_length": self.max_length, "max_prompt_length": self.max_prompt_length},
            train={
                "tokens_per_microbatch": self.batch_size,
                "learning_rate": self.lr,
                "max_grad_norm": self.max_grad_norm,
                "precision": self.precision,
            },
        )
        if refused is not None:
            raise ValueError(in_python(f"{refused.problem} {refused.fix}"))

    @property
    def _loss(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("beta", "gamma", "label_smoothing", "sft_weight")}
        return {"type": self.loss_type, **named}

    @property
    def loss(self) -> LossRecipe:
        """The objective as a recipe has it."""
        return LossRecipe(**self._loss)

    @property
    def data(self) -> DataRecipe:
        """The limits as a recipe has them."""
        nothing = [DataSource(path="in memory")]
        return DataRecipe(train=nothing, max_length=self.max_length, max_prompt_length=self.max_prompt_length)


class SimPOTrainer:
    """SimPO on a model of one's own, one step at a time.

    Args:
        model: a causal language model of transformers, perhaps with peft adapters; or any torch module, where batches
            are of tensors that you compute with it. Moved to the GPU if there is one. Its trained weights should be
            float32: bfloat16 weights have eight significant bits, and are rounded stochastically.
        config: see `SimPOConfig`.
        tokenizer: a tokenizer of transformers, a folder or hub id that holds one, or None for the folder or id that the
            model was loaded from. Only batches of texts need it.

    Attributes:
        precision: arithmetic of forward and backward pass: `bf16` (autocast) or `fp32`.

    Raises:
        UserError: the precision cannot be had here, or a launcher started several processes.
    """

    def __init__(self, model: nn.Module, config: SimPOConfig, tokenizer: Any = None) -> None:
        self.config = config
        self._accelerator, self.precision = join_accelerator(config.precision)
        self.model = model.to(self._accelerator.device)
        """The model, with the weights of the last step."""
        self._policy: Policy | None = None
        if _is_causal(model):
            switch_off_dropout(model)
            apply_soft_cap(model)
            use_own_products(model)
            self._policy = Policy(model)
        model.train()
        self._optimizer = make_optimizer(model, TrainRecipe())
        for group in self._optimizer.param_groups:
            group["lr"] = config.lr
        self._tokenizer = tokenizer
        self._steps = 0
        self._check: SelfCheck | None = None
        self._longest_checked = 0

    def compute_loss(
        self, chosen_logps: Tensor, rejected_logps: Tensor, chosen_len: Tensor, rejected_len: Tensor
    ) -> Tensor:
        """Mean SimPO loss of pairs (arXiv:2405.14734, Eq. 6), with gradient.

        Args:
            chosen_logps: (P,) log-probability of each preferred response, summed over its tokens.
            rejected_logps: (P,) the same for the other response.
            chosen_len: (P,) tokens of each preferred response, above 0.
            rejected_len: (P,) the same for the other response.

        Raises:
            ValueError: a length is not above 0.
        """
        for name, lengths in (("chosen_len", chosen_len), ("rejected_len", rejected_len)):
            if not bool((torch.as_tensor(lengths) > 0).all()):
                raise ValueError(f"{name} holds a length that is not above 0: such a response has no mean log-prob")
        objective = Objective(self.config.loss)
        return objective.terms(chosen_logps / chosen_len, rejected_logps / rejected_len).losses.mean()

    def train_step(
        self, batch: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]] | Sequence[Tensor] | Mapping[str, Tensor]
    ) -> float:
        """One optimizer step on all pairs of a batch.

        Args:
            batch: records with prompt, chosen and rejected, or one mapping of these columns; or the four tensors of
                `compute_loss`, in its order or by its names, of which the log-probs hold a gradient.

        Returns:
            The mean loss of the pairs before the step.

        Raises:
            UserError: a record is malformed or without signal, or a number is not finite; the weights have not moved.
        """
        if (tensors := _tensors_of(batch)) is not None:
            return self._step_on(*tensors)
        if self._policy is None:
            raise TypeError(
                f"{type(self.model).__name__} is no causal language model of transformers, so texts cannot be scored "
                f"with it. Give train_step the four tensors of compute_loss: {', '.join(_TENSORS)}."
            )
        try:
            return self._step_on_texts(self._policy, _pairs_of(batch))
        except UserError as error:
            raise for_python(error) from error

    def _step_on(self, chosen_logps: Tensor, rejected_logps: Tensor, chosen_len: Tensor, rejected_len: Tensor) -> float:
        """One optimizer step on log-probs that somebody else has computed with the model."""
        self._optimizer.zero_grad()
        loss = self.compute_loss(chosen_logps, rejected_logps, chosen_len, rejected_len)
        if not loss.requires_grad:
            raise ValueError("the log-probs hold no gradient: compute them with the model, outside torch.no_grad()")
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not math.isfinite(loss.item()) or not math.isfinite(norm):
            self._optimizer.zero_grad()
            raise UserError(
                f"the loss is {loss.item():g} and the norm of its gradient {norm:g}.",
                "The weights have not moved. Look for log-probs that are not finite, or lower lr.",
                exit_code=ExitCode.NUMBERS,
            )
        return self._moved(loss.item(), norm)

    def _moved(self, loss: float, norm: float) -> float:
        """Take the optimizer's step, and give back the loss."""
        clip_gradients(self.model, self.config.max_grad_norm, norm=norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._steps += 1
        return loss

    def _step_on_texts(self, policy: Policy, texts: Sequence[PreferencePair]) -> float:
        pairs = self._encode(texts)
        size = self.config.batch_size
        packing = self._choose_packing(policy, pairs)
        longest_first = sorted(range(len(pairs)), key=lambda i: -pairs[i].num_tokens)
        cut = [longest_first[i : i + size] for i in range(0, len(pairs), size)]
        with policy.packed(packing):
            sums = accumulate(
                policy, pairs, Share(cut), loss=self.config.loss, accelerator=self._accelerator, step=self._steps
            )
        return self._moved(sums.loss / sums.pairs, sums.grad_norm)

    def _choose_packing(self, policy: Policy, pairs: Sequence[EncodedPair]) -> Packing:
        """How pairs go through the model: chosen at the first step, and again when longer pairs than ever come."""
        longest = int(row_tokens_of_each(pairs).max())
        if self._check is None or longest > self._longest_checked:
            why_padded = why_not_shared(type(policy.causal), policy.causal.config, longest)
            with Pulse(_say, silence=_SECONDS_OF_SILENCE):  # a line on stderr now and then
                self._check = choose_packing(policy, "auto", why_padded, CheckPairs.of(pairs, pairs[:1]))
            self._longest_checked = longest
            policy.packing = "padded"
        return self._check.packing

    def _encode(self, pairs: Sequence[PreferencePair]) -> list[EncodedPair]:
        encoded = encode_pairs(pairs, self._text_tokenizer(), self.config.data)
        for bad in encoded.bad:
            raise UserError(bad.problem, bad.fix, where=bad.where)
        if encoded.dropped:
            raise UserError(
                f"{sum(encoded.dropped.values())} pairs of the batch carry no signal: {', '.join(encoded.dropped)}.",
                "Leave such pairs out of the batch.",
            )
        return encoded.pairs

    def _text_tokenizer(self) -> TextTokenizer:
        if self._tokenizer is None:
            assert self._policy is not None
            self._tokenizer = str(self._policy.causal.config._name_or_path)
        if isinstance(self._tokenizer, str):
            self._tokenizer = load_tokenizer(self._tokenizer)
        elif not isinstance(self._tokenizer, TextTokenizer):
            self._tokenizer = from_transformers(self._tokenizer)
        return self._tokenizer


_TENSORS = ("chosen_logps", "rejected_logps", "chosen_len", "rejected_len")


def _tensors_of(batch: Any) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The four tensors of a batch, by their names or in their order; None where it is one of texts."""
    if isinstance(batch, Mapping):
        if not set(_TENSORS) & set(batch):
            return None
        if missing := [name for name in _TENSORS if name not in batch]:
            raise ValueError(f"the batch lacks {', '.join(missing)}")
        values = [batch[name] for name in _TENSORS]
    else:
        values = list(batch)
        if not any(isinstance(value, Tensor) for value in values):
            return None
        if len(values) != len(_TENSORS):
            raise ValueError(f"the batch holds {len(values)} tensors, and four are wanted: {', '.join(_TENSORS)}")
    chosen, rejected, chosen_len, rejected_len = (torch.as_tensor(value) for value in values)
    return chosen, rejected, chosen_len, rejected_len


def _is_causal(model: nn.Module) -> bool:
    """Whether it is a causal language model of transformers, perhaps with adapters."""
    from transformers import PreTrainedModel

    base: Any = getattr(model, "get_base_model", lambda: model)()
    return isinstance(base, PreTrainedModel)


def _say(text: str) -> None:
    print(f"simpo: {text}", file=sys.stderr, flush=True)


def _pairs_of(batch: Any) -> list[PreferencePair]:
    if isinstance(batch, Mapping):
        names = list(batch)
        records = [dict(zip(names, row, strict=True)) for row in zip(*batch.values(), strict=True)]
    else:
        records = [dict(record) for record in batch]
    if not records:
        raise UserError("the batch is empty.", "Give at least one pair.")
    layout = detect(records, {}, "batch")
    pairs = []
    for number, record in enumerate(records):
        where = f"batch, record {number + 1}"
        try:
            pairs += [to_pair(fields, layout, where, Counter()) for fields in layout.rewritten(record)]
        except RecordError as error:
            raise UserError(error.problem, error.fix, where=where) from error
        except NoSignalError as error:
            raise UserError(f"carries no signal: {error.reason}.", "Leave the pair out.", where=where) from error
    return pairs
