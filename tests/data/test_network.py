"""Without a network an id of the hub is refused at once, with the command that fetches it elsewhere."""

import socket
from pathlib import Path

import huggingface_hub.constants
import pytest

from simpo_cli.data import hub
from simpo_cli.errors import ExitCode, UserError


@pytest.fixture(autouse=True)
def _an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))


def asked_anew() -> bool:
    """What the real function says; the tests of this project replace it for everybody else."""
    return hub._ask_hub()


def test_a_hub_that_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert asked_anew()


def test_a_hub_that_refuses_and_one_whose_name_is_not_found_for_a_long_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    assert not asked_anew()
    release = hub.threading.Event()

    def silent(*_: object, **__: object) -> None:
        release.wait()
        raise OSError

    monkeypatch.setattr(hub.socket, "create_connection", silent)
    monkeypatch.setattr(hub, "_SECONDS", 0.05)
    assert not asked_anew()  # which is not waited for to the end
    assert not release.is_set()
    release.set()


def test_behind_a_proxy_the_hub_is_left_to_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(hub.socket, "create_connection", lambda *_, **__: pytest.fail("asked"))
    assert asked_anew()


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("model", "hf download org/Name-1 --local-dir Name-1"),
        ("dataset", "hf download org/Name-1 --repo-type dataset --local-dir Name-1"),
    ],
)
def test_the_refusal_holds_the_command(kind: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: False)
    with pytest.raises(UserError, match="org/Name-1 is not here.*the hub cannot be reached") as refused:
        hub.require_obtainable("org/Name-1", kind)  # type: ignore[arg-type]
    assert refused.value.exit_code == ExitCode.ENVIRONMENT
    assert refused.value.fix.endswith(command)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to fetch it"):
        hub.require_obtainable("org/Name-1", kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "folder"),
    [
        ("model", "hub/models--org--Name/snapshots"),
        ("dataset", "hub/datasets--org--Name/snapshots"),
        ("dataset", "datasets/org___name"),
    ],
)
def test_what_may_be_in_the_cache_is_left_to_the_run(
    kind: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "hub_answers", lambda: pytest.fail("asked"))
    (tmp_path / folder).mkdir(parents=True)
    hub.require_obtainable("org/Name", kind)  # type: ignore[arg-type]
