"""What holds for any text, drawn anew: ids, decoding, cuts, special tokens, turns, reasoning, BOS; by transformers."""

import json
import unicodedata
from typing import Any

import jinja2
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simpo_cli.data.pair import Message, PreferencePair
from tests.data.encode_cases import (
    APPEND_ONLY,
    Case,
    Cases,
    bare,
    draw_answers,
    draw_pair,
    draw_turns,
    messages_of,
    pair_of,
    properties,
    require_ids_of_transformers,
    sides,
    talk,
    texts_for,
)
from tests.tiny import FAMILIES

BYTE_LEVEL = (
    *("chatml", "chatml_system", "chatml_base_eos", "chatml_loose", "llama3"),
    *("qwen3", "qwen3_thinking", "deepseek", "glm4", "harmony"),
)


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_ids_are_those_of_transformers(case: Cases, name: str, data: st.DataObject) -> None:
    require_ids_of_transformers(case(name), draw_pair(data, case(name)))


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_decoding_gives_back_rendering_and_response(case: Cases, name: str, data: st.DataObject) -> None:
    at = case(name)
    pair = draw_pair(data, at)
    one = at.one(pair)
    for answer, response in sides(pair, one):
        rendered = at.rendered(messages_of(pair, answer))
        prompt = at.rendered(messages_of(pair), prompt=True)
        scored = rendered.removeprefix(prompt).split(at.family.end)[0] + at.family.end
        assert bare(at.text(one.prompt, response)) == bare(prompt + scored)
        assert bare(at.text(response)) == bare(scored)
        assert bare(at.text(response[:-1])).endswith(bare(answer))
        if name in BYTE_LEVEL and unicodedata.is_normalized("NFC", rendered):
            assert at.text(one.prompt, response) == prompt + scored
            assert at.text(response) == scored
            assert at.text(response[:-1]).strip().endswith(answer.strip())


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(data=st.data())
@properties
def test_masking_changes_nothing_where_no_special_token_is_spelled_out(
    case: Cases, name: str, data: st.DataObject
) -> None:
    at = case(name)
    pair = draw_pair(data, at)
    text = at.rendered(messages_of(pair, pair.chosen))
    assert at.ours.encode_batch([text], "masked") == at.ours.encode_batch([text])
    assert at.ours.mask_literals(pair.chosen) == pair.chosen
    # and what is tokenized from the last special token on is what it is in the whole
    whole, tail = at.ours.encode_batch([text, text[at.ours.last_break(text) :]])
    assert whole[len(whole) - len(tail) :] == tail


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_special_tokens_spelled_out_in_messages_stay_text(case: Cases, name: str, data: st.DataObject) -> None:
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
    pair, harmless = pair_of(prompt, chosen, rejected), pair_of("x", "y", "z")
    encoded = at.encode(pair)
    (one,) = encoded.pairs
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
            assert bare(answer) in bare(at.text(response))
            assert bare(prompt) in bare(at.text(one.prompt))
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
def test_truncation(case: Cases, name: str, plain: bool, data: st.DataObject) -> None:
    at = case(name).plain if plain else case(name)
    pair = draw_pair(data, at)
    max_length = data.draw(st.integers(8, 60))
    max_prompt_length = data.draw(st.integers(1, max_length - 1))
    whole = at.one(pair)
    encoded = at.encode(pair, max_length=max_length, max_prompt_length=max_prompt_length)
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
    cuts = (one.prompt_cut, one.chosen_cut, one.rejected_cut)
    assert cuts == (len(full_prompt) > max_prompt_length, len(whole.chosen) > room, len(whole.rejected) > room)
    for cut, response in zip(cuts[1:], (one.chosen, one.rejected), strict=True):
        assert (response[-1] in at.ours.end_ids) != cut
    for what, cut in zip(("prompt", "chosen", "rejected"), cuts, strict=True):
        assert encoded.counts[f"{what} cut"] == cut


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_rendered_texts_give_the_same_ids(case: Cases, name: str, data: st.DataObject) -> None:
    at = case(name)
    pair = draw_pair(data, at)
    prompt = at.rendered(messages_of(pair), prompt=True)
    answers = [at.rendered(messages_of(pair, answer)).removeprefix(prompt) for answer in (pair.chosen, pair.rejected)]
    usual, rendered = at.one(pair), at.one(pair_of(prompt, *answers), rendered=True)
    prefix = rendered.prompt.tolist()
    if at.ours.bos_id is not None:
        assert prefix[:2] != [at.ours.bos_id] * 2
    # a template that writes no BOS leaves it to the tokenizer, as with any plain text
    assert prefix[len(prefix) - len(usual.prompt) :] == usual.prompt.tolist()
    assert rendered.chosen.tolist() == usual.chosen.tolist()
    assert rendered.rejected.tolist() == usual.rejected.tolist()
    # the end is put where it is missing
    without_end = [answer.split(at.family.end)[0] for answer in answers]
    assert at.one(pair_of(prompt, *without_end), rendered=True).chosen[-1] == at.end_id


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma", "vicuna", "chatml_merging"])
@given(data=st.data())
@properties
def test_plain_text(case: Cases, name: str, data: st.DataObject) -> None:
    at = case(name).plain
    special = st.sampled_from([at.family.end, at.family.eos, "x"]).map(lambda text: f" {text} b")
    prompt, chosen, rejected = (data.draw(st.one_of(texts_for(at), special)) for _ in range(3))
    assume(bare(chosen) != bare(rejected))
    pair = pair_of(prompt, chosen, rejected)
    one = at.one(pair)
    added = at.theirs.encode("a")[: 1 if at.name == "llama3" else 0]
    assert one.prompt.tolist()[: len(added)] == added
    for answer, response in sides(pair, one):
        assert response[-1] == at.theirs.eos_token_id
        ids = [*one.prompt.tolist()[len(added) :], *response[:-1]]
        assert not at.ours.special_ids.difference([at.theirs.unk_token_id]).intersection(ids)
        assert bare(at.ours.decode(ids)) == bare(prompt + answer)


# Turns, BOS, reasoning, and texts of any kind


def renderings(at: Case, pair: PreferencePair) -> list[str] | str:
    """The prompt and the two whole conversations as transformers renders them, or why the template refuses them."""
    try:
        wholes = [at.rendered(messages_of(pair, answer)) for answer in (pair.chosen, pair.rejected)]
        return [at.rendered(messages_of(pair), prompt=True), *wholes]
    except jinja2.TemplateError as error:
        return str(error)


@pytest.mark.parametrize("name", APPEND_ONLY)
@given(data=st.data())
@properties
def test_turns_in_any_order_of_their_roles(case: Cases, name: str, data: st.DataObject) -> None:
    """Tool turns, two users or two assistants in a row: as transformers renders them, or refused for its reason."""
    at = case(name)
    pair = pair_of(draw_turns(data, at), *draw_answers(data, at))
    rendered = renderings(at, pair)
    if isinstance(rendered, str):
        assert at.refusal(pair) == f"the chat template refuses the conversation: {rendered}"
        return
    prompt, *wholes = rendered
    left_out = [turn.role for i, turn in enumerate(pair.prompt) if f"t{i} " not in prompt]
    if not all(whole.startswith(prompt) for whole in wholes):
        # Qwen3 and Harmony write an answer otherwise where it is the last turn, so two of them in a row have no prefix
        assert pair.prompt[-1].role == "assistant"
        header = prompt.removeprefix(at.rendered(messages_of(pair)))
        one = at.one(pair)
        assert one.prompt.tolist() == at.ids(messages_of(pair), prompt=True)
        for whole, response in zip(wholes, (one.chosen, one.rejected), strict=True):
            scored = whole.rpartition(header)[2].split(at.family.end)[0] + at.family.end
            assert bare(at.text(response)) == bare(scored)
        assert at.encode(pair).counts["turns that the template writes otherwise once they are answered"] == 1
    elif left_out:
        assert at.refusal(pair) == f"the chat template leaves the {left_out[0]} turn out"
    else:
        require_ids_of_transformers(at, pair)


@pytest.mark.parametrize("form", ["messages", "plain", "rendered"])
@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral", "gemma", "zephyr", "deepseek", "phi3", "vicuna"])
@given(data=st.data())
@properties
def test_the_bos_that_is_rendered_and_never_two_at_the_start(
    case: Cases, name: str, form: str, data: st.DataObject
) -> None:
    at = case(name)
    assert at.family.bos is not None
    spelled = at.family.bos * data.draw(st.integers(0, 2))
    limit = data.draw(st.one_of(st.just(50_000), st.integers(1, 60)))
    pair = draw_pair(data, at)
    rendered = at.rendered(messages_of(pair), prompt=True)
    added = at.theirs.encode("the") != at.theirs.encode("the", add_special_tokens=False)
    prompt: Any = f"{spelled}{rendered}"
    match form:
        case "messages":
            prompt = (Message("user", f"{spelled} {data.draw(texts_for(at))}"),)
            begins = rendered.startswith(at.family.bos)
        case "plain":
            at, begins = at.plain, added
        case _:
            begins = added or prompt.startswith(at.family.bos)
    asked = pair_of(prompt, pair.chosen, pair.rejected)
    (one,) = at.encode(asked, max_prompt_length=limit, rendered=form == "rendered").pairs
    ids = one.prompt.tolist()
    assert (ids[0] == at.ours.bos_id) == begins
    assert ids[:2] != [at.ours.bos_id] * 2
    assert 1 <= len(ids) <= limit


@pytest.mark.parametrize("name", ["qwen3", "qwen3_thinking", "deepseek", "deepseek_r1"])
@given(data=st.data())
@properties
def test_reasoning_is_there_once_and_old_reasoning_is_not(case: Cases, name: str, data: st.DataObject) -> None:
    at = case(name)
    gap = data.draw(st.sampled_from(["", "\n", "\n\n"]))
    thought, (first, second) = data.draw(texts_for(at)), draw_answers(data, at)
    chosen = f"<think>{gap}{thought}{gap}</think>{gap}{first}"
    both = name == "deepseek_r1" or data.draw(st.booleans())  # its generation prompt opens every answer's reasoning
    rejected = f"<think>{gap}{thought}{gap}</think>{gap}{second}" if both else second
    old = "<think>\nt0ld\n</think>\n\nEarlier."
    pair = pair_of(talk("Hi", old, "And?") if data.draw(st.booleans()) else "Hi", chosen, rejected)
    one = at.one(pair)
    think = at.theirs.convert_tokens_to_ids("<think>")
    assert one.prompt.tolist() == at.ids(messages_of(pair), prompt=True)
    for response, last, reasoned in ((one.chosen.tolist(), first, True), (one.rejected.tolist(), second, both)):
        ids = [*one.prompt.tolist(), *response]
        assert ids.count(think) == (reasoned or name.startswith("qwen3"))
        assert "t0ld" not in at.ours.decode(ids)
        answer = bare(at.ours.decode(response).removesuffix(at.family.end))
        assert answer.endswith(f"</think>{bare(last)}" if reasoned else bare(last))
        assert not reasoned or answer.removeprefix("<think>").startswith(bare(thought))
        assert response.count(at.end_id) == 1
    if name.startswith("qwen3"):
        require_ids_of_transformers(at, pair)


anything = st.text(st.characters(exclude_categories=[]), max_size=12)
PIECES = (
    *("<think>", "</think>", "\0", "\U0010fffd0\U0010fffd", "\U0010fffe", "▁"),
    *("\u2028", "</", " ", "\n\n", "\ud800"),
)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(data=st.data())
@properties
def test_no_text_does_more_than_be_refused(case: Cases, name: str, data: st.DataObject) -> None:
    """Whatever texts, tools and limits: one pair, one drop or one refusal, within the limits, with one end at most."""
    at = case(name)
    marks = at.ours.turn_marks()
    own = [*at.ours.special_tokens.values(), marks.user_header, marks.answer_header, at.family.end]
    texts = st.lists(st.one_of(st.sampled_from([*PIECES, *own]), anything), max_size=4).map("".join)
    roles = st.sampled_from(["user", "assistant", "tool", "system"])
    turns = st.lists(st.builds(Message, roles, texts), min_size=1, max_size=3).map(tuple)
    tools = st.none() | st.dictionaries(texts, texts, max_size=2).map(json.dumps)
    pair = pair_of(data.draw(texts | turns), data.draw(texts), data.draw(texts), tools=data.draw(tools, label="tools"))
    max_length = data.draw(st.integers(8, 80))
    max_prompt_length = data.draw(st.integers(1, max_length - 1))
    fewest = data.draw(st.integers(1, 3))
    encoded = at.encode(
        pair,
        max_length=max_length,
        max_prompt_length=max_prompt_length,
        min_response_tokens=fewest,
        overlong=data.draw(st.sampled_from(["truncate", "drop"])),
        on_bad_record="skip",
        rendered=data.draw(st.booleans()),
    )
    assert len(encoded.pairs) + len(encoded.bad) + encoded.dropped.total() == 1
    for one in encoded.pairs:
        assert 1 <= len(one.prompt) <= max_prompt_length
        for response in (one.chosen.tolist(), one.rejected.tolist()):
            assert len(one.prompt) + len(response) <= max_length
            assert sum(i not in at.ours.end_ids for i in response) >= fewest
            assert not at.ours.end_ids.intersection(response[:-1])
        assert min(map(min, (one.prompt, one.chosen, one.rejected))) >= 0
        assert max(map(max, (one.prompt, one.chosen, one.rejected))) < at.ours.vocab_size
