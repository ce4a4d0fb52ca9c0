"""Shapes of chat templates that people tune under, and the kinds of conversation that they are asked to write."""

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
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
