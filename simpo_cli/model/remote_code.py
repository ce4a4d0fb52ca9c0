"""Remote code, the Python files that a model brings with it: run only where the command line asks for it.

A model that transformers does not know names its classes in `auto_map` of config.json; they are in Python files beside
it. Whoever loads such a model runs these files, with every right of the person at the keyboard. So consent is given by
`--trust-remote-code` alone: a command does its work inside `trusting`, everything that finds a model there asks
`is_trusted`, and outside of it, or where somebody forgot it, such a model is refused. Files that are run are recorded
by their sha256.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from simpo_cli.data.file_bytes import sha256_of
from simpo_cli.data.model_files import unreadable
from simpo_cli.errors import ExitCode, UserError

FLAG = "--trust-remote-code"
CAUSAL = "AutoModelForCausalLM"
CLASSIFIER = "AutoModelForSequenceClassification"  # what reward models are
_CLASS = re.compile(r"(\w+)\.\w+")  # a file beside config.json, without its ending, and a class in it

_trusted = ContextVar("trusted", default=False)


class NeedsRemoteCodeError(UserError):
    """A model that cannot be loaded without remote code, and nobody has asked for that."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"{name} needs remote code (Python files of its own), which is not run unasked.",
            f"Read its code first; {FLAG} runs it.",
        )


@contextmanager
def trusting(flag: bool) -> Iterator[None]:
    """A block in which models may run remote code, if the command line holds the flag.

    A recipe or the environment has no say in it.
    """
    before = _trusted.set(flag)
    try:
        yield
    finally:
        _trusted.reset(before)


def is_trusted() -> bool:
    """Whether remote code may be run here."""
    return _trusted.get()


def code_to_run(name: str, folder: Path, config: Mapping[str, Any], model: str = CAUSAL) -> dict[str, str]:
    """The files that loading the model here will run, each with its sha256; empty without consent.

    Args:
        model: as what it is loaded, by a name of auto_map.

    Raises:
        UserError: code is named that is not in the folder, such as another repository's.
    """
    named = config.get("auto_map")
    if not is_trusted() or not isinstance(named, dict):
        return {}
    files: dict[str, str] = {}
    for auto in ("AutoConfig", model):
        if auto in named:
            files |= {file.name: sha256_of(file) for file in _files_of(name, folder, auto, named[auto])}
    return dict(sorted(files.items()))


def _files_of(name: str, folder: Path, auto: str, reference: object) -> list[Path]:
    """The file with a class that auto_map names, and those that it imports."""
    if isinstance(reference, str) and "--" in reference:
        raise UserError(
            f"the config.json of {name} names code of another repository ({auto}: {reference!r}), which is not loaded.",
            "Put the files of that code beside config.json, and take the repository and its -- out of auto_map.",
        )
    found = _CLASS.fullmatch(reference) if isinstance(reference, str) else None
    if found is None:
        raise UserError(
            f"the config.json of {name} names {reference!r} as its {auto}, which is no class in a file beside it.",
            "Mend auto_map: it names classes as FILE.CLASS, without the .py.",
        )
    files = with_imports(folder / f"{found[1]}.py")
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{name} lacks {missing[0].relative_to(folder)}, which is part of its code.",
            "Fetch the model again, with its Python files.",
        )
    return files


def with_imports(file: Path) -> list[Path]:
    """A Python file and those beside it that it imports, as transformers finds them; the last may be missing.

    Raises:
        UserError: one cannot be read.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    if not file.is_file():
        return [file]
    try:
        imported = map(Path, get_relative_import_files(file))
    except FileNotFoundError as error:
        imported = map(Path, [error.filename])
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(file, error) from error
    # what it finds elsewhere was no import but words of a comment
    return list(dict.fromkeys([file, *(one for one in imported if one.parent == file.parent)]))


def class_of(name: str, folder: Path, config: Any) -> type:
    """The class of a causal language model that its remote code defines; the code is run.

    Args:
        config: its configuration, with an auto_map that `code_to_run` has looked at.

    Raises:
        UserError: it is not built as transformers builds models.
    """
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

    remote: Any = get_class_from_dynamic_module(config.auto_map[CAUSAL], folder)
    if isinstance(remote, type) and issubclass(remote, PreTrainedModel):
        remote.register_for_auto_class(CAUSAL)  # type: ignore[no-untyped-call]  # so that a save takes the code along
        remote = add_generation_mixin_to_remote_model(remote)  # type: ignore[no-untyped-call]  # older classes lack it
        if issubclass(remote, GenerationMixin):
            found: type = remote
            return found
    raise UserError(
        f"the code of {name} is not built like a causal language model of transformers.",
        f"{config.auto_map[CAUSAL]} has to derive from PreTrainedModel and GenerationMixin.",
    )


@contextmanager
def faults_of(name: str, code: Mapping[str, str]) -> Iterator[None]:
    """A block that runs a model's code, if it has any: what it raises is a fault of the model and not of ours.

    Raises:
        UserError: it raised something (exit code 4 where it wants a package that is not here).
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not code:
            raise
        import transformers

        reason = (str(error).splitlines() or [""])[0]
        problem = f"the code of {name} ({', '.join(code)}) fails: {type(error).__name__}: {reason}".rstrip(": ")
        if isinstance(error, ImportError):
            raise UserError(
                problem, "Install what it imports, and start again.", exit_code=ExitCode.ENVIRONMENT
            ) from error
        raise UserError(
            problem,
            f"It may be written for another version of transformers than {transformers.__version__}, which is here.",
        ) from error
