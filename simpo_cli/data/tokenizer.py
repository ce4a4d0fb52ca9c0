"""A model's tokenizer and chat template, read from its files without transformers, so that `simpo stats` stays light.

The ids are those of the model's `tokenizer.json` together with the tokens that `tokenizer_config.json` adds, which is
what transformers and inference servers read too; the template is the model's own, rendered by the same rules (sandboxed
Jinja, blocks trimmed). One difference is known: for the class of Llama 2 transformers 5 rebuilds the tokenizer, and
drops the space that some of its tokenizer.json files put behind a special token.

Two things go beyond a plain call of the tokenizer: special tokens that a message spells out stay text, and what the
template writes around turns is learned by rendering a few made-up ones.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import AddedToken, Tokenizer

from simpo_cli.builtin import guide_model_dir
from simpo_cli.data.pair import Message
from simpo_cli.errors import ExitCode, UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)

Way = Literal["parsed", "masked", "literal"]
"""How special tokens in a text are read: all as tokens; the template's as tokens and the messages' as text; as text."""

# Unicode noncharacters: they stand for special tokens while a text is taken apart, and no text holds them on purpose.
_STAND_IN, _LITERAL = "\U0010fffe", "\U0010fffd"

_SPECIAL_PARTS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_GIVEN_BY_US = ("messages", "tools", "documents", "add_generation_prompt")
_MADE_UP = ("qZ7kqu", "qZ7kqa", "qZ7kqv", "qZ7kqs")  # words of made-up turns; no template writes them itself
_ANCHORS = ("\n", ".", "a", "0")


class TemplateError(ValueError):
    """The chat template cannot render a conversation; the message is the template's own reason."""


class EncodingError(ValueError):
    """The tokenizer cannot encode a text; the message is the reason, without a subject."""


# Templates


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text in some templates; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def compile_template(source: str, where: str) -> jinja2.Template:
    """Compile a chat template with the functions that templates of models expect.

    A template that writes today's date writes the date of its compilation: one run, one date.

    Raises:
        UserError: the text is not a Jinja template; `where` is named.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    now = datetime.now()
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = now.strftime
    try:
        return environment.from_string(source)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        reason = "it is nested too deeply"
        if isinstance(error, jinja2.TemplateSyntaxError):
            reason = f"{error.message} (its line {error.lineno})"
        raise UserError(
            f"the chat template is not valid Jinja: {reason}.",
            "Mend the template, or name another with data.chat_template.",
            where=where,
        ) from error


def _variables(template: jinja2.Template, source: str) -> frozenset[str]:
    """Names that a template reads without setting them first."""
    read = jinja2.meta.find_undeclared_variables(template.environment.parse(source))
    return frozenset(read).difference(template.environment.globals)


@dataclass(frozen=True, slots=True)
class TurnMarks:
    """What a chat template writes around turns.

    Attributes:
        end_id: the token that ends an answer, or None where the template ends it with none.
        end_is_written: False where the header of the next turn ends an answer, as in GLM-4: the rendering of a
            conversation then lacks it, and it is put behind the answer.
        opening: the header of an answer, where the template has no generation prompt that would hold it; often empty.
        turn_ids: added tokens that stand between an answer and the next turn.
        user_header, answer_header: what opens a turn of the user and of the assistant, such as `<|im_start|>user`.
    """

    end_id: int | None = None
    end_is_written: bool = True
    opening: str = ""
    turn_ids: frozenset[int] = frozenset()
    user_header: str = ""
    answer_header: str = ""


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

    Attributes:
        template_source: the template's text, for the receipt; empty without one.
        vocab_size: one more than the highest id.
        bos_id, eos_id: ids of these tokens, or None.

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
    ) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.sha256 = sha256
        self.special_tokens = dict(special_tokens)
        self.where = where
        self.template_source = templates.get("default", "")
        self._templates = {name: compile_template(source, template_where) for name, source in templates.items()}
        self._variables = {name: _variables(self._templates[name], source) for name, source in templates.items()}
        self._marks: dict[str, TurnMarks] = {}
        self.vocab_size: int = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self._named_end_ids = frozenset(generation_end_ids) | ({self.eos_id} if self.eos_id is not None else set())

    def _id_of(self, part: str) -> int | None:
        text = self.special_tokens.get(part)
        return None if text is None else self._tokenizer.token_to_id(text)

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        return dict(self._tokenizer.get_added_tokens_decoder())

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer: the tokenizer's, the generation config's and the template's own."""
        learned = self.turn_marks().end_id if self.has_template else None
        return self._named_end_ids | ({learned} if learned is not None else set())

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that a template may write and a message may not: tokens with special=True, and those that mark turns."""
        marking = self.end_ids | (self.turn_marks().turn_ids if self.has_template else frozenset())
        return frozenset(i for i, token in self._added.items() if token.special or i in marking)

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
        """
        values: dict[str, Any] = {
            **self.special_tokens,
            **(template_kwargs or {}),
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": generation_prompt,
        }
        try:
            return self._templates[self._template_for(tools)].render(values)
        except Exception as error:  # a template is a foreign program: what it raises is its answer to this conversation
            raise TemplateError(str(error) or type(error).__name__) from error

    def _template_for(self, tools: object) -> str:
        return "tool_use" if tools is not None and "tool_use" in self._templates else "default"

    @property
    def knows_tools(self) -> bool:
        """Whether the template reads the definitions of tools at all."""
        return any("tools" in variables for variables in self._variables.values())

    def require_known(self, template_kwargs: Mapping[str, Any]) -> None:
        """Refuse variables that the template never reads: a misspelt one would go unnoticed.

        Raises:
            UserError: names the variable, and the one that may be meant.
        """
        known = frozenset().union(*self._variables.values())
        for name in template_kwargs:
            if name in _GIVEN_BY_US:
                raise UserError(
                    f"data.chat_template_kwargs.{name} cannot be set: it is made from the data.",
                    f"Leave {name} out of data.chat_template_kwargs.",
                )
            if self.has_template and name not in known:
                near = difflib.get_close_matches(name, known.difference(_GIVEN_BY_US), n=1)
                hint = f"Did you mean {near[0]}?" if near else "Leave it out, or give the template that needs it."
                raise UserError(
                    f"data.chat_template_kwargs.{name}: the chat template of {self.where} reads no such variable.",
                    hint,
                )

    def turn_marks(self, template_kwargs: Mapping[str, Any] | None = None) -> TurnMarks:
        """What the template writes around turns, by rendering made-up ones; once for each set of variables."""
        key = json.dumps(template_kwargs or {}, sort_keys=True, default=str)
        if key not in self._marks:
            self._marks[key] = self._learned(template_kwargs)
        return self._marks[key]

    def _learned(self, template_kwargs: Mapping[str, Any] | None) -> TurnMarks:
        user, answer, second, system = _MADE_UP
        for lead in ((), (Message("system", system),)):  # some templates insist on a system turn
            turns = [*lead, Message("user", user), Message("assistant", answer), Message("user", second)]

            def render(count: int, generation_prompt: bool = False, turns: Sequence[Message] = turns) -> str:
                return self.render(turns[:count], generation_prompt=generation_prompt, template_kwargs=template_kwargs)

            try:
                question, asked = render(len(lead) + 1), render(len(lead) + 1, generation_prompt=True)
                answered, dialog = render(len(lead) + 2), render(len(lead) + 3)
                if all(word in text for word, text in ((user, answered), (answer, answered), (second, dialog))):
                    return self._marks_of(question, asked, answered, dialog)
            except (TemplateError, EncodingError):
                continue
        return TurnMarks()

    def _marks_of(self, question: str, asked: str, answered: str, dialog: str) -> TurnMarks:
        user, answer, second, _ = _MADE_UP
        before, _, behind = answered.rpartition(answer)
        next_turn = dialog.rpartition(second)[0].rpartition(answer)[2]
        turn_ids = self._added_in(next_turn)
        end_id, end_is_written = next(iter(self._added_in(behind)), None), True
        if end_id is None and turn_ids and turn_ids[0] in self._named_end_ids:
            end_id, end_is_written = turn_ids[0], False
        opening = ""
        if asked == question and before.startswith(asked):
            opening = before[len(asked) :].rstrip(" ") if before[len(asked) :].strip() else ""
        end_text = self._added[end_id].content if end_id is not None and end_is_written else None
        header = ""  # the generation prompt, as far as the answer's own rendering has it: not an opening `<think>`
        if asked.startswith(question) and before.startswith(question):
            header = _shared_lead(asked[len(question) :], before[len(question) :])
        return TurnMarks(
            end_id=end_id,
            end_is_written=end_is_written,
            opening=opening,
            turn_ids=frozenset(turn_ids),
            user_header=_header(next_turn, end_text),
            answer_header=_header(header, None) or _header(before.rpartition(user)[2], end_text),
        )

    def _added_in(self, text: str) -> list[int]:
        """The added tokens of a text that are more than white space."""
        return [i for i in self.encode_batch([text])[0] if i in self._added and self._added[i].content.strip()]

    # Text to ids

    def encode_batch(self, texts: Sequence[str], way: Way = "parsed") -> list[list[int]]:
        """Ids of each text, without the tokens that the tokenizer itself puts around a plain text.

        Raises:
            EncodingError: one of the texts cannot be encoded.
        """
        tokenizer = self._tokenizer if way == "parsed" else self._sound_twin()
        texts = [self._respelled(text) for text in texts] if way == "masked" else list(texts)
        if way == "literal":
            _refuse_stand_ins(texts)
        try:
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:  # what the library says of a text that is no valid Unicode
            raise EncodingError("holds half a character (a lone surrogate)") from error
        except Exception as error:  # it raises bare Exception for the rest
            raise EncodingError(f"cannot be tokenized: {error}") from error

    def encode_behind(self, texts: Sequence[str], way: Way = "parsed") -> list[list[int]]:
        """Ids of texts that follow other text, each on its own.

        Tokenizers of the sentencepiece kind put a space in front of a text; in the middle of one there is none. So the
        text is tokenized behind a character that does not merge with it, which is then taken away.

        Raises:
            EncodingError: one of the texts cannot be encoded.
        """
        alone = self.encode_batch(texts, way)
        if not self._prefixes_a_space:
            return alone
        return [self._behind_an_anchor(text, ids, way) for text, ids in zip(texts, alone, strict=True)]

    def _behind_an_anchor(self, text: str, alone: list[int], way: Way) -> list[int]:
        for anchor in _ANCHORS:
            lead, both = self.encode_batch([anchor, anchor + text], way)
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
        return _any_of([text for text in firm if text in self._special_numbers])

    # Texts that spell out special tokens: they are kept as text

    @cached_property
    def _special_texts(self) -> list[str]:
        return sorted(filter(None, (self._added[i].content for i in self.special_ids)), key=len, reverse=True)

    @cached_property
    def _special_numbers(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self._special_texts)}

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        return _any_of(self._special_texts)

    @cached_property
    def _normalize(self) -> Callable[[str], str] | None:
        """The tokenizer's normalizer, where special tokens are looked for behind it: `＜s＞` may become `<s>`."""
        normalizer = self._tokenizer.normalizer
        if normalizer is None or not any(self._added[i].normalized for i in self.special_ids):
            return None
        return lambda text: str(normalizer.normalize_str(text))

    def has_special_literal(self, text: str) -> bool:
        """Whether a text spells out a special token."""
        if self._special_pattern is None:
            return False
        if self._special_pattern.search(text) is not None:
            return True
        return self._normalize is not None and self._special_pattern.search(self._normalize(text)) is not None

    def mask_literals(self, text: str) -> str:
        """Put a stand-in for every special token that a message spells out, so that rendering cannot confuse them.

        Raises:
            EncodingError: the text holds a stand-in itself.
        """
        if self._special_pattern is None:
            return text
        _refuse_stand_ins([text])
        return self._special_pattern.sub(lambda m: f"{_LITERAL}{self._special_numbers[m[0]]}{_LITERAL}", text)

    def _respelled(self, text: str) -> str:
        """A rendered text whose messages were masked, for the twin: what the template wrote gets the twin's spelling,
        what the messages hold gets its own back."""
        if self._special_pattern is not None:
            text = self._special_pattern.sub(lambda m: _spelling(self._special_numbers[m[0]]), text)
        return re.sub(f"{_LITERAL}(\\d+){_LITERAL}", lambda m: self._special_texts[int(m[1])], text)

    def _sound_twin(self) -> Tokenizer:
        if isinstance(self._twin, EncodingError):
            raise self._twin
        return self._twin

    @cached_property
    def _twin(self) -> Tokenizer | EncodingError:
        """The same tokenizer with other spellings of its special tokens under the same ids; or why there is none.

        To it the usual spellings are ordinary text, in their place among the text around them.
        """
        description = json.loads(self._tokenizer.to_str())
        spellings = {text: _spelling(i) for text, i in self._special_numbers.items()}
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
        unknown = self._id_of("unk_token")  # a letter that the vocabulary lacks gives this id, and means no harm
        for text, as_token, as_text in zip(spellings, own, usual, strict=True):
            number = self._tokenizer.token_to_id(text)
            if number not in as_token.ids or (number != unknown and number in as_text.ids):
                return EncodingError(f"spells out special tokens, and this tokenizer cannot keep {text} as text")
        return twin


def _header(gap: str, end_text: str | None) -> str:
    """What opens a turn, of what stands between two turns: the first line behind the end of the first turn."""
    if end_text is not None and end_text in gap:
        gap = gap.split(end_text, 1)[1]
    lines = gap.strip().splitlines()
    return lines[0].strip() if lines else ""


def _shared_lead(a: str, b: str) -> str:
    """The longest beginning that two texts share."""
    return a[: next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def _any_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    """A pattern that finds any of the texts, the longest where several begin at one place."""
    return re.compile(_branches(texts)) if texts else None


def _branches(texts: Sequence[str]) -> str:
    """The texts as a pattern that looks at each character once: some tokenizers have thousands of special tokens."""
    groups: dict[str, list[str]] = {}
    for text in filter(None, texts):
        groups.setdefault(text[0], []).append(text)
    branches = []
    for group in groups.values():
        lead = _shared_lead(min(group), max(group))
        branches.append(re.escape(lead) + _branches([text[len(lead) :] for text in group]))
    pattern = f"(?:{'|'.join(branches)})" if branches else ""
    return pattern + "?" if branches and "" in texts else pattern


def _spelling(index: int) -> str:
    return f"{_STAND_IN}{index}{_STAND_IN}"


def _merged(merge: str | Sequence[str]) -> tuple[str, str, str]:
    """The two parts of a merge and what they give; older files write them as one text with a space between."""
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right, left + right


def _refuse_stand_ins(texts: Sequence[str]) -> None:
    for text in texts:
        if _STAND_IN in text or _LITERAL in text:
            raise EncodingError("holds U+10FFFD or U+10FFFE, which are no characters, beside a special token")


# Files


def _text_of(token: object) -> str | None:
    """A special token in tokenizer_config.json is a text, or a mapping with its text under `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chosen_templates(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, str], str]:
    """The model's chat templates and their place, wherever this model keeps them; empty when it has none."""
    file = folder / "chat_template.jinja"
    templates: dict[str, str] = {}
    named = config.get("chat_template")
    if isinstance(named, list):  # several, by name
        templates = {str(entry.get("name")): str(entry.get("template")) for entry in named if isinstance(entry, dict)}
    elif isinstance(named, str):
        templates = {"default": named}
    place = folder / "tokenizer_config.json"
    if file.is_file():
        templates, place = {"default": _read_text(file)}, file
        for more in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            templates[more.stem] = _read_text(more)
    templates = {name: source for name, source in templates.items() if name in ("default", "tool_use") and source}
    if named and not templates.get("default"):
        raise UserError(
            "has several chat templates and none of them is the default.",
            "Name a Jinja file with data.chat_template, or `none` for plain text.",
            where=str(place),
        )
    return templates, str(place)


def _end_ids(folder: Path) -> list[int]:
    """End tokens by the generation config, or else by the model's config; they are one id, a list of ids, or absent."""
    config = _read_json(folder / "config.json")
    text_config = config.get("text_config")
    for holder in (_read_json(folder / "generation_config.json"), config, text_config):
        ids = holder.get("eos_token_id") if isinstance(holder, dict) else None
        found = [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int]
        if found:
            return found
    return []


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read: {error}.", "The model folder is damaged; fetch it again.", where=str(path)
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"is not valid JSON: {error}.", "The model folder is damaged; fetch it again.", where=str(path)
        ) from error
    if not isinstance(content, dict):
        raise UserError("is not a JSON object.", "The model folder is damaged; fetch it again.", where=str(path))
    return content


def tokenizer_folder(path: str, revision: str | None = None) -> Path:
    """The local folder with a model's tokenizer files: `builtin:guide`, a folder, a tokenizer.json, or a hub id.

    Only a hub id is looked up on the network, and of it only the tokenizer's files.
    """
    if path == "builtin:guide":
        return guide_model_dir()
    local = Path(path)
    if local.is_file():
        if local.name != "tokenizer.json":
            raise UserError(f"{path} is a file, and no tokenizer.json.", "Name the model's folder or tokenizer.json.")
        return local.parent
    if local.is_dir():
        return local
    return _from_hub(path, revision)


def _from_hub(name: str, revision: str | None) -> Path:
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(
            f"the model folder {name} does not exist.",
            "Check the path; a hub id has the form organisation/model.",
        )
    import huggingface_hub

    wanted = [*TOKENIZER_FILES, "additional_chat_templates/*.jinja", "adapter_config.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises many types, from httpx, OSError and its own
        raise UserError(
            f"{name} is not a folder here, and the model hub did not give it: {type(error).__name__}.",
            "Check the name and the network, or name a local folder; gated models need a login.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error


def load_tokenizer(path: str, *, revision: str | None = None, chat_template: str | None = None) -> TextTokenizer:
    """Read a tokenizer and its chat template.

    Args:
        path: `builtin:guide`, a folder, a tokenizer.json, or a hub id; of an adapter without one, its base model's.
        revision: branch, tag or commit of a hub id.
        chat_template: a Jinja file instead of the model's template, `none` for plain text, None for the model's own.

    Raises:
        UserError: the files are missing or damaged.
    """
    folder = tokenizer_folder(path, revision)
    if not (folder / "tokenizer.json").is_file():
        adapter = _read_json(folder / "adapter_config.json")
        base = adapter.get("base_model_name_or_path")
        if isinstance(base, str) and base != path:
            return load_tokenizer(base, revision=adapter.get("revision"), chat_template=chat_template)
        raise UserError(
            "has no tokenizer.json.",
            "Make one with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) in transformers.",
            where=path,
        )
    config = _read_json(folder / "tokenizer_config.json")
    if chat_template is None:
        templates, template_place = _chosen_templates(config, folder)
    elif chat_template == "none":
        templates, template_place = {}, ""
    else:
        templates, template_place = {"default": _named_template(chat_template)}, chat_template
    special_tokens = _special_tokens(config, folder)
    tokenizer, sha256 = _read_tokenizer(folder / "tokenizer.json")
    _add_tokens(tokenizer, config, special_tokens, folder)
    return TextTokenizer(
        tokenizer,
        sha256=sha256,
        special_tokens=special_tokens,
        templates=templates,
        template_where=template_place,
        generation_end_ids=_end_ids(folder),
        where=path,
    )


def _read_tokenizer(file: Path) -> tuple[Tokenizer, str]:
    """The library's tokenizer of a tokenizer.json, and the digest of the file."""
    try:
        content = file.read_bytes()
        return Tokenizer.from_str(content.decode()), hashlib.sha256(content).hexdigest()
    except Exception as error:  # the library raises bare Exception for every damage
        raise UserError(
            f"cannot be read as a tokenizer: {error}.", "The file is damaged; fetch it again.", where=str(file)
        ) from error


def _special_tokens(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Special tokens by part, as a template sees them: the usual parts and the model's own, such as image_token."""
    found = dict(config)
    if "added_tokens_decoder" not in config:  # older folders keep them in a file of their own
        found |= _read_json(folder / "special_tokens_map.json")
    if isinstance(more := found.get("extra_special_tokens"), dict):
        found |= more
    parts = [part for part in found if part in _SPECIAL_PARTS or part.endswith("_token")]
    return {part: text for part in parts if (text := _text_of(found[part])) is not None}


def _add_tokens(
    tokenizer: Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str], folder: Path
) -> None:
    """Add the tokens that only tokenizer_config.json knows; what it says of a token goes before tokenizer.json."""
    present = tokenizer.get_added_tokens_decoder().values()
    listed = config.get("added_tokens_decoder", {})
    try:
        tokens = [_added_token(listed[index]) for index in sorted(listed, key=int)]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"added_tokens_decoder is not a mapping of ids to tokens: {error}.",
            "The model folder is damaged; fetch it again.",
            where=str(folder / "tokenizer_config.json"),
        ) from error
    spelled = {repr(token) for token in present}
    tokens = [token for token in tokens if repr(token) not in spelled]
    known = {token.content for token in [*present, *tokens]}
    more = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    names = [*special_tokens.values(), *(filter(None, map(_text_of, more)) if isinstance(more, list) else ())]
    tokens += [AddedToken(text, special=True) for text in dict.fromkeys(names) if text not in known]
    if tokens:
        tokenizer.add_tokens(tokens)


def _added_token(entry: Mapping[str, Any]) -> AddedToken:
    properties = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(entry["content"], **{name: entry[name] for name in properties if name in entry})


def from_transformers(tokenizer: Any, *, generation_end_ids: Sequence[int] = ()) -> TextTokenizer:
    """The same tokenizer as one of transformers that is in memory already.

    Args:
        tokenizer: a fast tokenizer (PreTrainedTokenizerFast and its kin).
        generation_end_ids: end tokens that the model's generation config names.

    Raises:
        UserError: it has no fast backend, or its template is not valid Jinja.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("the tokenizer has no fast backend.", "Load it with AutoTokenizer.from_pretrained(...).")
    source = tokenizer.chat_template or {}
    templates = {"default": source} if isinstance(source, str) else dict(source)
    description = backend.to_str()
    return TextTokenizer(
        Tokenizer.from_str(description),
        sha256=hashlib.sha256(description.encode()).hexdigest(),
        special_tokens=tokenizer.special_tokens_map,
        templates={name: templates[name] for name in ("default", "tool_use") if name in templates},
        template_where="tokenizer.chat_template",
        generation_end_ids=generation_end_ids,
        where=str(tokenizer.name_or_path),
    )


def _named_template(path: str) -> str:
    """The text of the file that data.chat_template names."""
    try:
        source = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template names {path}, which cannot be read: {type(error).__name__}.",
            "Name a Jinja file, `none` for plain text, or leave it out for the model's own template.",
        ) from error
    if not source.strip():
        raise UserError(
            f"data.chat_template names {path}, which is empty.", "Name a Jinja file, or `none` for plain text."
        )
    return source


def batches(
    items: Sequence[Any], size: int, *, weigh: Callable[[Any], int] = lambda _: 0, weight: int = 1
) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items, each ended early by the item that brings it to the `weight`."""
    start = held = 0
    for end, item in enumerate(items, start=1):
        held += weigh(item)
        if end - start == size or held >= weight:
            yield items[start:end]
            start, held = end, 0
    if start < len(items):
        yield items[start:]
