"""The run folder: refusals, the lock, and files that are whole."""

import errno
import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.run import folder as run_folder
from simpo_cli.run.folder import RunFolder, is_in_use, require_free_space, require_token, saved_bytes
from simpo_cli.run.verify import verify_run


@pytest.mark.parametrize(
    ("path", "said", "code"),
    [("file", "is a file", ExitCode.USAGE), ("file/run", "cannot be made", ExitCode.ENVIRONMENT)],
)
def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path, path: str, said: str, code: ExitCode) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        RunFolder.create(tmp_path / path, fresh=True)
    assert caught.value.exit_code == code


def test_writing_leaves_nothing_behind_and_a_number_that_is_not_finite_never_reaches_a_file(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.write_json("run.json", {"a": 1})
    folder.write_json("run.json", {"a": 2})
    folder.append("metrics.jsonl", {"step": 1})
    with pytest.raises(ValueError, match="JSON"):
        folder.append("metrics.jsonl", {"loss": float("nan")})
    folder.append("metrics.jsonl", {"step": 2})
    folder.close()
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8")) == {"a": 2}
    assert (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {"run.json", "metrics.jsonl", ".lock", ".owner"}


@pytest.mark.parametrize(
    ("needed", "free", "said"),
    [(2_000_000_000, 10, r"need 2\.0 GB, free 0\.0 GB"), (3_400_000, 1_200_000, r"need 3\.4 MB, free 1\.2 MB")],
)
def test_a_full_disk_is_seen_and_told_in_units_that_show_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: int, free: int, said: str
) -> None:
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    with pytest.raises(UserError, match=said) as caught:
        require_free_space(tmp_path / "not" / "there" / "yet", needed, "the model")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_what_a_run_has_saved_already_is_counted(tmp_path: Path) -> None:
    for name, size in (("checkpoints/step-00000001/weights", 700), ("model/model.safetensors", 50), ("run.json", 9)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert saved_bytes(tmp_path) == 750
    assert saved_bytes(tmp_path / "nowhere") == 0


def test_a_line_that_does_not_fit_is_not_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.append("metrics.jsonl", {"step": 1})
    digest = folder.digest("metrics.jsonl")
    write = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) < 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data[:5])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(UserError, match="metrics.jsonl cannot be written: No space left on device") as caught:
            folder.append("metrics.jsonl", {"step": 2, "a": 1})
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert (folder.lines["metrics.jsonl"], folder.digest("metrics.jsonl")) == (1, digest)
    folder.append("metrics.jsonl", {"step": 2})
    assert folder.digest("metrics.jsonl") == hashlib.sha256(b'{"step": 1}\n{"step": 2}\n').hexdigest()
    folder.cut_back("metrics.jsonl", 1)
    assert folder.digest("metrics.jsonl") == digest
    folder.close()


def test_nothing_is_written_into_a_folder_that_took_the_place_of_the_runs(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="cannot be written: No such file"):
        folder.append("metrics.jsonl", {"step": 1})
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="cannot be written: No such file"):
        folder.write_json("run.json", {})
    assert list((tmp_path / "run").iterdir()) == []
    folder.close()


def test_what_is_written_by_a_process_that_follows_another_goes_nowhere(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    folder.append("metrics.jsonl", {"step": 1})
    followed = RunFolder.follow(tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    followed.append("metrics.jsonl", {"step": 2})
    followed.write_json("run.json", {})
    followed.write_lines("rejected.jsonl", [{}])
    assert followed.cut_back("metrics.jsonl", 1) == []
    followed.sync_logs()
    followed.close()
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert is_in_use(tmp_path / "run")
    folder.close()


def test_a_token_is_waited_for_and_has_to_be_the_one_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            (tmp_path / ".shared.7").write_text("ours", encoding="utf-8")

    monkeypatch.setattr(run_folder.time, "sleep", sleep)
    require_token(tmp_path / ".shared.7", "ours")
    assert len(looks) == 3
    with pytest.raises(UserError, match=r"its .shared.7 holds another text than was written") as caught:
        require_token(tmp_path / ".shared.7", "theirs")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert 5 <= sum(looks[3:]) <= 60


def test_a_damaged_line_is_no_reason_to_stop(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    (tmp_path / "run" / "evals.jsonl").write_bytes(b'{"step": 0}\n{"st\xffp"\n[3]\n{"step": 4}\n')
    assert folder.cut_back("evals.jsonl", 4) == [{"step": 0}, {"step": 4}]
    assert folder.lines["evals.jsonl"] == 4
    folder.close()


def test_a_log_is_cut_back_to_whole_lines(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run")
    for step in (1, 2, 3):
        folder.append("metrics.jsonl", {"step": step, "text": "a\u2028b"})
    assert folder.lines["metrics.jsonl"] == 3
    with (tmp_path / "run" / "metrics.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"step": 4, "te')
    assert [row["step"] for row in folder.cut_back("metrics.jsonl", 4)] == [1, 2, 3]
    assert [row["step"] for row in folder.cut_back("metrics.jsonl", 2)] == [1, 2]
    folder.append("metrics.jsonl", {"step": 3})
    folder.close()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["step"] for line in lines[:-1]] == [1, 2, 3]


def test_what_a_process_leaves_that_dies_before_its_run_begins_is_no_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder.create(path).close()
    (path / ".recipe.yaml.999999").write_text("name:", encoding="utf-8")
    RunFolder.create(path).close()
    assert not (path / ".recipe.yaml.999999").exists()
    (path / ".git").mkdir()
    with pytest.raises(UserError, match="not a run"):
        RunFolder.create(path)


@pytest.mark.parametrize("name", ["rounds.json", "study.json"])
def test_rounds_and_studies_are_no_runs_to_resume_or_set_aside(name: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: mine", encoding="utf-8")
    (tmp_path / name).write_text("{}", encoding="utf-8")
    for how in ({}, {"resume": True}, {"fresh": True}):
        with pytest.raises(UserError, match="holds files that are not a run"):
            RunFolder.create(tmp_path, **how)
    with pytest.raises(UserError, match="is not a run"):
        verify_run(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"recipe.yaml", name}


def test_a_folder_is_in_use_while_it_is_open(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert not is_in_use(run)
    folder = RunFolder.create(run)
    assert is_in_use(run)
    folder.close()
    assert not is_in_use(run)
