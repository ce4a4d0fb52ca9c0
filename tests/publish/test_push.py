"""A model folder on the hub: a stand-in for it keeps what it was sent, by the rules of the hub's own client."""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from simpo_cli.cli.main import run as simpo
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.publish.push import command_to_push, push
from tests.report.made_run import receipt_of

TOKEN = "hf_secretsecretsecret"
MODEL = {"model.safetensors": "weights", "config.json": "{}", "tokenizer.json": "{}", "README.md": "# card"}


@dataclass
class Hub:
    """Takes what HfApi would be asked for; `fails` is raised instead."""

    fails: Exception | None = None
    made: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        if self.fails:
            raise self.fails
        self.made.append({"repo_id": repo_id, **options})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], **_: Any) -> None:
        assert repo_id == self.made[-1]["repo_id"]
        found = {str(file.relative_to(folder_path)): file for file in folder_path.rglob("*") if file.is_file()}
        self.files = {
            name: found[name].read_bytes() for name in filter_repo_objects(found, allow_patterns=allow_patterns)
        }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    return hub


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run with a model, and things around and in its folder that are nobody's business."""
    model = tmp_path / "run" / "model"
    (model / "notes").mkdir(parents=True)
    for name, text in MODEL.items():
        (model / name).write_text(text)
    (tmp_path / "run" / "run.json").write_text(json.dumps(receipt_of()))
    (tmp_path / "secrets.json").write_text(TOKEN)
    (model / "linked.json").symlink_to(tmp_path / "secrets.json")
    (model / "notes" / "config.json").write_text("inner")
    for name in (".README.md.4711", ".env", "prefs.parquet"):
        (model / name).write_text("private")
    return tmp_path / "run"


def test_only_the_files_of_the_model_are_sent(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert simpo(["export", str(run), "--push", "me/model"]) == ExitCode.DONE
    assert hub.made == [{"repo_id": "me/model", "private": True, "exist_ok": True}]
    assert hub.files == {name: text.encode() for name, text in MODEL.items()}
    said = capsys.readouterr().err
    assert said.splitlines() == [
        "left out, as no file of a model: .README.md.4711, .env, linked.json, notes, prefs.parquet",
        "pushed  https://huggingface.co/me/model",
    ]
    assert TOKEN not in said


@pytest.mark.parametrize("named_in", ["config.json", "tokenizer_config.json", None])
def test_python_files_are_sent_where_the_model_names_them_as_its_code(
    named_in: str | None, run: Path, hub: Hub
) -> None:
    (run / "model" / "modeling_own.py").write_text("code")
    if named_in is not None:
        (run / "model" / named_in).write_text('{"auto_map": {"AutoConfig": "modeling_own.Config"}}')
    push(run / "model", "me/model")
    assert ("modeling_own.py" in hub.files) == (named_in is not None)


def test_names_that_look_like_patterns_are_names(run: Path, hub: Hub) -> None:
    (run / "model" / "a[b]*.json").write_text("odd")
    push(run / "model", "me/model", public=True)
    assert hub.made[0]["private"] is False
    assert hub.files["a[b]*.json"] == b"odd"
    assert set(hub.files) == {*MODEL, "a[b]*.json"}


class _ForbiddenError(Exception):
    response = type("Response", (), {"status_code": 403})


@pytest.mark.parametrize(
    ("environment", "fails", "why"),
    [
        ({"HF_HUB_OFFLINE": "1"}, None, "HF_HUB_OFFLINE forbids the network"),
        ({"HF_TOKEN": ""}, None, "nobody is logged in to the hub here"),
        ({}, _ForbiddenError(f"Invalid token {TOKEN}"), "the hub did not take it (_ForbiddenError, status 403)"),
        ({}, OSError("unreachable"), "the hub did not take it (OSError)"),
    ],
)
def test_what_is_not_pushed_stays_and_can_be_pushed_later(
    environment: dict[str, str],
    fails: Exception | None,
    why: str,
    run: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.fails = fails
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert simpo(["export", str(run), "--push", "me/model"]) == ExitCode.ENVIRONMENT
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"Error: me/model was not pushed: {why}. The model is saved in {run / 'model'}."
    assert second.startswith("  Push it later with: ")
    assert second.endswith(command_to_push(run / "model", "me/model", public=False))
    assert TOKEN not in first + second
    assert hub.files == {}
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_the_command_for_later_is_one_that_the_hubs_program_takes(run: Path) -> None:
    from huggingface_hub.cli.hf import app

    name, verb, *words = shlex.split(command_to_push(run / "model", "me/model", public=False))
    assert (name, verb) == ("hf", "upload")
    hf: Any = app
    upload = hf.commands["upload"]
    if hasattr(upload, "materialize"):  # the hub client from 2 on imports a command when it is used
        upload = upload.materialize()
    with upload.make_context("upload", words) as context:
        asked = context.params
    assert (asked["repo_id"], asked["local_path"], asked["private"]) == ("me/model", str(run / "model"), True)
    found = [str(file.relative_to(run / "model")) for file in (run / "model").rglob("*") if file.is_file()]
    assert set(filter_repo_objects(found, ignore_patterns=asked["exclude"])) == set(MODEL)


@pytest.mark.parametrize("base", ["/home/alice/base", "./base", "base", "a/b/c", None])
def test_adapters_of_a_local_model_are_not_pushed_without_it(base: str | None, run: Path, hub: Hub) -> None:
    (run / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    with pytest.raises(UserError, match="nobody else could load them") as caught:
        push(run / "model", "me/model")
    assert "--merge" in caught.value.fix
    assert hub.made == []


def test_adapters_of_a_hub_model_are_pushed(run: Path, hub: Hub) -> None:
    (run / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    push(run / "model", "me/model")
    assert "adapter_config.json" in hub.files


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--push", "a/b/c"], "cannot be the name of a repository"),
        (["--push", "me/model", "--output", "x"], "--output and --dtype say how to merge"),
        (["--merge", "--public"], "--public says how to push"),
    ],
)
def test_what_cannot_be_pushed_is_refused_at_once(
    args: list[str], said: str, run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simpo(["export", str(run), *args]) == ExitCode.USAGE
    assert said in capsys.readouterr().err
    assert hub.made == []
