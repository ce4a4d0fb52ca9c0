"""From packed pairs to the hidden states that predict response tokens.

This is the one place that knows how the pairs pass through the model's attention. Here each response gets a row of its
own behind a copy of its prompt, and the rows are padded on the right to the longest.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from simpo_cli.model.packed import PackedPairs


def padded_hidden_states(backbone: nn.Module, packed: PackedPairs, pad_id: int) -> Tensor:
    """Hidden states at the positions that predict a response token.

    Args:
        backbone: the model without its output head; called with input_ids of shape (2P, L).
        packed: the pairs.
        pad_id: any valid id; padded positions are never read.

    Returns:
        (N, H), in the order of `packed.targets()`: the state before each response token, the prompt's last one first.
    """
    rows, spans = [], []
    start = 0
    for prompt, (chosen, rejected) in zip(
        packed.prompt_lengths.tolist(), packed.response_lengths.tolist(), strict=True
    ):
        prompt_end = start + prompt
        prompt_tokens = packed.tokens[start:prompt_end]
        for first, length in ((prompt_end, chosen), (prompt_end + chosen, rejected)):
            rows.append(torch.cat([prompt_tokens, packed.tokens[first : first + length]]))
            spans.append((prompt - 1, length))
        start = prompt_end + chosen + rejected
    # No attention mask: padding stands behind the real tokens, where causal attention never looks.
    input_ids = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    width = input_ids.shape[1]
    output: Any = backbone(input_ids=input_ids, use_cache=False)
    states: Tensor = output.last_hidden_state
    wanted = torch.cat([torch.arange(first, first + length) + row * width for row, (first, length) in enumerate(spans)])
    return states.reshape(-1, states.shape[-1])[wanted.to(states.device)]
