"""The two forms a preference pair has on its way to the model: text, then tokens."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    role is `system`, `user`, `assistant` or `tool` (tool results); content is text.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """One prompt with the response that people preferred and the one it beat, as text.

    Attributes:
        prompt: a conversation that ends before the response, or plain text when the record held plain text.
        chosen: the preferred response, as the record holds it (nothing stripped).
        rejected: the response it beat.
        where: the record's place for messages: `prefs.jsonl:17` (line, JSON lines) or `prefs.json, record 17`.
        tools: the JSON text of the tools that the conversation may call, or None.
    """

    prompt: tuple[Message, ...] | str
    chosen: str
    rejected: str
    where: str
    tools: str | None = None

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
