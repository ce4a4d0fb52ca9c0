"""The wheels that a bare machine with a card lacks: python -m tests.gpu.bundle --python-version 3.12

Such a machine has torch, transformers and what these bring with them, and no network. What is collected here makes the
check run there beside them. pyarrow and datasets, which are large, are not needed for it; scipy, which is large too, is
left out, and the parts that train whole runs are skipped where it is missing.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

_FOLDER = Path(".gpu-wheels")
_MOST_MB = 60
_PACKAGES = (
    *("accelerate", "peft", "psutil", "omegaconf", "pyyaml", "rensa", "xxhash", "filelock", "jinja2"),
    *("typer", "annotated-doc", "shellingham", "rich", "pygments", "markdown-it-py", "mdurl"),
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),  # typer reads arguments by it
    *("matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver"),
    *("pillow", "pyparsing", "python-dateutil", "tzdata"),
    *("pytest", "pytest-socket", "iniconfig", "pluggy", "hypothesis", "sortedcontainers"),
    "liger-kernel",
)
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (39, 35, 34, 31, 28, 27, 24, 17)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.bundle", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--python-version", default="3.12", help="of the machine with the card")
    version = parser.parse_args().python_version
    pinned = dict(re.findall(r"(?m)^([\w.-]+)==(\S+)$", Path("constraints.txt").read_text(encoding="utf-8")))
    pins = {name.lower().replace("_", "-"): number for name, number in pinned.items()}
    _FOLDER.mkdir(exist_ok=True)
    for file in _FOLDER.glob("*.whl"):
        file.unlink()
    wanted = [f"{name}=={pins[name]}" if name in pins else name for name in _PACKAGES]
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", version, "--implementation", "cp", *platforms]
    subprocess.run([*command, "--dest", str(_FOLDER), *wanted], check=True)
    files = sorted(_FOLDER.glob("*.whl"))
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{len(files)} wheels, {megabytes:.1f} MB, in {_FOLDER}/. On the machine with the card, in this folder:\n")
    print(f"    python3 -m pip install --no-index --no-deps --target gpu-site {_FOLDER}/*.whl")
    print("    PYTHONPATH=gpu-site:. python3 -m tests.gpu.check")
    if megabytes > _MOST_MB:
        print(f"\nThat is more than {_MOST_MB} MB.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
