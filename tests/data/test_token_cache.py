"""The cache of encoded pairs: made once, whole or absent, read after damage, never removed while it is read."""

import errno
import fcntl
import gc
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.store import cache_folder
from simpo_cli.data.store.cache import fetch, prune
from simpo_cli.data.store.make import Account
from simpo_cli.data.store.pairs import PairWriter
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import ExitCode, UserError
from tests.data.pair_files import DATA, Write, encoded, made_up, plain, records

pytestmark = pytest.mark.usefixtures("cache")


def entries(cache: Path) -> list[str]:
    return sorted(entry.name for entry in cache.iterdir() if entry.is_dir())


def failing(number: int) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# Damage, other processes, full disks


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "one bit": _flip,
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"\0"),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("name", ["pairs.bin", "rows.bin", "manifest.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(
    name: str, damage: str, write: Write, tokenizer: TextTokenizer, cache: Path
) -> None:
    path = write("a.jsonl", [*records(6), "{oops"])
    data = replace(DATA, on_bad_record="skip")
    before = encoded(path, tokenizer, data)
    pairs = [plain(pair) for pair in before.pairs]
    DAMAGES[damage](cache / before.origin.key / name)
    again = encoded(path, tokenizer, data)
    assert again.origin.cache == "miss"
    assert again.origin.remark.startswith("the cached tokens were damaged")
    assert again.account == before.account
    assert [plain(pair) for pair in again.pairs] == pairs
    assert encoded(path, tokenizer, data).origin.cache == "hit"
    assert entries(cache) == [before.origin.key]


CONTENTS = "c" * 32


def contents() -> str:
    return CONTENTS


def _make(pairs: list[EncodedPair]) -> Callable[[Path], tuple[Account, str]]:
    def make(folder: Path) -> tuple[Account, str]:
        writer = PairWriter(folder)
        writer.add(pairs)
        writer.close()
        empty: dict[str, Any] = {name: [] for name in ("files", "pairs_of_source", "refused", "samples")}
        counts: dict[str, Any] = {name: Counter() for name in ("dropped", "counts", "warnings")}
        return Account(decision="", records_read=len(pairs), content="", needed={}, **empty, **counts), CONTENTS

    return make


def test_of_two_at_once_one_makes_the_entry_and_both_have_it() -> None:
    pairs, calls, found = made_up(5, 1), [], []

    def fetch_it(make: Callable[[Path], tuple[Account, str]]) -> None:
        entry, origin = fetch("ab" * 16, contents, make, 0.0)
        found.append((origin.cache, [plain(pair) for pair in entry.pairs]))

    def make_second(folder: Path) -> tuple[Account, str]:
        calls.append("second")
        return _make(pairs)(folder)

    second = threading.Thread(target=fetch_it, args=(make_second,))

    def make_first(folder: Path) -> tuple[Account, str]:
        calls.append("first")
        second.start()  # while the first is at work
        return _make(pairs)(folder)

    fetch_it(make_first)
    second.join()
    assert calls == ["first"]
    assert sorted(found) == [("hit", [plain(pair) for pair in pairs]), ("miss", [plain(pair) for pair in pairs])]


def test_processes_at_once_do_the_work_once(write: Write, cache: Path) -> None:
    path = write("a.jsonl", records(30))
    code = (
        "import sys\n"
        "from simpo_cli.data.store import encode_source\n"
        "from simpo_cli.data.tokenizer import load_tokenizer\n"
        "from simpo_cli.recipe.schema import DataRecipe, DataSource\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "sources = [DataSource(path=sys.argv[1])]\n"
        "found = encode_source(sources, 'train', DataRecipe(train='-'), load_tokenizer('builtin:guide'))\n"
        "print(found.origin.cache, found.account.content, len(found.pairs), sum(len(p.chosen) for p in found.pairs))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert all(process.stdout and process.stdout.readline() == "ready\n" for process in processes)
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate()[0].split() for process in processes]
    assert sorted(words[0] for words in said) == ["hit", "hit", "miss"]
    assert len({tuple(words[1:]) for words in said}) == 1
    assert len(entries(cache)) == 1


def test_a_writer_that_is_killed_leaves_nothing_that_is_used(cache: Path) -> None:
    pairs = made_up(9, 1)
    half_done, tell = os.pipe()
    child = os.fork()
    if child == 0:

        def make_half(folder: Path) -> tuple[Account, str]:
            account = _make(pairs[:4])(folder)
            os.write(tell, b"!")
            signal.pause()
            return account

        try:
            fetch("cd" * 16, contents, make_half, 0.0)
        finally:
            os._exit(1)
    assert os.read(half_done, 1) == b"!"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(half_done)
    os.close(tell)
    assert len(list(cache.glob(".unfinished-cd-*"))) == 1
    entry, origin = fetch("cd" * 16, contents, _make(pairs), 0.0)
    assert origin.cache == "miss"
    assert [plain(pair) for pair in entry.pairs] == [plain(pair) for pair in pairs]
    assert entries(cache) == ["cd" * 16 + CONTENTS]


def test_the_least_recently_used_go_first_and_none_that_is_in_use(cache: Path) -> None:
    pairs = made_up(50, 1)
    keys = [f"{i}" * 32 + CONTENTS for i in range(5)]
    held = [fetch(key[:32], contents, _make(pairs), 0.0)[0] for key in keys[:2]]
    for key in keys[2:]:
        fetch(key[:32], contents, _make(pairs), 0.0)
    gc.collect()
    for age, key in enumerate([keys[0], keys[3], keys[1], keys[4], keys[2]]):
        os.utime(cache / key / "manifest.json", (1e9 + age, 1e9 + age))
    sizes = {key: sum(file.stat().st_size for file in (cache / key).iterdir()) for key in keys}
    total = sum(sizes.values())

    prune(cache, total)
    assert entries(cache) == keys
    prune(cache, total - 1)  # the oldest is in use
    assert entries(cache) == [keys[0], keys[1], keys[2], keys[4]]
    fetch(keys[4][:32], contents, _make(pairs), 0.0)  # used again: younger than 2
    gc.collect()
    prune(cache, total - sizes[keys[3]] - 1)
    assert entries(cache) == [keys[0], keys[1], keys[4]]
    prune(cache, 0)
    assert entries(cache) == keys[:2]
    assert plain(held[0].pairs[3]) == plain(pairs[3])
    del held
    gc.collect()
    prune(cache, 0)
    assert entries(cache) == []


def test_what_a_dead_maker_left_is_removed_and_a_living_one_is_not(cache: Path) -> None:
    for name in (".unfinished-de-ad", ".unfinished-a1-ive"):
        (cache / name).mkdir(parents=True)
        (cache / name / "pairs.bin").write_bytes(b"half")
    with FileLock(cache / ".lock-a1"):
        prune(cache, 10**9)
    assert entries(cache) == [".unfinished-a1-ive"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_where_there_are_no_locks_the_entry_is_made_all_the_same(
    number: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    pairs = made_up(5, 1)
    origins = [fetch("ab" * 16, contents, _make(pairs), 0.0)[1].cache for _ in range(2)]
    assert origins == ["miss", "hit"]
    prune(cache, 0)  # nobody knows whether it is in use
    assert entries(cache) == ["ab" * 16 + CONTENTS]


def test_a_cache_that_cannot_be_written_stops_nothing(
    write: Write, tokenizer: TextTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("SIMPO_CACHE", write("file", "") + "/inside")
    found = encoded(write("a.jsonl", records(6)), tokenizer)
    assert found.origin.cache == "off"
    assert "cannot be written: Not a directory; SIMPO_CACHE names another" in found.origin.remark
    assert len([plain(pair) for pair in found.pairs]) == 6
    assert not list(tmp_path.glob("simpo-*"))  # the tokens have no name any more


def test_a_cache_that_can_only_be_read_is_read(
    write: Write, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.jsonl", records(6))
    encoded(path, tokenizer)
    for owner, name in ((os, "utime"), (tempfile, "TemporaryFile"), (FileLock, "acquire")):
        monkeypatch.setattr(owner, name, failing(errno.EROFS))
    assert encoded(path, tokenizer).origin.cache == "hit"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_ends_with_what_to_do_and_leaves_nothing(
    number: int, write: Write, tokenizer: TextTokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PairWriter, "add", failing(number))
    with pytest.raises(UserError, match="tokens of the pairs cannot be written") as caught:
        encoded(write("a.jsonl", records(6)), tokenizer)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert os.strerror(number) in caught.value.problem
    assert "SIMPO_CACHE" in caught.value.fix
    assert not entries(cache)


def test_an_entry_is_on_the_disk_before_it_has_its_name(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def see_fsync(descriptor: int) -> None:
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def see_rename(source: Path, target: Path) -> None:
        seen.append(f"{source.name} is {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(os, "rename", lambda source, target: see_rename(Path(source), Path(target)))
    fetch("ab" * 16, contents, _make(made_up(3, 1)), 0.0)
    monkeypatch.undo()
    [made] = [name for name in seen if name.endswith(f" is {'ab' * 16}{CONTENTS}")]
    before, behind = seen[: seen.index(made)], seen[seen.index(made) + 1 :]
    files = {file.name for file in (cache / ("ab" * 16 + CONTENTS)).iterdir()}
    assert {*files, made.split()[0]} <= set(before)
    assert behind == ["tokens"]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIMPO_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("SIMPO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "simpo"
    for ignored in ("", "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder() == tmp_path / ".cache" / "simpo"
