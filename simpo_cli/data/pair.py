"""The two forms a preference pair has on its way to the model: text, then tokens."""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; two are equal if they say the same.

    Attributes:
        role: `system`, `user`, `assistant` or `tool` (tool results).
        content: all that the turn says, as text: reasoning, content, and calls as JSON, one a line.
        fields: JSON of the message as the record holds it, its role aside, where that is more than a text: content,
            tool_calls, tool_call_id, name, reasoning_content and whatever else; otherwise empty.
    """

    role: str
    content: str
    fields: str = field(default="", compare=False)

    def as_record(self) -> dict[str, Any]:
        """The message as records hold it and templates read it."""
        return {"role": self.role, **(json.loads(self.fields) if self.fields else {"content": self.content})}


def prompt_messages(prompt: tuple[Message, ...] | str) -> tuple[Message, ...]:
    """The prompt as turns: plain text is what a user says. Two prompts are the same if their turns are."""
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with the response that people preferred and the one it beat, as text.

    Attributes:
        prompt: a conversation that ends before the response, or plain text when the record held plain text.
        chosen: the preferred response, as the record holds it (nothing stripped); with reasoning or calls, all of it
            as text.
        rejected: the response it beat.
        where: the record's place for messages: `prefs.jsonl:17` (line, JSON lines) or `prefs.json, record 17`.
        tools: the JSON text of the tools that the conversation may call, or None.
        template_kwargs: JSON text of the record's own variables for the chat template, or None.
        chosen_fields, rejected_fields: the responses' messages, as `Message.fields`.
    """

    prompt: tuple[Message, ...] | str
    chosen: str
    rejected: str
    where: str
    tools: str | None = None
    template_kwargs: str | None = None
    chosen_fields: str = field(default="", compare=False)
    rejected_fields: str = field(default="", compare=False)

    @property
    def answers(self) -> tuple[Message, Message]:
        """Chosen and rejected response as turns."""
        return (
            Message("assistant", self.chosen, self.chosen_fields),
            Message("assistant", self.rejected, self.rejected_fields),
        )

    @property
    def num_characters(self) -> int:
        """Characters of the prompt's turns and the two responses."""
        prompt = self.prompt
        num_asked = len(prompt) if isinstance(prompt, str) else sum(len(turn.content) for turn in prompt)
        return num_asked + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """One pair as token ids, cut to the recipe's lengths; what the model sees.

    Attributes:
        prompt: (num_prompt_tokens,) int32 ids, seen and not scored.
        chosen: (num_chosen_tokens,) int32 ids, all of them scored, never empty.
        rejected: (num_rejected_tokens,) int32 ids, all of them scored, never empty.
        prompt_key: a hash of the prompt's text: pairs of one prompt share it (hold-out and intervals go by prompt).
        where: the record's place, for messages.
        prompt_cut, chosen_cut, rejected_cut: whether the length limits took tokens away.
        pair_key: a digest of the three texts, 32 hex digits, by which two runs know their pairs; zeros where it is not
            told.
    """

    prompt: NDArray[np.int32]
    chosen: NDArray[np.int32]
    rejected: NDArray[np.int32]
    prompt_key: str
    where: str
    prompt_cut: bool = False
    chosen_cut: bool = False
    rejected_cut: bool = False
    pair_key: str = "0" * 32

    @property
    def num_tokens(self) -> int:
        """Tokens that the pair holds when its prompt is stored once."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)
