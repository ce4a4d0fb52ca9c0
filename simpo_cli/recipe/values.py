"""What the values of a recipe must be, beyond their types: bounds, names, paths, and keys that go together."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
"""Of every section: "40" is no number, true is no 1, and the sentence under a field is its description."""


class FieldError(ValueError):
    """Values that do not go together.

    Args:
        key: the field within its section (dotted when it lies deeper).
        problem: the rest of a sentence that begins with the key, without its full stop.
        fix: one sentence that says how to mend it.
        related: other keys that take part; the place of the error is that of the first key that somebody wrote.
    """

    def __init__(self, key: str, problem: str, fix: str, related: tuple[str, ...] = ()) -> None:
        self.key, self.problem, self.fix, self.related = key, problem, fix, related
        super().__init__(f"{key} {problem}")


def checked(fix: str, **bounds: Any) -> Any:
    """The bounds of a value, as pydantic names them, and what to do where it is outside of them."""
    return Field(json_schema_extra={"fix": fix}, **bounds)


def has_control_characters(text: str) -> bool:
    """Whether a name holds what a terminal would obey: no name of ours does, and none is read."""
    return any(ord(char) < 32 or ord(char) == 127 for char in text)


def is_folder_name(name: str) -> bool:
    """Whether a text can be the name of a run: one part of a path that no shell or file system takes otherwise."""
    return (
        bool(name)
        and name == name.strip()
        and name[0] not in "-.~"
        and ".." not in name
        and name.isprintable()
        and not any(char in "/\\" for char in name)
        and len(name.encode(errors="replace")) <= 200
    )


def _is_path(text: str) -> bool:
    return bool(text.strip()) and not has_control_characters(text)


def _usable(is_usable: Callable[[str], bool], use: str = "") -> AfterValidator:
    """Refuses a text that cannot be what it names, with the reason where it is one that cannot be seen."""

    def check(text: str) -> str:
        if not is_usable(text):
            hidden = ": it holds a control character" if has_control_characters(text) else ""
            raise ValueError(f"is {text!r}{use}{hidden}")
        return text

    return AfterValidator(check)


def _share_or_count(holdout: float) -> float:
    if isinstance(holdout, float) and holdout >= 1:
        raise ValueError(f"is {holdout}, neither a share below 1 nor a whole count")
    return holdout


Path = Annotated[str, _usable(_is_path)]
OutputDir = Annotated[str, _usable(_is_path, ", which is not usable as a folder")]
FolderName = Annotated[str, _usable(is_folder_name, ", which is not usable as a folder name")]
Holdout = Annotated[Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)], AfterValidator(_share_or_count)]
