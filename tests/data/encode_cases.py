"""Families of tokenizers as we read them and as transformers does, and texts and pairs to encode with them."""

import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoTokenizer

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import EncodedPair, EncodedPairs, Message, PreferencePair
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.recipe.schema import DataRecipe
from tests.tiny import FAMILIES, Family

ROOMY = DataRecipe(train="x", max_length=100_000, max_prompt_length=50_000)
# of the others the prompt is more than their template renders, or the answers need a special form
APPEND_ONLY = sorted(FAMILIES.keys() - {"chatml_no_generation_prompt", "deepseek_r1"})


@dataclass(frozen=True)
class Case:
    """A family with its tokenizer as we read it and as transformers does, from the same folder."""

    name: str
    family: Family
    folder: Path
    ours: TextTokenizer
    theirs: Any

    @cached_property
    def plain(self) -> "Case":
        """The same, ours without its template."""
        return replace(self, ours=load_tokenizer(str(self.folder), chat_template="none"))

    def under(self, template: str) -> "Case":
        """The same, ours with another template."""
        file = self.folder / "other.jinja"
        file.write_text(template)
        return replace(self, ours=load_tokenizer(str(self.folder), chat_template=str(file)))

    @property
    def end_id(self) -> int:
        return int(self.theirs.convert_tokens_to_ids(self.family.end))

    def encode(self, *pairs: PreferencePair, **data: Any) -> EncodedPairs:
        """The pairs under these settings of the data, beside room for all of their tokens."""
        return encode_pairs(pairs, self.ours, replace(ROOMY, **data))

    def one(self, pair: PreferencePair, **data: Any) -> EncodedPair:
        encoded = self.encode(pair, **data)
        assert not encoded.bad, encoded.bad
        assert not encoded.dropped, encoded.dropped
        return encoded.pairs[0]

    def text(self, *parts: NDArray[Any]) -> str:
        """The text of tokens, special ones spelled out."""
        return self.ours.decode([int(i) for part in parts for i in part])

    def texts(self, pair: PreferencePair, **data: Any) -> tuple[str, str, str]:
        """Prompt, chosen and rejected response as they are encoded."""
        one = self.one(pair, **data)
        return self.text(one.prompt), self.text(one.chosen), self.text(one.rejected)

    def refusal(self, pair: PreferencePair, **data: Any) -> str:
        """Why a pair is refused; with its place and a way to mend it."""
        encoded = self.encode(pair, **data)
        assert not encoded.pairs
        (bad,) = encoded.bad
        assert bad.where == pair.where
        assert bad.fix
        assert json.loads(bad.text)["chosen"] == pair.chosen
        return bad.problem

    def rendered(self, messages: list[dict[str, str]], *, prompt: bool = False, **kwargs: Any) -> str:
        return str(self.theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False, **kwargs))

    def ids(self, messages: list[dict[str, str]], *, prompt: bool = False, **kwargs: Any) -> list[int]:
        found = self.theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False, **kwargs)
        return [int(i) for i in found]


Cases = Callable[[str], Case]
"""A case by the name of its family: the fixture `case`."""


def case_of(name: str, folder: Path) -> Case:
    """A family's tokenizer, saved and read by both."""
    FAMILIES[name].save(folder)
    return Case(name, FAMILIES[name], folder, load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder))


def pair_of(
    prompt: tuple[Message, ...] | str, chosen: str = "Yes.", rejected: str = "No.", **more: Any
) -> PreferencePair:
    return PreferencePair(prompt, chosen, rejected, "f:1", **more)


def talk(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    """User and assistant in turn, user first."""
    turns = [Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts)]
    return tuple(turns if system is None else [Message("system", system), *turns])


def messages_of(pair: PreferencePair, answer: str | None = None) -> list[dict[str, str]]:
    turns = (Message("user", pair.prompt),) if isinstance(pair.prompt, str) else pair.prompt
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return messages if answer is None else [*messages, {"role": "assistant", "content": answer}]


def sides(pair: PreferencePair, encoded: EncodedPair) -> Iterator[tuple[str, list[int]]]:
    yield pair.chosen, encoded.chosen.tolist()
    yield pair.rejected, encoded.rejected.tolist()


def require_ids_of_transformers(at: Case, pair: PreferencePair) -> None:
    """A pair's ids are those that transformers gives the prompt and the whole, the answers ended by one end token."""
    encoded = at.encode(pair)
    assert not encoded.bad, encoded.bad
    (one,) = encoded.pairs
    prompt = one.prompt.tolist()
    assert prompt == at.ids(messages_of(pair), prompt=True)
    straddling = 0
    for answer, response in sides(pair, one):
        whole = at.ids(messages_of(pair, answer))
        if at.name == "glm4":  # its template leaves the last answer open
            whole = [*whole, at.end_id]
        assert response.count(at.end_id) == 1
        assert response[-1] == at.end_id
        if whole[: len(prompt)] == prompt:
            assert whole[: len(prompt) + len(response)] == prompt + response
            assert not at.theirs.decode(whole[len(prompt) + len(response) :]).replace("<|endoftext|>", "").strip()
        else:
            straddling += 1
            rendered = at.rendered(messages_of(pair, answer)).removeprefix(at.rendered(messages_of(pair), prompt=True))
            assert bare(at.theirs.decode(response)) == bare(rendered.split(at.family.end)[0] + at.family.end)
    assert encoded.counts["tokenized apart"] == (straddling > 0)
    assert encoded.counts["no end token"] == 0


def bare(text: str) -> str:
    """A text without what a normalizer or a sentencepiece-like decoder may change."""
    return "".join(unicodedata.normalize("NFKC", text).replace("▁", " ").split())


PAIR = PreferencePair("How do I invite a teammate?", "Open Settings, choose People.", "Ask.", "prefs.jsonl:7")


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
    return pair_of(prompt, *draw_answers(data, case))


def draw_turns(data: st.DataObject, case: Case) -> tuple[Message, ...]:
    """Turns in any order of their roles, two of one role in a row among them; turn i begins with `t{i} `."""
    roles = data.draw(st.lists(st.sampled_from(["user", "assistant", "tool"]), min_size=1, max_size=4))
    roles = ["system", *roles] if data.draw(st.booleans()) else roles
    return tuple(Message(role, f"t{i} {data.draw(texts_for(case))}") for i, role in enumerate(roles))
