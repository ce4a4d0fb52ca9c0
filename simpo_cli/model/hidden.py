"""From packed pairs to the hidden states that predict response tokens: with every prompt once, or in padded rows."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from simpo_cli.model.attention.interface import SPANS
from simpo_cli.model.packed import PackedPairs


def shared_hidden_states(decoder: nn.Module, packed: PackedPairs) -> Tensor:
    """Hidden states at the positions that predict a response token, every prompt computed once and no padding.

    Args:
        decoder: the model without its output head, its attention set to `attention.interface`.
        packed: the pairs.

    Returns:
        (N, H), in the order of `packed.targets`.
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

    For models whose attention cannot be told about pairs.

    Args:
        decoder: the model without its output head; called with input_ids of shape (2P, L).
        packed: the pairs.

    Returns:
        (N, H), in the order of `packed.targets`.
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
