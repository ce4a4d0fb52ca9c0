"""What holds for any text, drawn anew: ids, decoding, cuts and special tokens, against transformers."""

import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.pair import PreferencePair
from simpo_cli.recipe.schema import DataRecipe
from tests.data.encode_cases import (
    APPEND_ONLY,
    BYTE_LEVEL,
    ROOMY,
    Case,
    bare,
    draw_pair,
    messages_of,
    properties,
    require_ids_of_transformers,
    sides,
    texts_for,
)
from tests.tiny import FAMILIES


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_ids_are_those_of_transformers(case: Callable[[str], Case], name: str, data: st.DataObject) -> None:
    at = case(name)
    pair = draw_pair(data, at)
    require_ids_of_transformers(at, pair)


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_decoding_gives_back_rendering_and_response(
    case: Callable[[str], Case], name: str, data: st.DataObject
) -> None:
    at = case(name)
    pair = draw_pair(data, at)
    one = at.one(pair)
    for answer, response in sides(pair, one):
        rendered = at.rendered(messages_of(pair, answer))
        prompt = at.rendered(messages_of(pair), prompt=True)
        scored = rendered.removeprefix(prompt).split(at.family.end)[0] + at.family.end
        assert bare(at.ours.decode([*one.prompt.tolist(), *response])) == bare(prompt + scored)
        assert bare(at.ours.decode(response)) == bare(scored)
        assert bare(at.ours.decode(response[:-1])).endswith(bare(answer))
        if name in BYTE_LEVEL and unicodedata.is_normalized("NFC", rendered):
            assert at.ours.decode([*one.prompt.tolist(), *response]) == prompt + scored
            assert at.ours.decode(response) == scored
            assert at.ours.decode(response[:-1]).strip().endswith(answer.strip())


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(data=st.data())
@properties
def test_masking_changes_nothing_where_no_special_token_is_spelled_out(
    case: Callable[[str], Case], name: str, data: st.DataObject
) -> None:
    at = case(name)
    pair = draw_pair(data, at)
    text = at.rendered(messages_of(pair, pair.chosen))
    assert at.ours.encode_batch([text], "masked") == at.ours.encode_batch([text])
    assert at.ours.mask_literals(pair.chosen) == pair.chosen
    # and what is tokenized from the last special token on is what it is in the whole
    start = at.ours.last_break(text)
    (whole,), (tail,) = at.ours.encode_batch([text]), at.ours.encode_batch([text[start:]])
    assert whole[len(whole) - len(tail) :] == tail


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_special_tokens_spelled_out_in_messages_stay_text(
    case: Callable[[str], Case], name: str, data: st.DataObject
) -> None:
    at = case(name)
    marks = at.ours.turn_marks()
    headers = {marks.user_header, marks.answer_header}
    literals = sorted({at.theirs.decode([i]).strip() for i in at.ours.special_ids} - headers - {""})
    pieces = st.lists(st.sampled_from([*literals, "how", " ", "\n", "</", "<|im_", "is it?"]), min_size=1, max_size=5)
    texts = pieces.map(lambda pieces: "x" + "".join(pieces) + "y").filter(
        lambda text: not any(header in text for header in headers)
    )
    prompt, chosen, rejected = (data.draw(texts) for _ in range(3))
    assume(bare(chosen) != bare(rejected))
    pair = PreferencePair(prompt, chosen, rejected, "f:1")
    encoded = at.encode(pair)
    (one,) = encoded.pairs
    harmless = PreferencePair("x", "y", "z", "f:1")
    for (answer, response), (calm, _) in zip(sides(pair, one), sides(harmless, at.one(harmless)), strict=True):
        whole = [*one.prompt.tolist(), *response]
        template_only = at.ids(messages_of(harmless, calm)) + ([at.end_id] if name == "glm4" else [])
        wanted = [i for i in template_only if i in at.ours.special_ids]
        if at.name == "phi3":
            wanted = wanted[:-1]  # the end of the text behind the end of the turn
        assert [i for i in whole if i in at.ours.special_ids and i != at.theirs.unk_token_id] == wanted
        assert response.count(at.end_id) == 1
        assert response[-1] == at.end_id
        if name not in ("vicuna", "mistral", "mistral_words"):
            assert bare(answer) in bare(at.ours.decode(response))
            assert bare(prompt) in bare(at.ours.decode(one.prompt.tolist()))
    spelled = any(literal in text for literal in literals for text in (prompt, chosen, rejected))
    assert encoded.counts["special token kept as text"] == spelled


def cut_by_turns(at: Case, pair: PreferencePair, full: list[int], most: int, *, plain: bool) -> list[int]:
    """The longest end of the conversation that begins with a question and fits, behind the system turn; or the header
    of the last question and its end; or the same without the system turn; or, of plain text and where not even headers
    fit, the last tokens behind BOS, from the first whole turn of the user on where they hold one."""
    bos = at.ours.bos_id

    def text(messages: list[dict[str, str]]) -> str:
        if not plain:
            return at.rendered(messages, prompt=True)
        names = {"user": "Human", "assistant": "Assistant", "system": "System"}
        return "\n\n" + "\n\n".join([*(f"{names[m['role']]}: {m['content']}" for m in messages), "Assistant:"])

    def ids(messages: list[dict[str, str]]) -> list[int]:
        return [int(i) for i in at.theirs.encode(text(messages), add_special_tokens=plain)]

    if len(full) <= most:
        return full
    if not (plain and isinstance(pair.prompt, str)):
        messages = messages_of(pair)
        system = messages[:1] if messages[0]["role"] == "system" else []
        for opening in [system, []] if system else [[]]:
            ends = [ids([*opening, *messages[i:]]) for i, one in enumerate(messages) if one["role"] == "user"]
            if any(len(end) <= most for end in ends):
                return next(end for end in ends if len(end) <= most)
            before, behind = text([*opening, {"role": "user", "content": "qZ7kqx"}]).split("qZ7kqx")
            header = [int(i) for i in at.theirs.encode(before, add_special_tokens=plain)]
            if most - len(header) > len(at.ours.encode_behind([behind])[0]):
                return [*header, *ends[-1][len(header) - most :]]
    last = full[-most:] if full[0] != bos else full[len(full) - most + 1 :]
    mark = "" if plain else at.ours.turn_marks().user_header
    header = [int(i) for i in at.theirs.encode(mark, add_special_tokens=False)]
    whole = [i for i in range(len(last)) if header and last[i : i + len(header)] == header]
    last = last[whole[0] :] if whole else last
    return last if full[0] != bos or last[:1] == [bos] else [bos, *last]


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma", "vicuna"])
@pytest.mark.parametrize("plain", [False, True])
@given(data=st.data())
@properties
def test_truncation(case: Callable[[str], Case], name: str, plain: bool, data: st.DataObject) -> None:
    at = case(name)
    tokenizer = at.plain if plain else at.ours
    pair = draw_pair(data, at)
    max_length = data.draw(st.integers(8, 60))
    max_prompt_length = data.draw(st.integers(1, max_length - 1))
    limits = DataRecipe(train="x", max_length=max_length, max_prompt_length=max_prompt_length)
    (whole,) = encode_pairs([pair], tokenizer, ROOMY).pairs
    encoded = encode_pairs([pair], tokenizer, limits)
    full_prompt = whole.prompt.tolist()
    prompt = cut_by_turns(at, pair, full_prompt, max_prompt_length, plain=plain)
    room = max_length - len(prompt)
    wanted = [whole.chosen.tolist()[:room], whole.rejected.tolist()[:room]]
    if encoded.dropped:
        assert wanted[0] == wanted[1]
        assert encoded.dropped == {"responses identical after the cut": 1}
        return
    (one,) = encoded.pairs
    assert one.prompt.tolist() == prompt
    assert [one.chosen.tolist(), one.rejected.tolist()] == wanted
    assert min(map(len, (one.prompt, one.chosen, one.rejected))) >= 1
    assert (one.prompt_cut, one.chosen_cut, one.rejected_cut) == (
        len(full_prompt) > max_prompt_length,
        len(whole.chosen) > room,
        len(whole.rejected) > room,
    )
    for cut, response in ((one.chosen_cut, one.chosen), (one.rejected_cut, one.rejected)):
        assert (response[-1] in tokenizer.end_ids) != cut
    for what, cut in (("prompt", one.prompt_cut), ("chosen", one.chosen_cut), ("rejected", one.rejected_cut)):
        assert encoded.counts[f"{what} cut"] == cut


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_rendered_texts_give_the_same_ids(case: Callable[[str], Case], name: str, data: st.DataObject) -> None:
    at = case(name)
    pair = draw_pair(data, at)
    prompt = at.rendered(messages_of(pair), prompt=True)
    answers = [at.rendered(messages_of(pair, answer)).removeprefix(prompt) for answer in (pair.chosen, pair.rejected)]
    already = PreferencePair(prompt, *answers, "f:1")
    usual, rendered = at.one(pair), at.one(already, DataRecipe(train="x", rendered=True, max_length=10_000))
    prefix = rendered.prompt.tolist()
    if at.ours.bos_id is not None:
        assert prefix[:2] != [at.ours.bos_id] * 2
    # a template that writes no BOS leaves it to the tokenizer, as with any plain text
    assert prefix[len(prefix) - len(usual.prompt) :] == usual.prompt.tolist()
    assert rendered.chosen.tolist() == usual.chosen.tolist()
    assert rendered.rejected.tolist() == usual.rejected.tolist()
    for without_end in (False, True):  # the end is put where it is missing
        texts = [answer.split(at.family.end)[0] if without_end else answer for answer in answers]
        again = at.one(PreferencePair(prompt, *texts, "f:1"), DataRecipe(train="x", rendered=True, max_length=10_000))
        assert again.chosen[-1] == at.end_id


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma", "vicuna", "chatml_merging"])
@given(data=st.data())
@properties
def test_plain_text(case: Callable[[str], Case], name: str, data: st.DataObject) -> None:
    at = case(name)
    plain = at.plain
    texts = texts_for(at)
    special = st.sampled_from([at.family.end, at.family.eos, "x"]).map(lambda text: f" {text} b")
    prompt, chosen, rejected = (data.draw(st.one_of(texts, special)) for _ in range(3))
    assume(bare(chosen) != bare(rejected))
    pair = PreferencePair(prompt, chosen, rejected, "f:1")
    (one,) = encode_pairs([pair], plain, ROOMY).pairs
    added = at.theirs.encode("a")[: 1 if at.name == "llama3" else 0]
    assert one.prompt.tolist()[: len(added)] == added
    eos = at.theirs.eos_token_id
    for answer, response in sides(pair, one):
        assert response[-1] == eos
        ids = [*one.prompt.tolist()[len(added) :], *response[:-1]]
        assert not plain.special_ids.difference([at.theirs.unk_token_id]).intersection(ids)
        assert bare(plain.decode(ids)) == bare(prompt + answer)
