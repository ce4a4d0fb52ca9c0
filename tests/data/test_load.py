"""Sources to pairs: names, folders, limits and repeats, the account of every record, and some of the pairs."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo_cli.data import hub
from simpo_cli.data.load import PairReader, PromptSample, named_pairs
from simpo_cli.data.pair import MAX_KEPT_TEXT, PreferencePair, prompt_key
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import GOOD, Write, load_pairs, refusal, skipped


def numbered(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(start, start + count)]


def prompts(sources: str | list[DataSource], **options: Any) -> list[Any]:
    return [pair.prompt for pair in load_pairs(sources, role="train", **options).pairs]


def test_the_account_is_whole(write: Write) -> None:
    records = [GOOD, {**GOOD, "chosen": 3}, {**GOOD, "chosen": ""}, {**GOOD, "rejected": GOOD["chosen"]}, "{oops", GOOD]
    path = write("a.jsonl", records)
    loaded = load_pairs(path, role="train", on_bad_record="skip")
    assert [pair.where for pair in loaded.pairs] == [f"{path}:1", f"{path}:6"]
    assert [(bad.where, bad.problem) for bad in loaded.bad_records] == [
        (f"{path}:2", "chosen: expected text or messages, got number"),
        (f"{path}:5", "not valid JSON: expecting property name enclosed in double quotes (column 2)"),
    ]
    assert [bad.text for bad in loaded.bad_records] == [json.dumps(records[1]), "{oops"]
    assert loaded.dropped == {"empty response": 1, "identical responses": 1}
    assert loaded.records_read == 6
    assert loaded.records_read == len(loaded.pairs) + len(loaded.bad_records) + loaded.dropped.total()
    assert loaded.decision == "plain text, explicit prompt, 4 pairs, response = the whole answer"
    ((name, identity, size),) = loaded.files
    assert (name, len(identity), size) == (path, 64, os.path.getsize(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", f"prompt,chosen,rejected\na,b,c\n{'x' * 200_000}\n"),
        ("a.jsonl", [GOOD, "{" + "x" * 200_000]),
        ("a.json", [GOOD, {**GOOD, "chosen": [3] * 200_000}]),
    ],
)
def test_of_a_bad_record_the_beginning_is_kept(write: Write, name: str, content: str | list[Any]) -> None:
    (bad,) = skipped(write(name, content)).bad_records
    assert len(bad.text) == MAX_KEPT_TEXT == 100_000


def test_sources_are_limited_and_repeated(write: Write) -> None:
    a, b = write("a.jsonl", numbered(4)), write("b.json", numbered(2, 10))
    mixed = [DataSource(path=a, max_pairs=3, repeat=2), DataSource(path=b)]
    assert prompts(mixed) == ["p0", "p1", "p2", "p0", "p1", "p2", "p10", "p11"]
    assert [pair.prompt for pair in PairReader(mixed, role="train")] == ["p0", "p1", "p2", "p10", "p11"]
    assert prompts([DataSource(path=a, max_pairs=99)]) == ["p0", "p1", "p2", "p3"]


def test_a_limit_counts_usable_pairs_and_stops_reading(write: Write) -> None:
    path = write("a.jsonl", [{**GOOD, "chosen": ""}, *numbered(2), "{oops"])
    loaded = load_pairs([DataSource(path=path, max_pairs=2)], role="train")
    assert len(loaded.pairs) == 2
    assert loaded.records_read == 3
    assert loaded.files[0][2] == os.path.getsize(path)


def test_columns_belong_to_their_source(write: Write) -> None:
    a = write("a.jsonl", numbered(1))
    b = write("b.jsonl", [{"input": "x", "output_1": "one", "output_2": "two", "label": 2}])
    columns = {"prompt": "input", "chosen": "output_1", "rejected": "output_2", "label": "label"}
    loaded = load_pairs([DataSource(path=a), DataSource(path=b, columns=columns)], role="train")
    assert [(pair.prompt, pair.chosen) for pair in loaded.pairs] == [("p0", "c0"), ("x", "two")]
    assert loaded.decision.startswith(f"{a}: plain text, explicit prompt, 1 pair, ")
    assert f"; {b}: plain text, explicit prompt (input), label says" in loaded.decision


# Folders


def test_a_folder_is_its_data_files_in_order(write: Write, tmp_path: Path) -> None:
    write("d/b.jsonl", numbered(1, 1))
    write("d/a.json.gz", numbered(1, 0))
    write("d/README.md", "# Data")
    write("d/.hidden.jsonl", "{oops")
    pq.write_table(pa.Table.from_pylist(numbered(1, 2)), tmp_path / "d" / "c.parquet")
    loaded = load_pairs(str(tmp_path / "d"), role="train")
    assert [pair.prompt for pair in loaded.pairs] == ["p0", "p1", "p2"]
    assert loaded.pairs[1].where == f"{tmp_path}/d/b.jsonl:1"
    assert len(loaded.files) == 3
    assert loaded.decision == "plain text, explicit prompt, 3 pairs, response = the whole answer"


_SEVERAL = "holds several splits: test, train."


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("train.jsonl", "test.jsonl", _SEVERAL),
        ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", _SEVERAL),
        ("train-00000-of-00001-0a1b2c3d4e5f6a7b.jsonl", "test-00000-of-00001-0a1b2c3d4e5f6a7b.jsonl", _SEVERAL),
        ("pairs-train.jsonl", "pairs-test.jsonl", _SEVERAL),
        ("pairs_train.v2.json.gz", "pairs_val.v2.json.gz", "holds several splits: train, val."),
        ("train/0000.jsonl", "validation/0000.jsonl", "Name one of its folders: train, validation."),
        ("data/train/0000.jsonl", "data/test/0000.jsonl", "Name one of its folders: test, train."),
        ("default/train/0000.jsonl", "default/test/0000.jsonl", "default/train"),
    ],
)
def test_splits_are_never_read_together_unasked(write: Write, tmp_path: Path, train: str, test: str, said: str) -> None:
    write(f"d/{train}", numbered(1))
    write(f"d/{test}", numbered(1, 7))
    error = refusal(str(tmp_path / "d"))
    assert said in f"{error.problem} {error.fix}"
    folder = str(tmp_path / "d" / ("default" if "default" in train else ""))
    assert prompts([DataSource(path=folder, split="train")]) == ["p0"]


def test_the_files_of_a_split_are_read_and_what_describes_data_is_not(write: Write, tmp_path: Path) -> None:
    for name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "README.md"):
        write(f"d/{name}", "{}")
    write("d/.gitattributes", "*.parquet filter=lfs")
    for shard in range(2):
        write(f"d/data/train-0000{shard}-of-00002.jsonl", numbered(1, shard))
    assert prompts(str(tmp_path / "d")) == ["p0", "p1"]
    write("d/data/test-00000-of-00001.jsonl", numbered(1, 7))
    error = refusal(str(tmp_path / "d"))
    assert error.problem == _SEVERAL
    assert error.fix.startswith(f"Say which in the recipe: data.train: [{{path: {tmp_path}/d/data, split: train}}]")
    assert prompts([DataSource(path=str(tmp_path / "d"), split="train")]) == ["p0", "p1"]
    problem = refusal([DataSource(path=str(tmp_path / "d"), split="dev")]).problem
    assert "has no split dev: it has test, train" in problem


def test_a_pattern_names_its_files_in_order(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for n in (2, 0, 1):
        write(f"d/train-{n}.jsonl", numbered(1, n))
    write("d/test-0.jsonl", numbered(1, 7))
    write("d/dataset_info.json", "{}")
    write("d/notes.md", "# Notes")
    write("odd[1].jsonl", numbered(1, 9))
    assert prompts("d/train-*.jsonl") == ["p0", "p1", "p2"]
    assert prompts("d/train-[12].*") == ["p1", "p2"]
    assert prompts("**/t*.jsonl") == ["p7", "p0", "p1", "p2"]
    assert prompts("d/*") == ["p7", "p0", "p1", "p2"]
    assert prompts("odd[1].jsonl") == ["p9"]
    error = refusal("d/trian-*.jsonl")
    assert (error.where, error.problem) == ("d/trian-*.jsonl", "matches no file.")
    assert "train-0.jsonl" in error.fix
    for name, problem in (("d/train-*.jsonl", "names files and"), ("odd[1].jsonl", "is a file and")):
        error = refusal([DataSource(path=name, split="train")])
        assert f"{name} {problem} has no split train." in error.problem
        assert "leave `split` out" in error.fix


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(numbered(3)).save_to_disk(str(tmp_path / "saved"))
    assert prompts(str(tmp_path / "saved")) == ["p0", "p1", "p2"]


# Names


def test_an_existing_path_comes_before_a_hub_id(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("org/name", [GOOD])
    monkeypatch.chdir(tmp_path)
    assert len(prompts("org/name")) == 1
    write("builtin:guide", [GOOD])
    assert len(prompts("builtin:guide")) == 1


def test_embedded_pairs_go_by_role(monkeypatch: pytest.MonkeyPatch, write: Write) -> None:
    import simpo_cli.builtin

    files = {"train": write("t.jsonl", numbered(1)), "eval": write("e.jsonl", numbered(1, 5))}
    monkeypatch.setattr(simpo_cli.builtin, "guide_pairs", lambda role: Path(files[role]), raising=False)
    for role, prompt in (("train", "p0"), ("eval", "p5")):
        loaded = load_pairs("builtin:guide", role=role)  # type: ignore[arg-type]
        assert [pair.prompt for pair in loaded.pairs] == [prompt]
        assert loaded.pairs[0].where == f"builtin:guide ({role}):1"
    assert refusal("builtin:gide").problem == "builtin:gide is not embedded here."


@pytest.mark.parametrize(
    "name", ["no/such.jsonl", "./org/name", "prefs.json", "/org/name", "a/b/c", "~/x", "org/name.csv.gz"]
)
def test_what_cannot_be_a_hub_id_is_a_missing_file(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_load", lambda *_: pytest.fail("asked the hub"))
    error = refusal(name)
    assert error.problem == "does not exist."
    assert error.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("name", "why"),
    [("", ""), (" ", ""), ("x\0y", ": it holds a control character"), ("a\nb.jsonl", ": it holds a control character")],
)
def test_names_that_nothing_can_have(name: str, why: str) -> None:
    assert refusal(name).problem == f"{name!r} names no data{why}."


def test_a_pair_is_given_with_its_record_and_what_was_noted_of_it(write: Write) -> None:
    """Pairs without signal are kept, too, where that is asked for, and counted all the same."""
    records = [
        {"prompt": "a", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": "1"},
        {"prompt": "b", "chosen": "x", "rejected": 7, "score_chosen": 1, "score_rejected": 1},
        {"prompt": "c", "chosen": "x", "rejected": "y", "score_chosen": 2, "score_rejected": 1},
        {"prompt": "d", "chosen": "", "rejected": "y", "score_chosen": 1, "score_rejected": 2},
    ]
    reader = PairReader(write("a.jsonl", records), role="train", on_bad_record="skip", on_no_signal="keep")
    seen = []
    for pair in reader:
        assert reader.record is not None
        assert reader.record.where == pair.where
        seen.append((reader.record.fields, set(reader.noted)))
    assert seen == [
        (records[0], {"tied scores", "scores written as text"}),
        (records[2], set()),
        (records[3], {"scores order the pair against its label"}),
    ]
    assert reader.dropped.counts == {"empty response": 1}


def test_files_that_the_names_of_others_count_are_missed(write: Write, tmp_path: Path) -> None:
    for shard in (0, 2):
        write(f"train-{shard:05}-of-00004.jsonl", numbered(1, shard))
    missing = f"{tmp_path}/train is missing 2 of its 4 files, such as {tmp_path}/train-00001-of-00004"
    for path in (str(tmp_path), f"{tmp_path}/*.jsonl"):
        assert load_pairs(path, role="train").warnings == {missing: 1}
    assert not load_pairs(f"{tmp_path}/train-00000-of-00004.jsonl", role="train").warnings  # one alone may be meant


# Some of the pairs

PAIRS = [PreferencePair(f"question {n % 30}", f"a{n}", f"b{n}", f"data/prefs.jsonl:{n + 1}") for n in range(80)]


def sample_of(pairs: list[PreferencePair], most: int) -> list[PreferencePair]:
    sample = PromptSample(most)
    for pair in pairs:
        sample.add(pair)
    return sample.pairs


@pytest.mark.parametrize("most", [1, 7, 80, 200])
def test_the_sample_goes_by_the_prompt_and_not_by_the_order(most: int) -> None:
    sample = sample_of(PAIRS, most)
    first = sorted(range(80), key=lambda i: (prompt_key(PAIRS[i]), i))[:most]
    assert sample == [PAIRS[i] for i in sorted(first)]
    of_shuffled = sample_of(random.Random(0).sample(PAIRS, 80), most)
    assert {pair.prompt for pair in of_shuffled} == {pair.prompt for pair in sample}


@pytest.mark.parametrize("name", ["17", "0017", "data/prefs.jsonl:17", "prefs.jsonl:17", "line 17"])
def test_a_pair_is_found_by_its_number_and_by_its_place(name: str) -> None:
    assert list(named_pairs(PAIRS, [name])) == [(17, PAIRS[16])]


def test_a_record_of_an_array_is_found_by_its_place() -> None:
    pairs = [PreferencePair("p", "a", "b", f"prefs.json, record {n}") for n in range(1, 2000)]
    for name in ("record 17", "prefs.json, record 17", "17"):
        assert [number for number, _ in named_pairs(pairs, [name])] == [17]
    assert [number for number, _ in named_pairs(pairs, ["1,700"])] == [1700]


def test_nothing_is_read_behind_the_last_one() -> None:
    seen = []

    def reader() -> Iterator[PreferencePair]:
        for pair in PAIRS:
            seen.append(pair)
            yield pair

    assert [number for number, _ in named_pairs(reader(), ["9", "prefs.jsonl:3", "9"])] == [3, 9]
    assert len(seen) == 9


@pytest.mark.parametrize("name", ["81", "0", "other.jsonl:3", "line 81", "record 3", ":3", "fs.jsonl:3"])
def test_what_is_not_there_is_said(name: str) -> None:
    with pytest.raises(UserError, match="there is no pair .* among the 80"):
        list(named_pairs(PAIRS, [name]))
