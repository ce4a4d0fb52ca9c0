"""The policy: one module, called with packed pairs, that returns the log-probability of every response token."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from simpo_cli.data.plan import Packing
from simpo_cli.model.activations import ActivationsOnHost
from simpo_cli.model.adapters import leave_casts_to_autocast
from simpo_cli.model.attention.interface import SPANS, share_prompts
from simpo_cli.model.fused_layers import FusedLayer, find_fused_layers
from simpo_cli.model.logprobs import logit_scale_of, token_logprobs
from simpo_cli.model.packed import PackedPairs
from simpo_cli.objective import segment_means


class CompiledLayer(NamedTuple):
    """A layer of the decoder that can run as compiled code. The module keeps its names, its weights, its copies.

    Each layer is compiled by itself with its sizes left open, and what the pairs of a pack are is in tensors (see
    `packed.PackLayout`). So layers of a kind and micro-batches of any size share one graph, and the compiler's work
    does not grow with the model's depth.
    """

    layer: nn.Module
    strict: bool

    def place(self) -> None:
        # what an equal call compiled before is used again
        self.layer.compile(dynamic=True, fullgraph=self.strict)

    def restore(self) -> None:
        self.layer._compiled_call_impl = None


def decoder_of(causal: Any) -> nn.Module:
    """The text model without its output head; for a model of text and images, without the latter's part."""
    found: Any = causal.get_decoder()
    decoder: nn.Module = causal.model if found is causal else found  # llama4 does not find its own
    return decoder


class Policy(nn.Module):
    """A causal language model of transformers, perhaps with adapters, as a function from pairs to log-probs.

    Everything that the loss reads comes out of `forward`, so that wrappers around the module see every parameter's use.

    Args:
        model: a causal language model, or a peft model around one.
        packing: `shared_prefix` computes every prompt once, and changes the attention that the model's layers call and
            their norms and feed-forwards (see `fused_layers`); `padded` leaves the model as it is. See
            `self_check.choose_packing` for which of them is right for a model.

    Attributes:
        flex: whether FlexAttention may compute soft caps on a card; it takes effect when prompts are next shared.
    """

    def __init__(self, model: nn.Module, packing: Packing = "padded") -> None:
        super().__init__()
        self.model = model
        if model is not self.causal:
            leave_casts_to_autocast(model)
        text_config = self.causal.config.get_text_config()
        self._scale = logit_scale_of(text_config)
        self._vocab_size = int(text_config.vocab_size)
        self._own_attention: str = self.causal.config._attn_implementation
        self._packing: Packing = "padded"
        self.flex = True
        self._saved: AbstractContextManager[Any] = nullcontext()
        self.packing = packing

    @property
    def causal(self) -> Any:
        """The causal language model itself, with adapter layers in place but without peft's wrapper."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder's layers."""
        count = int(self.causal.config.get_text_config().num_hidden_layers)
        children = decoder_of(self.causal).children()
        [layers] = [child for child in children if isinstance(child, nn.ModuleList) and len(child) == count]
        return layers

    # What takes the place of the model's own parts while prompts are shared

    @cached_property
    def _replaced(self) -> Sequence[FusedLayer | CompiledLayer]:
        """Compiled layers, or else fused ones, which are looked for where the model is when they are first wanted."""
        return find_fused_layers(self.causal)

    @property
    def compiled(self) -> bool:
        """Whether the decoder's layers run as compiled code while prompts are shared."""
        return any(isinstance(part, CompiledLayer) for part in self._replaced)

    def compile_layers(self, compiled: bool, *, strict: bool = False) -> None:
        """Let the decoder's layers run as compiled code from now on, or as they are.

        A compiler joins the operations of norms and feed-forwards itself, so fused layers are not used beside it.

        Args:
            strict: raise where a layer cannot be compiled as a whole, instead of compiling its parts.
        """
        with self.packed("padded"):
            self._replaced = (
                [CompiledLayer(layer, strict) for layer in self.layers] if compiled else find_fused_layers(self.causal)
            )

    @property
    def num_liger_layers(self) -> int:
        """How many norms and feed-forwards Liger's kernels compute while prompts are shared."""
        return sum(isinstance(part, FusedLayer) and part.fused.liger for part in self._replaced)

    @property
    def packing(self) -> Packing:
        """How pairs go through the model."""
        return self._packing

    @packing.setter
    def packing(self, packing: Packing) -> None:
        if packing == self._packing:
            return
        if packing == "shared_prefix":
            share_prompts(self.causal, flex=self.flex)
            for part in self._replaced:
                part.place()
        else:
            for part in self._replaced:
                part.restore()
            self.causal.set_attn_implementation(self._own_attention)
        self._packing = packing

    @contextmanager
    def packed(self, packing: Packing) -> Iterator[None]:
        """The policy with a packing for a while: outside of it the model stays as its owner knows it."""
        before = self.packing
        self.packing = packing
        try:
            yield
        finally:
            self.packing = before

    @contextmanager
    def untouched(self) -> Iterator[Any]:
        """The causal language model as it came, for generating, saving and comparing."""
        with self.packed("padded"):
            yield self.causal

    def recompute_activations(self) -> None:
        """Trade time for memory: keep only each layer's input and compute the rest again in the backward pass."""
        causal = self.causal
        # transformers before 5.23 knows it by its former name only
        enable = getattr(causal, "activation_checkpointing_enable", None) or causal.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        if self.model is not causal:
            causal.enable_input_require_grads()  # the frozen embedding would cut the recomputed graph off

    def limit_vocabulary(self, num_ids: int) -> None:
        """Say so to all modules when embedding and head have been cut to the tokens below a number."""
        embedding, head = self.causal.get_input_embeddings(), self.causal.get_output_embeddings()
        embedding.num_embeddings = head.out_features = self._vocab_size = num_ids
        self.causal.config.get_text_config().vocab_size = num_ids
        if (embedding.padding_idx or 0) >= num_ids:
            embedding.padding_idx = None

    def offload_activations(self) -> None:
        """Keep what layers save for the backward pass in the memory of the host meanwhile."""
        self._saved = ActivationsOnHost(self)

    # From pairs to log-probs

    def forward(self, packed: PackedPairs) -> Tensor:
        """(N,) float32 log-probs of the response tokens, in the order of `packed.targets`."""
        head = self.causal.get_output_embeddings()
        return token_logprobs(self._states(packed), packed.targets, head, self._scale, self._vocab_size)

    def logits(self, packed: PackedPairs, at: Tensor) -> Tensor:
        """(K, V) float32 logits of the whole vocabulary where the response tokens `at` of `packed.targets` stand.

        For looking at a model; what is trained or scored is `forward`, which never holds as much.
        """
        logits = self.causal.get_output_embeddings()(self._states(packed)[at])
        return self._scale(logits.float())

    def _states(self, packed: PackedPairs) -> Tensor:
        """(N, H) hidden states, each before the token that it predicts."""
        states = shared_hidden_states if self.packing == "shared_prefix" else padded_hidden_states
        with self._saved:
            return states(decoder_of(self.causal), packed)

    def response_means(self, packed: PackedPairs) -> tuple[Tensor, Tensor]:
        """m(y|x) of each pair's chosen and rejected response, each (P,) float32.

        Calls the module, hooks and all, and averages outside of it.
        """
        return means_of(self(packed), packed)


def trainable(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, by name; tied ones once."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.requires_grad}


def means_of(logps: Tensor, packed: PackedPairs) -> tuple[Tensor, Tensor]:
    """m(y|x) of each pair's chosen and rejected response, each (P,), from the (N,) log-probs of their tokens."""
    chosen, rejected = segment_means(logps, packed.response_lengths.reshape(-1)).reshape(-1, 2).unbind(1)
    return chosen, rejected


def shared_hidden_states(decoder: nn.Module, packed: PackedPairs) -> Tensor:
    """(N, H) states that predict a response token, in the order of `packed.targets`; every prompt computed once.

    Args:
        decoder: the model without its output head, its attention set to `attention.interface`.
        packed: the pairs, laid end to end without padding.
    """
    output: Any = decoder(
        input_ids=packed.tokens[None],
        position_ids=packed.positions[None],
        use_cache=False,
        **{SPANS: packed.layout},
    )
    states: Tensor = output.last_hidden_state
    return states[0].index_select(0, packed.predicting)


def padded_hidden_states(decoder: nn.Module, packed: PackedPairs) -> Tensor:
    """The same with a row for each response behind a copy of its prompt, padded on the right to the longest row.

    For models whose attention cannot work on packed pairs; the decoder is called with input_ids of shape (2P, L).
    """
    rows = []
    for span in packed.spans:
        tokens = packed.tokens[span.start : span.end]
        prompt, chosen, rejected = torch.split(tokens, [span.prompt, span.chosen, span.rejected])
        rows += [torch.cat([prompt, chosen]), torch.cat([prompt, rejected])]
    # No attention mask: padding stands behind the real tokens, where causal attention never looks, so any id will do.
    input_ids = pad_sequence(rows, batch_first=True, padding_value=0)
    output: Any = decoder(input_ids=input_ids, use_cache=False)
    states: Tensor = output.last_hidden_state
    lengths = packed.response_lengths.reshape(-1)
    row = torch.repeat_interleave(lengths, output_size=len(packed.predicting))
    # a token of a response stands in its row where it would stand alone
    return states[row, packed.positions[packed.predicting]]
