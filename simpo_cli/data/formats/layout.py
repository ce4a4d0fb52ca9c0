"""Which field plays which part in a file, as a decision that can be read."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which field plays which part in a file. A name with dots reaches into objects.

    Attributes:
        chosen, rejected: the fields of the two responses; with `order` they are the first and the second.
        prompt: the prompt's field, or None where it is the beginning that the two sides share.
        order: what says which response is preferred: their names, a label column, or their scores.
        label: the label's field, 1 or 2 or a field's name.
        scores: the fields of the two scores, where the person names them or they order the pair.
        system, tools: fields of the system text and the tools.
        prompt_more: a field whose text belongs behind the prompt (`input` beside `instruction`).
        conversational: the records have turns; otherwise plain text. This is for people to read and decides nothing.
    """

    chosen: str
    rejected: str
    prompt: str | None
    order: str = "names"
    label: str | None = None
    scores: tuple[str, str] | None = None
    system: str = "system"
    tools: str = "tools"
    prompt_more: str | None = None
    conversational: bool = dataclasses.field(default=False, compare=False)

    def described(self) -> str:
        """The decision in words, such as `conversational, implicit prompt`."""
        form = "conversational" if self.conversational else "plain text"
        fields = [self.prompt] if self.prompt not in (None, "prompt") else []
        fields += [self.prompt_more] if self.prompt_more else []
        if self.prompt is None:
            prompt = "implicit prompt"
        else:
            prompt = "explicit prompt" + (f" ({' + '.join(str(f) for f in fields)})" if fields else "")
        match self.order:
            case "label":
                return f"{form}, {prompt}, {self.label} says which of {self.chosen} and {self.rejected} is preferred"
            case "scores":
                return f"{form}, {prompt}, the higher score of {self.chosen} and {self.rejected} is preferred"
            case "list":
                return f"{form}, {prompt}, the higher score of two {self.chosen} is preferred"
        if (self.chosen, self.rejected) != ("chosen", "rejected"):
            prompt += f", {self.chosen} over {self.rejected}"
        return f"{form}, {prompt}"

    @property
    def response(self) -> str:
        """What the response is, in words."""
        return "last assistant turn" if self.conversational and self.prompt is None else "the whole answer"
