"""Files of a model's folder that are JSON or text; whoever wrote the folder, a damaged one is the user's to mend."""

import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from simpo_cli.errors import UserError
from simpo_cli.files import MalformedError, exit_code_of, object_in

ADAPTER_CONFIG = "adapter_config.json"
Quantization = Literal["nf4", "int8"]
"""How the linear layers of a model may be quantised here, under adapters."""

_DAMAGED = "The model folder is damaged; fetch it again."
_READ_HERE = (".safetensors", ".json", ".jinja", ".model", ".txt")
_QUANTISED = ("quantization_config", "compression_config")
_QUANTISED_BESIDE = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_MARK_OF_QUANTISED = re.compile(
    r"[-_.](?:unsloth-)?(?:bnb-\d+bit|\d+bit|int\d+|gptq|awq|fp8|nvfp4|mxfp4|fp4|nf4|hqq|w\d+a\d+)(?=[-_.]|$).*", re.I
)


def read_text(path: Path) -> str:
    """The text of a file; UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """The error of a file of a model's folder that cannot be read."""
    return UserError(f"cannot be read: {error}.", _DAMAGED, where=str(path), exit_code=exit_code_of(error))


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds, empty where there is no such file; UserError where it holds something else."""
    if not path.is_file():
        return {}
    try:
        return object_in(read_text(path).encode(), finite=False)  # Mamba has a limit that is Infinity
    except MalformedError as error:
        raise UserError(f"{error}.", _DAMAGED, where=str(path)) from error


def require_regular_files(folder: Path) -> None:
    """Refuse (UserError) a folder in which what would be read is a pipe, a socket or a device: that may never end."""
    for file in sorted(folder.iterdir()):
        if file.suffix in _READ_HERE and file.exists() and not (file.is_file() or file.is_dir()):
            kind = "pipe" if stat.S_ISFIFO(file.stat().st_mode) else "socket or a device"
            raise UserError(f"is a {kind}, not a file.", _DAMAGED, where=str(file))


def base_of_adapters(folder: Path) -> tuple[str, str | None] | None:
    """The model that adapters were trained beside and its revision; None for a folder that holds no adapters.

    A relative folder counts from the working directory, as peft has it, and then from the adapters' folder and from
    the one that holds it.

    Raises:
        UserError: adapter_config.json names no model, or a path that is not here.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return None
    config = read_json(file)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        fix = "Name the model under the adapters there."
        raise UserError("names no base_model_name_or_path.", fix, where=str(file))
    if base.startswith("builtin:") or Path(base).expanduser().is_dir():
        return base, config.get("revision")
    for place in (folder / base, folder.parent / base):
        if place.is_dir():
            return str(place.resolve()), None
    if base.startswith((".", "/", "~")) or base.count("/") != 1:
        raise UserError(
            f"the adapters in {folder} were trained beside the model {base}, which is not here.",
            f"Put it there, or name the folder or hub id of the same model as base_model_name_or_path in {file}.",
        )
    return base, config.get("revision")


def quantisation_of(config: Mapping[str, Any]) -> str | None:
    """How the weights of a model are quantised by its config.json, such as `bitsandbytes, 4 bits`; None if not."""
    for section in sections_of(config):
        for key in _QUANTISED:
            if section.get(key) is not None:
                return _kind_of(section[key])
    return None


def sections_of(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and every mapping within it, such as text_config."""
    waiting: list[Mapping[str, Any]] = [config]
    while waiting:
        section = waiting.pop(0)
        waiting += [value for value in section.values() if isinstance(value, dict)]
        yield section


def _kind_of(settings: Any) -> str:
    if not isinstance(settings, dict):
        return f"{settings!r}"
    method = settings.get("quant_method") or settings.get("quant_algo")
    bits = settings.get("bits", settings.get("w_bit"))
    for width in (4, 8):
        if settings.get(f"load_in_{width}bit") or settings.get(f"_load_in_{width}bit"):
            method, bits = method or "bitsandbytes", width
    kind = str(method) if method else "a kind that it does not name"
    return f"{kind}, {bits} bits" if isinstance(bits, int) else kind


def stored_quantization(name: str, folder: Path, held_by: str = "") -> Quantization | None:
    """How the weights in a model's folder are quantised; None if they are not.

    Args:
        held_by: the adapter_config.json that names the model, if it is not the recipe that does.

    Raises:
        UserError: in a way that is not read here.
    """
    config = read_json(folder / "config.json")
    kind = quantisation_of(config)
    for file in _QUANTISED_BESIDE:
        if kind is None and (settings := read_json(folder / file)):
            kind = _kind_of(settings.get("quantization") or settings)
    if kind is None:
        return None
    stored = config.get("quantization_config")
    if isinstance(stored, dict) and kind.startswith("bitsandbytes"):
        if stored.get("load_in_4bit") and stored.get("bnb_4bit_quant_type") == "nf4":
            return "nf4"
        if stored.get("load_in_8bit") and not stored.get("llm_int8_has_fp16_weight"):
            return "int8"
    raise quantised(name, kind, held_by)


def quantised(name: str, kind: str, held_by: str = "") -> UserError:
    """The error of a model whose weights are quantised in a way that is not read here."""
    plain = _MARK_OF_QUANTISED.sub("", name)
    is_known = plain != name and (Path(plain).is_dir() or not Path(name).exists())
    such_as = f" ({plain}, by its name)" if is_known else ""
    where = f" as base_model_name_or_path in {held_by}" if held_by else " instead"
    return UserError(
        f"the weights of {name} are quantised ({kind}); of quantised weights those of bitsandbytes are read, as nf4 or "
        "int8.",
        f"Name the unquantised model that it was made from{such_as}{where}; model.quantization quantises it here.",
    )


def require_startable(name: str, folder: Path) -> None:
    """Refuse (UserError) what can be refused of a model without torch: pipes, quantised weights, a missing base.

    Of adapters the folders under them are looked at, so far as they are on this machine.
    """
    held_by = ""
    seen: set[Path] = set()
    while folder.resolve() not in seen:
        seen.add(folder.resolve())
        require_regular_files(folder)
        base = base_of_adapters(folder)
        if base is None:
            stored_quantization(name, folder, held_by)
            return
        held_by, name = str(folder / ADAPTER_CONFIG), base[0]
        if not Path(name).expanduser().is_dir():  # the builtin model, or one of the hub
            return
        folder = Path(name).expanduser()
