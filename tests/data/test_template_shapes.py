"""The tokens scored are those of transformers' apply_chat_template, for sixteen shapes and at any date."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.formats import detect, to_pair
from simpo_cli.data.pair import EncodedPairs
from simpo_cli.data.store import EncodedSource
from simpo_cli.data.tokenizer import TextTokenizer, compile_template, load_tokenizer
from simpo_cli.data.tokenizer.template import dates_of
from simpo_cli.recipe.schema import DataRecipe
from tests.data.encode_cases import ROOMY
from tests.data.pair_files import Write, encoded, plain, records
from tests.tiny import CHATML, FAMILIES, byte_level_tokenizer, chatml_tokenizer, save_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
OTHER = "I do not know."
_TOKEN = re.compile(r"<[^<>\s'\"=~{}]+>|\[/?[A-Z_]{3,}\]|\[\|[a-z]+\|\]|\[gMASK\]")
_NOT_SPECIAL = ("<think>", "</think>", "<tool_call>", "</tool_call>")


@dataclass(frozen=True)
class Shape:
    """A template with its tokens.

    Attributes:
        ends: end tokens by tokenizer (the first) and generation config.
        end, call_end: what ends an answer, and an answer that calls.
        header: what the generation prompt writes in front of an answer that does not continue the prompt.
        arguments: forms in which the template writes arguments; none where it has no place for calls.
        reasoning: the field that it reads thoughts from.
        refused: why a kind of conversation is refused.
    """

    name: str
    ends: tuple[str, ...]
    bos: str | None = None
    call_end: str | None = None
    header: str = ""
    arguments: tuple[str, ...] = ("object",)
    reasoning: str = "reasoning_content"
    end_is_written: bool = True
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        return (TEMPLATES / f"{self.name}.jinja").read_text(encoding="utf-8")

    @cached_property
    def tokens(self) -> dict[str, bool]:
        """Tokens that the template writes, and whether they are special."""
        written = [*_TOKEN.findall(self.source), *self.ends, *([self.bos] if self.bos else [])]
        return {token: token not in _NOT_SPECIAL for token in dict.fromkeys(written)}


_NO_TOOL_ROLE = dict.fromkeys(
    ("tool result", "tool then question"), "leaves the tool turn out|alternate|roles are supported"
)
_ONE_TEXT = {"call and text": "leaves the text beside the calls of the answer out"}
_THOUGHT = {"reasoning": "renders the conversation differently"}

SHAPES = [
    Shape("qwen3", ("<|im_end|>", "<|endoftext|>"), arguments=("object", "text")),
    Shape(
        "llama3",
        ("<|eot_id|>", "<|eom_id|>"),
        bos="<|begin_of_text|>",
        refused={"parallel calls": "one call at a time", **_ONE_TEXT},
    ),
    Shape("mistral_v3", ("</s>",), bos="<s>", header="[/INST]", refused=_ONE_TEXT),
    Shape("nemo", ("</s>",), bos="<s>", header="[/INST]", refused=_ONE_TEXT),
    Shape("pixtral", ("</s>",), bos="<s>", header="[/INST]", arguments=(), refused=_NO_TOOL_ROLE),
    Shape("gemma3", ("<eos>", "<end_of_turn>"), bos="<bos>", arguments=(), refused=_NO_TOOL_ROLE),
    Shape(
        "gemma4", ("<eos>", "<turn|>"), bos="<bos>", header="<|turn>model\n", reasoning="reasoning", refused=_THOUGHT
    ),
    Shape("exaone4", ("[|endofturn|]",), header="[|assistant|]\n", refused=_THOUGHT),
    Shape("glm45", ("<|endoftext|>", "<|user|>", "<|observation|>"), call_end="<|observation|>", end_is_written=False),
    Shape("deepseek_v3", ("<｜end▁of▁sentence｜>",), bos="<｜begin▁of▁sentence｜>", arguments=("text",)),
    Shape(
        "gpt_oss",
        ("<|return|>", "<|call|>"),
        reasoning="thinking",
        refused={"parallel calls": "does not write 2 calls in one answer"},
    ),
    Shape("command_a", ("<|END_OF_TURN_TOKEN|>",), bos="<BOS_TOKEN>"),
    Shape("lfm2", ("<|im_end|>",), bos="<|startoftext|>", arguments=()),
    Shape("jamba", ("<|eom|>",), arguments=("object", "text")),
    Shape("granite", ("<|end_of_text|>",)),
    Shape("phi4", ("<|endoftext|>", "<|im_end|>"), arguments=(), refused=_NO_TOOL_ROLE),
]

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide_table",
            "description": "Tides of a harbour, “high” and low.",
            "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}}, "required": ["harbour"]},
        },
    }
]


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None, *harbours: str, **more: Any) -> dict[str, Any]:
    """An answer, with a call for each harbour."""
    calls = [
        {"id": f"call{i:05}", "type": "function", "function": {"name": "tide_table", "arguments": {"harbour": harbour}}}
        for i, harbour in enumerate(harbours, start=1)
    ]
    return {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {}) | more


def result(text: str, number: int = 1) -> dict[str, Any]:
    return {"role": "tool", "name": "tide_table", "tool_call_id": f"call{number:05}", "content": text}


ASK = user("When is low tide in Faro?")
THOUGHT = "They want a time.\n\nFaro, then."


@dataclass(frozen=True)
class Kind:
    """A kind of conversation: the prompt, the answer to prefer, and the tools."""

    prompt: list[dict[str, Any]]
    answer: dict[str, Any]
    tools: list[dict[str, Any]] | None = None


KINDS = {
    "plain": Kind([ASK], said("At ten past six.")),
    "system": Kind([{"role": "system", "content": "Be brief."}, ASK], said("At ten past six.")),
    "two turns": Kind([ASK, said("At six."), user("And in Lagos?")], said("At seven.")),
    "reasoning": Kind([ASK], said("At six.", reasoning=THOUGHT)),
    "reasoning before": Kind([ASK, said("At six.", reasoning=THOUGHT), user("And in Lagos?")], said("At seven.")),
    "call": Kind([ASK], said(None, "Faro"), TOOLS),
    "tool result": Kind([ASK, said(None, "Faro"), result('{"low": "06:10"}')], said("At 06:10."), TOOLS),
    "parallel calls": Kind([user("Low tide in Faro and Lagos?")], said(None, "Faro", "Lagos"), TOOLS),
    "call and text": Kind([ASK], said("Let me look.", "Faro"), TOOLS),
    "parts": Kind(
        [user([{"type": "text", "text": "When is "}, {"type": "text", "text": "low tide?"}])], said("At six.")
    ),
    "tools unused": Kind([user("Hello?")], said("Hello, how can I help?"), TOOLS),
    "tool then question": Kind(
        [ASK, said(None, "Faro"), result('{"low": "06:10"}'), said("At 06:10."), user("And in Lagos?")],
        said(None, "Lagos"),
        TOOLS,
    ),
    "unicode": Kind([user('Où est "Évora" ? 🌊 \\n 潮汐')], said("Près d’Évora… 低潮 ✓\n\n\t- 06:10")),
}


def given_by(messages: list[dict[str, Any]], shape: Shape, form: str) -> list[dict[str, Any]]:
    """The messages with reasoning in the field that the template reads, and arguments in a form."""
    given = json.loads(json.dumps(messages))
    for message in given:
        if "reasoning" in message:
            message[shape.reasoning] = message.pop("reasoning")
        for call in message.get("tool_calls", ()):
            if form == "text":
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return given


class Model:
    """A shape's tokenizer as we read it and as transformers does."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        tokenizer = byte_level_tokenizer(tuple(token for token, special in shape.tokens.items() if special))
        words = [token for token, special in shape.tokens.items() if not special]
        tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
        save_tokenizer(folder, tokenizer, bos=shape.bos, eos=shape.ends[0], pad=None, template=shape.source)
        ends = [tokenizer.token_to_id(end) for end in shape.ends]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        self.ours: TextTokenizer = load_tokenizer(str(folder))
        self.theirs = AutoTokenizer.from_pretrained(folder)

    def text(self, messages: list[dict[str, Any]], tools: Any, *, prompt: bool = False, **kwargs: Any) -> str:
        return str(
            self.theirs.apply_chat_template(
                messages, tools=tools, add_generation_prompt=prompt, tokenize=False, **kwargs
            )
        )

    def ids(self, text: str) -> list[int]:
        return [int(i) for i in self.theirs.encode(text, add_special_tokens=False)]

    def encode(
        self, prompt: Any, chosen: Any, tools: Any = None, data: DataRecipe = ROOMY, **more: Any
    ) -> EncodedPairs:
        record = {"prompt": prompt, "chosen": [chosen], "rejected": [said(OTHER)], "tools": tools, **more}
        return encode_pairs([to_pair(record, detect([record], {}, "f"), "f:1", Counter())], self.ours, data)


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: shape.name)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(request.param, tmp_path_factory.mktemp(request.param.name))


def as_read(messages: list[dict[str, Any]], shape: Shape, form: str) -> list[dict[str, Any]]:
    """The messages as a person would have to give them to transformers under this template."""
    given = given_by(messages, shape, form if not shape.arguments or form in shape.arguments else shape.arguments[0])
    for message in given:
        if isinstance(message["content"], list):
            message["content"] = "".join(part["text"] for part in message["content"])
        if "tool_calls" in message and not shape.arguments:
            calls = [call["function"] for call in message.pop("tool_calls")]
            calls = [{**call, "arguments": json.loads(call["arguments"])} for call in calls if form == "text"] or calls
            message["content"] = "\n".join([*filter(None, [message["content"]]), *map(json.dumps, calls)])
    return given


def up_to_end(rest: str, shape: Shape, *, calls: bool) -> str:
    """What is scored of the text behind the prompt."""
    if not shape.end_is_written:
        return rest + (shape.call_end if calls and shape.call_end else shape.ends[1])
    places = [(rest.find(end), end) for end in shape.ends if end in rest]
    place, end = min(places)
    return rest[:place] + end


def forms_of(kind: str) -> list[str]:
    """Forms of arguments in which a conversation can be written."""
    return (
        ["object", "text"] if any("tool_calls" in turn for turn in (*KINDS[kind].prompt, KINDS[kind].answer)) else [""]
    )


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind in KINDS for form in forms_of(kind)])
def test_the_tokens_are_those_of_transformers(model: Model, kind: str, form: str) -> None:
    shape, talk = model.shape, KINDS[kind]
    *asked, answer = given_by([*talk.prompt, talk.answer], shape, form)
    encoded = model.encode(asked, answer, talk.tools)
    if kind in shape.refused:
        (bad,) = encoded.bad
        assert re.search(shape.refused[kind], bad.problem)
        return
    assert not encoded.bad, encoded.bad
    (one,) = encoded.pairs
    *asked, answer = as_read([*talk.prompt, talk.answer], shape, form)
    prompt = model.text(asked, talk.tools, prompt=True)
    assert one.prompt.tolist() == model.ids(prompt)
    notes = expected_notes(model, kind, prompt, [*asked, answer])
    for response, message in ((one.chosen, answer), (one.rejected, said(OTHER))):
        whole = model.text([*asked, message], talk.tools)
        if whole.startswith(prompt):
            rest = whole[len(prompt) :]
        else:
            rest = whole.rpartition(shape.header)[2]
            assert shape.header
        wanted = up_to_end(rest, shape, calls=bool(message.get("tool_calls")))
        whole_ids = model.ids(prompt + wanted)
        if whole_ids[: len(one.prompt)] == one.prompt.tolist():
            assert response.tolist() == whole_ids[len(one.prompt) :]
        else:
            assert response.tolist() == model.ids(wanted)
            notes.add("tokenized apart")
    assert set(encoded.counts) == notes


def expected_notes(model: Model, kind: str, prompt: str, messages: list[dict[str, Any]]) -> set[str]:
    """What is told of a pair: the rule by which the answer continues the prompt, and what is not written."""
    shape, talk = model.shape, KINDS[kind]
    whole = model.text(messages, talk.tools)
    notes = set()
    if not whole.startswith(prompt):
        notes.add(
            "answer behind a thought that only the generation prompt closes"
            if prompt.endswith(("<channel|>", "</think>\n\n"))
            else "turns that the template writes otherwise once they are answered"
        )
    given = [*talk.prompt, talk.answer]
    if any("tool_calls" in message for message in given):
        if not shape.arguments:
            notes.add("calls written as text, because the template has no place for them")
        if any(f"call{i:05}" not in whole for i in (1, 2) if f"call{i:05}" in json.dumps(given)):
            notes.add("tool call ids that the template does not write")
    thought = "".join(THOUGHT.split())
    if kind == "reasoning" and thought not in "".join(whole.split()):
        notes.add("reasoning that the template does not write")
    if kind == "reasoning before" and thought not in "".join(prompt.split()):
        notes.add("earlier reasoning that the template does not write")
    if talk.tools and "tools" not in shape.source:
        notes.add("tools unknown to the template")
    elif talk.tools and "Tides of a harbour" not in prompt and '"harbour"' not in prompt.replace("\\", ""):
        notes.add("tools that the template does not write")
    return notes


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_written_under_each_name_that_transformers_reads(model: Model, name: str) -> None:
    answer = said("At six.", **{name: THOUGHT})
    encoded = model.encode([ASK], answer)
    if encoded.bad:
        assert "reasoning" in model.shape.refused
        return
    # newer versions of transformers fill in these two names, older ones give a template only what a message holds
    filled = dict.fromkeys((name, "thinking", "reasoning_content"), THOUGHT)
    whole = model.text([ASK, said("At six.", **filled)], None)
    is_written = "".join(THOUGHT.split()) in "".join(whole.split())
    assert encoded.counts["reasoning that the template does not write"] == (not is_written)
    scored = "".join(model.ours.decode(encoded.pairs[0].chosen.tolist()).split())
    assert ("".join(THOUGHT.split()) in scored) == is_written


# Variables of a record


@pytest.mark.parametrize("written", [True, False], ids=["object", "text"])
def test_a_record_has_variables_of_its_own(model: Model, written: bool) -> None:
    kwargs = {"enable_thinking": True, "tone": None}
    answer = given_by([said("At six.", reasoning=THOUGHT)], model.shape, "object")[0]
    encoded = model.encode(
        [ASK],
        answer,
        data=DataRecipe(
            train="x", chat_template_kwargs={"enable_thinking": False} if model.shape.name == "qwen3" else {}
        ),
        chat_template_kwargs=kwargs if written else json.dumps(kwargs),
    )
    told = encoded.counts["chat_template_kwargs.enable_thinking of the record, which the template does not read"]
    assert told == ("enable_thinking" not in model.shape.source)
    (one,) = encoded.pairs
    prompt = model.text([ASK], None, prompt=True, enable_thinking=True)
    assert one.prompt.tolist() == model.ids(prompt)
    whole = model.text([ASK, answer], None, enable_thinking=True)
    assert model.ours.decode(one.chosen.tolist()) == up_to_end(whole.removeprefix(prompt), model.shape, calls=False)


NOON = datetime(2026, 11, 24, 12, 30, 5)
DAY = timedelta(days=1)
WHOLE = "2026-11-24T12:30:05"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, []),
        ("strftime_now('%d')", []),  # text
        ("{{ strftime_now('%d %b %Y') }}", ["24 Nov 2026"]),
        ("{% if strftime_now is defined %}{% set date = strftime_now('%Y') %}{% endif %}{{ date }}", ["2026"]),
        ("{{ strftime_now is defined }}", []),
        ("{{ strftime_now('%d') }}{% if x %}{{ strftime_now('%H:%M') }}{% endif %}", ["12:30", "24"]),
        ("{{ strftime_now('today') }}", ["today"]),
        ("{% set form = '%d' %}{{ strftime_now(form) }}", [WHOLE]),
        ("{{ strftime_now('%d' ~ x) }}", [WHOLE]),
        ("{% set clock = strftime_now %}{{ clock('%d') }}", [WHOLE]),
        ("{% macro f(x) %}{{ strftime_now(x) }}{% endmacro %}{{ f('%d') }}{{ strftime_now('%m') }}", ["11", WHOLE]),
    ],
)
def test_what_a_template_writes_of_a_moment(source: str, expected: list[str]) -> None:
    assert dates_of(compile_template(source, "here", NOON), source, NOON) == expected


@pytest.fixture
def dated(tmp_path: Path) -> Path:
    """A template that writes the day in front of every conversation."""
    chatml_tokenizer(tmp_path / "model")
    (tmp_path / "dated.jinja").write_text("{{ strftime_now('%d') }}" + CHATML)
    return tmp_path / "dated.jinja"


def _tokenizer(model: Path, moment: datetime, template: Path | None = None) -> TextTokenizer:
    return load_tokenizer(str(model), chat_template=None if template is None else str(template), moment=moment)


@pytest.mark.usefixtures("cache")
def test_the_tokens_of_a_day_are_cached_for_that_day(write: Write, dated: Path, tmp_path: Path) -> None:
    path = write("a.jsonl", records(6))

    def found(moment: datetime) -> EncodedSource:
        whole = DataRecipe(train="-", max_length=512, max_prompt_length=400)  # a cut prompt has lost its beginning
        return encoded(path, _tokenizer(tmp_path / "model", moment, dated), whole)

    first = found(NOON)
    later = found(NOON + timedelta(hours=9))
    assert (first.origin.cache, later.origin.cache) == ("miss", "hit")
    next_day = found(NOON + DAY)
    assert next_day.origin.cache == "miss"
    assert [plain(pair) for pair in next_day.pairs] != [plain(pair) for pair in first.pairs]
    assert next_day.pairs[0].prompt_key == first.pairs[0].prompt_key  # so that the same pairs are held out
    assert found(NOON).origin.cache == "hit"


@pytest.mark.usefixtures("cache")
def test_other_templates_do_not_care_for_the_day(write: Write, dated: Path, tmp_path: Path) -> None:
    path = write("a.jsonl", records(6))
    assert dated.is_file()
    caches = [encoded(path, _tokenizer(tmp_path / "model", NOON + i * DAY)).origin.cache for i in range(2)]
    assert caches == ["miss", "hit"]


def test_a_template_of_the_llama_family(tmp_path: Path) -> None:
    tokenizer = _tokenizer(FAMILIES["llama3"].save(tmp_path), NOON)
    assert tokenizer.dates == ["24 Nov 2026"]
    assert tokenizer.identity != _tokenizer(tmp_path, NOON + DAY).identity
    assert tokenizer.identity == _tokenizer(tmp_path, NOON + timedelta(hours=1)).identity
