"""Before the first step: does the policy compute what the model itself computes?

Sharing prompts changes what a model's layers see, and taking the head in chunks leaves its own forward aside. Both are
exact for the models that we know, and a model that we do not know may break either without a word. So a few pairs of
the run are scored both ways, in float32 and without autocast (in bfloat16 a wrong mask can hide in the rounding):
through the policy, and through the model's own untouched forward, one sequence at a time, down to its own logits.
Products are those of IEEE float32 meanwhile, whatever TF32 setting the process has. Weights that are not float32 are
checked by a copy of the first layers; where they are quantised, the model's own forward is that of the plain layers
that they stand for. Of a larger vocabulary the copy knows the first 16,384 tokens, which stand for the others as well,
so that the check of an 8 B model in 4 bits fits the card that its steps fit.

At most 4,096 tokens are compared, so that a large model takes seconds: what only shows beyond, such as a window of
4,096 tokens, is not seen.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Packing, tokens_of_each
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.attention.interface import has_kernel, heads_of, kernel_difference
from simpo_cli.model.backend import backend_of
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy, decoder_of, trainable
from simpo_cli.model.quantised import dequantise, is_quantised
from simpo_cli.stages import stage

MOST_TOKENS = 4096  # of all that is compared
MOST_TOKEN_DIFFERENCE = 1e-3  # nats
MOST_MEAN_DIFFERENCE = 1e-4  # nats
MOST_GRADIENT_DIFFERENCE = 1e-3  # relative to the gradient's norm
MOST_KERNEL_DIFFERENCE = 0.03  # relative, in bf16

_MOST_IDS = 1 << 14  # of a copy's vocabulary
_NORM_PART = 1 << 22  # numbers that are squared at a time: 32 MB in float64


@dataclass(frozen=True, slots=True)
class Difference:
    """Policy against the model's own forward."""

    tokens: int  # of responses, compared
    highest: float  # absolute difference of their log-probs, nats
    mean: float
    gradient: float | None  # norm of the gradients' difference over the norm of the model's own, if it was taken

    @property
    def is_rounding(self) -> bool:
        """Whether it is small enough to be rounding. Not so when a number is not finite."""
        return (
            self.highest <= MOST_TOKEN_DIFFERENCE
            and self.mean <= MOST_MEAN_DIFFERENCE
            and (self.gradient is None or self.gradient <= MOST_GRADIENT_DIFFERENCE)
        )

    def in_words(self) -> str:
        """How far apart, when it is more than rounding."""
        gradient = "" if self.gradient is None else f", gradient by {self.gradient:.1g} of its norm"
        return f"log-probs differ by up to {self.highest:.1g} nats{gradient}"

    def __str__(self) -> str:
        gradient = "" if self.gradient is None else f", gradient to {self.gradient:.0e}"
        return f"{self.tokens:,} tokens equal to {self.highest:.0e} nats{gradient}"


@dataclass(frozen=True, slots=True)
class SelfCheck:
    """How pairs will go through the model, and the evidence."""

    packing: Packing
    why_padded: str | None  # None where prompts are shared, and where the recipe asked for padded rows
    difference: Difference | None  # of the packing in use; None where it could not be taken
    why_by_segment: str | None = None  # not by FlexAttention, which caps scores on a card; runs of before do not say

    def as_json(self) -> dict[str, Any]:
        """Its part of run.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SelfCheck":
        """The outcome that `as_json` gave, here or in a later version."""
        known = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        difference = content["difference"]
        return cls(**{**known, "difference": None if difference is None else Difference(**difference)})

    def __str__(self) -> str:
        how = "prompts shared" if self.packing == "shared_prefix" else "padded rows"
        because = f" ({self.why_padded})" if self.why_padded else ""
        if self.why_by_segment:
            how += f", soft-capped attention segment by segment ({self.why_by_segment})"
        return f"{how}{because} · self-check: {self.difference or 'not possible for this model'}"


@dataclass(frozen=True, slots=True)
class CheckPairs:
    """What is compared.

    At most 4,096 tokens in all. Of longer pairs the last part of the prompt and the first parts of the responses are
    taken, in proportion.

    Attributes:
        batches: pairs that are packed together: the longest pair by itself, cut to 2,048 tokens, and as many whole
            pairs of the fullest micro-batch as fit beside it; two at least, cut where they have to be.
        shortest: the pair whose gradient is compared, cut to 1,024 tokens; None where nothing is trained.
    """

    batches: Sequence[Sequence[EncodedPair]]
    shortest: EncodedPair | None

    @classmethod
    def of(cls, pairs: Sequence[EncodedPair], fullest: Sequence[EncodedPair], *, trained: bool = True) -> "CheckPairs":
        """What to compare of the pairs of a run.

        Args:
            pairs: all that will be scored.
            fullest: the micro-batch with most tokens.
            trained: whether gradients will be taken.
        """
        tokens = tokens_of_each(pairs, "shared_prefix")
        longest = _cut_to(pairs[int(tokens.argmax())], MOST_TOKENS // 2)
        shortest = _cut_to(pairs[int(tokens.argmin())], MOST_TOKENS // 4) if trained else None
        room = MOST_TOKENS - longest.num_tokens - (0 if shortest is None else shortest.num_tokens)
        return cls([[longest], _fitting(fullest, room)], shortest)

    def below(self, num_ids: int) -> "CheckPairs":
        """The same with tokens whose ids are all below a number, for a model that knows no others."""

        def replaced(pair: EncodedPair) -> EncodedPair:
            return replace(
                pair, prompt=pair.prompt % num_ids, chosen=pair.chosen % num_ids, rejected=pair.rejected % num_ids
            )

        batches = [[replaced(pair) for pair in batch] for batch in self.batches]
        return CheckPairs(batches, None if self.shortest is None else replaced(self.shortest))


def _fitting(pairs: Sequence[EncodedPair], room: int) -> list[EncodedPair]:
    """As many pairs as the room takes, the shortest first, in their order; all whole but the first two."""
    half = room // 2
    kept: dict[int, EncodedPair] = {}
    for i in sorted(range(len(pairs)), key=lambda i: pairs[i].num_tokens):
        pair = pairs[i] if len(kept) >= 2 else _cut_to(pairs[i], half)
        if pair.num_tokens > room:
            break
        kept[i] = pair
        room -= pair.num_tokens
    return [kept[i] for i in sorted(kept)]


def _cut_to(pair: EncodedPair, most: int) -> EncodedPair:
    """The pair where it has at most so many tokens (3 or more), else a part of each of its three parts."""
    if pair.num_tokens <= most:
        return pair
    chosen, rejected = (max(1, len(part) * (most - 2) // pair.num_tokens) for part in (pair.chosen, pair.rejected))
    prompt = pair.prompt[-(most - chosen - rejected) :]
    return replace(pair, prompt=prompt, chosen=pair.chosen[:chosen], rejected=pair.rejected[:rejected])


@stage("self-check")
def choose_packing(
    policy: Policy, wanted: Literal["auto", "shared_prefix", "padded"], why_padded: str | None, pairs: CheckPairs
) -> SelfCheck:
    """Choose how pairs go through the model, and set the policy to it.

    Prompts are shared unless the recipe or the model speaks against it, or the comparison fails; then rows are padded,
    and those are compared too.

    Args:
        policy: the model in place, its gradients empty; they are empty afterwards.
        why_padded: what is known to speak against sharing (see `interface.why_not_shared`), or None.

    Raises:
        UserError: prompts must be shared and cannot be; or the model's own numbers come out neither way, or are not
            finite.
    """
    why_by_segment = None
    if wanted != "padded" and why_padded is None:
        why_not = _why_not_this_kernel(policy, pairs)
        if _soft_cap(policy) is None:
            why_padded = why_not
        else:  # there is another way to share prompts
            policy.flex, why_by_segment = why_not is None, why_not
    if wanted != "padded" and why_padded is None:
        shared = _compare(policy, "shared_prefix", pairs)
        if isinstance(shared, Difference) and shared.is_rounding:
            policy.packing = "shared_prefix"
            return SelfCheck("shared_prefix", None, shared, why_by_segment)
        why_padded = shared if isinstance(shared, str) else f"sharing them is not exact here: {shared.in_words()}"
    if wanted == "shared_prefix":
        raise UserError(
            f"model.attention is shared_prefix, and this model cannot share prompts: {why_padded}.",
            "Set model.attention: auto, which falls back to padded rows.",
            key="model.attention",
        )
    policy.packing = "padded"
    padded = _compare(policy, "padded", pairs)
    if isinstance(padded, Difference) and not padded.is_rounding:
        if padded.highest == torch.inf:
            raise UserError(
                "the model's log-probs are not finite.",
                "Its weights are damaged, or came from a run that was not stopped in time: use another model.",
                exit_code=ExitCode.NUMBERS,
            )
        raise UserError(
            f"what is computed here is not what this model computes itself: {padded.in_words()}.",
            "Something stands between its layers and its logits that this version does not know: use another model.",
        )
    if isinstance(padded, str):
        _require_computable(policy, pairs)
    return SelfCheck(
        "padded", None if wanted == "padded" else why_padded, padded if isinstance(padded, Difference) else None
    )


def _require_computable(policy: Policy, pairs: CheckPairs) -> None:
    """Refuse a model that padded rows cannot go through; where its own forward alone fails, it may still be trained."""
    shortest = min((pair for batch in pairs.batches for pair in batch), key=lambda pair: pair.num_tokens)
    try:
        with torch.no_grad():
            policy(pack([shortest], policy.device))
    except Exception as error:
        raise UserError(
            f"this model cannot be computed here: {type(error).__name__}: {error}.".splitlines()[0],
            "Its get_decoder() has to give layers that take input_ids and use_cache and return last_hidden_state, and "
            "get_output_embeddings() the head behind them: use another model.",
        ) from error


def _soft_cap(policy: Policy) -> float | None:
    """What the scores of the model's attention are capped at."""
    cap = getattr(policy.causal.config.get_text_config(), "attn_logit_softcapping", None)
    return None if cap is None else float(cap)


def _why_not_this_kernel(policy: Policy, pairs: CheckPairs) -> str | None:
    """On a card that has the kernel that these layers want: whether it computes what it should, for these pairs."""
    config, softcap, device = policy.causal.config.get_text_config(), _soft_cap(policy), policy.device
    heads = heads_of(config)
    state = torch.empty(1, heads.queries, 1, heads.width, dtype=torch.bfloat16, device=device)
    if not has_kernel(state, state, state, softcap):
        return None
    spans = pack(pairs.batches[-1][:4], device).spans
    try:
        windows = {None, getattr(config, "sliding_window", None)}
        worst = max(kernel_difference(spans, heads, window, softcap, device) for window in windows)
    except Exception as error:  # whatever the kernel raises here, it would raise in training
        return f"{type(error).__name__}: {error}".splitlines()[0]
    if worst <= MOST_KERNEL_DIFFERENCE:
        return None
    return f"this card's attention kernel differs from plain attention by {worst:.1g} of its norm"


def _compare(policy: Policy, packing: Packing, pairs: CheckPairs) -> Difference | str:
    """The difference under a packing, or why it could not be taken."""
    try:
        checked = _in_float32(policy)
        own = _dequantised(checked)
        with checked.packed(packing):
            return _difference(checked, own, pairs if checked is policy else pairs.below(_MOST_IDS))
    except Exception as error:  # whatever a model raises here, it would raise in training
        return f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        policy.zero_grad()


def _difference(policy: Policy, plain: Policy, pairs: CheckPairs) -> Difference:
    """How far a policy is from a model's own forward, that of `plain`, which may be the policy itself."""
    device = policy.device
    highest = total = 0.0
    count = 0
    with torch.autocast(device.type, enabled=False), _ieee_float32(), without_dropout(policy), without_dropout(plain):
        for batch in pairs.batches:
            with torch.no_grad():
                ours = policy(pack(batch, device))
                own = torch.cat([_own_logps(plain, pair, r) for pair in batch for r in (pair.chosen, pair.rejected)])
            apart = (ours - own).abs()
            # a comparison with NaN is never true, so what is not finite would pass for equal
            highest = max(highest, float(apart.max().nan_to_num(nan=torch.inf)))
            total += float(apart.sum())
            count += len(apart)
        gradient = None if pairs.shortest is None else _gradient_difference(policy, plain, pairs.shortest)
    return Difference(count, highest, total / count, gradient)


def _gradient_difference(policy: Policy, plain: Policy, pair: EncodedPair) -> float:
    """Relative difference of the gradient of an uneven sum of both means: no part of it cancels or saturates.

    The second gradient is added to the negative of the first, so that there is never more than one.
    """
    policy.zero_grad()
    plain.zero_grad()
    # one response after the other, so that their whole logits are never there together
    for response, weight in ((pair.chosen, -1.0), (pair.rejected, 0.5)):
        torch.autograd.backward(weight * _own_logps(plain, pair, response).mean())
    norm = gradient_norm(plain)
    if plain is not policy:
        own = trainable(plain)
        for name, parameter in trainable(policy).items():
            parameter.grad = own[name].grad
    chosen, rejected = policy.response_means(pack([pair], policy.device))
    torch.autograd.backward((chosen - 0.5 * rejected).sum())
    apart = gradient_norm(policy)
    return apart / norm if norm else float(apart > 0)


def gradient_norm(policy: Policy) -> float:
    """Norm of all gradients together, in the widest type of the device; 0 where there are none."""
    squares = [
        part.to(backend_of(part.device).widest).square().sum()
        for parameter in policy.parameters()
        if parameter.grad is not None
        for part in torch.split(parameter.grad.flatten(), _NORM_PART)
    ]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0


def _own_logps(policy: Policy, pair: EncodedPair, response: NDArray[np.int32]) -> Tensor:
    """Log-probs of one of the pair's responses from the model's own forward and logits, as a sequence by itself."""
    ids = torch.tensor([[*pair.prompt.tolist(), *response.tolist()]], device=policy.device)
    with policy.untouched() as causal:
        logits = causal(input_ids=ids, use_cache=False).logits[0, len(pair.prompt) - 1 : -1]
    logps = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    return logps.gather(1, ids[0, len(pair.prompt) :, None]).squeeze(1)


@contextmanager
def _ieee_float32() -> Iterator[None]:
    """Matrix products and convolutions of float32 without TF32 or bfloat16 inside, and every setting as it was after.

    torch has an older and a newer interface to this, which write to the same settings, and reads that find the two at
    odds raise. A setting of the newer one that is `none` follows those above it, so they are read from the top down,
    each with all above it at `none`.
    """
    backends: Any = torch.backends
    cudnn, mkldnn = backends.cudnn, backends.mkldnn
    settings = [backends, cudnn, backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]
    before = []
    for setting in settings:
        before.append(setting.fp32_precision)
        setting.fp32_precision = "none"
    older_matmul = torch.get_float32_matmul_precision()
    try:
        older_cudnn = cudnn.allow_tf32
    except RuntimeError:  # it is on, and none of the newer ones is
        older_cudnn = True
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older_matmul)
        cudnn.allow_tf32 = older_cudnn
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@contextmanager
def without_dropout(policy: Policy) -> Iterator[None]:
    """Adapters may have dropout, which no two forward passes would share."""
    active = [module for module in policy.modules() if isinstance(module, nn.Dropout) and module.training]
    for module in active:
        module.eval()
    try:
        yield
    finally:
        for module in active:
            module.train()


def _in_float32(policy: Policy) -> Policy:
    """The policy itself where its weights are float32, else a copy in float32 of its first layers and tokens."""
    dtypes = {parameter.dtype for parameter in policy.parameters()}
    return policy if dtypes <= {torch.float32, torch.float64} else first_layers(policy, _MOST_IDS)


def first_layers(policy: Policy, most_ids: int | None = None) -> Policy:
    """A copy in float32 of a policy's first layers, as many as it takes to meet each kind that the model has.

    Args:
        most_ids: the copy's embedding and head know the tokens below it and no others, where they are plain modules.
    """
    decoder, layers = decoder_of(policy.causal), policy.layers
    [name] = [name for name, child in decoder.named_children() if child is layers]
    kinds = getattr(policy.causal.config.get_text_config(), "layer_types", None) or ["same"] * len(layers)
    setattr(decoder, name, layers[: max(kinds.index(kind) for kind in set(kinds)) + 1])
    smaller = {} if most_ids is None else _first_rows(policy, most_ids)
    try:
        copied = copy.deepcopy(policy.model, smaller)  # which takes what it is given for copied
    finally:
        setattr(decoder, name, layers)
    nn.Module.float(copied)  # transformers' own refuses a model with quantised layers, which this leaves as they are
    checked = Policy(copied, "padded")
    if most_ids is not None and smaller:
        checked.limit_vocabulary(most_ids)
    return checked.train(policy.training)


def _first_rows(policy: Policy, most_ids: int) -> dict[int, Any]:
    """Copies of the first rows of embedding and head, by the identity of the whole tensor.

    Nothing where they have no more, are quantised, or have adapters or other modules around them.
    """
    embedding, head = policy.causal.get_input_embeddings(), policy.causal.get_output_embeddings()
    if not (isinstance(embedding, nn.Embedding) and isinstance(head, nn.Linear)) or is_quantised(head):
        return {}
    whole = [embedding.weight, head.weight, *([] if head.bias is None else [head.bias])]
    if min(map(len, whole)) <= most_ids:
        return {}
    return {id(one): nn.Parameter(one.detach()[:most_ids].clone(), requires_grad=one.requires_grad) for one in whole}


def _dequantised(policy: Policy) -> Policy:
    """The policy itself, or of one with quantised layers a copy in which they are plain, of the same numbers."""
    if not any(map(is_quantised, policy.modules())):
        return policy
    plain = copy.deepcopy(policy.model)
    dequantise(plain, torch.float32)
    return Policy(plain, "padded").train(policy.training)
