"""Modelfiles: a template in Go's language that writes what the model's own writes, or none."""

import re
from pathlib import Path

import pytest

from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.publish.ollama import Turns, is_edited, learn_turns, modelfile, require_own
from tests.tiny import FAMILIES

Conversation = list[tuple[str, str]]  # roles and texts
_CONVERSATIONS: list[Conversation] = [
    [("user", "Hi, {{ .Role }} <b>")],
    [("system", 'You are "x".\n\nYes.'), ("user", "a\n\nb")],
    [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")],
    [("system", "s"), ("user", "1"), ("assistant", "2"), ("user", "3")],
]
_TEMPLATES = Path(__file__).parents[1] / "data" / "templates"
# the system text stands in the last question, or EOS behind a conversation that nobody answers
_NOT_SAID = {"mistral_v3", "nemo", "phi4", "pixtral"}
_ACTION = re.compile(r"\{\{ (.*?) \}\}", re.DOTALL)


def _executed(template: str, messages: Conversation) -> str:
    """What Go's text/template writes, for the actions that our templates use."""
    pieces = _ACTION.split(template)
    nodes = [("text" if i % 2 == 0 else "action", piece) for i, piece in enumerate(pieces)]

    def holds(condition: str, dot: tuple[str, str] | None, variables: dict[str, bool]) -> bool:
        if condition.startswith("not "):
            return not holds(condition[4:], dot, variables)
        if condition.startswith("$"):
            return variables[condition]
        if found := re.fullmatch(r'eq \.Role "(\w+)"', condition):
            assert dot is not None
            return dot[0] == found[1]
        found = re.fullmatch(r'ne \(index \.Messages 0\)\.Role "(\w+)"', condition)
        assert found is not None, condition
        return messages[0][0] != found[1]

    def block(at: int, dot: tuple[str, str] | None, variables: dict[str, bool], writes: bool) -> tuple[str, int]:
        """The text up to the `else` or `end` of the block that begins here, and where that is."""
        text = ""
        while at < len(nodes):
            kind, content = nodes[at]
            if kind == "text":
                text += content if writes else ""
            elif content == "end" or content.startswith("else"):
                return text, at
            elif content == ".Content":
                assert dot is not None
                text += dot[1] if writes else ""
            elif content.startswith("if "):
                more, at = branches(at, content, dot, variables, writes)
                text += more
            elif content == "range .Messages":
                start = at + 1
                for message in messages:
                    more, at = block(start, message, variables, writes)
                    text += more
            else:
                name, value = re.split(r" :?= ", content)
                if writes:
                    variables[name] = False if value == "false" else holds(value, dot, variables)
            at += 1
        return text, at

    def branches(
        at: int, condition: str, dot: tuple[str, str] | None, variables: dict[str, bool], writes: bool
    ) -> tuple[str, int]:
        is_open, text = writes, ""
        while True:
            taken = is_open and (condition == "else" or holds(condition.split("if ", 1)[1], dot, variables))
            more, at = block(at + 1, dot, variables, taken)
            text, is_open, condition = text + more, is_open and not taken, nodes[at][1]
            if condition == "end":
                return text, at

    text, end = block(0, None, {}, True)
    assert end == len(nodes)
    return text


def _tokenizer(family: str, folder: Path) -> TextTokenizer:
    return load_tokenizer(str(FAMILIES[family].save(folder)))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"llama3", "phi3"}))
def test_the_template_in_go_writes_what_the_models_own_does(family: str, tmp_path: Path) -> None:
    tokenizer = _tokenizer(family, tmp_path)
    turns = learn_turns(tokenizer, {}, add_bos=False)
    assert turns is not None
    for conversation in _CONVERSATIONS:
        if turns.system is not None or conversation[0][0] != "system":
            wanted = tokenizer.render([Message(*turn) for turn in conversation], generation_prompt=True)
            assert _executed(turns.in_go(), conversation) == wanted


@pytest.mark.parametrize("file", sorted(_TEMPLATES.glob("*.jinja")), ids=lambda file: file.stem)
def test_templates_of_known_models_are_said_or_left_out(file: Path, tmp_path: Path) -> None:
    FAMILIES["mistral"].save(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(file.read_bytes())
    tokenizer = load_tokenizer(str(tmp_path))
    turns = learn_turns(tokenizer, {}, add_bos=True)
    assert (turns is None) == (file.stem in _NOT_SAID)
    for conversation in _CONVERSATIONS if turns is not None else ():
        wanted = tokenizer.render([Message(*turn) for turn in conversation], generation_prompt=True)
        assert _executed(turns.in_go(), conversation) == wanted.removeprefix("<s>")


def test_bos_that_engines_write_is_left_out(tmp_path: Path) -> None:
    tokenizer = _tokenizer("mistral", tmp_path)
    turns = learn_turns(tokenizer, {}, add_bos=True)
    assert turns is not None
    assert _executed(turns.in_go(), [("user", "x")]) == "[INST] x [/INST]"
    assert _executed(turns.in_go(), [("system", "s"), ("user", "x")]) == "[INST] s\n\nx [/INST]"


def test_variables_of_the_template_count(tmp_path: Path) -> None:
    turns = learn_turns(_tokenizer("qwen3", tmp_path), {"enable_thinking": False}, add_bos=False)
    assert turns is not None
    assert turns.in_go().endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")


_TURN = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
_LOOP = "{% for message in messages %}" + _TURN + "{% endfor %}"
_OPENED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ loop.index }}" + _TURN + "{% endfor %}" + _OPENED,  # turns are counted
        _LOOP.replace("message['content']", "message['content'] | upper") + _OPENED,
        _LOOP.replace("message['content']", "message['content'] * 2") + _OPENED,
        "{{ strftime_now('%d %b %Y') }}" + _LOOP + _OPENED,  # would stay today's
        "{{ '{{ x }}' }}" + _LOOP + _OPENED,  # Go would take it for an action
        "{% if messages | length > 3 %}long{% endif %}" + _LOOP + _OPENED,
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_go_cannot_say_is_left_out(template: str, tmp_path: Path) -> None:
    FAMILIES["chatml"].save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    assert learn_turns(load_tokenizer(str(tmp_path)), {}, add_bos=False) is None


def test_a_modelfile_is_whole() -> None:
    turns = Turns("", ("S ", "\n"), ("U ", "\n"), "U ", ("A ", "\n"), "A ")
    assert (
        modelfile("mine-q8_0.gguf", turns, ["<|im_end|>", "</s>"])
        == '''# Written by simpo export: ollama create NAME -f Modelfile
FROM ./mine-q8_0.gguf
TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}S {{ .Content }}
{{ else if eq .Role "user" }}U {{ .Content }}
{{ else if eq .Role "assistant" }}A {{ .Content }}
{{ end }}{{ end }}A """
PARAMETER stop "<|im_end|>"
PARAMETER stop "</s>"
'''
    )
    assert "TEMPLATE" not in modelfile("x.gguf", None, [])


def test_a_modelfile_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    file = tmp_path / "Modelfile"
    require_own(file)
    file.write_text(modelfile("x.gguf", None, []))
    require_own(file)
    file.write_text("FROM llama3.2\n")
    with pytest.raises(UserError, match="exists already, and was not written by simpo"):
        require_own(file)


def test_what_somebody_added_to_a_modelfile_is_seen(tmp_path: Path) -> None:
    file, text = tmp_path / "Modelfile", modelfile("x-q8_0.gguf", None, ["<|im_end|>"])
    assert not is_edited(file, text)
    file.write_text(modelfile("x-bf16.gguf", None, ["<|im_end|>"]), encoding="utf-8")
    assert not is_edited(file, text)  # of another file of the same run
    file.write_text(text + "SYSTEM be kind\n", encoding="utf-8")
    assert is_edited(file, text)
