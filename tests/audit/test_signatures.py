"""Signatures against the similarity that they estimate, counted exactly."""

import random
from functools import cache

import numpy as np
import pytest

from simpo_cli.audit.signatures import SIGNATURE_BYTES, SignatureList, num_equal, signatures_of
from tests.audit.test_shingles import triples_by_hand

WORDS = [f"w{n}" for n in range(3000)]


@cache
def triple_set(text: str) -> frozenset[tuple[str, str, str]]:
    return frozenset(triples_by_hand(text))


def similarity(first: str, second: str) -> float:
    one, other = triple_set(first), triple_set(second)
    return len(one & other) / len(one | other)


def edited(text: str, share: float, draw: random.Random) -> str:
    return " ".join(draw.choice(WORDS) if draw.random() < share else word for word in text.split())


@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.3, 1.0])
def test_equal_bytes_estimate_the_similarity(share: float) -> None:
    draw = random.Random(round(1000 * share))
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 200))) for _ in range(200)]
    others = [edited(text, share, draw) for text in texts]
    seen = num_equal(signatures_of(texts), signatures_of(others)) / SIGNATURE_BYTES
    true = np.array([similarity(*both) for both in zip(texts, others, strict=True)])
    errors = seen - true
    assert abs(errors.mean()) < 4 * 0.0625 / np.sqrt(200) + 1 / 256
    assert np.abs(errors).max() < 4 * 0.0625 + 1 / 256
    assert (errors[true == 1] == 0).all()


def test_case_and_punctuation_change_nothing() -> None:
    first, second = signatures_of(["It’s 3 o'clock — go!", " it s\n3 O CLOCK: (go) "])
    assert first.tolist() == second.tolist()


def test_batches_change_nothing() -> None:
    draw = random.Random(3)
    texts = [" ".join(draw.choices(WORDS, k=draw.choice([0, 1, 5, 3000]))) for _ in range(150)]
    assert sum(map(len, texts)) > 2**19  # more than a batch
    alone = np.concatenate([signatures_of([text]) for text in texts])
    signatures = SignatureList()
    for text in texts:
        signatures.add(text)
    assert (signatures.rows == alone).all()


def test_without_texts() -> None:
    assert SignatureList().rows.shape == (0, SIGNATURE_BYTES)
