"""`simpo init`: four questions on a terminal or four options, and a recipe that passes the check and trains."""

import errno
import fcntl
import io
import json
import os
import pty
import shlex
import subprocess
import sys
import termios
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from simpo_cli.cli import main as cli
from simpo_cli.cli import options
from simpo_cli.errors import ExitCode
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.validate import recipe_of
from simpo_cli.train.forecast import survey
from simpo_cli.tune import first_recipe
from simpo_cli.tune.purposes import PURPOSES, Wanted
from simpo_cli.tune.space import usual_rate
from tests.cli.seen import Seen, Simpo, typed
from tests.data.pair_files import write_pairs
from tests.tiny import save_tiny_model

SPEED = {"median": 1e5, "low": 9e4, "high": 2e5, "n": 3}


def pairs_of(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {i}?", "chosen": f"Yes, please do {i}.", "rejected": f"No, never {i} at all."}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and files of pairs."""
    folder = tmp_path_factory.mktemp("init")
    save_tiny_model(folder / "tiny")
    write_pairs(folder, "prefs.jsonl", pairs_of(300))
    write_pairs(folder, "more.jsonl", pairs_of(460))
    write_pairs(folder, "twelve.jsonl", pairs_of(12))
    swapped = [{**one, "chosen": one["rejected"], "rejected": one["chosen"]} for one in pairs_of(5)]
    write_pairs(folder, "bad.jsonl", [*pairs_of(40), *swapped, {"prompt": "a", "chosen": 3, "rejected": "b"}])
    (folder / "empty.jsonl").touch()
    (folder / "broken.jsonl").write_text("{'not': json}\n" * 3)
    (folder / "letter.txt").write_text("Dear reader\n")
    return folder


@pytest.fixture
def simpo(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simpo:
    """Types a command in that folder, where no recipe is, with a speed that is not measured."""
    monkeypatch.chdir(place)
    for recipe in place.glob("*.yaml"):
        recipe.unlink()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(options, "has_cards", lambda: False)
    timed = {"device": "cpu", "tokens_per_second": SPEED, "seconds_per_update": 0.001}
    monkeypatch.setattr(first_recipe, "measure", lambda *_: timed)
    return typed(capsys)


def answered(purpose: str = "try", *, model: str = "tiny", pairs: str = "prefs.jsonl", minutes: int = 10) -> list[str]:
    return ["--model", model, "--pairs", pairs, "--for", purpose, "--minutes", str(minutes)]


def document_of(simpo: Simpo, *words: str) -> dict[str, Any]:
    seen = simpo("init", *words, "--json")
    assert seen.code == ExitCode.DONE, seen.err
    document: dict[str, Any] = json.loads(seen.out)
    return document


# What is written


@pytest.mark.parametrize("model", ["tiny", "builtin:guide"])
@pytest.mark.parametrize("purpose", PURPOSES)
def test_each_purpose_gives_a_recipe_without_remarks(purpose: str, model: str, simpo: Simpo) -> None:
    document = document_of(simpo, *answered(purpose, model=model))
    checked = simpo("recipe", "check", "recipe.yaml")
    assert (checked.code, checked.out) == (0, "recipe.yaml: no remarks.\n")
    composed = compose("recipe.yaml")
    assert composed.recipe.model.path == model
    written = {key for key, origin in composed.origins.items() if not origin.is_default}
    assert {key for key, value in document["recipe"].items() if not isinstance(value, list)} <= written
    if model == "builtin:guide":  # numbers of the demo do not teach it words that it has never seen
        assert composed.recipe.loss.sft_weight == 1
    again = Path("again.yaml")
    again.write_text(composed.as_yaml(), encoding="utf-8")
    assert compose("again.yaml").recipe == composed.recipe


def test_what_each_purpose_changes(simpo: Simpo) -> None:
    found = {}
    for purpose in PURPOSES:
        document_of(simpo, f"{purpose}.yaml", *answered(purpose))
        found[purpose] = compose(f"{purpose}.yaml").recipe
    brief, assistant, general = (found[name] for name in ("try", "assistant", "general"))
    # 300 pairs: at most a fifth of them is held out
    assert [one.data.holdout for one in found.values()] == [60, 60, 60]
    assert (brief.train.pairs_per_step, brief.train.max_steps, brief.eval.every) == (8, None, None)
    assert brief.train.num_epochs == 1  # thirty steps of eight are all 240 pairs once
    assert (assistant.train.pairs_per_step, assistant.train.num_epochs, assistant.loss.sft_weight) == (8, 2, 0.1)
    assert (assistant.eval.every, assistant.health.stop_on) == (15, ["HEA002", "HEA007", "HEA008"])
    assert (general.train.pairs_per_step, general.train.num_epochs, general.loss.sft_weight) == (8, 1, 0)
    for recipe in found.values():
        assert (recipe.loss.beta, recipe.loss.margin_beta_ratio) == (2, 0.5)
        assert recipe.train.learning_rate == 5e-6  # a model this small would take more; REC001 advises against it


def test_the_file_says_why(simpo: Simpo) -> None:
    seen = simpo("init", *answered("assistant"))
    assert seen.code == 0, seen.err
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    assert text.startswith(
        "# Teach an assistant a behaviour, by pairs of your own\n#\n# model   tiny · 0.0 M parameters"
    )
    assert "# simpo init recipe.yaml --model tiny --pairs prefs.jsonl --for assistant --minutes 10\nmodel:\n" in text
    for line in text.split("model:\n")[1].splitlines():
        is_number = line.rsplit(": ", 1)[-1].split(" #")[0].replace(".", "").replace("e-", "").isdigit()
        assert not is_number or " # " in line, line
    assert "  max_length: 64 # tokens of prompt and response: 100 % of the pairs stay whole\n" in text
    assert "  holdout: 60 # pairs to evaluate by: a change of some 17 points would show\n" in text
    assert "    - HEA002 # stops where the model forgets, loops or does not end\n" in text
    assert max(map(len, text.splitlines())) <= 105


def test_the_screen(simpo: Simpo) -> None:
    seen = simpo("init", *answered(pairs="more.jsonl"))
    assert seen.code == 0, seen.err
    findings, summary = seen.out.split("\n\n")
    assert findings.startswith("Findings\n  warning  LEN001  460  length predicts the label\n")
    lines = summary.splitlines()
    assert lines[0] == "wrote   recipe.yaml"
    assert "time    about 0:00 for the steps and 0:00 for evaluations, predicted at 100.0k" in lines
    assert lines[-3:] == [
        "next    simpo inspect recipe.yaml   real pairs, token by token",
        "        simpo train recipe.yaml     into runs/recipe",
        "        simpo tune recipe.yaml      better numbers, given time",
    ]
    assert all(len(line) <= 80 for line in seen.out.splitlines())


def test_what_is_not_used_and_what_is_cut_is_told(simpo: Simpo, place: Path) -> None:
    longer = [
        {**pair, "rejected": pair["rejected"] + " No." * 9000 * (i > 20), "note": "x"}
        for i, pair in enumerate(pairs_of(40))
    ]
    write_pairs(place, "longer.jsonl", longer)
    remarks = document_of(simpo, *answered(pairs="longer.jsonl"))["remarks"]
    assert remarks[0] == "not used: note"
    assert remarks[-1].endswith(" % of the pairs stay whole: the model, or --for, takes no longer ones")


@pytest.mark.parametrize(
    ("pairs", "proposed"),
    [
        ("twelve.jsonl", []),
        ("prefs.jsonl", ["simpo tune recipe.yaml data.holdout=90"]),
        ("more.jsonl", ["simpo tune recipe.yaml"]),
    ],
)
def test_a_search_is_proposed_where_the_pairs_are_enough(simpo: Simpo, pairs: str, proposed: list[str]) -> None:
    following = document_of(simpo, *answered(pairs=pairs))["next"]
    assert [one["command"] for one in following if one["command"].startswith("simpo tune")] == proposed


def test_what_the_time_is_enough_for(simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"device": "cpu", "tokens_per_second": {**SPEED, "median": 20.0}, "seconds_per_update": 1.0}
    monkeypatch.setattr(first_recipe, "measure", lambda *_: slow)
    expected = []
    for minutes in (3, 20, 60):
        file = f"in-{minutes}.yaml"
        steps = document_of(simpo, file, *answered(minutes=minutes))["steps"]
        assert compose(file).warnings == ()
        assert steps["expected_seconds"] + steps["expected_evaluation_seconds"] <= 60 * minutes
        expected.append((steps["count"], steps["held_out_pairs"]))
        text = Path(file).read_text(encoding="utf-8")
        assert ("what the time is enough for, as predicted" in text) == (minutes < 20)
    assert expected[0][0] < expected[1][0] == expected[2][0] == 30
    assert expected[0][1] < expected[1][1] == 60
    # with nothing known of the speed the time decides nothing
    monkeypatch.setattr(first_recipe, "_are_weights_here", lambda _: False)
    document = document_of(simpo, "unknown.yaml", *answered(minutes=1))
    assert (document["time"], document["steps"]["count"], document["steps"]["expected_seconds"]) == (None, 30, None)
    assert "no speed is known; simpo plan unknown.yaml --time" in Path("unknown.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(("model", "pairs"), [("builtin:guide", "builtin:guide"), ("tiny", "twelve.jsonl")])
def test_it_trains(model: str, pairs: str, simpo: Simpo) -> None:
    document_of(simpo, *answered(model=model, pairs=pairs))
    name = f"name={model[:4]}-{pairs[:4]}"
    seen = simpo("train", "recipe.yaml", "--quick", name, "train.num_epochs=1", "train.max_steps=2")
    assert seen.code == 0, seen.err
    rows = Path("runs", name.removeprefix("name="), "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]


def test_a_dozen_pairs(simpo: Simpo) -> None:
    document = document_of(simpo, *answered(pairs="twelve.jsonl"))
    assert document["steps"] | {"expected_seconds": 0, "expected_evaluation_seconds": 0} == {
        "count": 6, "pairs_per_step": 8, "pairs": 10, "held_out_pairs": 2,
        "expected_seconds": 0, "expected_evaluation_seconds": 0,
    }  # fmt: skip
    assert document["recipe"]["train.warmup_ratio"] == 0
    assert simpo("train", "recipe.yaml", "--dry-run").code == 0
    assert [remark.split(",")[0] for remark in document["remarks"]] == ["steps: 6", "held-out pairs: 2"]
    assert simpo("recipe", "check", "recipe.yaml").out == "recipe.yaml: no remarks.\n"


def test_pairs_with_errors_are_named_first_and_cleaned_by_the_next_command(simpo: Simpo, place: Path) -> None:
    seen = simpo("init", *answered(pairs="bad.jsonl"))
    assert seen.code == 0, seen.err
    codes = [line.split()[:2] for line in seen.out.splitlines() if line.startswith(("  error", "  warning"))]
    assert codes[:2] == [["error", "LBL002"], ["error", "FMT001"]]
    assert "line 46: chosen: expected text or messages, got number" in seen.out
    assert compose("recipe.yaml").recipe.data.on_bad_record == "skip"
    assert simpo("recipe", "check", "recipe.yaml").code == 0
    commands = [line.removeprefix("next").strip() for line in seen.out.splitlines() if "   simpo " in line]
    assert commands[:2] == [
        "simpo stats bad.jsonl --on-bad-record skip --write-clean bad-clean.jsonl",
        "simpo train recipe.yaml data.train=bad-clean.jsonl",
    ]
    assert simpo(*shlex.split(commands[0])[1:]).code == 0
    assert len((place / "bad-clean.jsonl").read_text().splitlines()) == 35
    assert simpo(*shlex.split(commands[1])[1:], "--dry-run").code == 0
    for written in place.glob("bad-clean.jsonl*"):
        written.unlink()


# What fits


def fitting(monkeypatch: pytest.MonkeyPatch, available: int, *, device: str = "cpu") -> None:
    opened = SimpleNamespace(device=torch.device(device)), "fp32"
    monkeypatch.setattr(first_recipe, "open_accelerator", lambda _: opened)
    monkeypatch.setattr(first_recipe, "available_bytes", lambda _: available)
    monkeypatch.setattr(first_recipe, "device_name", lambda _: "a made-up device")


def least(device: str, way: dict[str, Any]) -> int:
    """Bytes that the run takes with one pair at a time, as `simpo plan` has them."""
    lengths = {"data.max_length": 64, "data.max_prompt_length": 56}
    looked_at = survey(recipe_of({"model.path": "wider", "data.train": "prefs.jsonl", **lengths, **way}), weights=True)
    work = looked_at.workload(torch.device(device), "fp32", 0)
    return work.training(checkpointing=True).total(looked_at.longest)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_adapters_where_all_weights_do_not_fit_and_4_bits_where_adapters_do_not(
    device: str, simpo: Simpo, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    save_tiny_model(place / "wider", hidden_size=128, intermediate_size=512, num_hidden_layers=8)
    adapters = {"model.lora.rank": 16}
    needs = [least(device, way) for way in ({}, adapters, adapters | {"model.quantization": "nf4"})]
    assert needs == sorted(needs, reverse=True)
    ways = ["all weights", "adapters", "adapters" if device == "cpu" else "adapters beside weights in 4 bits"]
    for number, (way, need) in enumerate(zip(ways, needs, strict=True)):
        fitting(monkeypatch, need + 1000, device=device)
        file = f"{device}-{number}.yaml"
        memory = document_of(simpo, file, *answered(model="wider"))["memory"]
        assert (memory["trained"], memory["fits"]) == (way, device == "cuda" or number < 2)
        composed = compose(file)
        assert (composed.recipe.model.lora is None) == (way == "all weights")
        assert composed.recipe.model.quantization == ("nf4" if "4 bits" in way else None)
        assert composed.recipe.train.learning_rate == (5e-6 if way == "all weights" else 5e-5)
        assert composed.warnings == ()
    text = Path(f"{device}-2.yaml").read_text(encoding="utf-8")
    assert "    rank: 16 # adapters, since all weights need 0.0" in text
    assert ("  quantization: nf4 # since adapters need 0.0" in text) == (device == "cuda")


def test_a_recipe_that_fits_nowhere_here_is_planned_next(simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting(monkeypatch, 1000)
    seen = simpo("init", *answered())
    assert seen.code == 0, seen.err
    assert "next    simpo plan recipe.yaml                   which devices would do\n" in seen.out
    assert "it does not fit on this machine" in " ".join(seen.out.split())
    assert "no speed is known" in seen.out


# What is refused, and leaves nothing


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (answered(model="nowhere"), 2, "--model: the model folder nowhere does not exist"),
        (answered(model="org/no-such-model"), 4, "--model: org/no-such-model is not here"),
        (answered(model="prefs.jsonl"), 2, "--model: prefs.jsonl is a file of pairs, and a model folder is wanted"),
        (answered(model="a\x1bb"), 2, "--model: model.path is 'a\\x1bb': it holds a control character"),
        (answered(pairs="perfs.jsonl"), 2, "--pairs: perfs.jsonl does not exist"),
        (answered(pairs="org/no-such-pairs"), 4, "--pairs: org/no-such-pairs is not here"),
        (answered(pairs="empty.jsonl"), 2, "--pairs: empty.jsonl: holds no records"),
        (answered(pairs="broken.jsonl"), 2, "--pairs: broken.jsonl"),
        (answered(pairs="letter.txt"), 2, "--pairs: letter.txt"),
        (answered(minutes=0), 2, "--minutes: '0' is no time"),
        (answered("fun"), 2, "Invalid value for '--for': 'fun' is not one of 'try', 'assistant', 'general'"),
        (answered()[:4], 2, "--for, --minutes are missing, and there is no terminal to ask."),
        ([], 2, "--model, --pairs, --for, --minutes are missing, and there is no terminal"),
        (["recipe.json", *answered()], 2, "'recipe.json' is no name for a recipe"),
        (["..yaml", *answered()], 2, "'..yaml' is no name for a recipe"),
        (["no/where.yaml", *answered()], 2, "the folder no does not exist"),
    ],
)
def test_what_is_refused(words: list[str], code: int, said: str, simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object) -> None:
        raise AssertionError("HF_HUB_OFFLINE")

    monkeypatch.setattr("socket.socket.connect", no_socket)
    before = sorted(os.listdir())
    seen = simpo("init", *words)
    assert (seen.code, seen.out) == (code, ""), seen.err
    assert said in seen.err
    assert sorted(os.listdir()) == before


def test_a_file_that_is_there_is_never_overwritten(simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.yaml").write_text("name: mine\n")
    Path("link.yaml").symlink_to("nowhere.yaml")
    for file in ("mine.yaml", "link.yaml"):
        seen = simpo("init", file)  # before anything is asked or missed
        assert (seen.code, seen.out) == (2, "")
        assert f"{file} exists, and is not overwritten." in seen.err
    made = first_recipe.first_recipe

    def made_meanwhile(*given: Any, **named: Any) -> Any:
        Path("late.yaml").write_text("name: late\n")
        return made(*given, **named)

    monkeypatch.setattr(first_recipe, "first_recipe", made_meanwhile)
    assert simpo("init", "late.yaml", *answered()).code == 2
    assert [Path(file).read_text() for file in ("mine.yaml", "late.yaml")] == ["name: mine\n", "name: late\n"]


def test_a_full_disk_leaves_no_half_of_it(simpo: Simpo, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(os.listdir())
    monkeypatch.setattr(os, "fsync", full)
    seen = simpo("init", *answered())
    assert seen.code == ExitCode.ENVIRONMENT
    assert "recipe.yaml cannot be written: No space left on device." in seen.err
    assert sorted(os.listdir()) == before


def test_names_of_others_cannot_write_into_the_recipe(simpo: Simpo, place: Path) -> None:
    name = "a\u2028output_dir: elsewhere\u2028#.jsonl"
    write_pairs(place, name, pairs_of(12))
    document_of(simpo, *answered(pairs=name))
    (place / name).unlink()
    recipe = compose("recipe.yaml").recipe
    assert (recipe.data.train[0].path, recipe.output_dir) == (name, "runs/recipe")


# Questions


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Ask = Callable[..., tuple[Seen, str]]


@pytest.fixture
def asked(simpo: Simpo) -> Ask:
    """Runs `simpo init` at a made-up terminal where these lines are typed; also gives what stood at its questions."""

    def ask(lines: str, *words: str) -> tuple[Seen, str]:
        terminal = Terminal()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", Terminal(lines))
            patch.setattr(sys, "stderr", terminal)
            seen = simpo("init", *words)
        return seen, terminal.getvalue()

    return ask


def test_four_questions_each_asked_until_the_answer_means_something(asked: Ask) -> None:
    typed_in = "nowhere\ntiny\nperfs.jsonl\ntwelve.jsonl\nfun\nassistant\nsoon\n\n"
    seen, shown = asked(typed_in, "mine.yaml")
    assert seen.code == ExitCode.DONE, shown
    starts = [shown.index(f"\n{start}") for start in ("Which model?", "Which pairs?", "What for?", "How many minutes")]
    assert starts == sorted(starts)
    for start, end, default, problem in zip(
        starts,
        [*starts[1:], len(shown)],
        ("builtin:guide", "bad.jsonl", "try", "60"),
        ("the model folder nowhere does not exist", "perfs.jsonl does not exist", "'fun' is none", "'soon' is no time"),
        strict=True,
    ):
        assert shown[start:end].count(f"[{default}] > ") == 2  # asked again, with the reason
        assert problem in shown[start:end]
    assert all(f"  {name:<10} {purpose.title}\n" in shown for name, purpose in PURPOSES.items())
    assert "--model tiny --pairs twelve.jsonl --for assistant --minutes 60\n" in Path("mine.yaml").read_text()


def test_only_what_no_option_says_is_asked(asked: Ask) -> None:
    seen, shown = asked("\n", *answered()[:6])
    assert seen.code == ExitCode.DONE, shown
    assert "Which" not in shown
    assert "\nHow many minutes may the run take on this machine?\n[10] > " in shown
    assert compose("recipe.yaml").recipe.model.path == "tiny"


@pytest.mark.parametrize("lines", ["", "tiny\n", "tiny\ntwelve.jsonl\ntry\n"])
def test_leaving_at_a_question_writes_nothing(lines: str, asked: Ask) -> None:
    seen, shown = asked(lines)
    assert seen.code == ExitCode.INTERRUPTED
    assert shown.endswith("Interrupted.\n")
    assert not list(Path().glob("*.yaml"))


def test_ctrl_c_at_a_terminal(place: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "simpo_cli", "init", "left.yaml"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    take_terminal = partial(fcntl.ioctl, theirs, termios.TIOCSCTTY, 0)
    with subprocess.Popen(
        command, **streams, cwd=place, env=environment, start_new_session=True, preexec_fn=take_terminal
    ) as process:
        os.close(theirs)
        shown = b""
        while b"[builtin:guide] > " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, b"ti\x03")
        code = process.wait(timeout=30)
    os.close(ours)
    assert code == ExitCode.INTERRUPTED
    assert not (place / "left.yaml").exists()


def test_the_flag_for_remote_code_stays_in_the_commands() -> None:
    wanted = Wanted("my run.yaml", "model", "pairs.jsonl", "try", 10, trust_remote_code=True)
    assert wanted.command("train", "seed=1") == "simpo train 'my run.yaml' seed=1 --trust-remote-code"
    assert wanted.own_command.endswith("--for try --minutes 10 --trust-remote-code")


@pytest.mark.parametrize(
    ("parameters", "full", "adapters"), [(8e9, 1e-6, 1e-5), (1e9, 5.3e-6, 5.3e-5), (7e10, 1.76e-7, 1.76e-6)]
)
def test_what_models_of_a_size_take(parameters: float, full: float, adapters: float) -> None:
    assert usual_rate(int(parameters), adapters=False) == pytest.approx(full, rel=0.02)
    assert usual_rate(int(parameters), adapters=True) == pytest.approx(adapters, rel=0.02)


def test_the_help_fits_and_names_the_purposes() -> None:
    shown = CliRunner().invoke(cli.app, ["init", "--help"], env={"COLUMNS": "80"}).output
    assert all(f"{name}:" in shown for name in PURPOSES)
    assert all(option in shown for option in ("--model", "--pairs", "--for", "--minutes", "--json", "recipe.yaml"))
