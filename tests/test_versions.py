"""One sentence where a package is too old, does not fit another or is missing; the floors are those that were run."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import simpo_cli
from simpo_cli.cli import main as cli
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.versions import install_command, missing_package, require_versions

ROOT = Path(__file__).parent.parent
Installed = Callable[..., None]
OURS = ["torch>=2.11", "transformers>=5.5", "tokenizers>=0.22.1", "datasets>=4.8"]


def write_metadata(folder: Path, name: str, version: str, requires: list[str]) -> None:
    """What pip leaves of a package, without the package."""
    described = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    described.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
    (described / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {each}" for each in requires), ""]))


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Have packages of some name, version and requirements installed, and no others."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])

    def install(name: str, version: str, *requires: str) -> None:
        write_metadata(tmp_path / "site", name, version, list(requires))

    return install


def refusal() -> str:
    """The two lines that `simpo` would print."""
    with pytest.raises(UserError) as refused:
        require_versions()
    assert refused.value.exit_code == ExitCode.ENVIRONMENT
    return str(refused.value)


def test_below_the_floor(installed: Installed) -> None:
    installed("simpo-cli", "1.2", *OURS)
    installed("torch", "2.10.1+cu130")
    installed("transformers", "4.57.6", "tokenizers<=0.23.0,>=0.22.0", "huggingface-hub<1.0")
    installed("tokenizers", "0.23.3")  # does not suit this transformers, but the one that has to come
    installed("huggingface-hub", "1.33.0")
    assert refusal() == (
        "torch 2.10.1+cu130 is installed, and simpo-cli 1.2 needs torch>=2.11; "
        "transformers 4.57.6 is installed, and simpo-cli 1.2 needs transformers>=5.5.\n"
        "  Run pip install 'torch>=2.11' 'transformers>=5.5'"
    )


def test_a_mix_that_transformers_refuses(installed: Installed) -> None:
    installed("simpo-cli", "1.2", *OURS)
    installed("torch", "2.11.0+cu130")
    installed("transformers", "5.5.4", "tokenizers<=0.23.0,>=0.22.0", "huggingface-hub<2.0,>=1.5.0", "tqdm>=4.27")
    installed("tokenizers", "0.23.1")
    installed("huggingface_hub", "2.4.0")
    assert refusal() == (
        "tokenizers 0.23.1 is installed, and transformers 5.5.4 needs tokenizers>=0.22.0,<=0.23.0; "
        "huggingface-hub 2.4.0 is installed, and transformers 5.5.4 needs huggingface-hub>=1.5.0,<2.0.\n"
        "  Run pip install 'tokenizers>=0.22.1,>=0.22.0,<=0.23.0' 'huggingface-hub>=1.5.0,<2.0'"
    )


def test_a_checkout_that_was_never_installed_is_told_of_a_broken_mix_alone(installed: Installed) -> None:
    installed("torch", "2.2.0")
    installed("transformers", "5.23.0", "huggingface-hub<3.0,>=1.31.0")
    require_versions()
    installed("huggingface-hub", "1.30.0")
    assert refusal().startswith("huggingface-hub 1.30.0 is installed, and transformers 5.23.0 needs huggingface-hub>=")


@pytest.mark.parametrize("torch", ["2.11.0", "2.11.0a0+nv26.2", "2.13.0+cpu", "3.0.0.dev20261101"])
def test_what_will_do(torch: str, installed: Installed) -> None:
    """Nothing is said of a package that is missing: another command may need it, and not this one."""
    installed("simpo-cli", "1.2", *OURS, "zstandard>=99; extra == 'zst'", "tqdm>=99; python_version < '3'")
    installed("torch", torch)
    installed("transformers", "5.17.0", "tokenizers<0.24.0,>=0.23.1", "pydantic>=99; extra == 'serving'")
    installed("tokenizers", "0.23.2")
    for name in ("zstandard", "tqdm", "pydantic"):
        installed(name, "1.0")
    require_versions()


@pytest.mark.parametrize(
    "args", [["train", "demo"], ["inspect", "demo"], ["stats", "p.jsonl", "--model", "builtin:guide"]]
)
def test_a_command_says_so_before_it_loads_torch(args: list[str], tmp_path: Path) -> None:
    write_metadata(tmp_path / "site", "tokenizers", "0.1.0", [])
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    program = (
        "import sys; from simpo_cli.cli.main import run; code = run(sys.argv[1:]); "
        "print({'torch', 'transformers'} & set(sys.modules)); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", program, *args], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    first, *fix = done.stderr.splitlines()
    assert re.match(r"Error: tokenizers 0\.1\.0 is installed, and \S+ \S+ needs tokenizers>=0\.2\S+\.$", first)
    assert len(fix) == 1
    assert fix[0].startswith("  Run pip install 'tokenizers>=0.2")
    assert done.returncode == ExitCode.ENVIRONMENT
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_library_says_so(installed: Installed) -> None:
    installed("simpo-cli", "1.2", *OURS)
    installed("transformers", "5.4.0")
    with pytest.raises(UserError, match="transformers 5.4.0 is installed, and simpo-cli 1.2 needs transformers>=5.5"):
        _ = simpo_cli.SimPOTrainer


def test_a_missing_package_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text("name: x\n")
    monkeypatch.setitem(sys.modules, "omegaconf", None)
    for name in [name for name in sys.modules if name.startswith("simpo_cli.recipe")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.run(["recipe", "check", str(tmp_path / "x.yaml")]) == ExitCode.ENVIRONMENT
    first, fix = capsys.readouterr().err.splitlines()
    assert first == "Error: the package omegaconf is not installed, and this command needs it."
    assert fix.startswith("  Run pip install 'omegaconf")


def test_a_missing_package_is_named_as_pip_knows_it(installed: Installed, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("simpo-cli", "1.2", "PyYAML>=6.0")
    monkeypatch.setitem(sys.modules, "yaml", None)
    missing = missing_package(ModuleNotFoundError("No module named 'yaml'", name="yaml"))
    assert missing is not None
    assert missing.fix == "Run pip install 'pyyaml>=6.0'"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'simpo-cli[tune]'"),
        ({"url": "file:///a/check%20out", "dir_info": {"editable": True}}, "pip install -e '/a/check out[tune]'"),
        ({"url": "file:///a/checkout", "dir_info": {}}, "pip install '/a/checkout[tune]'"),
        ({"url": "https://host/simpo.whl", "archive_info": {}}, "pip install 'simpo-cli[tune]'"),
    ],
)
def test_an_extra_comes_from_where_we_came_from(
    installed: Installed, tmp_path: Path, origin: dict[str, Any] | None, command: str
) -> None:
    installed("simpo-cli", "1.2")
    if origin is not None:
        (tmp_path / "site" / "simpo_cli-1.2.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    assert install_command("tune") == command


def test_a_part_that_an_installed_package_lacks_is_a_crash(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        import json.nowhere  # type: ignore[import-not-found]  # noqa: F401

    monkeypatch.setattr(cli.typer.main, "get_command", fail)
    assert cli.run([]) == ExitCode.CRASH
    assert "No module named 'json.nowhere'" in capsys.readouterr().err


def test_the_floors_are_what_the_oldest_environment_holds() -> None:
    """Torch aside: a build of its oldest version without CUDA is not to be had."""
    pins = dict(
        line.split("==") for line in (ROOT / "constraints-oldest.txt").read_text().splitlines() if line[:1] != "#"
    )
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        name = canonicalize_name(requirement.name)
        [floor] = [each.version for each in requirement.specifier if each.operator == ">="]
        if name != "torch":
            assert Version(versions[name]) == Version(floor), name
        assert requirement.specifier.contains(versions[name]), name
