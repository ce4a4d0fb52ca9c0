"""Results of lm-evaluation-harness as it writes them: read, set side by side, shown with their errors."""

import io
import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from simpo_cli.cli.main import run as simpo
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.harness import harness_document, is_harness, read_harness
from simpo_cli.report.console import make_console
from simpo_cli.report.eval_view import print_harness
from tests.cli.test_help import imported_by


def results(model: str, **tasks: dict[str, Any]) -> dict[str, Any]:
    """A document of the harness, version 0.4, with what we read and what we leave."""
    return {
        "results": {name: {"alias": name, **numbers} for name, numbers in tasks.items()},
        "group_subtasks": {},
        "configs": {},
        "versions": dict.fromkeys(tasks, 1.0),
        "n-shot": dict.fromkeys(tasks, 5),
        "higher_is_better": {name: {"acc": True, "word_perplexity": False} for name in tasks},
        "n-samples": {name: {"original": 1000, "effective": 200} for name in tasks},
        "config": {"model": "hf", "model_args": f"pretrained={model},dtype=float32"},
        "date": 1.0,
        "model_source": "hf",
        "model_name": model,
        "model_name_sanitized": model.replace("/", "__"),
    }


def write(folder: Path, document: Any, time: str = "2026-01-01T00-00-00.000001") -> Path:
    file = folder / f"results_{time}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "harness.schema.json").read_text(encoding="utf-8"))


def document_of(*folders: Path) -> dict[str, Any]:
    """The document of folders of results, which keeps to its schema."""
    document = harness_document([model for folder in folders for model in read_harness(folder)])
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(json.dumps(document)))
    return document


ARC = {"acc,none": 0.4, "acc_stderr,none": 0.03, "acc_norm,none": 0.5, "acc_norm_stderr,none": 0.04}


def test_numbers_with_their_errors(tmp_path: Path) -> None:
    gsm = {
        "exact_match,strict-match": 0.1,
        "exact_match_stderr,strict-match": 0.02,
        "exact_match,flexible-extract": 0.2,
    }
    write(tmp_path / "org__a", results("org/a", arc=ARC, gsm8k={**gsm, "exact_match_stderr,flexible-extract": "N/A"}))
    ((model, scores),) = read_harness(tmp_path)
    assert model == "org/a"
    assert {(place, score.value, score.stderr) for place, score in scores.items()} == {
        (("arc", "acc", "none"), 0.4, 0.03),
        (("arc", "acc_norm", "none"), 0.5, 0.04),
        (("gsm8k", "exact_match", "strict-match"), 0.1, 0.02),
        (("gsm8k", "exact_match", "flexible-extract"), 0.2, None),
    }
    score = scores["arc", "acc", "none"]
    assert (score.n, score.shots, score.higher_is_better) == (200, 5, True)


def test_the_newest_of_each_task_counts(tmp_path: Path) -> None:
    folder = tmp_path / "org__a"
    write(folder, results("org/a", arc={**ARC, "acc,none": 0.9}), "2026-03-01T00-00-00.0")
    write(folder, results("org/a", arc=ARC, boolq={"acc,none": 0.6, "acc_stderr,none": 0.01}), "2026-02-01T00-00-00.0")
    ((_, scores),) = read_harness(tmp_path)
    assert scores["arc", "acc", "none"].value == 0.9
    assert scores["boolq", "acc", "none"].value == 0.6


def test_two_models_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "a", results("org/a", arc=ARC, only_a={"acc,none": 0.2, "acc_stderr,none": 0.1}))
    write(tmp_path / "b", results("org/b", arc={**ARC, "acc,none": 0.5, "acc_stderr,none": 0.04}))
    document = document_of(tmp_path)
    assert document["models"] == ["org/a", "org/b"]
    rows = {(row["task"], row["metric"]): row for row in document["rows"]}
    (gap,) = rows["arc", "acc"]["differences"]
    assert gap["value"] == pytest.approx(0.1)
    assert gap["stderr"] == pytest.approx(0.05)  # 3, 4, 5
    assert gap["ci"] == pytest.approx([0.1 - 1.96 * 0.05, 0.1 + 1.96 * 0.05], abs=1e-4)
    assert rows["only_a", "acc"]["scores"][1] is None
    assert rows["only_a", "acc"]["differences"] == [None]


def test_numbers_that_were_asked_in_another_way_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "a", results("org/a", arc=ARC))
    write(tmp_path / "b", {**results("org/b", arc=ARC), "n-shot": {"arc": 0}})
    assert {gap for row in document_of(tmp_path)["rows"] for gap in row["differences"]} == {None}


def test_the_form_of_version_3(tmp_path: Path) -> None:
    old = {"results": {"arc": {"acc": 0.4, "acc_stderr": 0.03}}, "config": {"model_args": "pretrained=a,peft=b"}}
    ((model, scores),) = read_harness(write(tmp_path, old))
    document_of(tmp_path)
    assert model == "b"
    assert scores["arc", "acc", "none"].stderr == 0.03
    assert scores["arc", "acc", "none"].shots is None


def test_what_does_not_keep_to_the_schema(tmp_path: Path) -> None:
    write(tmp_path, results("org/a", arc=ARC))
    document = document_of(tmp_path)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    row = document["rows"][0]
    for broken in (
        {**document, "rows": [{**row, "scores": []}]},
        {**document, "kind": "answers"},
        {**document, "x": 1},
    ):
        assert not validator.is_valid(broken)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "cannot be read"), ('{"a": 1}', "holds no results of lm-evaluation-harness"), ("[]", "holds no results")],
)
def test_files_that_are_no_results(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "results_1.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_harness(tmp_path)


def test_what_is_a_folder_of_results(tmp_path: Path) -> None:
    assert not is_harness(tmp_path)
    file = write(tmp_path / "deep" / "a", results("a", arc=ARC))
    assert is_harness(tmp_path)
    assert is_harness(file)
    (tmp_path / "config.json").write_text("{}")
    assert not is_harness(tmp_path), "a model that keeps its results beside it is a model"
    with pytest.raises(UserError, match=r"holds no results_\*.json"):
        read_harness(tmp_path / "nowhere")


def test_the_screen(tmp_path: Path) -> None:
    write(
        tmp_path / "a", results("org/a", arc={"acc,none": 0.4, "acc_stderr,none": 0.03, "word_perplexity,none": 12.0})
    )
    write(tmp_path / "b", results("org/b", arc={"acc,none": 0.5, "acc_stderr,none": 0.04}))
    document = document_of(tmp_path)
    shown = {}
    for width in (120, 60):
        stream = io.StringIO()
        print_harness(make_console(stream, width=width), document)
        shown[width] = stream.getvalue()
        assert all(len(line) <= width for line in shown[width].splitlines())
    cells = [line.split("   ") for line in shown[120].splitlines()]
    assert ["arc, acc, 5-shot", "0.4000 ± 0.0300", "0.5000 ± 0.0400", "+0.1000 ± 0.0500"] in [
        [cell.strip() for cell in line if cell.strip()] for line in cells
    ]
    assert "12.0000 (no error given)" in shown[120]
    assert "(lower is better)" in shown[120]
    assert "    B - A  +0.1000 ± 0.0500" in shown[60]
    assert "as of independent samples" in shown[60]


def test_the_command_reads_folders_without_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, results(f"org/{name}", arc=ARC))
    code, imported = imported_by("eval", "a", "b", cwd=tmp_path)
    assert code == ExitCode.DONE
    assert imported.isdisjoint({"torch", "transformers", "datasets", "accelerate", "peft"})
    assert simpo(["eval", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == ExitCode.DONE
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "lm-evaluation-harness"
    assert math.isclose(document["rows"][0]["differences"][0]["stderr"], 0.03 * math.sqrt(2))
    assert simpo(["eval", str(tmp_path / "a"), "demo"]) == ExitCode.USAGE
    assert "demo is no folder of results" in capsys.readouterr().err
    assert simpo(["eval", str(tmp_path / "a"), "loss.beta=3"]) == ExitCode.USAGE
    assert "loss.beta=3 is for scoring pairs" in capsys.readouterr().err
