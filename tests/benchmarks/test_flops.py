"""The counts against counting by hand and against the layers of a real module."""

import random

from torch import nn

from tests.benchmarks.flops import Shape, needed_flops, padded_flops, shape_of
from tests.tiny import tiny_config, tiny_model

SMALL = Shape(linear=1000, layers=2, attention=8, hidden=4, vocabulary=50)


def test_the_needed_operations_of_a_pair_counted_by_hand() -> None:
    # Prompt of 3, responses of 2 and 1: 6 tokens.
    linear = 2 * 1000 * 6
    # Prompt: 1 + 2 + 3. Chosen: the second sees itself, the first and the prompt: 4 + 5. Rejected: 4.
    seen = 6 + 9 + 4
    attention = 2 * (2 * 8 + 2 * 8) * seen  # layers * (score + value)
    # Positions that predict: the prompt's last one (for both responses) and the first token of chosen.
    head = 2 * 4 * 50 * 2
    assert needed_flops(SMALL, 3, 2, 1) == 3 * (linear + attention + head)


def test_the_seen_positions_are_those_of_a_mask_written_out() -> None:
    draw = random.Random(5)
    only_attention = Shape(linear=0, layers=1, attention=1, hidden=0, vocabulary=0)
    for _ in range(20):
        prompt, chosen, rejected = (draw.randint(1, 12) for _ in range(3))
        part = [0] * prompt + [1] * chosen + [2] * rejected
        seen = sum(
            key <= query and part[key] in (0, part[query]) for query in range(len(part)) for key in range(len(part))
        )
        assert needed_flops(only_attention, prompt, chosen, rejected) == 3 * 4 * seen


def test_padding_never_costs_less_than_what_is_needed() -> None:
    draw = random.Random(6)
    for _ in range(50):
        prompt, chosen, rejected = (draw.randint(1, 40) for _ in range(3))
        padded = padded_flops(SMALL, 2, prompt + max(chosen, rejected))
        assert padded > needed_flops(SMALL, prompt, chosen, rejected)


def test_the_shape_read_from_a_configuration_is_that_of_the_module() -> None:
    model, config = tiny_model("llama"), tiny_config("llama")
    inside = sum(layer.weight.numel() for layer in model.model.modules() if isinstance(layer, nn.Linear))
    shape = shape_of(config)
    assert shape.linear == inside
    assert shape.attention == model.model.layers[0].self_attn.q_proj.out_features
    assert (shape.hidden, shape.vocabulary) == (model.lm_head.in_features, model.lm_head.out_features)
