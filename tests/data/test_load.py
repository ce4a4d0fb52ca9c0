"""Sources to pairs: names, folders, limits and repeats, the account of every record, and the hub without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo_cli.data import hub
from simpo_cli.data.file_bytes import FileReceipt
from simpo_cli.data.load import PairReader
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import GOOD, Write, load_pairs


def numbered(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(start, start + count)]


def prompts(sources: str | list[DataSource], **options: Any) -> list[Any]:
    return [pair.prompt for pair in load_pairs(sources, role="train", **options).pairs]


def refusal(sources: str | list[DataSource], **options: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        load_pairs(sources, role="train", **options)
    return caught.value


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


def test_pairs_without_signal_can_be_kept(write: Write) -> None:
    path = write("a.jsonl", [GOOD, {**GOOD, "chosen": ""}])
    loaded = load_pairs(path, role="train", on_no_signal="keep")
    assert [pair.chosen for pair in loaded.pairs] == [GOOD["chosen"], ""]
    assert loaded.dropped == {"empty response": 1}


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


def test_a_folder_with_splits_needs_to_be_told(write: Write, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for shard in range(2):
            write(f"d/data/{split}-0000{shard}-of-00002.jsonl", numbered(1, shard))
    error = refusal(str(tmp_path / "d"))
    assert error.problem == "holds several splits: test, train."
    assert prompts([DataSource(path=str(tmp_path / "d"), split="train")]) == ["p0", "p1"]
    assert (
        "has no split dev: it has test, train" in refusal([DataSource(path=str(tmp_path / "d"), split="dev")]).problem
    )
    write("e/train.jsonl", numbered(1))
    write("e/test.jsonl", numbered(1))
    assert refusal(str(tmp_path / "e")).problem == "holds several splits: test, train."


def test_a_folder_of_folders(write: Write, tmp_path: Path) -> None:
    write("d/train/data-00000-of-00001.jsonl", numbered(1))
    write("d/validation/data-00000-of-00001.jsonl", numbered(1, 7))
    error = refusal(str(tmp_path / "d"))
    assert error.fix == "Name one of its folders: train, validation."
    assert prompts([DataSource(path=str(tmp_path / "d"), split="validation")]) == ["p7"]


def test_what_describes_data_is_no_data(write: Write, tmp_path: Path) -> None:
    for name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "README.md"):
        write(f"d/{name}", "{}")
    write("d/.gitattributes", "*.parquet filter=lfs")
    write("d/data/train-00000-of-00001.jsonl", numbered(2))
    assert prompts(str(tmp_path / "d")) == ["p0", "p1"]
    assert prompts([DataSource(path=str(tmp_path / "d"), split="train")]) == ["p0", "p1"]
    write("d/data/test-00000-of-00001.jsonl", numbered(1, 7))
    error = refusal(str(tmp_path / "d"))
    assert error.problem == "holds several splits: test, train."
    assert error.fix.startswith(f"Say which in the recipe: data.train: [{{path: {tmp_path}/d/data, split: train}}]")


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001-0a1b2c3d4e5f6a7b.jsonl", "test-00000-of-00001-0a1b2c3d4e5f6a7b.jsonl"),
        ("pairs-train.jsonl", "pairs-test.jsonl"),
        ("pairs_train.v2.json.gz", "pairs_val.v2.json.gz"),
        ("train/0000.jsonl", "test/0000.jsonl"),
        ("data/train/0000.jsonl", "data/test/0000.jsonl"),
        ("default/train/0000.jsonl", "default/test/0000.jsonl"),
    ],
)
def test_splits_are_never_read_together_unasked(write: Write, tmp_path: Path, train: str, test: str) -> None:
    write(f"d/{train}", numbered(1))
    write(f"d/{test}", numbered(1, 7))
    error = refusal(str(tmp_path / "d"))
    assert "train" in error.problem + error.fix
    folder = tmp_path / "d" / ("default" if "default" in train else "")
    assert prompts([DataSource(path=str(folder), split="train")]) == ["p0"]


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
    assert "d/train-0.jsonl" in error.fix or "train-0.jsonl" in error.fix
    assert "leave `split` out" in refusal([DataSource(path="d/train-*.jsonl", split="train")]).fix


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(numbered(3)).save_to_disk(str(tmp_path / "saved"))
    assert prompts(str(tmp_path / "saved")) == ["p0", "p1", "p2"]


def test_a_split_of_a_file_is_refused(write: Write) -> None:
    path = write("a.jsonl", [GOOD])
    assert "has no split train" in refusal([DataSource(path=path, split="train")]).problem


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


# The hub


def test_a_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def rows(name: str, split: str | None, receipt: FileReceipt) -> datasets.Dataset:
        assert (name, split) == ("org/prefs", "train_prefs")
        receipt.identity = "c0ffee"
        return datasets.Dataset.from_list(numbered(2))

    monkeypatch.setattr(hub, "_load", rows)
    loaded = load_pairs([DataSource(path="org/prefs", split="train_prefs")], role="train")
    assert [pair.where for pair in loaded.pairs] == [
        "org/prefs (train_prefs), record 1",
        "org/prefs (train_prefs), record 2",
    ]
    assert loaded.files == [("org/prefs", "c0ffee", 0)]


def test_offline_no_socket_is_opened(tmp_path: Path) -> None:
    """In a process of its own: the hub's client reads HF_HUB_OFFLINE when it is imported."""
    code = """
import sys
def watch(event, args):
    assert event not in ("socket.connect", "socket.getaddrinfo"), event
sys.addaudithook(watch)
from simpo_cli.data.load import PairReader
from simpo_cli.errors import UserError
try:
    list(PairReader("org/surely-not-here", role="train"))
except UserError as error:
    print(error.exit_code, error.where, error.problem)
print("torch" in sys.modules)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    said, has_torch = result.stdout.splitlines()
    assert said.startswith("4  org/surely-not-here is not here, neither as a folder nor in the cache")
    assert "HF_HUB_OFFLINE forbids to fetch it" in said
    assert has_torch == "False"


@pytest.mark.parametrize(
    ("kind", "said", "code"),
    [
        ("ConnectError", "the hub cannot be reached (ConnectError)", ExitCode.ENVIRONMENT),
        ("RepositoryNotFoundError", "does not show a data set of that name", ExitCode.ENVIRONMENT),
    ],
)
def test_a_hub_that_does_not_give(monkeypatch: pytest.MonkeyPatch, kind: str, said: str, code: ExitCode) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def fail(name: str) -> str:
        raise type(kind, (Exception,), {})(f"no {name}")

    monkeypatch.setattr(hub, "_commit", fail)
    error = refusal("org/prefs")
    assert said in error.problem
    assert error.exit_code == code


def test_several_splits_on_the_hub_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "_commit", lambda _: "c0ffee")
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train_prefs", "test_prefs"])
    error = refusal("org/prefs")
    assert error.problem == "has the splits train_prefs, test_prefs."
    assert "split: train_prefs" in error.fix
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["all"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(numbered(1)))
    assert prompts("org/prefs") == ["p0"]


def test_a_pair_is_given_with_its_record_and_what_was_noted_of_it(tmp_path: Path) -> None:
    records = [
        {"prompt": "a", "chosen": "x", "rejected": "y", "score_chosen": 1, "score_rejected": "1"},
        {"prompt": "b", "chosen": "x", "rejected": 7, "score_chosen": 1, "score_rejected": 1},
        {"prompt": "c", "chosen": "x", "rejected": "y", "score_chosen": 2, "score_rejected": 1},
        {"prompt": "d", "chosen": "", "rejected": "y", "score_chosen": 1, "score_rejected": 2},
    ]
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    reader = PairReader(str(path), role="train", on_bad_record="skip", on_no_signal="keep")
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


def test_files_that_the_names_of_others_count_are_missed(tmp_path: Path) -> None:
    for shard in (0, 2):
        lines = [json.dumps(record) for record in numbered(1, shard)]
        (tmp_path / f"train-{shard:05}-of-00004.jsonl").write_text("\n".join(lines))
    missing = f"{tmp_path}/train is missing 2 of its 4 files, such as {tmp_path}/train-00001-of-00004"
    for path in (tmp_path, f"{tmp_path}/*.jsonl"):
        assert load_pairs(str(path), role="train").warnings == {missing: 1}
    assert not load_pairs(f"{tmp_path}/train-00000-of-00004.jsonl", role="train").warnings  # one alone may be meant
