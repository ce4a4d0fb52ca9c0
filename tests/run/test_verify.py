"""`simpo report --verify`: what is whole is called so, also of a run that was killed; what is not is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.cli.main import run as simpo
from simpo_cli.errors import ExitCode
from simpo_cli.run.checkpoint import CheckpointWriter, commit
from simpo_cli.run.folder import RunFolder, is_as_sealed, sealed
from simpo_cli.run.verify import verify_run, written_files
from tests.cli.test_help import imported_by
from tests.report.made_run import receipt_of

RECORDS = {
    "read": 9,
    "repeated": 3,
    "trained": 6,
    "held_out": 2,
    "not_reached": 1,
    "refused": 1,
    "dropped": {"blank": 2},
}


def data_of(records: dict[str, Any]) -> dict[str, Any]:
    """The part of run.json that tells of the data."""
    source = {"decision": "prompt, chosen, rejected", "files": [], "records": records, "counts": {}}
    return {"train": source, "eval": None}


def _receipt(folder: RunFolder, status: str, step: int, **more: Any) -> None:
    digest = written_files(folder.path)["recipe.yaml"]["sha256"]
    folder.write_json(
        "run.json",
        sealed(
            receipt_of(
                status=status,
                **{"schema_version": 2, "step": step, "recipe_sha256": digest, "data": data_of(RECORDS), **more},
            )
        ),
    )


def _save(folder: RunFolder, step: int) -> None:
    def write(files: CheckpointWriter) -> None:
        logs = ("metrics.jsonl", "evals.jsonl")
        digests = {name: folder.digest(name) for name in logs}
        known = {"seconds": 1.0, "evaluated_at": 0, "self_check": {}, "answers_before": []}
        scores = {"chosen_before": None, "rejected_before": None}
        progress = {"lines": dict(folder.lines), "digests": digests, **known, **scores}
        for name, content in (("weights.safetensors", b"w" * 9_000), ("progress.json", json.dumps(progress).encode())):
            with files.open(name) as file:
                file.write(content)

    commit(folder.path / "checkpoints", step, write, {})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was killed after step 3: steps 1 and 2 are saved."""
    folder = RunFolder.create(tmp_path / "run")
    folder.write_text("recipe.yaml", "name: run\n")
    folder.append("notes.jsonl", {"label": "note", "text": "hello"})
    folder.append("evals.jsonl", {"step": 0, "loss": 1.0})
    for step in (1, 2, 3):
        folder.append("metrics.jsonl", {"step": step, "loss": 1 / step})
        if step < 3:
            _save(folder, step)
            _receipt(folder, "running", step)
    folder.close()
    return folder.path


def _finish(path: Path) -> None:
    folder = RunFolder.create(path, resume=True)
    for name in ("metrics.jsonl", "evals.jsonl"):
        folder.cut_back(name, 9)
    _save(folder, 3)
    (path / "model").mkdir()
    (path / "model" / "model.safetensors").write_bytes(b"m" * 5_000)
    folder.append("evals.jsonl", {"step": 3, "loss": 0.5})
    _receipt(folder, "done", 3, files=written_files(path))
    folder.close()


def test_a_killed_run_is_whole_with_half_a_line_at_the_end_of_a_log(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    found = verify_run(run)
    assert found.damaged == []
    assert found.resumes_from == 2
    [metrics] = [file for file in found.seen if file.name == "metrics.jsonl"]
    assert metrics.detail == "3 lines, steps 1 to 3; half a line behind them, which --resume cuts away"
    assert [file.detail for file in found.seen if "records" in file.name] == ["of 12 records 12 are accounted for"]


@pytest.mark.parametrize("log", ["metrics.jsonl", "evals.jsonl"])
def test_a_log_of_a_killed_run_is_vouched_for_up_to_its_checkpoint(run: Path, log: str) -> None:
    text = (run / log).read_text()
    (run / log).write_text(text.replace("1.0", "1.5", 1))
    assert verify_run(run).damaged == [log]
    (run / log).write_text("")
    assert verify_run(run).damaged == [log]
    (run / log).unlink()
    assert verify_run(run).damaged == [log]


def test_steps_must_rise_and_lines_be_whole(run: Path) -> None:
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text + '{"step": 3, "loss": 0.1}\n')
    [seen] = [file for file in verify_run(run).seen if not file.is_whole]
    assert seen.detail == "step 3 comes behind step 3, in line 4"
    (run / "metrics.jsonl").write_text(text + '{"step": 4, "lo\n{"step": 5}\n')
    [seen] = [file for file in verify_run(run).seen if not file.is_whole]
    assert seen.detail == "line 4 is damaged"


def test_a_finished_run_is_vouched_for_by_its_receipt(run: Path) -> None:
    _finish(run)
    assert verify_run(run).damaged == []
    (run / "model" / "extra.bin").write_bytes(b"x")
    (run / "notes.jsonl").write_text('{"label": "note", "text": "hallo"}\n')
    (run / "model" / "model.safetensors").write_bytes(b"m" * 4_999 + b"n")
    found = verify_run(run)
    assert set(found.damaged) == {"notes.jsonl", "model/extra.bin", "model/model.safetensors"}
    shutil.rmtree(run / "model")
    assert "model/model.safetensors" in verify_run(run).damaged


def test_the_newest_checkpoint_is_missed_when_it_is_gone_and_the_account_when_it_does_not_add_up(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    found = verify_run(run)
    assert found.damaged == ["checkpoints/step-00000002"]
    assert found.resumes_from == 1
    folder = RunFolder.create(run, resume=True)
    monkeypatch.setitem(RECORDS, "trained", 7)
    _receipt(folder, "running", 1)
    assert verify_run(run).damaged == ["run.json: records of data.train"]
    folder.close()


def test_a_run_that_has_only_begun_and_one_of_before_hashes_are_no_damage(tmp_path: Path, run: Path) -> None:
    folder = RunFolder.create(tmp_path / "begun")
    folder.write_text("recipe.yaml", "name: run\n")
    found = verify_run(tmp_path / "begun")
    folder.close()
    assert (found.damaged, found.resumes_from) == ([], None)
    old = json.loads((run / "run.json").read_text())
    del old["sha256"]
    (run / "run.json").write_text(json.dumps({**old, "schema_version": 1}))
    assert verify_run(run).damaged == []
    (run / "run.json").write_text(json.dumps(old))  # what has lost its hash is not of before
    assert verify_run(run).damaged == ["run.json"]
    (run / "run.json").unlink()
    assert verify_run(run).damaged == ["run.json"]


def test_a_seal_holds_for_every_byte() -> None:
    data = (json.dumps(sealed({"a": 1.5, "b": ["ü", None]}), indent=2, ensure_ascii=False) + "\n").encode()
    assert is_as_sealed(data)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert not is_as_sealed(bytes(changed))
    for other in (b"", b"[]", b"{}", data + b" ", data.replace(b"  ", b" ")):
        assert not is_as_sealed(other)


def test_the_command_names_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simpo(["report", str(run), "--verify"]) == ExitCode.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(None, 2) == ["whole", "run.json", "running, step 2"]
    assert not (run / "report.html").exists()
    (run / "checkpoints" / "step-00000002" / "weights.safetensors").write_bytes(b"v" * 9_000)
    assert simpo(["report", str(run), "--verify", "--json"]) == ExitCode.ENVIRONMENT
    seen = capsys.readouterr()
    document = json.loads(seen.out)
    assert (document["whole"], document["resumes_from"]) == (False, 1)
    damaged = [file for file in document["files"] if not file["whole"]]
    assert damaged == [
        {
            "name": "checkpoints/step-00000002",
            "whole": False,
            "detail": "weights.safetensors holds other bytes than were saved",
        }
    ]
    assert seen.err == (
        f"Error: {run} is damaged: checkpoints/step-00000002.\n"
        "  Put back copies; or --resume resumes from step 1, which is whole.\n"
    )
    assert simpo(["report", str(run), "--json"]) == ExitCode.USAGE
    assert simpo(["report", str(run.parent), "--verify"]) == ExitCode.USAGE


def test_it_never_loads_torch(run: Path) -> None:
    code, imported = imported_by("report", "run", "--verify", cwd=run.parent)
    assert code == ExitCode.DONE
    assert imported.isdisjoint({"torch", "transformers", "datasets", "accelerate", "peft"})
