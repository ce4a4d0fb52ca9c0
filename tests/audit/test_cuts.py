"""The limits that are said to cut little: set, they keep the share that was said, and one less does not."""

import re

import numpy as np
import pytest
from numpy.typing import NDArray

from simpo_cli.audit.cuts import cut_details
from simpo_cli.recipe.schema import DataRecipe


def whole_shares(lengths: NDArray[np.int32], max_length: int, max_prompt: int) -> tuple[float, float]:
    """Which share of prompts stays whole, and in which share of pairs both responses do, counted one by one."""
    prompts = responses = 0
    for prompt, chosen, rejected in lengths.tolist():
        prompts += prompt <= max_prompt
        room = max_length - min(prompt, max_prompt)
        responses += chosen <= room and rejected <= room
    return prompts / len(lengths), responses / len(lengths)


@pytest.fixture
def lengths() -> NDArray[np.int32]:
    draw = np.random.default_rng(4)
    return np.column_stack([draw.integers(5, 400, 500), draw.integers(5, 600, (500, 2))]).astype(np.int32)


def said(max_length: int, max_prompt: int, lengths: NDArray[np.int32]) -> dict[str, str]:
    return cut_details(lengths, DataRecipe(train="-", max_length=max_length, max_prompt_length=max_prompt))


def test_limits_of_responses(lengths: NDArray[np.int32]) -> None:
    sentence = said(500, 300, lengths)["TRU001"]
    assert sentence == said(500, 300, lengths)["TRU002"]
    found = re.fullmatch(
        r"([\d.]+) % of responses are cut: data.max_length=(\d+) keeps both whole in 95 % of pairs, (\d+) in 99 %.",
        sentence,
    )
    assert found is not None
    rooms = 500 - np.minimum(lengths[:, 0], 300)
    assert float(found[1]) == pytest.approx(100 * np.mean(lengths[:, 1:] > rooms[:, None]), abs=0.05)
    for limit, share in ((int(found[2]), 0.95), (int(found[3]), 0.99)):
        assert whole_shares(lengths, limit - 1, 300)[1] < share <= whole_shares(lengths, limit, 300)[1]


def test_limits_of_prompts_come_with_room_for_the_responses(lengths: NDArray[np.int32]) -> None:
    found = re.fullmatch(
        r"[\d.]+ % of prompts are cut: data.max_prompt_length=(\d+) \(with data.max_length=(\d+)\) keeps 95 % of them "
        r"whole, (\d+) \(with data.max_length=(\d+)\) keeps 99 %.",
        said(500, 300, lengths)["TRU003"],
    )
    assert found is not None
    for limit, most, share in ((int(found[1]), int(found[2]), 0.95), (int(found[3]), int(found[4]), 0.99)):
        prompts, responses = whole_shares(lengths, most, limit)
        assert prompts >= share > whole_shares(lengths, most, limit - 1)[0]
        assert responses >= share
    assert "with" not in said(2000, 300, lengths)["TRU003"]  # there is room already


def test_nothing_is_said_of_a_few(lengths: NDArray[np.int32]) -> None:
    prompts = int(np.sort(lengths[:, 0])[-25])  # 24 of 500 are longer, 4.8 %
    details = said(1100, prompts, lengths)
    assert details == dict.fromkeys(details, "")
    assert said(1100, prompts - 2, lengths)["TRU003"]
    assert (
        said(500, 300, lengths)["TRU005"] == f"{said(500, 300, lengths)['TRU003']} {said(500, 300, lengths)['TRU001']}"
    )
    assert said(500, 300, np.empty((0, 3), dtype=np.int32))["TRU005"] == ""
