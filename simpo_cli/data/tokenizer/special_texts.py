"""Special tokens that a message spells out are kept as text: how they are found, masked, and tokenized as letters."""

import json
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

from tokenizers import AddedToken, Tokenizer

SpecialTokenMode = Literal["parsed", "masked", "literal"]
"""How special tokens in a text are read: all as tokens; the template's as tokens and the messages' as text; as text."""

# Unicode noncharacters: they stand for special tokens while a text is taken apart, and no text holds them on purpose.
_STAND_IN, _LITERAL = "\U0010fffe", "\U0010fffd"


class EncodingError(ValueError):
    """The tokenizer cannot encode a text; the message is the reason, without a subject."""


class SpecialTexts:
    """The texts of a tokenizer's special tokens, and what becomes of them inside messages.

    Args:
        tokenizer: the library's tokenizer.
        tokens: its tokens that a template may write and a message may not.
        unknown_id: the id of what the vocabulary lacks, or None.

    Attributes:
        numbers: the place of each text in the list of stand-ins.
    """

    def __init__(self, tokenizer: Tokenizer, tokens: Sequence[AddedToken], unknown_id: int | None) -> None:
        self._tokenizer, self._unknown_id = tokenizer, unknown_id
        self._texts = sorted(filter(None, (token.content for token in tokens)), key=len, reverse=True)
        self.numbers = {text: i for i, text in enumerate(self._texts)}
        self._pattern = any_of(self._texts)
        self._normalize: Callable[[str], str] | None = None
        normalizer = tokenizer.normalizer
        if normalizer is not None and any(token.normalized for token in tokens):
            # such tokens are looked for behind the normalizer: `＜s＞` may become `<s>`
            self._normalize = lambda text: str(normalizer.normalize_str(text))

    def spelled_in(self, text: str) -> bool:
        """Whether a text spells out a special token."""
        if self._pattern is None:
            return False
        if self._pattern.search(text) is not None:
            return True
        return self._normalize is not None and self._pattern.search(self._normalize(text)) is not None

    def mask(self, text: str) -> str:
        """Put a stand-in for every special token that a message spells out, so that rendering cannot confuse them.

        Raises EncodingError where the text holds a stand-in itself.
        """
        if self._pattern is None:
            return text
        refuse_stand_ins([text])
        return self._pattern.sub(lambda m: f"{_LITERAL}{self.numbers[m[0]]}{_LITERAL}", text)

    def respelled(self, text: str) -> str:
        """A rendered text whose messages were masked, for the twin: what the template wrote gets the twin's spelling,
        what the messages hold gets its own back."""
        if self._pattern is not None:
            text = self._pattern.sub(lambda m: _spelling(self.numbers[m[0]]), text)
        return re.sub(f"{_LITERAL}(\\d+){_LITERAL}", lambda m: self._texts[int(m[1])], text)

    def twin(self) -> Tokenizer:
        """The same tokenizer with other spellings of its special tokens; EncodingError where there is none.

        To it the usual spellings are ordinary text, in their place among the text around them.
        """
        if isinstance(self._twin, EncodingError):
            raise self._twin
        return self._twin

    @cached_property
    def _twin(self) -> Tokenizer | EncodingError:
        """The same tokenizer with other spellings of its special tokens under the same ids; or why there is none.

        To it the usual spellings are ordinary text, in their place among the text around them.
        """
        description = json.loads(self._tokenizer.to_str())
        spellings = {text: _spelling(i) for text, i in self.numbers.items()}
        for token in description["added_tokens"]:
            token["content"] = spellings.get(token["content"], token["content"])
        model = description["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {spellings.get(text, text): i for text, i in model["vocab"].items()}
        else:  # Unigram: a list of (text, score)
            model["vocab"] = [[spellings.get(text, text), score] for text, score in model["vocab"]]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = spellings.get(model["unk_token"], model["unk_token"])
        if "merges" in model:  # some vocabularies spell a special token by merging
            model["merges"] = [merge for merge in model["merges"] if spellings.keys().isdisjoint(_merged(merge))]
        description["post_processor"] = None
        try:
            twin = Tokenizer.from_str(json.dumps(description))
            own = twin.encode_batch_fast(list(spellings.values()), add_special_tokens=False)
            usual = twin.encode_batch_fast(list(spellings), add_special_tokens=False)
        except Exception as error:
            return EncodingError(f"spells out a special token, and this tokenizer cannot keep it as text: {error}")
        unknown = self._unknown_id  # a letter that the vocabulary lacks gives this id, and means no harm
        for text, as_token, as_text in zip(spellings, own, usual, strict=True):
            number = self._tokenizer.token_to_id(text)
            if number not in as_token.ids or (number != unknown and number in as_text.ids):
                return EncodingError(f"spells out special tokens, and this tokenizer cannot keep {text} as text")
        return twin


def any_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the texts, the longest where several begin at one place."""
    return re.compile(_branches(texts)) if texts else None


def _branches(texts: Sequence[str]) -> str:
    """The texts as a pattern that looks at each character once: some tokenizers have thousands of special tokens."""
    groups: dict[str, list[str]] = {}
    for text in filter(None, texts):
        groups.setdefault(text[0], []).append(text)
    branches = []
    for group in groups.values():
        lead = shared_lead(min(group), max(group))
        branches.append(re.escape(lead) + _branches([text[len(lead) :] for text in group]))
    pattern = f"(?:{'|'.join(branches)})" if branches else ""
    return pattern + "?" if branches and "" in texts else pattern


def _spelling(index: int) -> str:
    return f"{_STAND_IN}{index}{_STAND_IN}"


def _merged(merge: str | Sequence[str]) -> tuple[str, str, str]:
    """The two parts of a merge and what they give; older files write them as one text with a space between."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def refuse_stand_ins(texts: Sequence[str]) -> None:
    """Refuse (EncodingError) texts that hold our own marks: they look like masked ones."""
    for text in texts:
        if _STAND_IN in text or _LITERAL in text:
            raise EncodingError("holds U+10FFFD or U+10FFFE, which are no characters, beside a special token")


def shared_lead(a: str, b: str) -> str:
    """The longest beginning that two texts share."""
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]
