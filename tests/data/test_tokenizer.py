"""Reading a model's tokenizer and template: the same as transformers reads them, and clear about damage."""

import hashlib
import json
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import (
    TemplateError,
    TurnMarks,
    compile_template,
    from_transformers,
    load_tokenizer,
    tokenizer_folder,
)
from simpo_cli.errors import ExitCode, UserError
from tests.tiny import CHATML, FAMILIES, change_config, chatml_tokenizer

ASK = [Message("user", "Hi")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ChatML model's folder, without weights."""
    model = tmp_path / "model"
    chatml_tokenizer(model)
    return model


def refusal(path: Path | str, **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_tokenizer(str(path), **options)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.fix
    return caught.value


# What is read


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_folder_and_the_same_in_memory(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    theirs = AutoTokenizer.from_pretrained(family.save(tmp_path))
    ends = [theirs.convert_tokens_to_ids(end) for end in family.generation_ends]
    for ours in (load_tokenizer(str(tmp_path)), from_transformers(theirs, generation_end_ids=ends)):
        assert ours.bos_id == theirs.bos_token_id
        assert ours.eos_id == theirs.eos_token_id
        assert ours.vocab_size == len(theirs)
        assert ours.has_template
        assert ours.template_source == theirs.chat_template
        assert ours.special_tokens == theirs.special_tokens_map
        assert theirs.convert_tokens_to_ids(family.end) in ours.end_ids
        text = "Hi <s>\n\n there,  you" + family.end
        assert ours.encode_batch([text]) == [theirs.encode(text, add_special_tokens=False)]
        assert ours.decode(ours.encode_batch([text])[0]) == theirs.decode(theirs.encode(text, add_special_tokens=False))


HEADERS = {
    "llama3": ("<|start_header_id|>user<|end_header_id|>", "<|start_header_id|>assistant<|end_header_id|>"),
    **dict.fromkeys(("mistral", "mistral_words"), ("[INST]", "[/INST]")),
    "gemma": ("<start_of_turn>user", "<start_of_turn>model"),
    **dict.fromkeys(("zephyr", "phi3", "glm4"), ("<|user|>", "<|assistant|>")),
    **dict.fromkeys(("deepseek", "deepseek_r1"), ("<｜User｜>", "<｜Assistant｜>")),
    "harmony": ("<|end|><|start|>user<|message|>", "<|start|>assistant"),
    "vicuna": ("USER:", "ASSISTANT:"),
}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_is_learned_of_a_template(name: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(FAMILIES[name].save(tmp_path)))
    marks = tokenizer.turn_marks()
    assert marks.end_id is not None
    assert tokenizer.decode([marks.end_id]).strip() == FAMILIES[name].end
    assert marks.end_is_written == (name != "glm4")
    assert marks.opening == ("<|im_start|>assistant\n" if name == "chatml_no_generation_prompt" else "")
    chatml = ("<|im_start|>user", "<|im_start|>assistant")
    assert (marks.user_header, marks.answer_header) == HEADERS.get(name, chatml)


def test_a_template_that_refuses_made_up_turns_teaches_nothing(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.turn_marks() == TurnMarks()
    assert tokenizer.end_ids == {tokenizer.eos_id}
    insists = "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    (folder / "chat_template.jinja").write_text(insists)
    assert load_tokenizer(str(folder)).turn_marks().user_header == "<|im_start|>user"


def test_a_tokenizer_file_names_its_folder_and_its_digest_is_ours(folder: Path) -> None:
    file = folder / "tokenizer.json"
    assert tokenizer_folder(str(file)) == folder
    assert load_tokenizer(str(file)).has_template
    assert load_tokenizer(str(folder)).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "no tokenizer.json" in refusal(folder / "chat_template.jinja").problem


def test_the_tokenizers_own_limits_are_off(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(folder / "tokenizer.json"))
    ours = load_tokenizer(str(folder))
    assert ours.decode(ours.encode_batch(["the quick brown fox jumps"])[0]) == "the quick brown fox jumps"
    assert ours.decode(ours.encode_batch(["a"])[0]) == "a"


@pytest.mark.parametrize(
    ("name", "config", "ends"),
    [
        ("generation_config.json", {"eos_token_id": [0, 5]}, {0, 2, 5}),
        ("generation_config.json", {"eos_token_id": 7}, {2, 7}),
        ("config.json", {"eos_token_id": 9}, {2, 9}),
        ("config.json", {"text_config": {"eos_token_id": 9}}, {2, 9}),
        ("config.json", {"eos_token_id": None}, {2}),
        ("config.json", {"eos_token_id": True}, {2}),
    ],
)
def test_end_tokens_of_the_configs(folder: Path, name: str, config: dict[str, Any], ends: set[int]) -> None:
    (folder / name).write_text(json.dumps(config))
    assert load_tokenizer(str(folder)).end_ids == ends


def test_tokens_that_only_the_configuration_knows(folder: Path) -> None:
    plain = dict.fromkeys(("special", "normalized", "lstrip", "rstrip"), False)
    tokens = {
        "390": {**plain, "content": "<tool>", "id": 390},
        "391": {"content": "<mark>", "special": True, "normalized": False, "lstrip": False, "rstrip": True},
    }
    names = {"content": "<|im_end|>", "special": True, "normalized": False, "lstrip": False, "rstrip": True}
    change_config(
        folder,
        added_tokens_decoder={"2": names, **tokens},
        extra_special_tokens=["<more>"],
        image_token="<image>",
        pad_token="<pad>",
    )
    ours, theirs = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(theirs)
    for text in ("a <tool> b", "a <mark>  b", "a <image> b", "a <pad><more> b", "a<|im_end|>  \nb"):
        assert ours.encode_batch([text]) == [theirs.encode(text, add_special_tokens=False)]
    assert ours.special_tokens == theirs.special_tokens_map
    special = {theirs.convert_tokens_to_ids(text) for text in ("<mark>", "<image>", "<pad>", "<more>")}
    assert special <= ours.special_ids
    assert theirs.convert_tokens_to_ids("<tool>") not in ours.special_ids


def test_special_tokens_of_older_folders(folder: Path) -> None:
    change_config(folder, eos_token=None, bos_token=None)
    names = {"eos_token": {"content": "<|endoftext|>", "lstrip": False}, "bos_token": "<|im_start|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    ours, theirs = load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id) == (1, 0)


def test_the_base_model_of_an_adapter(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert load_tokenizer(str(adapter), revision="of-the-adapter").where == str(folder)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(adapter)}))
    assert "no tokenizer.json" in refusal(adapter).problem


def test_hub_ids(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str], **_: object) -> str:
        asked.append((name, revision))
        assert not any(pattern.endswith((".safetensors", ".bin", "*")) for pattern in allow_patterns)
        if name == "org/gone":
            raise OSError("no network")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_tokenizer("org/model", revision="v2").where == "org/model"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"base_model_name_or_path": "org/base", "revision": "v1"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    load_tokenizer(str(adapter), revision="of-the-adapter")
    assert asked == [("org/model", "v2"), ("org/base", "v1")]
    with pytest.raises(UserError, match="OSError") as caught:
        load_tokenizer("org/gone")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


# Templates, wherever they are kept


def test_where_templates_are_kept(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert not load_tokenizer(str(folder)).has_template
    change_config(folder, chat_template="from the config")
    assert load_tokenizer(str(folder)).render(ASK, generation_prompt=True) == "from the config"
    change_config(
        folder,
        chat_template=[
            {"name": "default", "template": "usual"},
            {"name": "tool_use", "template": "{{ tools | length }} tools"},
            {"name": "rag", "template": "{{ broken"},
        ],
    )
    several = load_tokenizer(str(folder))
    assert several.render(ASK, generation_prompt=True) == "usual"
    assert several.render(ASK, generation_prompt=True, tools=[{}, {}]) == "2 tools"
    assert "tools" in several.known_variables
    theirs = AutoTokenizer.from_pretrained(folder)
    assert from_transformers(theirs).render(ASK, generation_prompt=True, tools=[{}]) == "1 tools"
    (folder / "chat_template.jinja").write_text("from the file")
    assert load_tokenizer(str(folder)).render(ASK, generation_prompt=True) == "from the file"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].name }}")
    assert load_tokenizer(str(folder)).render(ASK, generation_prompt=True, tools=[{"name": "f"}]) == "f"
    theirs = AutoTokenizer.from_pretrained(folder)
    assert theirs.apply_chat_template([{"role": "user", "content": "x"}], tools=[{"name": "f"}], tokenize=False) == "f"


def test_several_templates_without_a_default_are_refused(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    change_config(folder, chat_template=[{"name": "rag", "template": "x"}])
    assert refusal(folder).where.endswith("tokenizer_config.json")
    assert load_tokenizer(str(folder), chat_template="none").has_template is False


def test_another_template(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jinja"
    other.write_text("{{ messages[0].content }}, please: {{ eos_token }}")
    ours = load_tokenizer(str(folder), chat_template=str(other))
    assert ours.render(ASK, generation_prompt=False) == "Hi, please: <|im_end|>"
    assert ours.template_source == other.read_text()
    assert load_tokenizer(str(folder), chat_template="none").template_source == ""
    assert "missing.jinja" in refusal(folder, chat_template=str(tmp_path / "missing.jinja")).problem
    other.write_text(" \n")
    assert "is empty" in refusal(folder, chat_template=str(other)).problem
    other.write_bytes(b"\xff\xfe")
    assert "cannot be read" in refusal(folder, chat_template=str(other)).problem
    assert "cannot be read" in refusal(folder, chat_template=str(tmp_path)).problem
    other.write_text("fine\n{% for m in messages %}\n{{ m. }}{% endfor %}")
    wrong = refusal(folder, chat_template=str(other))
    assert wrong.where == str(other)
    assert "its line 3" in wrong.problem
    os.mkfifo(tmp_path / "pipe.jinja")
    assert "cannot be read" in refusal(folder, chat_template=str(tmp_path / "pipe.jinja")).problem


def test_templates_have_what_those_of_models_use(folder: Path) -> None:
    source = (
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}"
        "{%- if m.role == 'skip' -%}{%- continue -%}{%- endif -%}"
        "{%- set ns.n = ns.n + 1 -%}{% generation %}{{ m.content | tojson }}{% endgeneration %}{%- endfor -%}"
        "{{ ns.n }}{{ {'a': [1, 'é<']} | tojson(indent=1, sort_keys=true) }}"
        "{{ dict(b=2) | tojson(separators=(',', ':')) }}"
        "{{ documents is none }}{{ strftime_now('%Y') | length }}{{ tools is none }}{{ undefined_one }}"
        "  {% if true %}\n    x{% endif %}\n  y"
    )
    (folder / "chat_template.jinja").write_text(source)
    turns = [Message("user", 'é "q" <|im_end|>'), Message("skip", "no"), Message("user", "b")]
    theirs = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    expected = theirs.apply_chat_template(messages, tokenize=False)
    assert load_tokenizer(str(folder)).render(turns, generation_prompt=False) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('because') }}",
        "{{ messages[5].content.strip() }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content[0].nothing.there }}",
        "{{ ''.__class__.__mro__ }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{{ messages.append(1) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_what_a_template_raises_is_its_answer(folder: Path, source: str) -> None:
    (folder / "chat_template.jinja").write_text(source)
    tokenizer = load_tokenizer(str(folder))
    with pytest.raises(TemplateError) as caught:
        tokenizer.render(ASK, generation_prompt=True)
    assert str(caught.value)


def test_the_date_of_a_template_is_that_of_the_start() -> None:
    template = compile_template("{{ strftime_now('%f %S') }}", "x", datetime.now())
    assert template.render() == template.render()


def test_variables_of_a_recipe_go_before_special_tokens(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ bos_token }}{{ messages | length }}")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.require_known({"bos_token": "B"})
    assert tokenizer.render(ASK, generation_prompt=True, template_kwargs={"bos_token": "B"}) == "B1"
    load_tokenizer(str(folder), chat_template="none").require_known({"enable_thinking": False})


# Damage


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", None),  # cut in the middle
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"[1, 2"),
        ("tokenizer.json", b"\xff\xfe\x00"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b"\xff"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"a": {"content": "x"}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": {"text": "x"}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": 3}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": 7}'),
        ("special_tokens_map.json", b"nope"),
        ("generation_config.json", b"{'eos': 1}"),
        ("config.json", b"null"),
        ("chat_template.jinja", b"{% for %}"),
        ("chat_template.jinja", b"a\n{{ messages"),
        ("chat_template.jinja", b"{% frobnicate %}"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"{{" + b"(" * 5000 + b"1" + b")" * 5000 + b"}}"),
    ],
)
def test_a_damaged_file_is_named(folder: Path, name: str, content: bytes | None) -> None:
    whole = (folder / name).read_bytes() if content is None else b""
    (folder / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert refusal(folder).where == str(folder / name)


def test_a_missing_tokenizer_says_how_to_make_one(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    error = refusal(folder)
    assert error.where == str(folder)
    assert "save_pretrained" in error.fix
    for missing in ("./none", str(tmp_path / "none"), "~/none", "none", "a/b/c"):
        assert "does not exist" in refusal(missing).problem


def test_a_tokenizer_without_a_fast_backend() -> None:
    with pytest.raises(UserError, match="fast backend"):
        from_transformers(object())


# The module


def test_neither_torch_nor_transformers_is_imported(folder: Path) -> None:
    code = (
        "import sys; from simpo_cli.data.tokenizer import load_tokenizer; from simpo_cli.data import encode;"
        f"load_tokenizer({str(folder)!r}); print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
