"""Clocks, time zones and times of files change no bit of a run; an edited file is seen whatever its times say."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from simpo_cli.data.tokenizer import text_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.run import folder as run_folder
from simpo_cli.run import receipt
from tests.tiny import CHATML
from tests.train.runs import EVERY, Runs

ZONES = ("UTC", "Asia/Kathmandu", "America/St_Johns", "Pacific/Kiritimati", "Pacific/Pago_Pago", "Europe/London")
DAY = timedelta(days=1)
JUMPS = (DAY, -DAY, 365 * DAY, -365 * DAY, 0 * DAY, -3650 * DAY)


class Clock(datetime):
    """The wall clock, with what it is off by."""

    off = timedelta()
    asked = 0

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        cls.asked += 1
        return datetime.now(tz) + cls.off


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Clock]]:
    real = time.time
    for module in (receipt, run_folder, text_tokenizer):
        monkeypatch.setattr(module, "datetime", Clock)
    monkeypatch.setattr(time, "time", lambda: real() + Clock.off.total_seconds())
    yield Clock
    Clock.off = timedelta()


def _scramble_times(folder: Path, draw: random.Random) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (draw.uniform(0, 4e9), draw.uniform(0, 4e9)))  # from 1970 to 2096


def test_clocks_that_jump_six_time_zones_and_scrambled_times_of_files_change_nothing(
    tiny: Runs, clock: type[Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.train("unbroken", *EVERY)
    draw, asked = random.Random(1), clock.asked
    try:
        for number, (zone, jump) in enumerate(zip(ZONES, JUMPS, strict=True), start=1):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            clock.off += jump
            tiny.cut("cut", *EVERY, step=number, resume=True)
            _scramble_times(tiny.folder / "cut", draw)
            _scramble_times(Path(os.environ["SIMPO_CACHE"]), draw)
        tiny.train("cut", *EVERY, resume=True)
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert clock.asked > asked + 2 * len(ZONES)  # it is the clock that a run looks at
    tiny.require_same("cut", "unbroken")
    resumed = tiny.receipt("cut")["resumed"]
    assert [entry["from_step"] for entry in resumed] == list(range(len(ZONES)))  # from the newest, whatever its time


def test_files_that_were_edited_with_their_times_and_sizes_kept_are_seen(
    tiny: Runs, tmp_path: Path, prefs: Path, tiny_folder: Path
) -> None:
    mine, model = tmp_path / "mine.jsonl", tmp_path / "model"
    mine.write_bytes(prefs.read_bytes())
    shutil.copytree(tiny_folder, model)
    more = [*EVERY, f"data.train={mine}", f"model.path={model}"]
    tiny.cut("run", *more, step=2)
    for file, before, after, sentence in (
        (mine, b"Please", b"Kindly", "the pairs of data.train are others"),
        (model / "model.safetensors", b"", b"", "the weights of model.path are others"),
        (model / "tokenizer.json", b"\n}", b" }", "the model's tokenizer.json is another"),
    ):
        content, status = file.read_bytes(), file.stat()
        edited = content.replace(before, after, 1) if before else content[:-1] + bytes([content[-1] ^ 1])
        assert len(edited) == len(content)
        assert edited != content
        file.write_bytes(edited)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        with pytest.raises(UserError, match=sentence) as caught:
            tiny.train("run", *more, resume=True)
        assert caught.value.exit_code == ExitCode.USAGE
        assert "--allow-changed" in caught.value.fix
        file.write_bytes(content)
    tiny.cut("run", *more, step=3, resume=True)


def test_a_run_keeps_the_date_that_its_template_writes_and_the_next_run_has_its_own(
    tiny: Runs, clock: type[Clock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its tokens are no longer in the cache and are made again."""
    dated = tmp_path / "dated.jinja"
    dated.write_text("{{ strftime_now('%j') }}" + CHATML, encoding="utf-8")
    more = ["checkpoint.every=1", "train.max_steps=3", f"data.chat_template={dated}"]
    tiny.train("unbroken", *more)
    tiny.cut("cut", *more, step=2)
    clock.off += DAY
    tiny.cut("cut", *more, step=2, resume=True)
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "empty"))
    memory = tiny.train("cut", *more, resume=True)
    [date] = tiny.receipt("unbroken")["template_dates"]
    assert tiny.receipt("cut")["template_dates"] == [date]
    assert f"the chat template writes the date, which stays that of the run's beginning: {date}" in memory.notes
    assert tiny.receipt("cut")["data"]["train"]["tokens"]["cache"] == "miss"
    tiny.require_same("cut", "unbroken")
    tiny.cut("next day", *more, step=1)
    assert tiny.receipt("next day")["template_dates"] != [date]
    assert tiny.receipt("next day")["data"]["train"]["tokens"]["cache"] == "miss"
