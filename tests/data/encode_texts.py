"""Texts and conversations drawn for a family of tokenizers."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from simpo_cli.data.pair import Message, PreferencePair
from tests.data.encode_cases import Case, bare, talk

properties = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)
# No angle bracket nor the like: special tokens, headers and `<think>` have tests of their own
any_text = st.text(
    st.characters(exclude_characters="<>[]{}|｜▁\ufffd", exclude_categories=["Cs", "Co", "Cn"]), max_size=30
)
plain_text = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="<>[]{}|"), max_size=30)
words = st.sampled_from(["Open Settings", "\n", " hello ", "Ask.", "\n\nthe quick", "  ", "a", "０1", "é", "你好"])


def texts_for(case: Case) -> st.SearchStrategy[str]:
    """Texts that the family's vocabulary knows, without its markers."""
    letters = plain_text if case.name == "vicuna" else any_text  # its vocabulary knows no other letters
    joined = st.lists(plain_text if case.name == "vicuna" else st.one_of(words, any_text), min_size=1, max_size=4)
    return st.one_of(letters, joined.map("".join)).filter(lambda text: text.strip() != "" and "ASSISTANT" not in text)


def draw_answers(data: st.DataObject, case: Case) -> tuple[str, str]:
    """Two answers that differ in more than white space."""
    texts = texts_for(case)
    return data.draw(st.tuples(texts, texts).filter(lambda two: bare(two[0]) != bare(two[1])))


def draw_pair(data: st.DataObject, case: Case) -> PreferencePair:
    """User and assistant in turn, sometimes behind a system turn; a single question is often mere text."""
    texts = texts_for(case)
    turns = data.draw(st.lists(texts, min_size=1, max_size=3).filter(lambda turns: len(turns) % 2 == 1))
    system = data.draw(st.one_of(st.none(), texts)) if case.name not in ("gemma", "chatml_merging") else None
    prompt = turns[0] if len(turns) == 1 and system is None else talk(*turns, system=system)
    return PreferencePair(prompt, *draw_answers(data, case), "f:1")


def draw_turns(data: st.DataObject, case: Case) -> tuple[Message, ...]:
    """Turns in any order of their roles, two of one role in a row among them; turn i begins with `t{i} `."""
    roles = data.draw(st.lists(st.sampled_from(["user", "assistant", "tool"]), min_size=1, max_size=4))
    roles = ["system", *roles] if data.draw(st.booleans()) else roles
    return tuple(Message(role, f"t{i} {data.draw(texts_for(case))}") for i, role in enumerate(roles))
