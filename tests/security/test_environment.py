"""A canary in the environment: the recipe uses it, and no file, stream or traceback of any command tells it."""

import os
import shutil
from pathlib import Path

import pytest

from simpo_cli.cli import stats as stats_command
from simpo_cli.errors import UserError
from simpo_cli.recipe.composition import compose
from simpo_cli.redaction import SHORTEST, forget, redacted, remember
from tests.cli.seen import Simpo

CANARY = "canary-7f3ce1"

RECIPE = """
name: run-${oc.env:NAMED}
output_dir: ${oc.env:OUT}/${name}
model:
  path: ${oc.env:MODEL_AT}
data:
  train: [{path: "${oc.env:DATA}/prefs.jsonl"}]
  eval: ${data.train}
  chat_template: ${oc.env:DATA}/template.jinja
  on_bad_record: skip
  max_length: 64
  max_prompt_length: 40
train: {pairs_per_step: 8, max_steps: "${oc.env:STEPS}", precision: fp32}
checkpoint: {every: 1}
"""


@pytest.fixture
def secretive(place: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with a recipe all of whose texts come from the environment."""
    data, model = place / f"data-{CANARY}", place / f"model-{CANARY}"
    data.mkdir()
    shutil.copytree(tiny_folder, model)
    shutil.copyfile(model / "chat_template.jinja", data / "template.jinja")
    text = (place / "prefs.jsonl").read_text()
    (data / "prefs.jsonl").write_text(text + '{"prompt": 1}\n')
    (place / "secret.yaml").write_text(RECIPE)
    for name, value in (("DATA", data), ("MODEL_AT", model), ("OUT", place / f"out-{CANARY}"), ("NAMED", CANARY)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("NOT_NAMED", f"unnamed-{CANARY}")
    return place


def _tellers(folder: Path) -> list[str]:
    """The files below a folder that hold the canary, in any of the encodings that text is written in."""
    spelled = [CANARY.encode(code) for code in ("utf-8", "utf-16-le", "utf-32-le")]
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [str(file) for file in files if any(word in file.read_bytes() for word in spelled)]


def test_no_file_and_no_stream_of_a_run_tells_what_the_environment_says(secretive: Path, simpo: Simpo) -> None:
    run = secretive / f"out-{CANARY}" / f"run-{CANARY}"
    stats = ("stats", "--recipe", "secret.yaml", "--on-bad-record", "skip")
    commands = [
        (0, "train", "secret.yaml"),
        (2, "train", "secret.yaml"),  # it holds a run
        (0, "train", "secret.yaml", "--resume", "train.max_steps=3"),
        (2, "train", "secret.yaml", "--resume", "loss.beta=3"),
        (0, *stats, "--html", "page.html", "--output", "out.json"),
        (0, *stats),
        (0, "inspect", "secret.yaml", "--json"),
        (0, "inspect", "secret.yaml"),
        (0, "eval", str(run), "--json"),
        (0, "report", str(run)),
        (0, "recipe", "show", "secret.yaml", "--json"),
        (0, "recipe", "show", "secret.yaml", "--origin"),
        (0, "recipe", "check", "secret.yaml"),
    ]
    for code, *words in commands:
        seen = simpo(*words)
        assert seen.code == code, (words, seen)
        assert CANARY not in seen.out + seen.err, words
    told = [name for name in _tellers(secretive) if f"/data-{CANARY}" not in name and f"/model-{CANARY}" not in name]
    assert told == []
    assert "${oc.env:DATA}/prefs.jsonl" in (run / "recipe.yaml").read_text()
    assert "${oc.env:DATA}/prefs.jsonl" in (run / "run.json").read_text()
    assert "${oc.env:NAMED}" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "override",
    [
        "data.train=${oc.env:DATA}/missing.jsonl",
        "data.train=${oc.env:PIPE}",
        "model.path=${oc.env:DATA}",
        "model.path=${oc.env:NAMED}",
        "data.chat_template=${oc.env:NAMED}",
        "loss.beta=${oc.env:NAMED}",
        "loss.type=${oc.env:NAMED}",
        "train.max_steps=${oc.env:NAMED}",
        "train.learning_rate=${oc.env:MINUS}",
        "model.lora=${oc.env:NAMED}",
        "model.lora={rank: '${oc.env:NAMED}'}",
        "data.train=[{path: a, repeat: '${oc.env:NAMED}'}]",
        "data.chat_template_kwargs={x: '${oc.env:NAMED}'}",
        "tracking.report_to=['${oc.env:NAMED}']",
        "name=${oc.env:DATA}",
        "output_dir=${oc.env:DATA}",
        "output_dir=${oc.env:DATA}/prefs.jsonl/x",
        "eval.every=${oc.env:NAMED}${oc.env:NAMED}",
        "train.num_epochs=${name}",
    ],
)
def test_no_error_and_no_traceback_tells_it(
    override: str, secretive: Path, simpo: Simpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(secretive / f"pipe-{CANARY}")
    monkeypatch.setenv("PIPE", str(secretive / f"pipe-{CANARY}"))
    monkeypatch.setenv("MINUS", "-0.731")
    monkeypatch.setenv("SIMPO_DEBUG", "1")
    for words in (("train", "secret.yaml", override), ("recipe", "check", "secret.yaml", override)):
        seen = simpo(*words)
        assert CANARY not in seen.out + seen.err, words
        assert "-0.731" not in seen.out + seen.err.replace(override, "")
        assert seen.code in ((0, 2) if words[0] == "recipe" else (2, 4)), seen


def test_a_crash_does_not_tell_it(secretive: Path, simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError(f"could not open {secretive}/data-{CANARY}/prefs.jsonl")

    monkeypatch.setattr(stats_command, "_print", crash)
    seen = simpo("stats", "--recipe", "secret.yaml", "--on-bad-record", "skip")
    assert seen.code == 1
    assert "RuntimeError: could not open" in seen.err
    assert CANARY not in seen.err


def test_a_value_that_changed_is_another_recipe(secretive: Path, simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAG", f"first-{CANARY}")
    shutil.copyfile("secret.yaml", "more.yaml")
    template = secretive / f"data-{CANARY}" / "template.jinja"
    template.write_text(template.read_text() + "{{ flag if flag is undefined }}")
    kwargs = "data.chat_template_kwargs={flag: '${oc.env:FLAG}'}"
    assert simpo("train", "more.yaml", kwargs).code == 0
    monkeypatch.setenv("FLAG", f"second-{CANARY}")
    seen = simpo("train", "more.yaml", kwargs, "--resume", "train.max_steps=3")
    assert seen.code == 2
    assert "data.chat_template_kwargs.flag is ${oc.env:FLAG} (sha256 " in seen.err
    assert CANARY not in seen.err


@pytest.mark.usefixtures("secretive")
def test_the_composed_recipe_keeps_its_words_and_loads_again() -> None:
    composed = compose("secret.yaml")
    Path("again.yaml").write_text(composed.as_yaml())
    assert CANARY not in composed.as_yaml()
    assert compose("again.yaml").recipe == composed.recipe
    assert compose("again.yaml").as_yaml() == composed.as_yaml()
    assert composed.recipe.data.eval == composed.recipe.data.train
    assert composed.as_yaml().count("path: ${oc.env:DATA}/prefs.jsonl") == 2  # the list is there twice


@pytest.mark.usefixtures("place")
def test_a_reference_beside_itself_still_means_its_own_key_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PART", f"part-{CANARY}")
    Path("r.yaml").write_text(
        "name: a\nmodel: {path: x}\ndata:\n  train: [{path: a, split: '${oc.env:PART}', "
        "columns: {prompt: '${..split}-${oc.env:PART}'}}]\n  eval: ${data.train}\n"
    )
    composed = compose("r.yaml")
    Path("again.yaml").write_text(composed.as_yaml())
    assert compose("again.yaml").recipe == composed.recipe
    assert composed.recipe.data.eval == composed.recipe.data.train


@pytest.mark.parametrize(
    "text",
    [
        "${oc.create:{a: 1}}", "${oc.decode:'1'}", "${oc.deprecated:name}", "${oc.dict.keys:model}",
        "${oc.select:name}",
        "${env:HOME}", "${now:%Y}", "${hydra:runtime.cwd}", "${oc.env:HOME,${oc.decode:1}}", "${${name}:x}",
        "${eval:1+1}", "${oc.env:HOME}${shell:id}",
    ],
)  # fmt: skip
def test_only_one_resolver_is_known(text: str) -> None:
    with pytest.raises(UserError, match="not known here|holds a|refers to"):
        compose("demo", [f"output_dir={text}"])


def test_what_is_hidden_and_what_is_not() -> None:
    forget()
    assert redacted("a /mnt/scratch-17/x b") == "a /mnt/scratch-17/x b"
    remember("PLACE", "/mnt/scratch-17/x")
    remember("WORD", 'two "words"\n')
    remember("STEPS", "1234567")
    remember("SHORT", "x" * (SHORTEST - 1))
    assert redacted("in /mnt/scratch-17/x/y") == "in ${oc.env:PLACE}/y"
    assert redacted("of scratch-17 alone") == "of ${oc.env:PLACE} alone"
    assert redacted(repr('two "words"\n')) == "'${oc.env:WORD}'"
    assert redacted('{"a": "two \\"words\\"\\n"}') == '{"a": "${oc.env:WORD}"}'
    assert redacted("step 1234567 of xxxxx") == "step 1234567 of xxxxx"
    forget()
    assert redacted("in /mnt/scratch-17/x") == "in /mnt/scratch-17/x"
