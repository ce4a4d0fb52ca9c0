"""A model folder on the hub: sent after it was saved, and nothing but what lies in it."""

import glob
import shlex
from pathlib import Path

from simpo_cli.data.hub import is_forbidden
from simpo_cli.data.model_files import read_json
from simpo_cli.errors import ExitCode, UserError

_SENT = (".safetensors", ".json", ".jinja", ".model", ".txt", ".md")
_CODE = ".py"
_NAMES_CODE = ("config.json", "tokenizer_config.json")


def require_repo_id(repo_id: str) -> None:
    """Refuse what cannot be the name of a repository; asked before anything is saved.

    Raises:
        UserError: the hub's rules for names are not met.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, and not marked so

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(
            f"--push {repo_id} cannot be the name of a repository.",
            "Name it as YOUR-NAME/MODEL, in letters, digits, '-', '_' and '.'.",
        ) from error


def push(folder: Path, repo_id: str, *, public: bool = False) -> tuple[str, list[str]]:
    """Send a model folder to the hub; a repository that is not there yet is made, and only then `public` counts.

    Returns:
        The address, and the names in the folder that were left out: whatever is no plain file of a model.

    Raises:
        UserError: adapters whose base nobody else has (exit code 2); the hub cannot be reached or does not take it
            (exit code 4), with the command that sends it later. The folder is as it was.
    """
    _require_base_of_others(folder)
    if is_forbidden():
        raise _not_pushed(folder, repo_id, public, "HF_HUB_OFFLINE forbids the network", "unset HF_HUB_OFFLINE")
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise _not_pushed(folder, repo_id, public, "nobody is logged in to the hub here", "hf auth login")
    sent, left_out = _contents(folder)
    hub = huggingface_hub.HfApi()
    try:
        made = hub.create_repo(repo_id, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=made.repo_id,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in sent],
            commit_message="Model written by simpo",
        )
    except Exception as error:  # the hub client raises many types, from httpx, OSError and its own
        raise _not_pushed(folder, repo_id, public, f"the hub did not take it ({_kind(error)})", "") from error
    return str(made.url), left_out


def command_to_push(folder: Path, repo_id: str, *, public: bool) -> str:
    """What sends the folder later, by the hub's own program, which comes with huggingface_hub."""
    left_out = [folder / name for name in _contents(folder)[1]]
    patterns = [glob.escape(entry.name) + ("/*" if entry.is_dir() else "") for entry in left_out]
    words = ["hf", "upload", repo_id, str(folder), ".", *([] if public else ["--private"])]
    return shlex.join([*words, *(word for pattern in patterns for word in ("--exclude", pattern))])


def _contents(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files that are sent, and of what is not: folders, links, hidden files and those of other kinds."""
    has_code = any("auto_map" in read_json(folder / name) for name in _NAMES_CODE)
    kinds = (*_SENT, _CODE) if has_code else _SENT
    sent: list[str] = []
    left_out: list[str] = []
    for entry in sorted(folder.iterdir()):
        is_plain = entry.is_file() and not entry.is_symlink() and not entry.name.startswith(".")
        (sent if is_plain and entry.suffix in kinds else left_out).append(entry.name)
    return sent, left_out


def _require_base_of_others(folder: Path) -> None:
    """Adapters alone are worth something where others can get the model under them."""
    config = folder / "adapter_config.json"
    if not config.is_file():
        return
    named = read_json(config).get("base_model_name_or_path")
    if not isinstance(named, str) or named.count("/") != 1 or named.startswith((".", "/", "~")) or Path(named).exists():
        raise UserError(
            "the model under these adapters is a folder of this machine: nobody else could load them.",
            "Add --merge, and what is pushed is the whole model.",
        )


def _kind(error: Exception) -> str:
    """What went wrong, without the hub's words: those may hold addresses and names of tokens."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return type(error).__name__ if status is None else f"{type(error).__name__}, status {status}"


def _not_pushed(folder: Path, repo_id: str, public: bool, why: str, first: str) -> UserError:
    later = command_to_push(folder, repo_id, public=public)
    return UserError(
        f"{repo_id} was not pushed: {why}. The model is saved in {folder}.",
        f"Push it later with: {first + ' && ' if first else ''}{later}",
        exit_code=ExitCode.ENVIRONMENT,
    )
