"""`simpo export` and `simpo report` as a shell sees them: refusals before torch, and a page."""

import json
import re
from pathlib import Path

import pytest

from simpo_cli.cli.main import run as simpo
from simpo_cli.errors import ExitCode
from simpo_cli.versions import install_command
from tests.report.made_run import eval_row, outcome, receipt_of, write_run
from tests.tiny import CHATML
from tests.train.runs import tiny_runs


def _run_folder(folder: Path, *files: str) -> Path:
    for name in ("run.json", *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(receipt_of()) if name == "run.json" else "{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "args", "code", "said"),
    [
        (["model/adapter_config.json"], [], ExitCode.USAGE, "Add --merge to merge adapters, --gguf q8_0 to"),
        ([], ["--merge"], ExitCode.ENVIRONMENT, "has no model yet"),
        (["model/config.json"], ["--merge"], ExitCode.USAGE, "trained all weights"),
        (["model/adapter_config.json", "merged/config.json"], ["--merge"], ExitCode.USAGE, "exists already"),
        (["model/adapter_config.json"], ["--merge", "--dtype", "int8"], ExitCode.USAGE, "int8"),
        (["model/config.json"], ["--push", "a/b", "--output", "x"], ExitCode.USAGE, "Add --merge or --gguf"),
        (["model/config.json"], ["--gguf", "q4_0"], ExitCode.USAGE, "q4_0"),
        (["model/config.json"], ["--gguf", "bf16", "--merge"], ExitCode.USAGE, "Leave --merge, --dtype and --push out"),
        (["model/config.json"], ["--gguf", "bf16", "--dtype", "fp16"], ExitCode.USAGE, "one file of its own type"),
        (["model/config.json"], ["--gguf", "bf16", "--push", "a/b"], ExitCode.USAGE, "and pushes nothing"),
        (["model/config.json"], ["--gguf", "bf16", "--trust-remote-code"], ExitCode.USAGE, "none is loaded"),
        ([], ["--gguf", "bf16"], ExitCode.ENVIRONMENT, "has no model yet"),
        (["model/config.json", "run-bf16.gguf"], ["--gguf", "bf16"], ExitCode.USAGE, "exists already"),
        (["model/config.json", "Modelfile"], ["--gguf", "bf16"], ExitCode.USAGE, "was not written by simpo"),
    ],
)
def test_what_cannot_be_exported_says_why(
    files: list[str], args: list[str], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simpo(["export", str(_run_folder(tmp_path / "run", *files)), *args]) == code
    assert said in capsys.readouterr().err


def test_a_missing_package_is_named_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("simpo_cli.versions.find_spec", lambda _: None)
    monkeypatch.setattr("simpo_cli.cli.export.importing", lambda: pytest.fail("torch is imported"))
    run = _run_folder(tmp_path / "run", "model/config.json")
    assert simpo(["export", str(run), "--gguf", "q8_0"]) == ExitCode.ENVIRONMENT
    assert f"Run {install_command('gguf')}." in capsys.readouterr().err


def test_a_gguf_file_says_what_was_compared_and_what_to_type(
    tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_runs(tmp_path, tiny_folder, prefs).train("My Run", "train.max_steps=1")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert simpo(["export", "My Run", "--gguf", "q8_0"]) == ExitCode.DONE
    shown = capsys.readouterr()
    said = re.sub(r"(?<= )[\d.]+(?= (nats per|at most))", "N", shown.err)
    assert said.split("read back", 1)[1].splitlines() == [
        " weights equal, 399 response tokens within 0 nats",
        "tokens    equal for 20 texts, pre-tokenizer gpt-2",
        "rounding  N nats per response token against model/, N at most",
        "file      My Run/my-run-q8_0.gguf (0 MB)",
        "next      ollama create my-run -f 'My Run/Modelfile'",
        "          llama-server -m 'My Run/my-run-q8_0.gguf'",
    ]
    assert shown.out == ""
    modelfile = (tmp_path / "My Run" / "Modelfile").read_text(encoding="utf-8")
    assert 'FROM ./my-run-q8_0.gguf\nTEMPLATE """{{ range .Messages }}' in modelfile
    assert modelfile.endswith('PARAMETER stop "<|im_end|>"\n')
    assert simpo(["export", "My Run", "--gguf", "bf16", "--output", "elsewhere/x.gguf"]) == ExitCode.DONE
    assert {path.name for path in Path("elsewhere").iterdir()} == {"x.gguf", "Modelfile"}


def test_a_gguf_file_says_of_adapters_and_templates_what_became_of_them(
    tmp_path: Path, tiny_folder: Path, prefs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dated.jinja").write_text("{{ strftime_now('%Y') }}" + CHATML, encoding="utf-8")
    always = ("model.lora.rank=4", "train.learning_rate=1e-2", f"data.chat_template={tmp_path}/dated.jinja")
    tiny_runs(tmp_path, tiny_folder, prefs, *always).train("run", "train.max_steps=2")
    capsys.readouterr()
    assert simpo(["export", str(tmp_path / "run"), "--gguf", "q8_0"]) == ExitCode.DONE
    said = capsys.readouterr().err
    assert re.search(
        r"^adapters  moved the logits by [\d.e-]+ nats, the type by [\d.e-]+ \(root mean", said, re.MULTILINE
    )
    assert "template  not in Modelfile: Go's language cannot say it; llama-server reads it in the file" in said
    assert "TEMPLATE" not in (tmp_path / "run" / "Modelfile").read_text(encoding="utf-8")


def test_what_is_no_run_is_refused_whatever_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "my.yaml"
    recipe.write_text("name: my\n", encoding="utf-8")
    assert simpo(["export", str(recipe)]) == ExitCode.USAGE
    assert f"A run is made by: simpo train {recipe}" in " ".join(capsys.readouterr().err.split())
    assert simpo(["export", str(tmp_path), "--merge"]) == ExitCode.USAGE
    assert "is not a run" in capsys.readouterr().err


def test_a_report_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", outcome=outcome((0.3, 0.2, 0.4), 0.001), evals=[eval_row(0, 0.5)])
    assert simpo(["report", str(run)]) == ExitCode.DONE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"report  {run / 'report.html'}\n"
    assert "Held-out accuracy rose 30.0 points" in (run / "report.html").read_text(encoding="utf-8").replace(
        "\u00a0", " "
    )


def test_what_is_no_run_is_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simpo(["report", str(tmp_path)]) == ExitCode.USAGE
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"Error: {tmp_path} is not a run."
    assert second.startswith("  Name the folder of a run")
    (tmp_path / "run.json").write_text(json.dumps({"status": "done"}))
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    assert simpo(["report", str(tmp_path)]) == ExitCode.USAGE
    assert f"{tmp_path / 'run.json'}: is not what a run writes: started: is missing." in capsys.readouterr().err
