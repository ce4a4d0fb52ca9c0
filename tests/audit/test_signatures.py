"""Word triples against a regular expression, and signatures against the similarity that they estimate."""

import random
import re
from functools import cache

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simpo_cli.audit.signatures import MOST_CHARACTERS, SIGNATURE_BYTES, num_equal, signatures_of, triples

PUNCTUATION = re.compile("[\u2000-\u203f\u3000-\u303f\u00a0\u00a1\u00ab\u00ad\u00b7\u00bb\u00bf]")
WORD = re.compile(r"[0-9a-z\x80-\u07ff]+|[-+/<=>%^&|~$@#]|[\u0800-\U0010ffff][0-9a-z\x80-\u07ff]*")
TEXTS = st.lists(
    st.text(st.sampled_from("aAbZ01 \n.,-+_*é Äя你好。“”—…🙂\u00a0·×<\0"), max_size=12) | st.text(max_size=8),
    max_size=6,
)


def triples_by_hand(text: str) -> list[tuple[str, str, str]]:
    words = ["", "", *WORD.findall(PUNCTUATION.sub(" ", text.lower())), "", ""]
    return list(zip(words, words[1:], words[2:], strict=False))


def hashes_of(text: str) -> list[int]:
    hashes, offsets = triples([text])
    assert offsets.tolist() == [0, len(hashes)]
    return hashes.tolist()


@given(TEXTS)
@example(["", " ", "a", "A.", "a b", "ab", "b a"])
@example(["5 - 3", "5 + 3", "5-3", "5 3"])
@example(["naïve Ünder", "NAÏVE under", "你好a", "你 好a", "好a你"])
def test_the_same_triples_have_the_same_hashes_and_no_others(texts: list[str]) -> None:
    hashes, offsets = triples(texts)
    expected = [triple for text in texts for triple in triples_by_hand(text)]
    assert offsets.tolist() == np.cumsum([0, *(len(triples_by_hand(text)) for text in texts)]).tolist()
    pairs = set(zip(expected, hashes.tolist(), strict=True))
    assert len(pairs) == len(set(expected)) == len(set(hashes.tolist()))


@given(TEXTS)
def test_a_text_has_the_same_triples_in_any_company(texts: list[str]) -> None:
    hashes, offsets = triples(texts)
    for text, begin, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
        assert hashes[begin:end].tolist() == hashes_of(text)


def test_long_texts_and_long_words() -> None:
    words = [f"word{n % 40_000}" + "x" * (n % 300) for n in range(3_000)]
    text = " ".join(words)
    by_triple = dict(zip(triples_by_hand(text), hashes_of(text), strict=True))
    assert len(set(by_triple.values())) == len(by_triple)
    assert hashes_of("word7xxxxxxx, WORD8xxxxxxxx;word9xxxxxxxxx")[2] == by_triple[words[7], words[8], words[9]]


def test_what_has_no_end_is_known_by_its_beginning() -> None:
    long = "x" * 100_000
    assert hashes_of(long) != hashes_of(long + "x")
    assert hashes_of(long) != hashes_of("y" + long[1:])
    assert len(hashes_of("a " * 3_000_000)) == MOST_CHARACTERS // 2 + 2


def test_lone_surrogates_are_characters() -> None:
    assert hashes_of("a \ud800 b") != hashes_of("a b")


# Signatures

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
    assert (signatures_of(iter(texts)) == alone).all()


def test_without_texts() -> None:
    assert signatures_of([]).shape == (0, SIGNATURE_BYTES)
