"""Duplicates and contradictions against the obvious quadratic way."""

from itertools import permutations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo_cli.audit.duplicates import PairIdentities, repeated_and_contradictory
from simpo_cli.audit.measures import pair_hashes
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair

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
    pair_hashes(PreferencePair("\ud800", "\udfff", "a", ""))


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
