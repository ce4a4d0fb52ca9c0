"""Text to ids and conversations to text, by a model's tokenizer and its chat template."""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer

from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import metered
from simpo_cli.data.tokenizer.template import (
    MADE_UP_TOOLS,
    EncodingError,
    MessageShape,
    TemplateError,
    TurnMarks,
    compile_template,
    dates_of,
    learn_marks,
    learn_shape,
    shared_lead,
    variables_of,
)
from simpo_cli.errors import UserError

SpecialTokenMode = Literal["parsed", "masked", "literal"]
"""How special tokens in a text are read: all as tokens; the template's as tokens and the messages' as text; as text."""

# Unicode noncharacters: they stand for special tokens while a text is taken apart, and no text holds them on purpose.
_STAND_IN, _LITERAL = "\U0010fffe", "\U0010fffd"

GIVEN_BY_US = ("messages", "tools", "documents", "add_generation_prompt")
_TURN = 100  # characters that a turn counts with beside its text, for what a template may take
_MOST_MARKS = 256
_ANCHORS = ("\n", ".", "a", "0")


class TextTokenizer:
    """Text to ids and conversations to text.

    Args:
        special_tokens: texts by part: bos_token, eos_token, pad_token ...
        templates: chat templates by name, `default` and perhaps `tool_use`; empty for a plain-text tokenizer.
        generation_end_ids: end tokens that the generation config names.
        template_where, where: the place of the template, and the folder or id, for messages.
        moment: what templates that write today's date take for now; this moment if not given.

    Attributes:
        dates: what its templates write of the moment, in the formats that they ask for; mostly nothing.
        template_source: the template's text, for the receipt; empty without one.
        known_variables: what the template reads without setting it first.
        vocab_size: one more than the highest id.
        named_end_ids: tokens that end an answer by the tokenizer or the generation config.

    Raises:
        UserError: a template is not valid Jinja.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        sha256: str,
        special_tokens: Mapping[str, str],
        templates: Mapping[str, str],
        template_where: str,
        generation_end_ids: Sequence[int],
        where: str,
        moment: datetime | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._added: dict[int, AddedToken] = tokenizer.get_added_tokens_decoder()
        self.sha256 = sha256
        self.special_tokens = dict(special_tokens)
        self.where = where
        self.template_source = templates.get("default", "")
        self._sources = dict(templates)
        self._template_where = template_where
        self.moment = datetime.now() if moment is None else moment
        sources = templates.items()
        self._templates = {name: compile_template(source, template_where, self.moment) for name, source in sources}
        compiled = [(self._templates[name], source) for name, source in sources]
        self.dates = sorted({date for one in compiled for date in dates_of(*one, self.moment)})
        self.known_variables = frozenset(name for one in compiled for name in variables_of(*one))
        self._marks: dict[str, TurnMarks] = {}
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.named_end_ids = frozenset(generation_end_ids) | ({self.eos_id} if self.eos_id is not None else set())

    def _id_of(self, part: str) -> int | None:
        return self.id_of(self.special_tokens.get(part))

    def id_of(self, text: str | None) -> int | None:
        """The id of a token's text; None of what is no token."""
        return None if text is None else self._tokenizer.token_to_id(text)

    @property
    def description(self) -> str:
        """All of the tokenizer as a tokenizer.json has it."""
        return str(self._tokenizer.to_str())

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's, the generation config's and the template's own."""
        return self.end_ids_under({})

    def end_ids_under(self, template_kwargs: Mapping[str, Any]) -> frozenset[int]:
        """Those, and what ends an answer where the template gets these variables."""
        learned = (self.turn_marks(variables).end_id for variables in (None, template_kwargs))
        return self.named_end_ids | {end for end in learned if end is not None}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that a template may write and a message may not: tokens with special=True, and those that mark turns."""
        marking = self.end_ids | self.turn_marks().turn_ids
        return frozenset(i for i, token in self._added.items() if token.special or i in marking)

    @cached_property
    def identity(self) -> str:
        """A digest of all that its tokens depend on: vocabulary, added tokens, special parts, templates, dates, end."""
        parts = (
            self.sha256,
            sorted((i, repr(token)) for i, token in self._added.items()),
            sorted(self.special_tokens.items()),
            sorted(self._sources.items()),
            self.dates,
            sorted(self.named_end_ids),
        )
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered; otherwise texts are used as they are."""
        return "default" in self._templates

    # Conversations to text

    def render(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool,
        tools: object = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the model's template writes it; `generation_prompt` asks for the next answer's header.

        Raises:
            TemplateError: the template refuses the conversation, such as two user turns in a row.
            UserError: the template takes more time or memory than any template needs.
        """
        given = sum(len(message.content) + len(message.fields) + _TURN for message in messages)
        shaped = [self.shape.of(message) for message in messages]
        return self._rendered(shaped, given, generation_prompt, tools, template_kwargs)

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        given: int,
        generation_prompt: bool,
        tools: object,
        template_kwargs: Mapping[str, Any] | None,
    ) -> str:
        values: dict[str, Any] = {
            **self.special_tokens,
            **(template_kwargs or {}),
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        try:
            return metered.render(self._templates[name], values, given)
        except metered.TooMuchError as error:
            raise UserError(
                f"the chat template was stopped: {error}.",
                "Templates are programs that come with a model: use another with data.chat_template, or another model.",
                where=self._template_where,
            ) from error
        except Exception as error:  # a template is a foreign program: what it raises is its answer to this conversation
            raise TemplateError(str(error) or type(error).__name__) from error

    @cached_property
    def shape(self) -> MessageShape:
        """The form in which the template reads messages."""
        knows_calls = any("tool_calls" in source for source in self._sources.values())
        tools = MADE_UP_TOOLS if knows_calls else None
        return learn_shape(
            lambda messages: self._rendered(messages, _TURN * len(messages), False, tools, None),
            knows_calls=knows_calls,
        )

    def require_known(self, template_kwargs: Mapping[str, Any]) -> None:
        """Refuse (UserError) variables that the template never reads: a misspelt one would go unnoticed."""
        known = self.known_variables
        for name in template_kwargs:
            key = f"data.chat_template_kwargs.{name}"
            if name in GIVEN_BY_US:
                fix = f"Leave {name} out of data.chat_template_kwargs."
                raise UserError(f"{key} cannot be set: it is made from the data.", fix, key=key)
            if self.has_template and name not in known:
                near = difflib.get_close_matches(name, known.difference(GIVEN_BY_US), n=1)
                fix = f"Did you mean {near[0]}?" if near else "Leave it out, or give the template that needs it."
                raise UserError(f"{key}: the chat template of {self.where} reads no such variable.", fix, key=key)

    def turn_marks(self, template_kwargs: Mapping[str, Any] | None = None) -> TurnMarks:
        """What the template writes around turns, by rendering made-up ones; once for each set of variables."""
        if not self.has_template:
            return TurnMarks()
        key = json.dumps(template_kwargs or {}, sort_keys=True, default=str)
        if key not in self._marks:
            if len(self._marks) == _MOST_MARKS:  # records may have variables of their own
                self._marks.clear()

            def render(turns: Sequence[Message], generation_prompt: bool) -> str:
                return self.render(turns, generation_prompt=generation_prompt, template_kwargs=template_kwargs)

            self._marks[key] = learn_marks(render, self)
        return self._marks[key]

    def added_in(self, text: str) -> list[int]:
        """The added tokens of a text that are more than white space."""
        return [i for i in self.encode_batch([text])[0] if i in self._added and self._added[i].content.strip()]

    def text_of(self, added_id: int) -> str:
        """How an added token is spelled."""
        return str(self._added[added_id].content)

    # Text to ids

    def encode_batch(self, texts: Sequence[str], mode: SpecialTokenMode = "parsed") -> list[list[int]]:
        """Ids of each text, without the tokens that the tokenizer itself puts around a plain text.

        Raises EncodingError where one of the texts cannot be encoded.
        """
        tokenizer = self._tokenizer if mode == "parsed" else self._special.twin()
        texts = [self._special.respelled(text) for text in texts] if mode == "masked" else list(texts)
        if mode == "literal":
            refuse_stand_ins(texts)
        try:
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:  # what the library says of a text that is no valid Unicode
            raise EncodingError("holds half a character (a lone surrogate)") from error
        except Exception as error:  # it raises bare Exception for the rest
            raise EncodingError(f"cannot be tokenized: {error}") from error

    def encode_behind(self, texts: Sequence[str], mode: SpecialTokenMode = "parsed") -> list[list[int]]:
        """Ids of texts that follow other text, each on its own; EncodingError as `encode_batch`.

        Tokenizers of the sentencepiece kind put a space in front of a text; in the middle of one there is none. So the
        text is tokenized behind a character that does not merge with it, which is then taken away.
        """
        alone = self.encode_batch(texts, mode)
        if not self._prefixes_a_space:
            return alone
        return [self._behind_an_anchor(text, ids, mode) for text, ids in zip(texts, alone, strict=True)]

    def _behind_an_anchor(self, text: str, alone: list[int], mode: SpecialTokenMode) -> list[int]:
        for anchor in _ANCHORS:
            lead, both = self.encode_batch([anchor, anchor + text], mode)
            if lead and both[: len(lead)] == lead:
                return both[len(lead) :]
        return alone

    @cached_property
    def _prefixes_a_space(self) -> bool:
        try:
            alone = self.encode_batch(["b"])[0]
            return self._behind_an_anchor("b", alone, "parsed") != alone
        except EncodingError:
            return False

    @property
    def plain_prefix(self) -> list[int]:
        """What the tokenizer itself puts in front of a plain text, such as BOS; often nothing."""
        return self.plain_ends[0]

    @cached_property
    def plain_ends(self) -> tuple[list[int], list[int]]:
        """What the tokenizer itself puts in front of a plain text and behind it; often nothing."""
        try:
            encoding = self._tokenizer.encode("a", add_special_tokens=True)
        except Exception:  # a vocabulary without this letter and without a token for the unknown
            return [], []
        own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
        if not own:
            return [], []
        return list(encoding.ids[: own[0]]), list(encoding.ids[own[-1] + 1 :])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def last_break(self, text: str) -> int:
        """Where the last special token of a rendered text begins; 0 without one.

        What is tokenized from there on comes out the same with and without the text before it: the library takes
        special tokens out before it looks at anything else. It saves tokenizing a long prompt once for each response.
        """
        return max((match.start() for match in self._breaks.finditer(text, max(0, len(text) - 200))), default=0)

    @cached_property
    def _breaks(self) -> re.Pattern[str]:
        firm = [token.content for token in self._added.values() if not token.normalized and not token.single_word]
        return any_of([text for text in firm if text in self._special.numbers])

    # Special tokens that messages spell out

    @cached_property
    def _special(self) -> "SpecialTexts":
        tokens = [self._added[i] for i in self.special_ids]
        return SpecialTexts(self._tokenizer, tokens, self._id_of("unk_token"))

    def has_special_literal(self, text: str) -> bool:
        """Whether a text spells out a special token."""
        return self._special.spelled_in(text)

    def mask_literals(self, text: str) -> str:
        """Put a stand-in for every special token that a message spells out; EncodingError as `SpecialTexts.mask`."""
        return self._special.mask(text)


class SpecialTexts:
    """The texts of the tokens that a template may write and a message may not, and what becomes of them in messages.

    `unknown_id` is the id of what the vocabulary lacks, or None.
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
        if self._pattern.search(text) is not None:
            return True
        return self._normalize is not None and self._pattern.search(self._normalize(text)) is not None

    def mask(self, text: str) -> str:
        """Put a stand-in for every special token that a message spells out, so that rendering cannot confuse them.

        Raises EncodingError where the text holds a stand-in itself.
        """
        refuse_stand_ins([text])
        return self._pattern.sub(lambda match: f"{_LITERAL}{self.numbers[match[0]]}{_LITERAL}", text)

    def respelled(self, text: str) -> str:
        """A rendered text whose messages were masked, for the twin: what the template wrote gets the twin's spelling,
        what the messages hold gets its own back."""
        text = self._pattern.sub(lambda m: _spelling(self.numbers[m[0]]), text)
        return re.sub(f"{_LITERAL}(\\d+){_LITERAL}", lambda m: self._texts[int(m[1])], text)

    def twin(self) -> Tokenizer:
        """The same tokenizer with other spellings of its special tokens; EncodingError where there is none."""
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
        if "merges" in model:  # some vocabularies spell a special token by merging; older files hold merges as text
            split = ((one, one.split(" ", 1) if isinstance(one, str) else one) for one in model["merges"])
            model["merges"] = [one for one, (a, b) in split if spellings.keys().isdisjoint((a, b, a + b))]
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


def any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """A pattern that finds any of the texts, the longest where several begin at one place; nothing without texts."""
    return re.compile(_branches(texts) or "(?!)")


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


def refuse_stand_ins(texts: Sequence[str]) -> None:
    """Refuse (EncodingError) texts that hold our own marks: they look like masked ones."""
    for text in texts:
        if _STAND_IN in text or _LITERAL in text:
            raise EncodingError("holds U+10FFFD or U+10FFFE, which are no characters, beside a special token")
