"""docs/inspect.md is run: its commands print what it shows, numbers to what two machines may differ by."""

import re
import shlex
from pathlib import Path

import pytest

import simpo_cli
from simpo_cli.cli.main import run
from simpo_cli.report.console import out

PAGE = Path(simpo_cli.__file__).parent.parent / "docs" / "inspect.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-\d+)?")
CLOSE = 0.03


@pytest.mark.skipif(not PAGE.is_file(), reason="the package is installed, not a checkout")
def test_the_page_shows_what_the_commands_print(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(out, "_width", 110)  # what it is by itself was settled when it was made
    blocks = re.findall(r"^```console\n\$ simpo (.*?)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.DOTALL)
    assert len(blocks) == 2
    for command, shown in blocks:
        assert run(shlex.split(command)) == 0
        printed = [line for line in capsys.readouterr().out.splitlines() if "self-check" not in line]
        wanted = [line for line in shown.splitlines() if "self-check" not in line]
        if wanted[0] == "...":  # a part of the screen
            wanted = wanted[1:-1]
            start = printed.index(wanted[0])
            printed = printed[start : start + len(wanted)]
        assert [NUMBER.sub("#", line) for line in printed] == [NUMBER.sub("#", line) for line in wanted]
        for one, other in zip(NUMBER.findall("\n".join(printed)), NUMBER.findall("\n".join(wanted)), strict=True):
            assert float(one) == pytest.approx(float(other), abs=CLOSE, rel=CLOSE)
