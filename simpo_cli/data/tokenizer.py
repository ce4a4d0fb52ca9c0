"""A model's tokenizer and chat template, read from its files without transformers, so that `simpo stats` stays light.

The ids are those of the model's `tokenizer.json`, which is what transformers and inference servers read too; the
template is the model's own, rendered by the same rules (sandboxed Jinja, blocks trimmed).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
from tokenizers import Tokenizer

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

# Unicode noncharacters: they stand for special tokens while a text is taken apart, and no text holds them on purpose.
_STAND_IN, _LITERAL = "\U0010fffe", "\U0010fffd"


class TemplateError(ValueError):
    """The chat template cannot render a conversation; the message is the template's own reason."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text in some templates; its body is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def compile_template(source: str, where: str) -> jinja2.Template:
    """Compile a chat template with the functions that templates of models expect.

    Raises:
        UserError: the text is not a Jinja template; `where` is named.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is not valid Jinja: {error.message} (its line {error.lineno}).",
            "Mend the template, or name another with data.chat_template.",
            where=where,
        ) from error


class TextTokenizer:
    """Text to ids and conversations to text.

    Args:
        tokenizer_json: the content of tokenizer.json.
        special_tokens: texts by part: bos_token, eos_token, pad_token ...
        template: the compiled chat template, or None for a plain-text tokenizer.
        template_source: the template's text, for the receipt; empty without one.
        generation_end_ids: end tokens that the generation config names.
        where: the folder or id, for messages.
    """

    def __init__(
        self,
        tokenizer_json: str,
        *,
        special_tokens: Mapping[str, str],
        template: jinja2.Template | None,
        template_source: str,
        generation_end_ids: Sequence[int],
        where: str,
    ) -> None:
        self._json = tokenizer_json
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._template = template
        self.template_source = template_source
        self.special_tokens = dict(special_tokens)
        self.where = where
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.end_ids = frozenset(generation_end_ids) | ({self.eos_id} if self.eos_id is not None else set())

    def _id_of(self, part: str) -> int | None:
        text = self.special_tokens.get(part)
        return None if text is None else self._tokenizer.token_to_id(text)

    @property
    def sha256(self) -> str:
        """Hex digest of tokenizer.json."""
        return hashlib.sha256(self._json.encode()).hexdigest()

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered; otherwise texts are used as they are."""
        return self._template is not None

    @cached_property
    def _special_texts(self) -> list[str]:
        added = self._tokenizer.get_added_tokens_decoder().values()
        return sorted((token.content for token in added if token.special), key=len, reverse=True)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that a template may write and a message may not: added tokens with special=True."""
        return frozenset(i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self._special_texts))) if self._special_texts else None

    def has_special_literal(self, text: str) -> bool:
        """Whether a text spells out a special token."""
        return self._special_pattern is not None and self._special_pattern.search(text) is not None

    # Conversations to text

    def render(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool,
        tools: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as the model's template writes it.

        Raises:
            TemplateError: the template refuses the conversation, such as two user turns in a row.
        """
        assert self._template is not None
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns,
                tools=None if tools is None else json.loads(tools),
                documents=None,
                add_generation_prompt=generation_prompt,
                **self.special_tokens,
                **(template_kwargs or {}),
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
            raise TemplateError(str(error) or type(error).__name__) from error

    # Text to ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text; special tokens in it are parsed, none is added."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that follows other tokens.

        Tokenizers that put a space in front of a text (sentencepiece style) must not do so in the middle of one, so the
        text is tokenized behind a special token, which is then taken away.
        """
        if not self._prefixes_a_space:
            return self.encode_batch([text])[0]
        anchor = self.special_tokens["eos_token"]
        return self.encode_batch([anchor + text])[0][1:]

    @cached_property
    def _prefixes_a_space(self) -> bool:
        anchor = self.special_tokens.get("eos_token")
        if anchor is None or self.eos_id is None:
            return False
        alone, behind = self.encode_batch(["a", anchor + "a"])
        return behind[0] == self.eos_id and behind[1:] != alone

    @cached_property
    def plain_prefix(self) -> list[int]:
        """What the tokenizer itself puts in front of a plain text, such as BOS; often nothing."""
        encoding = self._tokenizer.encode("a", add_special_tokens=True)
        count = next((i for i, special in enumerate(encoding.special_tokens_mask) if not special), 0)
        return list(encoding.ids[:count])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    # Texts that spell out special tokens: they are kept as text

    def mask_literals(self, text: str) -> str:
        """Put a stand-in for every special token that a message spells out, so that rendering cannot confuse them."""
        if self._special_pattern is None:
            return text
        return self._special_pattern.sub(lambda m: f"{_LITERAL}{self._special_texts.index(m[0])}{_LITERAL}", text)

    def encode_masked(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of rendered texts whose messages were masked: the template's special tokens are parsed, the messages' are
        text.

        A twin of the tokenizer in which the special tokens have other spellings and the same ids does it: what the
        template wrote is respelled, what the messages hold is put back and is ordinary text to the twin.
        """
        assert self._special_pattern is not None
        respelled = []
        for text in texts:
            text = self._special_pattern.sub(lambda m: self._respelled(self._special_texts.index(m[0])), text)
            text = re.sub(f"{_LITERAL}(\\d+){_LITERAL}", lambda m: self._special_texts[int(m[1])], text)
            respelled.append(text)
        return [e.ids for e in self._twin.encode_batch_fast(respelled, add_special_tokens=False)]

    @staticmethod
    def _respelled(index: int) -> str:
        return f"{_STAND_IN}{index}{_STAND_IN}"

    @cached_property
    def _twin(self) -> Tokenizer:
        description = json.loads(self._json)
        spelling = {text: self._respelled(i) for i, text in enumerate(self._special_texts)}
        for token in description["added_tokens"]:
            token["content"] = spelling.get(token["content"], token["content"])
        model = description["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {spelling.get(text, text): i for text, i in model["vocab"].items()}
        else:  # Unigram: a list of (text, score)
            model["vocab"] = [[spelling.get(text, text), score] for text, score in model["vocab"]]
        if isinstance(model.get("unk_token"), str):
            model["unk_token"] = spelling.get(model["unk_token"], model["unk_token"])
        description.update(post_processor=None, truncation=None, padding=None)
        twin = Tokenizer.from_str(json.dumps(description))
        for text, other in spelling.items():
            assert twin.token_to_id(other) == self._tokenizer.token_to_id(text), f"{text} changed its id"
        return twin


def _text_of(token: object) -> str | None:
    """A special token in tokenizer_config.json is a text, or a mapping with its text under `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _chosen_template(config: Mapping[str, Any], folder: Path) -> str:
    """The model's default chat template, wherever this model keeps it; empty when it has none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _end_ids(folder: Path) -> list[int]:
    """End tokens by the generation config, or else by the model's config; they are one id, a list of ids, or absent."""
    for name in ("generation_config.json", "config.json"):
        ids = _read_json(folder / name).get("eos_token_id")
        if isinstance(ids, int):
            return [ids]
        if isinstance(ids, list):
            return [i for i in ids if isinstance(i, int)]
    return []


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"is not valid JSON: {error}", "The model folder is damaged; fetch it again.", where=str(path)
        ) from error
    return content if isinstance(content, dict) else {}


def tokenizer_folder(path: str, revision: str | None = None) -> Path:
    """The local folder with a model's tokenizer files: `builtin:guide`, a folder, a tokenizer.json, or a hub id.

    Only a hub id is looked up on the network, and of it only the tokenizer's files.
    """
    if path == "builtin:guide":
        return guide_model_dir()
    local = Path(path)
    if local.is_file():
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

    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(TOKENIZER_FILES)))
    except Exception as error:  # the hub client raises many types, from httpx, OSError and its own
        raise UserError(
            f"{name} is not a folder here, and the model hub did not give it: {type(error).__name__}.",
            "Check the name and the network, or name a local folder; gated models need a login.",
            exit_code=ExitCode.ENVIRONMENT,
        ) from error


def _adapter_base(folder: Path) -> str | None:
    base = _read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    return base if isinstance(base, str) else None


def load_tokenizer(path: str, *, revision: str | None = None, chat_template: str | None = None) -> TextTokenizer:
    """Read a tokenizer and its chat template.

    Args:
        path: `builtin:guide`, a folder, a tokenizer.json, or a hub id.
        revision: branch, tag or commit of a hub id.
        chat_template: a Jinja file instead of the model's template, `none` for plain text, None for the model's own.

    Raises:
        UserError: the files are missing or damaged.
    """
    folder = tokenizer_folder(path, revision)
    file = folder / "tokenizer.json"
    if not file.is_file():
        base = _adapter_base(folder)
        if base is not None:
            return load_tokenizer(base, revision=revision, chat_template=chat_template)
        raise UserError(
            f"{path} has no tokenizer.json.",
            "Make one with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) in transformers.",
        )
    config = _read_json(folder / "tokenizer_config.json")
    special_tokens = {
        part: text
        for source in (_read_json(folder / "special_tokens_map.json"), config)
        for part in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")
        if (text := _text_of(source.get(part))) is not None
    }
    if chat_template is None:
        template_source, template_place = _chosen_template(config, folder), str(folder)
    elif chat_template == "none":
        template_source, template_place = "", ""
    else:
        template_source, template_place = _read_template(chat_template), chat_template
    try:
        return TextTokenizer(
            file.read_text(encoding="utf-8"),
            special_tokens=special_tokens,
            template=compile_template(template_source, template_place) if template_source else None,
            template_source=template_source,
            generation_end_ids=_end_ids(folder),
            where=path,
        )
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for every damage
        raise UserError(
            f"cannot be read as a tokenizer: {error}", "The file is damaged; fetch it again.", where=str(file)
        ) from error


def from_transformers(tokenizer: Any) -> TextTokenizer:
    """The same tokenizer as one of transformers that is in memory already.

    Args:
        tokenizer: a fast tokenizer (PreTrainedTokenizerFast and its kin).

    Raises:
        UserError: it has no fast backend.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("the tokenizer has no fast backend.", "Load it with AutoTokenizer.from_pretrained(...).")
    source = tokenizer.chat_template or ""
    parts = ("bos_token", "eos_token", "pad_token", "unk_token")
    return TextTokenizer(
        backend.to_str(),
        special_tokens={part: text for part in parts if (text := getattr(tokenizer, part, None)) is not None},
        template=compile_template(source, "tokenizer.chat_template") if source else None,
        template_source=source,
        generation_end_ids=[],
        where=str(tokenizer.name_or_path),
    )


def _read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template names {path}, which cannot be read: {type(error).__name__}.",
            "Name a Jinja file, `none` for plain text, or leave it out for the model's own template.",
        ) from error


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
