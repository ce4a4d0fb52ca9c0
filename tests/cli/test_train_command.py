"""`simpo train` as a shell sees it: streams, exit codes, what is refused, what is left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simpo_cli.evaluate import answers
from simpo_cli.train import run_plan
from tests.cli.seen import Simpo, typed, write_run_recipe
from tests.data.pair_files import write_pairs
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shell")
    save_tiny_model(folder / "tiny")
    write_run_recipe(folder, "shell", "tiny")
    text = (folder / "run.yaml").read_text(encoding="utf-8")
    (folder / "lost.yaml").write_text(text.replace("prefs.jsonl", "nothing.jsonl"), encoding="utf-8")
    (folder / "long.yaml").write_text(text.replace("max_length: 64", "max_length: 5000"), encoding="utf-8")
    return folder


@pytest.fixture
def simpo(place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simpo:
    """Types a command in that folder, in this process, which has imported torch already."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(answers, "_MAX_NEW_TOKENS", 3)  # a random model never stops
    return typed(capfd)


def _in_a_process(place: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", **env}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "simpo_cli", *args]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def test_a_cut_of_many_and_a_missing_template_are_told(simpo: Simpo, place: Path) -> None:
    (place / "bare").mkdir()
    for file in (place / "tiny").iterdir():
        (place / "bare" / file.name).write_bytes(b"" if file.name == "chat_template.jinja" else file.read_bytes())
    asked = ([{"role": "user", "content": f"Question {i}? " * 9}] for i in range(30))
    write_pairs(place, "talks.jsonl", [{"prompt": turns, "chosen": "Yes.", "rejected": "No."} for turns in asked])
    dry = ("train", "run.yaml", "--dry-run", "data.train=talks.jsonl", "model.path=bare")
    told = simpo(*dry).err
    (cut,) = re.findall(
        r"100 % of pairs have their prompt cut at data.max_prompt_length=40: (.*) keeps 95 % whole", told
    )
    assert "30 pairs are conversations, and there is no chat template" in told
    silent = simpo(*dry, "data.chat_template=none", *cut.split()).err
    assert "no chat template" not in silent
    assert "cut at data" not in silent


def test_a_run_off_a_terminal(place: Path) -> None:
    done = _in_a_process(place, "train", "run.yaml", "name=plain")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""  # data goes to stdout, and training has none
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    assert any(line.startswith("simpo ") and "no network used" in line for line in lines)
    assert any(re.match(r"loss +SimPO, sigmoid · beta 2 · gamma 1 \(gamma/beta 0.5\)", line) for line in lines)
    steps = [line for line in lines if re.search(r"\bstep=1/3\b", line)]
    assert steps, done.stderr
    for key in ("loss=", "accuracy=", "n=8", "margin=", "tokens_per_second="):
        assert key in steps[0]
    table = next(line for line in lines if line.startswith("accuracy  "))
    assert table.count("%") >= 2
    assert "6 held-out pairs" in done.stderr
    assert "runs/plain/model" in done.stderr
    assert "\nreport  runs/plain/report.html\n" in done.stderr
    assert "Held-out accuracy" in (place / "runs" / "plain" / "report.html").read_text(encoding="utf-8")
    assert "simpo eval runs/plain" in done.stderr
    assert "simpo stats prefs.jsonl" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


def test_ascii_terminals_get_ascii(place: Path) -> None:
    done = _in_a_process(place, "train", "run.yaml", "name=ascii", "train.max_steps=1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stderr.isascii()


def test_a_second_run_of_a_name_is_refused_and_fresh_sets_the_first_aside(place: Path, simpo: Simpo) -> None:
    first = simpo("train", "run.yaml", "name=twice", "train.max_steps=1")
    assert first.code == 0, first.err
    second = simpo("train", "run.yaml", "name=twice", "train.max_steps=1")
    assert second.code == 2
    assert second.err.splitlines()[0] == "Error: runs/twice already holds a run."
    third = simpo("train", "run.yaml", "name=twice", "train.max_steps=1", "--fresh")
    assert third.code == 0, third.err
    assert len(list((place / "runs").glob("twice.old-*"))) == 1


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["train", "demo", "--resume", "--fresh"], 2, "--resume continues a run and --fresh sets it aside"),
        (["train", "demo", "--allow-changed", "loss.beta"], 2, "--allow-changed says what may differ"),
        (["train", "nosuch"], 2, "nosuch"),
        (["train", "run.yaml", "loss.bata=2"], 2, "Did you mean beta"),
        (["train", "run.yaml", "model.path=/no/model"], 2, "override 1: the model folder /no/model does not exist"),
        (["train", "lost.yaml"], 2, "lost.yaml:5: data.train: nothing.jsonl does not exist"),
        (["train", "run.yaml", "model.path=nobody/no-such-model"], 4, "override 1: nobody/no-such-model is not"),
        (["train", "long.yaml"], 2, "long.yaml:7: data.max_length is 5000, and tiny knows 512 positions"),
        (["train", "run.yaml", "model.lora.target_modules=[nope]"], 2, "1: model.lora.target_modules (['nope'])"),
        (["train", "run.yaml", "data.min_response_tokens=60"], 2, "no training pair is left: 30 records read"),
        (["train", "run.yaml", "tracking.report_to=[none-such]"], 2, "1: tracking.report_to names 'none-such'"),
        (["eval", "runs/nothing"], 2, "runs/nothing"),
        (["eval", "long.yaml"], 2, "long.yaml:7: data.max_length is 5000, and tiny knows 512 positions"),
        (["eval", "lost.yaml"], 2, "nothing.jsonl: does not exist"),
    ],
)
def test_mistakes_are_two_lines_with_an_exit_code_and_no_traceback(
    simpo: Simpo, args: list[str], code: int, said: str
) -> None:
    seen = simpo(*args)
    assert seen.code == code, seen.err
    assert said in seen.err
    assert seen.err.startswith("Error: ")
    assert "Traceback" not in seen.err
    assert len(seen.err.strip().splitlines()) == 2
    assert seen.err.splitlines()[1].startswith("  ")
    assert seen.out == ""


def test_a_dry_run_checks_and_writes_nothing(place: Path, simpo: Simpo) -> None:
    before = sorted(path.name for path in place.iterdir())
    seen = simpo("train", "run.yaml", "name=dry", "--dry-run")
    assert seen.code == 0, seen.err
    assert "memory" in seen.err
    assert "dry run" in seen.err
    assert not (place / "runs" / "dry").exists()
    assert sorted(path.name for path in place.iterdir()) == before or before == []


@pytest.mark.usefixtures("place")
def test_a_dry_run_is_of_all_processes_that_would_train(simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_plan, "available_bytes", lambda _: 8 * 10**9)
    alone, spread = (
        simpo("train", "run.yaml", "name=dry", "--dry-run", f"distributed.num_processes={number}").err
        for number in (1, 2)
    )
    assert "process" not in alone
    assert "of 8.0 GB free" in alone
    assert re.search("devices +2 processes · ddp", spread)
    assert "of 4.0 GB free" in spread  # they share the memory of the host
