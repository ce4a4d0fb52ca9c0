"""A tokenizer and its chat template from a model's files, wherever this model keeps them."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from simpo_cli.builtin import guide_model_dir
from simpo_cli.data import hub
from simpo_cli.data.model_files import ADAPTER_CONFIG, base_of_adapters, read_json, read_text, require_regular_files
from simpo_cli.data.tokenizer.text_tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.files import exit_code_of

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)


def load_tokenizer(
    path: str, *, revision: str | None = None, chat_template: str | None = None, moment: datetime | None = None
) -> TextTokenizer:
    """Read a tokenizer and its chat template.

    Args:
        path: `builtin:guide`, a folder, a tokenizer.json, or a hub id; of an adapter without one, its base model's.
        chat_template: a Jinja file instead of the model's template, `none` for plain text, None for the model's own.
        moment: what a template that writes today's date takes for now; this moment if not given.

    Raises:
        UserError: the files are missing or damaged.
    """
    folders = _folders(path, revision)
    path, folder = next((one for one in folders if (one[1] / "tokenizer.json").is_file()), folders[-1])
    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            "has no tokenizer.json.",
            "Make one with AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) in transformers.",
            where=path,
        )
    config = read_json(folder / "tokenizer_config.json")
    if chat_template is None:
        found = [_chosen_templates(read_json(one / "tokenizer_config.json"), one) for _, one in folders]
        templates, template_place = next((one for one in found if one[0]), found[0])
    elif chat_template == "none":
        templates, template_place = {}, ""
    else:
        templates, template_place = {"default": read_template(chat_template)}, chat_template
    special_tokens = _special_tokens(config, folder)
    tokenizer, sha256 = _read_tokenizer(folder / "tokenizer.json")
    _add_tokens(tokenizer, config, special_tokens, folder)
    return TextTokenizer(
        tokenizer,
        sha256=sha256,
        special_tokens=special_tokens,
        templates=templates,
        template_where=template_place,
        generation_end_ids=next((ids for _, one in folders if (ids := _end_ids(one))), []),
        where=path,
        moment=moment,
    )


def _folders(path: str, revision: str | None) -> list[tuple[str, Path]]:
    """A model's name and folder, and of adapters those of the models under them, which may hold what the first lacks.

    A base that is not here is left out where the adapters bring a tokenizer of their own.
    """
    found = [(path, tokenizer_folder(path, revision))]
    while True:
        folder = found[-1][1]
        require_regular_files(folder)
        if not isinstance(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"), str):
            return found
        try:
            base, of_base = base_of_adapters(folder) or ("", None)
            below = tokenizer_folder(base, of_base)
        except UserError:
            if (folder / "tokenizer.json").is_file():
                return found
            raise
        if below.resolve() in [one.resolve() for _, one in found]:  # adapters of themselves
            return found
        found.append((base, below))


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
    templates = ({"default": source} if source.strip() else {}) if isinstance(source, str) else dict(source)
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


def tokenizer_folder(path: str, revision: str | None = None) -> Path:
    """The local folder with a model's tokenizer files: `builtin:guide`, a folder, a tokenizer.json, or a hub id.

    Only a hub id is looked up on the network, and of it only the tokenizer's files.
    """
    if path == "builtin:guide":
        return guide_model_dir()
    local = Path(path).expanduser()
    if local.is_file():
        if local.name != "tokenizer.json":
            raise UserError(f"{path} is a file, and no tokenizer.json.", "Name the model's folder or tokenizer.json.")
        return local.parent
    if local.is_dir():
        return local
    require_model_name(path)
    return hub.model_snapshot(path, revision, [*TOKENIZER_FILES, "additional_chat_templates/*.jinja", ADAPTER_CONFIG])


def require_model_name(path: str) -> None:
    """Refuse (UserError) a path that is no folder and cannot be the id of a model on the hub."""
    if Path(path).expanduser().is_file():
        raise UserError(f"{path} is a file, not a model folder.", "Name the folder that holds config.json.")
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise UserError(
            f"the model folder {path} does not exist.",
            "Check the path; it is a folder, a hub id (organisation/model) or builtin:guide.",
        )


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
        templates, place = {"default": read_text(file)}, file
        for more in sorted((folder / "additional_chat_templates").glob("*.jinja")):
            templates[more.stem] = read_text(more)
    templates = {name: templates[name] for name in ("default", "tool_use") if templates.get(name, "").strip()}
    if named and not templates.get("default"):
        raise UserError(
            "has several chat templates and none of them is the default.",
            "Name a Jinja file with data.chat_template, or `none` for plain text.",
            where=str(place),
        )
    return templates, str(place)


def template_of(folder: Path) -> str | None:
    """The chat template that a model's folder itself holds, if any."""
    return _chosen_templates(read_json(folder / "tokenizer_config.json"), folder)[0].get("default")


def read_template(path: str) -> str:
    """The text of the file that data.chat_template names."""
    file = Path(path).expanduser()
    try:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError(path)
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"data.chat_template names {path}, which cannot be read: {type(error).__name__}.",
            "Name a Jinja file, `none` for plain text, or leave it out for the model's own template.",
            key="data.chat_template",
        ) from error
    if not source.strip():
        raise UserError(
            f"data.chat_template names {path}, which is empty.",
            "Name a Jinja file, or `none` for plain text.",
            key="data.chat_template",
        )
    return source


def _read_tokenizer(file: Path) -> tuple[Tokenizer, str]:
    """The library's tokenizer of a tokenizer.json, and the digest of the file."""
    try:
        content = file.read_bytes()
        return Tokenizer.from_str(content.decode()), hashlib.sha256(content).hexdigest()
    except Exception as error:  # the library raises bare Exception for every damage
        raise UserError(
            f"cannot be read as a tokenizer: {error}.",
            "The file is damaged; fetch it again.",
            where=str(file),
            exit_code=exit_code_of(error),
        ) from error


def _special_tokens(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Special tokens by part, as a template sees them: the usual parts and the model's own, such as image_token."""
    found = dict(config)
    if "added_tokens_decoder" not in config:  # older folders keep them in a file of their own
        found |= read_json(folder / "special_tokens_map.json")
    if isinstance(more := found.get("extra_special_tokens"), dict):
        found |= more
    parts = [part for part in found if part.endswith("_token")]
    return {part: text for part in parts if (text := _text_of(found[part])) is not None}


def _add_tokens(tokenizer: Tokenizer, config: Mapping[str, Any], special: Mapping[str, str], folder: Path) -> None:
    """Add the tokens that only tokenizer_config.json knows; what it says of a token goes before tokenizer.json."""
    present = tokenizer.get_added_tokens_decoder().values()
    listed = config.get("added_tokens_decoder", {})
    properties = {"single_word", "lstrip", "rstrip", "normalized", "special"}
    try:
        entries = [listed[index] for index in sorted(listed, key=int)]
        tokens = [AddedToken(one["content"], **{key: one[key] for key in properties & one.keys()}) for one in entries]
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
    names = [*special.values(), *(filter(None, map(_text_of, more)) if isinstance(more, list) else ())]
    tokens += [AddedToken(text, special=True) for text in dict.fromkeys(names) if text not in known]
    if tokens:
        tokenizer.add_tokens(tokens)


def _text_of(token: object) -> str | None:
    """A special token in tokenizer_config.json is a text, or a mapping with its text under `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _end_ids(folder: Path) -> list[int]:
    """End tokens by the generation config, or else by the model's config; they are one id, a list of ids, or absent."""
    config = read_json(folder / "config.json")
    text_config = config.get("text_config")
    for holder in (read_json(folder / "generation_config.json"), config, text_config):
        ids = holder.get("eos_token_id") if isinstance(holder, dict) else None
        found = [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int]
        if found:
            return found
    return []
