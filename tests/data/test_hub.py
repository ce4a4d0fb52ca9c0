"""Data sets of the hub: their records and splits, and what is refused where the hub cannot be reached."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Literal

import datasets
import huggingface_hub.constants
import pytest

from simpo_cli.data import hub
from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import load_pairs

ROWS = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(2)]
Kind = Literal["model", "dataset"]


@pytest.fixture(autouse=True)
def _an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))


# Records


def test_records_of_a_split_have_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str, split: str | None, receipt: FileReceipt) -> datasets.Dataset:
        assert (name, split) == ("org/prefs", "train_prefs")
        receipt.identity = "c0ffee"
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(hub, "_load", rows)
    loaded = load_pairs([DataSource(path="org/prefs", split="train_prefs")], role="train")
    assert [pair.where for pair in loaded.pairs] == [f"org/prefs (train_prefs), record {n}" for n in (1, 2)]
    assert loaded.files == [("org/prefs", "c0ffee", 0)]


def test_several_splits_are_named_and_the_only_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = ["train_prefs", "test_prefs"]
    monkeypatch.setattr(hub, "_commit", lambda _: "c0ffee")
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: splits)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(ROWS))
    with pytest.raises(UserError, match=r"has the splits train_prefs, test_prefs\.") as caught:
        load_pairs("org/prefs", role="train")
    assert "split: train_prefs" in caught.value.fix
    splits[:] = ["all"]
    assert [pair.prompt for pair in load_pairs("org/prefs", role="train").pairs] == ["p0", "p1"]


# No network


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ConnectError", "the hub cannot be reached (ConnectError)"),
        ("RepositoryNotFoundError", "does not show a data set of that name"),
    ],
)
def test_a_hub_that_does_not_give(monkeypatch: pytest.MonkeyPatch, kind: str, said: str) -> None:
    def fail(name: str) -> str:
        raise type(kind, (Exception,), {})(f"no {name}")

    monkeypatch.setattr(hub, "_commit", fail)
    with pytest.raises(UserError) as caught:
        load_pairs("org/prefs", role="train")
    assert said in caught.value.problem
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_offline_no_socket_is_opened(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads HF_HUB_OFFLINE when it is imported."""
    code = """
import sys
def watch(event, args):
    assert event not in ("socket.connect", "socket.getaddrinfo"), event
sys.addaudithook(watch)
from simpo_cli.data.load import PairReader
from simpo_cli.errors import UserError
try:
    list(PairReader("org/surely-not-here", role="train"))
except UserError as error:
    print(error.exit_code, error.where, error.problem)
print("torch" in sys.modules)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    said, has_torch = result.stdout.splitlines()
    assert said.startswith("4  org/surely-not-here is not here, neither as a folder nor in the cache")
    assert "HF_HUB_OFFLINE forbids to fetch it" in said
    assert has_torch == "False"


def test_a_hub_that_listens_one_that_refuses_and_one_whose_name_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real function; the tests of this project replace it for everybody else."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub._ask_hub()
    assert not hub._ask_hub()
    release = hub.threading.Event()

    def silent(*_: object, **__: object) -> None:
        release.wait()
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", silent)
    monkeypatch.setattr(hub, "_SECONDS", 0.05)
    assert not hub._ask_hub()  # which is not waited for to the end
    assert not release.is_set()
    release.set()


def test_behind_a_proxy_the_hub_is_left_to_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.socket, "create_connection", lambda *_, **__: pytest.fail("asked"))
    assert hub._ask_hub()


@pytest.mark.parametrize(("kind", "option"), [("model", ""), ("dataset", "--repo-type dataset ")])
def test_the_refusal_holds_the_command(kind: Kind, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(UserError, match="org/Name-1 is not here.*the hub cannot be reached") as refused:
        hub.require_obtainable("org/Name-1", kind)
    assert refused.value.exit_code == ExitCode.ENVIRONMENT
    assert refused.value.fix.endswith(f"hf download org/Name-1 {option}--local-dir Name-1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to fetch it"):
        hub.require_obtainable("org/Name-1", kind)


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("model", "hub/models--org--Name/snapshots"),
        ("dataset", "hub/datasets--org--Name/snapshots"),
        ("dataset", "datasets/org___name"),
    ],
)
def test_what_may_be_in_the_cache_is_left_to_the_run(
    kind: Kind, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: pytest.fail("asked"))
    (tmp_path / folder).mkdir(parents=True)
    hub.require_obtainable("org/Name", kind)
