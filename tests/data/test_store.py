"""Encoded pairs on disk and in the cache: the same pairs as in memory, made once, and never half of them."""

import errno
import fcntl
import gc
import gzip
import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpo_cli.data import hub
from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.load import load_pairs
from simpo_cli.data.pair import EncodedPair, PreferencePair
from simpo_cli.data.raw import FileReceipt
from simpo_cli.data.store import EncodedSource, cache_folder, encode_source, highest_ids_of, lengths_of, prompt_keys_of
from simpo_cli.data.store import entries as store_entries
from simpo_cli.data.store import making as store_making
from simpo_cli.data.store import source as store_source
from simpo_cli.data.store.account import Account
from simpo_cli.data.store.cache import fetch
from simpo_cli.data.store.entries import prune
from simpo_cli.data.store.pairs import PairWriter, StoredPairs
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource
from tests.data.pair_files import GOOD, Write

DATA = DataRecipe(train="-", max_length=48, max_prompt_length=24)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the entries of a cache that is empty."""
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return load_tokenizer("builtin:guide")


def records(count: int, seed: int = 0) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = ["open", "settings", "choose", "people", "<|im_end|>", "naïve", "press", "the", "address", "🙂"]

    def text(most: int) -> str:
        return " ".join(draw.choice(words) for _ in range(draw.randint(1, most)))

    return [
        {"prompt": f"{draw.randrange(count)} {text(30)}", "chosen": text(40), "rejected": text(9)} for _ in range(count)
    ]


def encoded(path: str | list[DataSource], tokenizer: TextTokenizer, data: DataRecipe = DATA) -> EncodedSource:
    return encode_source(path, "train", data, tokenizer)


def plain(pair: EncodedPair) -> tuple[Any, ...]:
    tokens = (pair.prompt.tolist(), pair.chosen.tolist(), pair.rejected.tolist())
    return (*tokens, pair.prompt_key, pair.where, pair.prompt_cut, pair.chosen_cut, pair.rejected_cut)


def made_up(count: int, seed: int) -> list[EncodedPair]:
    draw = np.random.default_rng(seed)

    def ids() -> np.ndarray:
        return draw.integers(0, 2**31 - 1, draw.integers(1, 9), dtype=np.int32)

    flags = draw.integers(0, 2, (count, 3)).astype(bool).tolist()
    keys = [f"{int(key):016x}" for key in draw.integers(0, 2**64, count, dtype=np.uint64)]
    places = ["a.jsonl:17", "b c.json, record 3", "中文/🙂.csv:1", "\udcff.jsonl:2", ""]
    return [EncodedPair(ids(), ids(), ids(), keys[i], places[i % len(places)], *flags[i]) for i in range(count)]


def written(folder: Path, pairs: list[EncodedPair]) -> StoredPairs:
    folder.mkdir()
    writer = PairWriter(folder)
    for start in range(0, len(pairs), 7):
        writer.add(pairs[start : start + 7])
    writer.close()
    return StoredPairs.open(folder)


# The sequence


def test_what_was_written_is_read(tmp_path: Path) -> None:
    pairs = made_up(40, 1)
    stored = written(tmp_path / "a", pairs)
    assert [plain(pair) for pair in stored] == [plain(pair) for pair in pairs]
    assert plain(stored[-1]) == plain(pairs[-1])
    assert plain(stored[np.int64(3)]) == plain(pairs[3])
    assert [plain(pair) for pair in stored[3:30:4]] == [plain(pair) for pair in pairs[3:30:4]]
    assert stored[5].prompt.dtype == np.int32
    with pytest.raises(IndexError):
        stored[40]


def test_selections_and_sums_share_the_files(tmp_path: Path) -> None:
    first, second = made_up(20, 2), made_up(11, 3)
    a, b = written(tmp_path / "a", first), written(tmp_path / "b", second)
    chosen = a.select(np.array([7, 7, 0]))
    both = chosen + b + a
    assert [plain(p) for p in both] == [plain(p) for p in (first[7], first[7], first[0], *second, *first)]
    for file in tmp_path.glob("*/*"):
        file.unlink()
    assert plain(both[4]) == plain(second[1])  # what is open stays readable


def test_what_is_asked_of_all_pairs_needs_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = made_up(30, 4)
    stored = written(tmp_path / "a", pairs)
    monkeypatch.setattr(StoredPairs, "_pair", lambda *_: pytest.fail("a pair was read"))
    assert lengths_of(stored).tolist() == lengths_of(pairs).tolist()
    assert lengths_of(pairs)[5].tolist() == [len(pairs[5].prompt), len(pairs[5].chosen), len(pairs[5].rejected)]
    assert highest_ids_of(stored).tolist() == highest_ids_of(pairs).tolist()
    assert prompt_keys_of(stored).argsort().tolist() == prompt_keys_of(pairs).argsort().tolist()
    assert lengths_of(stored[:0]).shape == lengths_of([]).shape == (0, 3)


def test_a_file_that_is_cut_short_is_an_error_and_no_crash(tmp_path: Path) -> None:
    stored = written(tmp_path / "a", made_up(30, 5))
    os.truncate(tmp_path / "a" / "pairs.bin", 100)
    with pytest.raises(OSError, match="shorter than it was"):
        stored[29]


# The same as in memory


def test_tokens_order_and_account_are_those_of_one_pass_in_memory(write: Write, tokenizer: TextTokenizer) -> None:
    a = write("a.jsonl", [*records(700), {**GOOD, "chosen": ""}, "{oops", *records(500, 7), {**GOOD, "chosen": 1}])
    b = write("b.json", records(40, 9))
    sources = [DataSource(path=a, max_pairs=1100, repeat=2), DataSource(path=b), DataSource(path=a, max_pairs=3)]
    data = replace(DATA, on_bad_record="skip", overlong="drop")
    loaded = load_pairs([replace(source, repeat=1) for source in sources], role="train", on_bad_record="skip")
    reference = encode_pairs(loaded.pairs, tokenizer, data)
    assert reference.dropped["over the length limits"] > 50
    first, second, third = (
        encode_pairs(
            load_pairs([replace(one, repeat=1)], role="train", on_bad_record="skip").pairs, tokenizer, data
        ).pairs
        for one in sources
    )
    expected = [*first, *first, *second, *third]
    for cached in ("miss", "hit"):
        found = encoded(sources, tokenizer, data)
        assert found.origin.cache == cached
        assert [plain(pair) for pair in found.pairs] == [plain(pair) for pair in expected]
        assert found.repeated == len(first)
        account = found.account
        assert account.decision == loaded.decision
        assert account.files == loaded.files
        assert account.records_read == loaded.records_read
        assert account.dropped == loaded.dropped + reference.dropped
        assert account.refused == loaded.bad_records + reference.bad
        assert account.counts == reference.counts
        assert sum(account.pairs_of_source) == len(reference.pairs)


def test_texts_are_held_for_one_batch(write: Write, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.jsonl", records(3000))
    alive: list[int] = []

    def counted(pairs: Any, *rest: Any) -> Any:
        alive.append(sum(type(thing) is PreferencePair for thing in gc.get_objects()))
        return encode_pairs(pairs, *rest)

    monkeypatch.setattr(store_making, "encode_pairs", counted)
    encoded(path, tokenizer)
    assert len(alive) == 6
    assert max(alive) <= 2 * 512 + 8 + 1


def test_the_texts_are_those_of_the_first_held_out_prompts(write: Write, tokenizer: TextTokenizer) -> None:
    path = write("a.jsonl", records(1300))
    found = encoded(path, tokenizer, replace(DATA, max_prompt_length=16))
    texts = {pair.where: pair for pair in load_pairs(path, role="train").pairs}
    expected: dict[str, PreferencePair] = {}
    for pair in sorted(found.pairs, key=lambda pair: pair.prompt_key):
        if not pair.prompt_cut and pair.prompt_key not in expected and len(expected) < 8:
            expected[pair.prompt_key] = texts[pair.where]
    assert any(pair.prompt_cut for pair in found.pairs)
    assert found.account.samples == list(expected.values())
    assert encoded(path, tokenizer, replace(DATA, max_prompt_length=16)).account.samples == list(expected.values())


def test_the_digest_of_the_content_goes_by_tokens_alone(write: Write, tokenizer: TextTokenizer) -> None:
    rows = records(30)
    one, other = encoded(write("a.jsonl", rows), tokenizer), encoded(write("d/b.json", rows), tokenizer)
    assert one.origin.key != other.origin.key
    assert one.account.content == other.account.content
    swapped = encoded(write("c.jsonl", [rows[1], rows[0], *rows[2:]]), tokenizer)
    assert swapped.account.content != one.account.content


# The key


def test_the_key_goes_by_all_that_changes_tokens(write: Write, tokenizer: TextTokenizer) -> None:
    path = write("a.jsonl", records(12))

    def key(data: DataRecipe = DATA, by: TextTokenizer = tokenizer, **source: Any) -> str:
        return encoded([DataSource(path=path, **source)], by, data).origin.key

    same = key()
    assert same == key(replace(DATA, holdout=0.3)) == key(replace(DATA, eval="x", train="y")) == key(repeat=3)
    others = [
        key(replace(DATA, max_length=47)),
        key(replace(DATA, max_prompt_length=23)),
        key(replace(DATA, min_response_tokens=2)),
        key(replace(DATA, overlong="drop")),
        key(replace(DATA, on_bad_record="skip")),
        key(replace(DATA, on_no_signal="error")),
        key(replace(DATA, rendered=True)),
        key(max_pairs=11),
        key(columns={"prompt": "prompt", "chosen": "rejected", "rejected": "chosen"}),
        key(by=load_tokenizer("builtin:guide", chat_template="none")),
    ]
    assert len({same, *others}) == len(others) + 1


def test_a_file_edited_with_its_time_kept_is_read_anew(write: Write, tokenizer: TextTokenizer) -> None:
    rows = records(5)
    path = write("a.jsonl", rows)
    before, times = encoded(path, tokenizer), os.stat(path)
    write("a.jsonl", [{**rows[0], "chosen": rows[0]["chosen"].swapcase()}, *rows[1:]])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert os.stat(path).st_size == times.st_size
    after = encoded(path, tokenizer)
    assert after.origin.cache == "miss"
    assert after.pairs[0].chosen.tolist() != before.pairs[0].chosen.tolist()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_change_in_the_tokenizers_files_is_another_key(name: str, tmp_path: Path) -> None:
    from simpo_cli.builtin import guide_model_dir

    for file in guide_model_dir().iterdir():
        if file.suffix in (".json", ".jinja"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    before = load_tokenizer(str(tmp_path)).identity
    assert before == load_tokenizer("builtin:guide").identity
    file = tmp_path / name
    text = file.read_text(encoding="utf-8") if file.is_file() else "{{ messages }}"
    if name == "tokenizer_config.json":
        text = json.dumps({**json.loads(text), "sep_token": "<|im_end|>"})
    else:
        text = text.replace("}", "} ", 1)
    file.write_text(text, encoding="utf-8")
    assert load_tokenizer(str(tmp_path)).identity != before


def test_hub_data_goes_by_its_commit(monkeypatch: pytest.MonkeyPatch, tokenizer: TextTokenizer) -> None:
    commit = "c0ffee"

    def rows(_: str, __: str | None, receipt: FileReceipt) -> list[dict[str, str]]:
        receipt.identity = commit
        return records(3, seed=len(commit))

    monkeypatch.setattr(hub, "_load", rows)
    source = [DataSource(path="org/prefs", split="train_prefs")]
    assert [encoded(source, tokenizer).origin.cache for _ in range(2)] == ["miss", "hit"]
    commit = "c0ffee2"
    assert encoded(source, tokenizer).origin.cache == "miss"


def test_a_file_that_changes_between_the_look_and_the_reading_is_refused(
    write: Write, tokenizer: TextTokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.jsonl", records(3))
    monkeypatch.setattr(store_source, "identities_of", lambda *_: [(path, "0" * 64)])
    with pytest.raises(UserError, match="was changed while it was read") as caught:
        encoded(path, tokenizer)
    assert caught.value.where == path
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


# Bad input, twice


def test_a_refused_file_is_refused_again(write: Write, tokenizer: TextTokenizer) -> None:
    path = write("a.jsonl", [*records(3), {**GOOD, "prompt": 7}])
    said = []
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            encoded(path, tokenizer)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert said[0].startswith(f"{path}:4: prompt: expected text or messages, got number.")


def test_refusals_of_the_template_stop_with_the_others_of_their_batch(write: Write, tokenizer: TextTokenizer) -> None:
    marked = {**GOOD, "prompt": "<|im_start|>user\nhi"}
    path = write("a.jsonl", [*records(2), marked, *records(2), marked])
    with pytest.raises(
        UserError, match=r"already holds the chat template's markers .* \(1 more, such as .*a.jsonl:6\)"
    ):
        encoded(path, tokenizer)


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


@pytest.mark.parametrize("name", ["pairs.bin", "rows.bin", "account.json", "refused.jsonl", "manifest.json"])
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
    assert sorted(entry.name for entry in cache.iterdir() if entry.is_dir()) == [before.origin.key]


def _make(pairs: list[EncodedPair]) -> Callable[[Path], Account]:
    def make(folder: Path) -> Account:
        writer = PairWriter(folder)
        writer.add(pairs)
        writer.close()
        empty: dict[str, Any] = {name: [] for name in ("files", "pairs_of_source", "refused", "samples")}
        counts: dict[str, Any] = {name: Counter() for name in ("dropped", "counts", "warnings")}
        account = Account(decision="", records_read=len(pairs), content="", **empty, **counts)
        account.write(folder)
        return account

    return make


def test_of_two_at_once_one_makes_the_entry_and_both_have_it() -> None:
    pairs, calls, found = made_up(5, 1), [], []

    def fetch_it(make: Callable[[Path], Account]) -> None:
        entry, origin = fetch("ab" * 32, make, 0.0)
        found.append((origin.cache, [plain(pair) for pair in entry.pairs]))

    def make_second(folder: Path) -> Account:
        calls.append("second")
        return _make(pairs)(folder)

    second = threading.Thread(target=fetch_it, args=(make_second,))

    def make_first(folder: Path) -> Account:
        calls.append("first")
        second.start()  # while the first is at work
        return _make(pairs)(folder)

    fetch_it(make_first)
    second.join()
    assert calls == ["first"]
    assert sorted(found) == [("hit", [plain(pair) for pair in pairs]), ("miss", [plain(pair) for pair in pairs])]


def test_the_least_recently_used_go_first_and_none_that_is_in_use(cache: Path) -> None:
    pairs = made_up(50, 1)
    keys = [f"{i}" * 64 for i in range(5)]
    held = [fetch(key, _make(pairs), 0.0)[0] for key in keys[:2]]
    for key in keys[2:]:
        fetch(key, _make(pairs), 0.0)
    gc.collect()
    for age, key in enumerate([keys[0], keys[3], keys[1], keys[4], keys[2]]):
        os.utime(cache / key / "manifest.json", (1e9 + age, 1e9 + age))
    sizes = {key: sum(file.stat().st_size for file in (cache / key).iterdir()) for key in keys}
    total = sum(sizes.values())

    def left() -> list[str]:
        return sorted(entry.name for entry in cache.iterdir() if entry.is_dir())

    prune(cache, total)
    assert left() == keys
    prune(cache, total - 1)  # the oldest is in use
    assert left() == [keys[0], keys[1], keys[2], keys[4]]
    fetch(keys[4], _make(pairs), 0.0)  # used again: younger than 2
    gc.collect()
    prune(cache, total - sizes[keys[3]] - 1)
    assert left() == [keys[0], keys[1], keys[4]]
    prune(cache, 0)
    assert left() == keys[:2]
    assert plain(held[0].pairs[3]) == plain(pairs[3])
    del held
    gc.collect()
    prune(cache, 0)
    assert left() == []


def test_what_a_dead_writer_left_is_removed_and_a_living_one_is_not(cache: Path) -> None:
    for name in (".making-dead", ".making-alive", ".making-young"):
        (cache / name).mkdir(parents=True)
        (cache / name / "pairs.bin").write_bytes(b"half")
    os.utime(cache / ".making-dead", (1e9, 1e9))
    with (cache / ".making-alive" / ".lock").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        os.utime(cache / ".making-alive", (1e9, 1e9))
        prune(cache, 10**9)
    assert sorted(entry.name for entry in cache.iterdir()) == [".making-alive", ".making-young"]


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

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", fail)
    monkeypatch.setattr("tempfile.TemporaryFile", fail)
    monkeypatch.setattr(store_entries, "making", fail)
    assert encoded(path, tokenizer).origin.cache == "hit"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_ends_with_what_to_do_and_leaves_nothing(
    number: int, write: Write, tokenizer: TextTokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(PairWriter, "add", fail)
    with pytest.raises(UserError, match="tokens of the pairs cannot be written") as caught:
        encoded(write("a.jsonl", records(6)), tokenizer)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert os.strerror(number) in caught.value.problem
    assert "SIMPO_CACHE" in caught.value.fix
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


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


def test_gz_and_plain_are_two_keys_with_one_content(write: Write, tokenizer: TextTokenizer) -> None:
    plain_file = write("a.jsonl", records(9))
    Path(plain_file + ".gz").write_bytes(gzip.compress(Path(plain_file).read_bytes()))
    one, other = encoded(plain_file, tokenizer), encoded(plain_file + ".gz", tokenizer)
    assert one.origin.key != other.origin.key
    assert one.account.content == other.account.content
