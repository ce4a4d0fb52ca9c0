"""Encoded pairs on disk: the same pairs as in memory, under a key of all that they depend on."""

import gc
import json
import os
import threading
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpo_cli.data import hub
from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.encode import pairs as ahead
from simpo_cli.data.encode.pairs import BATCHES_AHEAD
from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.load import PairReader
from simpo_cli.data.pair import BadRecord, Message, PreferencePair
from simpo_cli.data.store import cache as store_cache
from simpo_cli.data.store import highest_ids_of, lengths_in_blocks, lengths_of, prompt_keys_of
from simpo_cli.data.store import pairs as store_pairs
from simpo_cli.data.store.make import Account
from simpo_cli.data.store.pairs import StoredPairs
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe, DataSource
from tests.data.pair_files import DATA, GOOD, Write, encoded, load_pairs, made_up, plain, records, written

pytestmark = pytest.mark.usefixtures("cache")


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
    monkeypatch.setattr(store_pairs._PairFiles, "pair_of", lambda *_: pytest.fail("a pair was read"))
    assert lengths_of(stored).tolist() == lengths_of(pairs).tolist()
    assert lengths_of(pairs)[5].tolist() == [len(pairs[5].prompt), len(pairs[5].chosen), len(pairs[5].rejected)]
    assert highest_ids_of(stored).tolist() == highest_ids_of(pairs).tolist()
    assert prompt_keys_of(stored).argsort().tolist() == prompt_keys_of(pairs).argsort().tolist()
    assert lengths_of(stored[:0]).shape == lengths_of([]).shape == (0, 3)


@pytest.mark.parametrize(("few", "many"), [(0, 0), (0, 1000), (30, 0)])  # rows read run by run or in one go, or held
def test_any_selection_of_selections_is_that_of_a_list(
    few: int, many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_pairs, "_BLOCK", 7)
    monkeypatch.setattr(store_pairs, "_FEW", few)
    monkeypatch.setattr(store_pairs, "_MANY", many)
    monkeypatch.setattr(store_pairs, "_NEAR", 3)
    draw, first, second = np.random.default_rng(6), made_up(40, 6), made_up(25, 7)
    known = [(first, written(tmp_path / "a", first)), (second, written(tmp_path / "b", second))]
    for _ in range(60):
        (listed, stored), (more, stored_more) = (known[draw.integers(len(known))] for _ in range(2))
        match draw.integers(4):
            case 0:
                bounds = slice(*draw.integers(-20, 45, 2).tolist(), [None, 1, 3, -2][draw.integers(4)])
                listed, stored = listed[bounds], stored[bounds]
            case 1:
                at = draw.integers(0, len(listed), 12) if listed else np.arange(0)
                listed, stored = [listed[i] for i in at], stored.select(at)
            case 2:
                out = np.flatnonzero(draw.random(len(listed)) < 0.2)
                listed, stored = [pair for i, pair in enumerate(listed) if i not in out], stored.without(out)
            case 3:
                listed, stored = [*listed, *more][:90], (stored + stored_more)[:90]
        known.append((listed, stored))
        assert [plain(pair) for pair in stored] == [plain(pair) for pair in listed]
        assert [plain(stored[i]) for i in range(-len(listed), len(listed))] == [plain(pair) for pair in listed] * 2
        assert lengths_of(stored).tolist() == lengths_of(listed).tolist()
        assert [f"{key:016x}" for key in prompt_keys_of(stored)] == [pair.prompt_key for pair in listed]


def test_what_is_held_does_not_grow_with_the_pairs(tmp_path: Path) -> None:
    folder, count = tmp_path / "a", 500_000
    rows = written(folder, made_up(1, 8)).select(np.zeros(1000, dtype=np.int64)).in_blocks()
    (folder / "rows.bin").write_bytes(next(rows).tobytes() * (count // 1000))
    tracemalloc.start()
    stored = StoredPairs.open(folder)
    train = stored.without(np.arange(0, count, 1000))
    assert int(sum(block.sum() for block in lengths_in_blocks(train))) == len(train) * stored[0].num_tokens
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(train) == count - count // 1000
    assert held < 0.1e6
    assert peak < 4e6  # all rows are 20 MB


@pytest.mark.parametrize("name", ["pairs.bin", "rows.bin"])
def test_a_file_that_is_cut_short_is_an_error_and_no_crash(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_pairs, "_FEW", 0)
    stored = written(tmp_path / "a", made_up(30, 5))
    os.truncate(tmp_path / "a" / name, 100)
    for read in (lambda: stored[29], lambda: list(stored)):
        with pytest.raises(OSError, match=f"{name} is shorter than it was"):
            read()


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
    path = write("a.jsonl", records(4500))
    gc.freeze()  # what other tests have left is not looked through
    alive: list[int] = []
    # The list of all objects keeps them alive: two counts that overlap would count what each other holds.
    one_at_a_time = threading.Lock()

    def counted(pairs: Any, *rest: Any) -> Any:
        with one_at_a_time:
            alive.append(sum(type(thing) is PreferencePair for thing in gc.get_objects()))
        return encode_pairs(pairs, *rest)

    monkeypatch.setattr(ahead, "encode_pairs", counted)
    try:
        encoded(path, tokenizer)
    finally:
        gc.unfreeze()
    assert len(alive) == 9
    # those on their way, the one that the caller looks at, the one before it, and the one that is being read
    assert 512 <= max(alive) <= (BATCHES_AHEAD + 3) * 512 + 512 + 8


def test_the_texts_are_those_of_the_first_held_out_prompts(write: Write, tokenizer: TextTokenizer) -> None:
    path, data = write("a.jsonl", records(1300)), replace(DATA, max_length=64, max_prompt_length=40)
    found = encoded(path, tokenizer, data)
    texts = {pair.where: pair for pair in load_pairs(path, role="train").pairs}
    expected: dict[str, PreferencePair] = {}
    for pair in sorted(found.pairs, key=lambda pair: pair.prompt_key):
        if not pair.prompt_cut and pair.prompt_key not in expected and len(expected) < 8:
            expected[pair.prompt_key] = texts[pair.where]
    assert any(pair.prompt_cut for pair in found.pairs)
    assert len(expected) == 8
    assert found.account.samples == list(expected.values())
    assert encoded(path, tokenizer, data).account.samples == list(expected.values())


def test_the_digest_of_the_content_goes_by_tokens_alone(write: Write, tokenizer: TextTokenizer) -> None:
    rows = records(30)
    one = encoded(write("a.jsonl", rows), tokenizer)
    for name in ("d/b.json", "a.jsonl.gz"):
        other = encoded(write(name, rows), tokenizer)
        assert one.origin.key != other.origin.key
        assert one.account.content == other.account.content
    swapped = encoded(write("c.jsonl", [rows[1], rows[0], *rows[2:]]), tokenizer)
    assert swapped.account.content != one.account.content


def test_an_account_comes_back_as_it_was() -> None:
    turns = (Message("system", "s"), Message("user", "中 \ud800 \u2028\n"))
    account = Account(
        decision="conversational",
        files=[("a \udcff.jsonl", "0" * 64, 17)],
        records_read=5,
        pairs_of_source=[2, 0],
        dropped=Counter({"empty response": 1}),
        refused=[BadRecord("a:3", "chosen is missing", "Mend it.", '{"prompt": "\n"}'), BadRecord("a:4", "b", "", "")],
        counts=Counter({"prompt cut": 2}),
        needed={"max_prompt_length": Counter({2048: 2}), "max_length": Counter()},
        warnings=Counter(),
        samples=[PreferencePair(turns, "c", "r", "a:1", '[{"name": "f"}]'), PreferencePair("p", "c", "r", "a:2")],
        content="1" * 64,
    )
    assert Account.from_json(json.loads(json.dumps(account.as_json()))) == account


# The key


def test_the_key_goes_by_all_that_changes_tokens(write: Write, tokenizer: TextTokenizer) -> None:
    path = write("a.jsonl", [{**record, "w": 1} for record in records(12)])
    by_label = {"answers": ["chosen", "rejected"], "label": "w"}

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
        key(columns=by_label, labels={"first": [1]}),
        key(columns=by_label, labels={"first": {"above": 0}}),
        key(direction="first"),
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
    import datasets

    commit = "c0ffee"

    def rows(_: str, __: str | None, receipt: FileReceipt) -> datasets.Dataset:
        receipt.identity = commit
        return datasets.Dataset.from_list(records(3, seed=len(commit)))

    monkeypatch.setattr(hub, "_load", rows)
    source = [DataSource(path="org/prefs", split="train_prefs")]
    assert [encoded(source, tokenizer).origin.cache for _ in range(2)] == ["miss", "hit"]
    commit = "c0ffee2"
    assert encoded(source, tokenizer).origin.cache == "miss"


def test_what_is_not_cached_is_read_once(
    write: Write, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, unread = write("a.jsonl", records(3)), write("b.jsonl", records(5))
    digests: list[str] = []
    identity = store_cache._content_identity

    def counted(file: Any) -> str:
        digests.append(file.name)
        return identity(file)

    monkeypatch.setattr(store_cache, "_content_identity", counted)
    key = encoded(path, tokenizer).origin.key
    assert digests == []  # taken while it was read
    found = encoded(path, tokenizer).origin
    assert (found.cache, found.key, digests) == ("hit", key, [path])
    folder = DataSource(path=str(Path(path).parent), max_pairs=2)  # only the first of its files is read
    assert [encoded([folder], tokenizer).origin.cache for _ in range(2)] == ["miss", "hit"]
    assert digests == [path, unread, path, unread]


def test_a_file_that_changes_between_two_readings_of_it_is_refused(
    write: Write, tokenizer: TextTokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("a.jsonl", records(3))
    read_source = PairReader.read_source

    def changing(reader: PairReader, source: DataSource) -> Any:
        yield from read_source(reader, source)
        write("a.jsonl", records(3, seed=1))

    monkeypatch.setattr(PairReader, "read_source", changing)
    with pytest.raises(UserError, match="was changed while it was read") as caught:
        encoded([DataSource(path=path), DataSource(path=path)], tokenizer)
    assert caught.value.where == path
    assert not [entry for entry in cache.iterdir() if entry.is_dir()]


# Bad input, twice

MARKED = {**GOOD, "prompt": "<|im_start|>user\nhi"}


def test_a_refused_file_is_refused_again(write: Write, tokenizer: TextTokenizer) -> None:
    path = write("a.jsonl", [*records(3), {**GOOD, "prompt": 7}])
    for _ in range(2):
        with pytest.raises(UserError, match=f"^{path}:4: prompt: expected text or messages, got number."):
            encoded(path, tokenizer)


def test_refusals_of_the_template_stop_with_the_others_of_their_batch(write: Write, tokenizer: TextTokenizer) -> None:
    path = write("a.jsonl", [*records(2), MARKED, *records(2), MARKED])
    with pytest.raises(UserError, match="already holds the chat template.s markers") as caught:
        encoded(path, tokenizer)
    assert caught.value.where == f"{path}:3"
    assert f"also {path}:6: the text already holds" in str(caught.value)


def test_what_comes_first_in_the_file_stops_first(write: Write, tokenizer: TextTokenizer) -> None:
    """Batches behind the one that is refused are read already, and their trouble waits."""
    path = write("a.jsonl", [*records(2), MARKED, *records(600), "{oops", *records(2)])
    with pytest.raises(UserError, match="already holds the chat template's markers") as caught:
        encoded(path, tokenizer)
    assert caught.value.where == f"{path}:3"
