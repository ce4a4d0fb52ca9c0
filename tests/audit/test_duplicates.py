"""Duplicates, contradictions, circles and leaked prompts, exact and near, against comparing each with every other."""

import random
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo_cli.audit import duplicates
from simpo_cli.audit.duplicates import (
    MOST_COMPARED,
    NUM_BANDS,
    PairIdentities,
    find_leaks,
    find_near_pairs,
    read_prompts,
    repeated_and_contradictory,
)
from simpo_cli.audit.measures import asked_text, pair_hashes, prompt_hash
from simpo_cli.audit.signatures import SIGNATURE_BYTES, Signatures, signatures_of
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair
from tests.audit.test_signatures import WORDS, edited, similarity
from tests.benchmarks import near as bench_near
from tests.data.pair_files import write_pairs

TEXTS = st.sampled_from(["a", "b", "c"])
RESPONSES = st.sampled_from("abcde")
PROMPTS = st.sampled_from(["p", "q", (Message("user", "p"),), (Message("system", "p"), Message("user", "q"))])
PAIRS = st.lists(st.builds(PreferencePair, PROMPTS, TEXTS, TEXTS, st.just("")), max_size=12)


def identities_of(pairs: list[PreferencePair]) -> PairIdentities:
    return PairIdentities(np.array([pair_hashes(pair) for pair in pairs], dtype=np.uint64).reshape(-1, 3))


def same_prompt(pair: PreferencePair) -> object:
    return (Message("user", pair.prompt),) if isinstance(pair.prompt, str) else pair.prompt


@given(PAIRS)
def test_against_comparing_every_pair_with_every_other(pairs: list[PreferencePair]) -> None:
    identities = identities_of(pairs)
    keys = [(same_prompt(pair), pair.chosen, pair.rejected) for pair in pairs]
    assert identities.duplicates().tolist() == [i for i, key in enumerate(keys) if key in keys[:i]]
    opposite = [(prompt, rejected, chosen) for prompt, chosen, rejected in keys]
    differ = [chosen != rejected for _, chosen, rejected in keys]
    contradictory = [i for i, key in enumerate(keys) if key in opposite and differ[i]]
    assert identities.contradictions().tolist() == contradictory
    prompts = [same_prompt(pair) for pair in pairs]
    assert len(set(identities.prompts.tolist())) == len(set(prompts))


def test_the_same_texts_with_other_tools_or_variables_are_another_pair() -> None:
    def pair(chosen: str, rejected: str, tools: str | None, template_kwargs: str | None = None) -> PreferencePair:
        return PreferencePair("p", chosen, rejected, "", tools, template_kwargs)

    one, other = '[{"name": "weather"}]', '[{"name": "rivers"}]'
    apart = identities_of([pair("a", "b", one), pair("a", "b", other), pair("b", "a", None)])
    assert (apart.duplicates().tolist(), apart.contradictions().tolist()) == ([], [])
    alike = identities_of([pair("a", "b", one), pair("a", "b", one), pair("b", "a", one), pair("a", "a", other)])
    assert (alike.duplicates().tolist(), alike.contradictions().tolist()) == ([1], [0, 1, 2])
    assert alike.identical().tolist() == [3]
    assert len(set(apart.prompts.tolist())) == 1  # whoever counts prompts counts one
    variables = identities_of([pair("a", "b", None, "{}"), pair("a", "b", "{}"), pair("a", "b", None, "{}")])
    assert variables.duplicates().tolist() == [2]


def test_prompts_that_only_look_alike_when_joined() -> None:
    prompts = [tuple(Message("user", text) for text in turns) for turns in (("ab", "c"), ("a", "bc"))]
    assert len(identities_of([PreferencePair(prompt, "x", "y", "") for prompt in prompts]).duplicates()) == 0


def test_lone_surrogates_can_be_hashed() -> None:
    one, other = (pair_hashes(PreferencePair(prompt, "\udfff", "a", "")) for prompt in ("\ud800", "\ud801"))
    assert one != other


@settings(deadline=None)  # the first circle imports scipy
@given(st.lists(st.builds(PreferencePair, st.just("p") | st.just("q"), RESPONSES, RESPONSES, st.just("")), max_size=9))
def test_cycles_against_walking_every_way(pairs: list[PreferencePair]) -> None:
    identities = identities_of(pairs)
    edges = {(pair.prompt, pair.chosen, pair.rejected) for pair in pairs}
    edges = {(p, a, b) for p, a, b in edges if (p, b, a) not in edges}
    on_a_circle = {
        step
        for length in range(3, 6)
        for prompt in "pq"
        for way in permutations("abcde", length)
        if (steps := {(prompt, *step) for step in zip(way, way[1:] + way[:1], strict=True)}) <= edges
        for step in steps
    }
    expected = [i for i, pair in enumerate(pairs) if (pair.prompt, pair.chosen, pair.rejected) in on_a_circle]
    assert identities.cycles().tolist() == expected


def test_a_circle_at_the_end_of_a_chain() -> None:
    chain = zip(range(50), [*range(1, 50), 45], strict=True)
    identities = identities_of([PreferencePair("p", f"{one}", f"{other}", "") for one, other in chain])
    assert identities.cycles().tolist() == [45, 46, 47, 48, 49]


# Tokenized pairs

SIDES = st.sampled_from([(1, 2), (2, 1), (2, 3), (3, 2)])
TOKENIZED = st.lists(st.builds(lambda prompt, sides: (prompt, *sides), st.sampled_from("ab"), SIDES), max_size=10)


def encoded(number: int, prompt: str, chosen: int, rejected: int) -> EncodedPair:
    ids = (np.array([n, 9], dtype=np.int32) for n in (1, chosen, rejected))
    return EncodedPair(*ids, prompt_key=prompt, where=f"f:{number}")


@given(TOKENIZED)
def test_repeats_of_tokenized_pairs_against_the_obvious_way(drawn: list[tuple[str, int, int]]) -> None:
    pairs = [encoded(number, *parts) for number, parts in enumerate(drawn)]
    opposed = sum((prompt, rejected, chosen) in drawn for prompt, chosen, rejected in drawn)
    assert repeated_and_contradictory(pairs) == (len(drawn) - len(set(drawn)), opposed)
    # a source that the recipe repeats
    assert repeated_and_contradictory([*pairs, *pairs]) == (len(drawn) - len(set(drawn)), opposed)


# Nearly the same

Texts = tuple[str, str, str]  # prompt, chosen, rejected
NONE = np.empty(0, dtype=np.int64)
SURE, UNLIKE = 0.85, 0.4  # similarities on either side of the lines, but for one case in many thousands


def signed(pairs: Sequence[Texts]) -> Signatures:
    return signatures_of([text for pair in pairs for text in pair]).reshape(-1, 3, SIGNATURE_BYTES)


def text(draw: random.Random, words: int = 60) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def made_pairs(count: int, seed: int) -> list[Texts]:
    """Pairs of which many are copies of earlier ones: with some words changed, swapped, or with one part new."""
    draw = random.Random(seed)
    pairs: list[Texts] = []
    for _ in range(count):
        kind = draw.choice(["new", "near", "near", "far", "swapped", "part"]) if pairs else "new"
        prompt, chosen, rejected = draw.choice(pairs) if pairs else ("", "", "")
        share = draw.choice([0.1, 0.4]) if kind == "far" else 0.01
        parts = [edited(part, share, draw) for part in (prompt, chosen, rejected)]
        if kind == "new":
            parts = [text(draw), text(draw), text(draw)]
        elif kind == "swapped":
            parts[1:] = reversed(parts[1:])
        elif kind == "part":
            parts[draw.randrange(3)] = text(draw)
        pairs.append((parts[0], parts[1], parts[2]))
    return pairs


def test_near_pairs_against_comparing_every_pair_with_every_other() -> None:
    pairs = made_pairs(160, seed=5)
    found = find_near_pairs(signed(pairs), NONE, NONE)
    likeness = np.zeros((len(pairs), len(pairs), 2))  # of the least similar part, as they are and swapped
    for i, (prompt, chosen, rejected) in enumerate(pairs):
        for j, other in enumerate(pairs[:i]):
            same_prompt = similarity(prompt, other[0])
            as_is = min(same_prompt, similarity(chosen, other[1]), similarity(rejected, other[2]))
            swapped = min(same_prompt, similarity(chosen, other[2]), similarity(rejected, other[1]))
            likeness[i, j] = likeness[j, i] = as_is, swapped
    earlier = np.tril(likeness[:, :, 0])
    duplicates = set(found.duplicates.tolist())
    assert set(np.flatnonzero(earlier.max(axis=1) > SURE).tolist()) <= duplicates
    assert duplicates <= set(np.flatnonzero(earlier.max(axis=1) > UNLIKE).tolist())
    assert len(duplicates) > 40
    firsts = np.array([i not in duplicates for i in range(len(pairs))])
    opposed = likeness[:, :, 1] * firsts[:, None] * firsts[None, :]
    contradictions = set(found.contradictions.tolist())
    assert set(np.flatnonzero(opposed.max(axis=1) > SURE).tolist()) <= contradictions
    assert contradictions <= set(np.flatnonzero(likeness[:, :, 1].max(axis=1) > UNLIKE).tolist()) - duplicates
    assert len(contradictions) > 10


def test_what_is_known_already_is_not_said_again() -> None:
    draw = random.Random(1)
    prompt, chosen, rejected = text(draw), text(draw), text(draw)
    first = (prompt, chosen, rejected)
    pairs = [
        first,
        first,
        (prompt.upper(), chosen + "!", rejected),
        (prompt, rejected, chosen),
        (prompt, chosen, chosen),
    ]
    found = find_near_pairs(signed(pairs), repeated=np.array([1]), identical=np.array([4]))
    assert found.duplicates.tolist() == [2]
    assert found.contradictions.tolist() == [0, 3]
    assert found.same_responses.tolist() == []


def test_responses_that_are_nearly_the_same() -> None:
    draw = random.Random(2)
    one, other = text(draw), text(draw)
    pairs = [
        ("p", one, other),
        ("q", one, one + " more"),
        ("r", "Yes.", "yes"),
        ("s", "x = 1", "x = -1"),
        ("t", "", "a"),
    ]
    found = find_near_pairs(signed(pairs), NONE, NONE)
    assert found.same_responses.tolist() == [1, 2]
    # two pairs whose sides are all alike: duplicates, and no contradiction
    found = find_near_pairs(signed([("q", one, one + " more"), ("q", one + " more", one)]), NONE, NONE)
    assert (found.duplicates.tolist(), found.contradictions.tolist()) == ([1], [])


def test_short_prompts_that_differ_in_a_word_are_others() -> None:
    draw = random.Random(4)
    chosen, rejected = text(draw), text(draw)
    pairs = [(f"What is the capital of {land}?", chosen, rejected) for land in ("France", "Spain", "Italy")]
    assert find_near_pairs(signed(pairs), NONE, NONE).duplicates.tolist() == []


@pytest.mark.parametrize("same_words", [True, False])
def test_a_large_group_takes_linear_time(monkeypatch: pytest.MonkeyPatch, same_words: bool) -> None:
    """A thousand copies, or a thousand pairs whose keys are all equal and whose texts are not."""
    draw = random.Random(6)
    count = 1000
    if same_words:
        signatures = np.repeat(signed([(text(draw), text(draw), text(draw))]), count, axis=0)
    else:
        signatures = np.random.default_rng(0).integers(0, 256, (count, 3, SIGNATURE_BYTES), dtype=np.uint8)
        monkeypatch.setattr(duplicates, "_pair_keys", lambda signatures, _: np.zeros(len(signatures), dtype=np.uint64))
    compared = []
    compare = duplicates._compare

    def counted(first: Signatures, second: Signatures) -> Any:
        compared.append(len(second))
        return compare(first, second)

    monkeypatch.setattr(duplicates, "_compare", counted)
    found = find_near_pairs(signatures, NONE, NONE)
    assert found.duplicates.tolist() == (list(range(1, count)) if same_words else [])
    assert sum(compared) <= (count if same_words else count * NUM_BANDS * MOST_COMPARED)


@pytest.mark.parametrize("spaced", [True, False])
def test_one_changed_word_in_twenty_is_found_and_one_in_ten_is_not(spaced: bool) -> None:
    """The rule in docs/stats.md, whose curve comes from `python -m tests.benchmarks.near`."""
    pairs = bench_near.made(150, seed=7, spaced=spaced)
    shares = {every: bench_near.found_share(pairs, every, 7, spaced) for every in (10, 20, 30)}
    assert shares[10] < 0.05
    assert shares[20] > 0.8
    assert shares[30] > 0.95


def test_another_word_in_a_short_prompt_makes_another_pair() -> None:
    shares = {length: bench_near.one_word_share(150, length, seed=7) for length in (6, 8, 30)}
    assert shares[6] == 0
    assert shares[8] < 0.05
    assert shares[30] > 0.95  # one word in thirty


def test_no_pairs() -> None:
    found = find_near_pairs(np.empty((0, 3, SIGNATURE_BYTES), dtype=np.uint8), NONE, NONE)
    assert (len(found.duplicates), len(found.contradictions), len(found.same_responses)) == (0, 0, 0)


# Prompts of the evaluation data

SYSTEM = "You are a helpful assistant. " * 20


def leaks(prompts: list[object], evaluation: list[object], folder: Path) -> tuple[list[int], list[int]]:
    path = write_pairs(folder, "eval.jsonl", [{"prompt": p, "chosen": "a", "rejected": "b"} for p in evaluation])
    pairs = [PreferencePair(_turns(prompt), "c", "d", "") for prompt in prompts]
    hashes = np.array([prompt_hash(pair) for pair in pairs], dtype=np.uint64)
    asked = signatures_of([asked_text(pair) for pair in pairs])
    same, near = find_leaks(hashes, asked, read_prompts(PairReader(path, role="eval")))
    return same.tolist(), near.tolist()


def _turns(prompt: object) -> tuple[Message, ...] | str:
    if isinstance(prompt, str):
        return prompt
    assert isinstance(prompt, list)
    return tuple(Message(turn["role"], turn["content"]) for turn in prompt)


def test_prompts_that_are_the_same_near_and_new(tmp_path: Path) -> None:
    user = {"role": "user", "content": "How do I invite a teammate?"}
    system = {"role": "system", "content": SYSTEM}
    long = "How can I change my name in the settings of the account that I use at work? " + " ".join(WORDS[:40])
    evaluation = [[user], long, "Hi", "Hi"]
    prompts = [
        "How do I invite a teammate?",  # the same, as text
        "HOW do I invite a teammate",
        [system, user],
        [system, {"role": "user", "content": "What is new?"}],
        long.replace("name", "photo"),
        "How do I remove a teammate?",
        "Hi",
        "",
    ]
    assert leaks(prompts, evaluation, tmp_path) == ([0, 6], [1, 2, 4])


def test_prompts_against_comparing_each_with_each(tmp_path: Path) -> None:
    draw = random.Random(9)
    evaluation = [" ".join(draw.choices(WORDS, k=draw.randint(10, 80))) for _ in range(60)]
    prompts = [edited(draw.choice(evaluation), draw.choice([0, 0.01, 0.05, 0.5]), draw) for _ in range(200)]
    same, near = map(set, leaks([*prompts], [*evaluation], tmp_path))
    assert sorted(same) == [i for i, prompt in enumerate(prompts) if prompt in evaluation]
    likeness = [max(similarity(prompt, other) for other in evaluation) for prompt in prompts]
    assert {i for i, value in enumerate(likeness) if value > 0.9} <= near | same
    assert near <= {i for i, value in enumerate(likeness) if value > 0.45} - same
    assert len(near) > 30
