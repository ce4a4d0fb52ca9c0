"""Whether the installed packages are the versions that are needed, read from their metadata and without importing them.

What a version has to be stands in one place, `dependencies` in pyproject.toml; an installed package (editable too)
repeats it in its metadata. A checkout that was never installed has none: there only what transformers needs is checked.
"""

import json
import shlex
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import url2pathname

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from simpo_cli.errors import ExitCode, UserError

_OURS = "simpo-cli"
_TRANSFORMERS = "transformers"  # raises ImportError, as it is imported, when what it requires is of another version
_PACKAGE_OF_MODULE = {"yaml": "pyyaml"}  # the one of ours that is imported under another name


def require_versions() -> None:
    """Refuse, before torch and transformers are imported, a version below ours or a mix that transformers refuses.

    A package of ours that is missing is reported when it is imported (see `missing_package`): not every command needs
    every one.

    Raises:
        UserError: which packages are wrong, and the pip command that puts them right (exit code 4).
    """
    ours = _requirements(_OURS)
    # those of a transformers that has to be replaced say nothing about the one that will take its place
    theirs = _requirements(_TRANSFORMERS) if _is_met(_TRANSFORMERS, ours.get(_TRANSFORMERS)) else {}
    problems: dict[str, str] = {}
    for owner, requirements in ((_OURS, ours), (_TRANSFORMERS, theirs)):
        for name, specifier in requirements.items():
            if name not in problems and not _is_met(name, specifier):
                here = f"{name} {installed_version(name)} is installed"
                problems[name] = f"{here}, and {owner} {installed_version(owner)} needs {name}{_readable(specifier)}"
    if problems:
        both = {name: ours.get(name, SpecifierSet()) & theirs.get(name, SpecifierSet()) for name in problems}
        wanted = " ".join(f"'{name}{_readable(specifier)}'" for name, specifier in both.items())
        raise UserError(f"{'; '.join(problems.values())}.", f"Run pip install {wanted}", exit_code=ExitCode.ENVIRONMENT)


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """What to say of a package that is not installed, or None when the missing module is a part of one that is."""
    module = (error.name or "").partition(".")[0]
    if not module.isidentifier() or find_spec(module) is not None:
        return None
    name = canonicalize_name(_PACKAGE_OF_MODULE.get(module, module))
    specifier = _requirements(_OURS).get(name, SpecifierSet())
    return UserError(
        f"the package {name} is not installed, and this command needs it.",
        f"Run pip install '{name}{_readable(specifier)}'",
        exit_code=ExitCode.ENVIRONMENT,
    )


def install_command(extra: str) -> str:
    """What installs an extra of ours, from where we were installed."""
    source, flag = _OURS, ""
    with suppress(metadata.PackageNotFoundError, KeyError, ValueError):
        origin = json.loads(metadata.distribution(_OURS).read_text("direct_url.json") or "{}")
        flag = "-e " if origin["dir_info"].get("editable") else ""
        source = url2pathname(urlsplit(origin["url"]).path)
    return f"pip install {flag}{shlex.quote(f'{source}[{extra}]')}"


def require_extra(module: str, extra: str, what: str) -> None:
    """Refuse (UserError, exit code 4) where the module of an extra of ours is not installed; `what` needs it."""
    if find_spec(module) is None:
        raise UserError(
            f"{what} needs the package {module}, which is not installed.",
            f"Run {install_command(extra)}.",
            exit_code=ExitCode.ENVIRONMENT,
        )


def _requirements(package: str) -> dict[str, SpecifierSet]:
    """What an installed package requires of others here, extras aside; nothing when it is not installed."""
    try:
        stated = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return {}
    parsed = map(Requirement, stated)
    return {
        canonicalize_name(each.name): each.specifier
        for each in parsed
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }


def installed_version(package: str) -> str | None:
    """The version of a package, from its metadata; None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_met(package: str, specifier: SpecifierSet | None) -> bool:
    """Whether what is installed is of a version that will do; so is what is not installed.

    A build such as 2.11.0a0+nv26.2, as vendors ship them in container images, counts as the version that it leads to.
    """
    installed = installed_version(package)
    return installed is None or specifier is None or specifier.contains(Version(installed).base_version)


def _readable(specifier: SpecifierSet) -> str:
    """Lower bounds first."""
    return ",".join(sorted(map(str, specifier), reverse=True))
