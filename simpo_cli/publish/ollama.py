"""A Modelfile for Ollama, with the chat template in Go's language where ours is one that it can say.

Most chat templates write the same marks around every turn of a role. Those marks are learned by rendering made-up
conversations, and others, which were not learned from, are then rendered both ways: only where all are the same to the
letter does the Modelfile get a TEMPLATE.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import TemplateError, TextTokenizer
from simpo_cli.data.tokenizer.template import shared_lead
from simpo_cli.errors import UserError
from simpo_cli.files import disk_faults

MODELFILE = "Modelfile"

_MARK = "# Written by simpo export"

_Render = Callable[..., str]
_UNSAFE = ("{{", "}}", '"""')  # in what the template itself writes
_SYSTEM, _QUESTION, _ANSWER, _SECOND = "qZ7kqs", "qZ7kqu", "qZ7kqa", "qZ7kqv"
_OTHERS = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
_TEXTS = ("Be brief.", "How are you?\n\nWell?", "Fine: 2 + 2 = 4.", "And 你好?", "It is.\n- one\n- two", "Thanks!")


@dataclass(frozen=True, slots=True)
class Turns:
    """What a chat template writes around turns, where it writes the same around all turns of a role.

    Attributes:
        start: in front of a conversation without a system turn; BOS, which engines put there themselves, left out.
        system: in front of a system turn and behind it; None where the template knows none.
        user: in front of a user's turn and behind it.
        joined: in front of a user's turn that follows the system turn.
        assistant: in front of an answer and behind it.
        opening: the header of the next answer.
    """

    start: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    joined: str
    assistant: tuple[str, str]
    opening: str

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation, and the header of the next answer."""
        text, before = "" if messages[0].role == "system" else self.start, ""
        for message in messages:
            around = {"system": self.system, "user": self.user, "assistant": self.assistant}[message.role]
            assert around is not None
            text += (self.joined if before == "system" else around[0]) + message.content + around[1]
            before = message.role
        return text + self.opening

    def in_go(self) -> str:
        """The same as a template in the language of Go's text/template, over what Ollama gives it."""
        start, header, declare, remember = self.start, self.user[0], "", ""
        if start and self.system is not None:
            start = _do('if ne (index .Messages 0).Role "system"') + start + _do("end")
        if header != self.joined:
            otherwise = _do("else") + self.joined if self.joined else ""
            header = _do("if not $system") + header + otherwise + _do("end")
            declare, remember = _do("$system := false"), _do('$system = eq .Role "system"')
        turns = {"system": self.system, "user": (header, self.user[1]), "assistant": self.assistant}
        known = [(role, around) for role, around in turns.items() if around is not None]
        branches = [
            _do(f'{"else " if i else ""}if eq .Role "{role}"') + before + _do(".Content") + behind
            for i, (role, (before, behind)) in enumerate(known)
        ]
        each = _do("range .Messages") + "".join(branches) + _do("end") + remember + _do("end")
        return declare + start + each + self.opening

    @property
    def texts(self) -> list[str]:
        """All that it writes."""
        around = [*(self.system or ()), *self.user, *self.assistant]
        return [self.start, self.joined, self.opening, *around]


def _do(action: str) -> str:
    """An action of Go's templates."""
    return f"{{{{ {action} }}}}"


def learn_turns(tokenizer: TextTokenizer, template_kwargs: Mapping[str, Any], *, add_bos: bool) -> Turns | None:
    """What the template writes around turns; None where no template of ours in Go would write the same.

    Args:
        add_bos: whether engines put BOS in front of what the template writes.
    """
    if not tokenizer.has_template or tokenizer.dates:  # a date would stay that of today
        return None
    bos = tokenizer.special_tokens.get("bos_token", "") if add_bos else ""

    def render(messages: Sequence[Message], *, opened: bool = True) -> str:
        return tokenizer.render(messages, generation_prompt=opened, template_kwargs=template_kwargs).removeprefix(bos)

    return next((turns for turns in _learned(render) if _is_same(turns, render)), None)


def _is_same(turns: Turns, render: _Render) -> bool:
    """Whether other conversations come out the same, and Go and Ollama take the text for what it is."""
    if any(mark in text for mark in _UNSAFE for text in turns.texts):
        return False
    for roles in _OTHERS:
        if turns.system is not None or "system" not in roles:
            messages = [Message(role, text) for role, text in zip(roles, _TEXTS[-len(roles) :], strict=True)]
            try:
                if turns.render(messages) != render(messages):
                    return False
            except TemplateError:
                return False
    return True


def _learned(render: _Render) -> Iterator[Turns]:
    """What may be around turns, the likeliest first; nothing of a template that does more to a text than write it."""
    user, answer, second = Message("user", _QUESTION), Message("assistant", _ANSWER), Message("user", _SECOND)
    try:
        before, closing = _cut(render([user], opened=False), _QUESTION)
        opened = _cut(render([user]), _QUESTION)[1]
        between, behind = _cut(_cut(render([user, answer, second]), _QUESTION)[1], _ANSWER)
        gap = _cut(behind, _SECOND)[0]  # the end of the answer and the header of the next turn
    except TemplateError:
        return
    if not (opened.startswith(closing) and between.startswith(closing)):
        return
    headers = list[str]()
    with suppress(TemplateError):  # some write the last answer otherwise than those before it
        ending = _cut(render([user, answer], opened=False), _ANSWER)[1]
        headers += [gap.removeprefix(ending)] if gap.startswith(ending) else []
    headers.append(shared_lead(before[::-1], gap[::-1])[::-1])
    try:
        lead, rest = _cut(render([Message("system", _SYSTEM), user]), _SYSTEM)
        behind_system = _cut(rest, _QUESTION)[0]
    except TemplateError:
        behind_system = None
    for header in headers:
        if not before.endswith(header):
            continue
        joined, system = header, None
        if behind_system is not None:
            # where the system text stands within the user's turn, that turn has no header of its own
            joined = header if behind_system.endswith(header) else ""
            system = (lead, behind_system.removesuffix(joined))
        assistant = (between.removeprefix(closing), gap.removesuffix(header))
        opening = opened.removeprefix(closing)
        yield Turns(before.removesuffix(header), system, (header, closing), joined, assistant, opening)


def _cut(text: str, part: str) -> tuple[str, str]:
    """What stands before and behind a part that occurs once; else the template does more than write it."""
    if text.count(part) != 1:
        raise TemplateError(f"writes {part} {text.count(part)} times")
    before, _, behind = text.partition(part)
    return before, behind


def modelfile(file_name: str, turns: Turns | None, stops: Sequence[str]) -> str:
    """The Modelfile beside a GGUF file."""
    lines = [f"{_MARK}: ollama create NAME -f Modelfile", f"FROM ./{file_name}"]
    lines += [] if turns is None else [f'TEMPLATE """{turns.in_go()}"""']
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"


def require_own(file: Path) -> None:
    """Refuse (UserError) a Modelfile in this place that is somebody's own."""
    with disk_faults(f"{file} cannot be read"):
        if os.path.lexists(file) and not (file.is_file() and file.read_bytes().startswith(_MARK.encode())):
            raise UserError(
                f"{file} exists already, and was not written by simpo.", "Name another place with --output, or move it."
            )


def is_edited(file: Path, text: str) -> bool:
    """Whether a Modelfile in this place says other things than `text`, the name of the GGUF file aside."""
    if not file.is_file():
        return False
    with disk_faults(f"{file} cannot be read"):
        there = file.read_text(encoding="utf-8", errors="replace")
    one, other = ([line for line in each.splitlines() if not line.startswith("FROM ")] for each in (there, text))
    return one != other
