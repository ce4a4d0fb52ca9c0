"""Text to ids and conversations to text, by a model's tokenizer and its chat template."""

import difflib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer

from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import metered
from simpo_cli.data.tokenizer.special_texts import (
    EncodingError,
    SpecialTexts,
    SpecialTokenMode,
    any_of,
    refuse_stand_ins,
)
from simpo_cli.data.tokenizer.template import TemplateError, compile_template, dates_of, variables_of
from simpo_cli.data.tokenizer.template_probe import MADE_UP_TOOLS, MessageShape, TurnMarks, learn_marks, learn_shape
from simpo_cli.errors import UserError

GIVEN_BY_US = ("messages", "tools", "documents", "add_generation_prompt")
_TURN = 100  # characters that a turn counts with beside its text, for what a template may take
_MOST_MARKS = 256
_ANCHORS = ("\n", ".", "a", "0")


class TextTokenizer:
    """Text to ids and conversations to text.

    Args:
        tokenizer: the library's tokenizer, with every added token.
        sha256: hex digest of its tokenizer.json.
        special_tokens: texts by part: bos_token, eos_token, pad_token ...
        templates: chat templates by name, `default` and, where tools have one of their own, `tool_use`; empty for a
            plain-text tokenizer.
        template_where: the template's place, for messages.
        generation_end_ids: end tokens that the generation config names.
        where: the folder or id, for messages.
        moment: what templates that write today's date take for now; this moment if not given.

    Attributes:
        moment: the same: one tokenizer, one date.
        dates: what its templates write of it, in the formats that they ask for; mostly nothing.
        template_source: the template's text, for the receipt; empty without one.
        vocab_size: one more than the highest id.
        bos_id, eos_id: ids of these tokens, or None.
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
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = sha256
        self.special_tokens = dict(special_tokens)
        self.where = where
        self.template_source = templates.get("default", "")
        self._sources = dict(templates)
        self._template_where = template_where
        self.moment = datetime.now() if moment is None else moment
        self._templates = {
            name: compile_template(source, template_where, self.moment) for name, source in templates.items()
        }
        written = (dates_of(self._templates[name], source, self.moment) for name, source in templates.items())
        self.dates = sorted(set().union(*written))
        self._variables = {name: variables_of(self._templates[name], source) for name, source in templates.items()}
        self._marks: dict[str, TurnMarks] = {}
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.named_end_ids = frozenset(generation_end_ids) | ({self.eos_id} if self.eos_id is not None else set())

    def _id_of(self, part: str) -> int | None:
        text = self.special_tokens.get(part)
        return None if text is None else self._tokenizer.token_to_id(text)

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        return dict(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's, the generation config's and the template's own."""
        return self._named_and_learned(self.named_end_ids, None)

    def end_ids_under(self, template_kwargs: Mapping[str, Any]) -> frozenset[int]:
        """Those, and what ends an answer where the template gets these variables."""
        return self._named_and_learned(self.end_ids, template_kwargs)

    def _named_and_learned(self, named: frozenset[int], template_kwargs: Mapping[str, Any] | None) -> frozenset[int]:
        learned = self.turn_marks(template_kwargs).end_id if self.has_template else None
        return named if learned is None else named | {learned}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that a template may write and a message may not: tokens with special=True, and those that mark turns."""
        marking = self.end_ids | (self.turn_marks().turn_ids if self.has_template else frozenset())
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
        """The conversation as the model's template writes it.

        Args:
            messages: the turns.
            generation_prompt: whether the header of the next answer is to follow.
            tools: the tools that the conversation may call, as parsed JSON, or None.
            template_kwargs: further variables for the template.

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
        try:
            return metered.render(self._templates[self._template_for(tools)], values, given)
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

    def _template_for(self, tools: object) -> str:
        return "tool_use" if tools is not None and "tool_use" in self._templates else "default"

    @property
    def knows_tools(self) -> bool:
        """Whether the template reads the definitions of tools at all."""
        return any("tools" in variables for variables in self._variables.values())

    @cached_property
    def known_variables(self) -> frozenset[str]:
        """What the template reads without setting it first."""
        return frozenset().union(*self._variables.values())

    def require_known(self, template_kwargs: Mapping[str, Any]) -> None:
        """Refuse (UserError) variables that the template never reads: a misspelt one would go unnoticed."""
        known = self.known_variables
        for name in template_kwargs:
            if name in GIVEN_BY_US:
                raise UserError(
                    f"data.chat_template_kwargs.{name} cannot be set: it is made from the data.",
                    f"Leave {name} out of data.chat_template_kwargs.",
                    key=f"data.chat_template_kwargs.{name}",
                )
            if self.has_template and name not in known:
                near = difflib.get_close_matches(name, known.difference(GIVEN_BY_US), n=1)
                hint = f"Did you mean {near[0]}?" if near else "Leave it out, or give the template that needs it."
                raise UserError(
                    f"data.chat_template_kwargs.{name}: the chat template of {self.where} reads no such variable.",
                    hint,
                    key=f"data.chat_template_kwargs.{name}",
                )

    def turn_marks(self, template_kwargs: Mapping[str, Any] | None = None) -> TurnMarks:
        """What the template writes around turns, by rendering made-up ones; once for each set of variables."""
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

    @cached_property
    def plain_prefix(self) -> list[int]:
        """What the tokenizer itself puts in front of a plain text, such as BOS; often nothing."""
        try:
            encoding = self._tokenizer.encode("a", add_special_tokens=True)
        except Exception:  # a vocabulary without this letter and without a token for the unknown
            return []
        count = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), 0)
        return list(encoding.ids[:count])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def last_break(self, text: str) -> int:
        """Where the last special token of a rendered text begins; 0 without one.

        What is tokenized from there on comes out the same with and without the text before it: the library takes
        special tokens out before it looks at anything else. It saves tokenizing a long prompt once for each response.
        """
        if self._breaks is None:
            return 0
        return max((match.start() for match in self._breaks.finditer(text, max(0, len(text) - 200))), default=0)

    @cached_property
    def _breaks(self) -> re.Pattern[str] | None:
        firm = [token.content for token in self._added.values() if not token.normalized and not token.single_word]
        return any_of([text for text in firm if text in self._special.numbers])

    # Special tokens that messages spell out

    @cached_property
    def _special(self) -> SpecialTexts:
        tokens = [self._added[i] for i in self.special_ids]
        return SpecialTexts(self._tokenizer, tokens, self._id_of("unk_token"))

    def has_special_literal(self, text: str) -> bool:
        """Whether a text spells out a special token."""
        return self._special.spelled_in(text)

    def mask_literals(self, text: str) -> str:
        """Put a stand-in for every special token that a message spells out; EncodingError as `SpecialTexts.mask`."""
        return self._special.mask(text)
