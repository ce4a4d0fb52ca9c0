"""Clocks, time zones and times of files change no bit of a run; an edited file is seen whatever its times say."""

import json
import os
import random
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
from tests.train.conftest import Memory
from tests.train.test_resume import Place

MORE = ["checkpoint.every=1", "checkpoint.keep=3", "eval.every=2", "train.num_epochs=2"]
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


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, prefs: Path) -> Place:
    return Place(tmp_path, tiny_folder, prefs)


def _scramble_times(folder: Path, draw: random.Random) -> None:
    for path in folder.rglob("*"):
        os.utime(path, (draw.uniform(0, 4e9), draw.uniform(0, 4e9)))  # from 1970 to 2096


def test_clocks_that_jump_six_time_zones_and_scrambled_times_of_files_change_nothing(
    place: Place, clock: type[Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.train("unbroken", *MORE)
    draw, asked = random.Random(1), clock.asked
    try:
        for number, (zone, jump) in enumerate(zip(ZONES, JUMPS, strict=True), start=1):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            clock.off += jump
            place.cut("cut", *MORE, step=number, resume=True)
            _scramble_times(place.folder / "cut", draw)
            _scramble_times(Path(os.environ["SIMPO_CACHE"]), draw)
        place.train("cut", *MORE, resume=True)
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()
    assert clock.asked > asked + 2 * len(ZONES)  # it is the clock that a run looks at
    place.require_same("cut", "unbroken")
    resumed = json.loads((place.folder / "cut" / "run.json").read_text(encoding="utf-8"))["resumed"]
    assert [entry["from_step"] for entry in resumed] == list(range(len(ZONES)))  # from the newest, whatever its time


def test_files_that_were_edited_with_their_times_and_sizes_kept_are_seen(
    place: Place, tmp_path: Path, prefs: Path, tiny_folder: Path
) -> None:
    mine, model = tmp_path / "mine.jsonl", tmp_path / "model"
    mine.write_bytes(prefs.read_bytes())
    model.mkdir()
    for file in tiny_folder.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    more = [*MORE, f"data.train={mine}", f"model.path={model}"]
    place.cut("run", *more, step=2)
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
            place.train("run", *more, resume=True)
        assert caught.value.exit_code == ExitCode.USAGE
        file.write_bytes(content)
    place.cut("run", *more, step=3, resume=True)


def test_a_run_keeps_the_date_that_its_template_writes_and_the_next_run_has_its_own(
    place: Place, clock: type[Clock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its tokens are no longer in the cache and are made again."""
    dated = tmp_path / "dated.jinja"
    dated.write_text("{{ strftime_now('%j') }}" + CHATML, encoding="utf-8")
    more = ["checkpoint.every=1", "train.max_steps=3", f"data.chat_template={dated}"]
    place.train("unbroken", *more)
    place.cut("cut", *more, step=2)
    clock.off += DAY
    place.cut("cut", *more, step=2, resume=True)
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "empty"))
    observer = Memory()
    place.train("cut", *more, resume=True, observer=observer)
    receipts = [json.loads((place.folder / run / "run.json").read_text("utf-8")) for run in ("unbroken", "cut")]
    [date] = receipts[0]["template_dates"]
    assert receipts[1]["template_dates"] == [date]
    assert f"the chat template writes the date, which stays that of the run's beginning: {date}" in observer.notes
    assert receipts[1]["data"]["train"]["tokens"]["cache"] == "miss"
    place.require_same("cut", "unbroken")
    place.cut("next day", *more, step=1)
    receipt = json.loads((place.folder / "next day" / "run.json").read_text("utf-8"))
    assert receipt["template_dates"] != [date]
    assert receipt["data"]["train"]["tokens"]["cache"] == "miss"
