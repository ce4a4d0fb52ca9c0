"""The policy: one module, called with packed pairs, that returns the log-probability of every response token."""

from typing import Any

from torch import Tensor, nn

from simpo_cli.model.hidden import padded_hidden_states
from simpo_cli.model.logprobs import logit_scale_of, token_logprobs
from simpo_cli.model.packed import PackedPairs
from simpo_cli.objective import segment_means


class Policy(nn.Module):
    """A causal language model of transformers, perhaps with adapters, as a function from pairs to log-probs.

    Everything that the loss reads comes out of `forward`, so that wrappers around the module see every parameter's use.

    Args:
        model: a causal language model, or a peft model around one.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        text_config = self.causal.config.get_text_config()
        self._scale = logit_scale_of(text_config)
        self._vocab_size = int(text_config.vocab_size)
        self._pad_id = 0

    @property
    def causal(self) -> Any:
        """The causal language model itself, with adapter layers in place but without peft's wrapper."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def recompute_activations(self) -> None:
        """Trade time for memory: keep only each layer's input and compute the rest again in the backward pass."""
        causal = self.causal
        causal.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        if self.model is not causal:
            causal.enable_input_require_grads()  # the frozen embedding would cut the recomputed graph off

    def forward(self, packed: PackedPairs) -> Tensor:
        """(N,) float32 log-probs of the response tokens, in the order of `packed.targets()`."""
        causal = self.causal
        states = padded_hidden_states(causal.base_model, packed, self._pad_id)
        return token_logprobs(states, packed.targets(), causal.get_output_embeddings(), self._scale, self._vocab_size)

    def response_means(self, packed: PackedPairs) -> tuple[Tensor, Tensor]:
        """m(y|x) of each pair's chosen and rejected response, each (P,) float32.

        Calls the module, hooks and all, and averages outside of it.
        """
        logps = self(packed)
        lengths = packed.response_lengths.reshape(-1).to(logps.device)
        chosen, rejected = segment_means(logps, lengths).reshape(-1, 2).unbind(1)
        return chosen, rejected
