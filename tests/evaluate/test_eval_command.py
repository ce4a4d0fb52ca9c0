"""The command line of `simpo eval`: documents with their schema and pages, files that are ours alone, exit codes."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from simpo_cli.cli.main import app
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.report.eval_page import eval_page
from simpo_cli.statistics import mean, proportion
from tests.report.parsed_page import Page

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "eval.schema.json").read_text(encoding="utf-8"))
Document = Callable[..., dict[str, Any]]


def simpo_eval(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_documents_keep_to_their_schema(document: Document) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    one = document("run", by=["source"])
    several = document("run", "again", "lora")
    for found in (one, several, document("recipe.yaml"), several | {"failed": [_failure()], "seeds": []}):
        validator.validate(found)
    for broken in (one | {"accuracy": 0.5}, {**one, "extra": 1}, {k: v for k, v in one.items() if k != "noise"}):
        assert not validator.is_valid(broken)
    assert one["schema_version"] == 2


def _failure() -> dict[str, Any]:
    return {"model": "m", "problem": "p", "fix": "f", "where": "", "exit_code": 4}


def test_every_way_to_have_the_result_at_once(place: Path, tmp_path: Path) -> None:
    output, page, pairs = tmp_path / "report.json", tmp_path / "page.html", tmp_path / "pairs.jsonl"
    done = simpo_eval(place / "run", "--json", "--output", output, "--html", page, "--pairs", pairs, "--by", "source")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads(output.read_text(encoding="utf-8"))
    assert "tokens of" in done.stderr
    assert "from the cache" in done.stderr or "made in" in done.stderr
    assert f"written: {pairs}" in done.stderr

    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows]
    right = proportion([row["margin"] > 0 for row in rows], prompts)
    assert found["accuracy"] == right.as_json()
    gain = mean([row["margin"] - row["margin_baseline"] for row in rows], prompts)
    assert found["difference"]["margin"]["ci"] == pytest.approx([gain.low, gain.high])
    assert {row["source"] for row in rows} == {"first", "second"}
    assert rows[0]["margin"] == pytest.approx(2 * (rows[0]["chosen"] - rows[0]["rejected"]))

    parsed = Page(page.read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert "95 % interval" in "".join(parsed.text)
    assert page.stat().st_size < 2_000_000

    again = simpo_eval(place / "run", "--output", output, "--html", page, "--pairs", pairs, "--baseline", "none")
    assert again.exit_code == 0, again.output  # what is ours may be replaced
    assert again.stdout == ""


def test_parquet_holds_the_same_rows(place: Path, tmp_path: Path) -> None:
    for name in ("pairs.jsonl", "pairs.parquet"):
        done = simpo_eval(place / "run", "--baseline", "none", "--pairs", tmp_path / name)
        assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert pyarrow.parquet.read_table(tmp_path / "pairs.parquet").to_pylist() == rows
    assert rows[0]["margin_baseline"] is None


@pytest.mark.parametrize("option", ["--output", "--html", "--pairs"])
def test_what_is_not_ours_is_never_replaced(place: Path, tmp_path: Path, option: str) -> None:
    target = tmp_path / ("thesis.jsonl" if option == "--pairs" else "thesis.txt")
    target.write_text('{"mine": 1}', encoding="utf-8")
    refused = simpo_eval(place / "run", option, target)
    assert isinstance(refused.exception, UserError)
    assert "Name another file" in refused.exception.fix
    assert target.read_text(encoding="utf-8") == '{"mine": 1}'


def test_a_file_of_pairs_of_another_kind_is_refused(place: Path, tmp_path: Path) -> None:
    refused = simpo_eval(place / "run", "--pairs", tmp_path / "pairs.csv")
    assert isinstance(refused.exception, UserError)
    assert ".jsonl or .parquet" in refused.exception.fix


def test_files_named_with_data_are_scored(place: Path, tmp_path: Path) -> None:
    lines = (place / "held.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    odd = tmp_path / "it's, {odd}.jsonl"
    odd.write_text("".join(lines[:15]), encoding="utf-8")
    done = simpo_eval(place / "run", "--data", odd, "--data", place / "held.jsonl", "--baseline", "none", "--json")
    assert done.exit_code == 0, done.output
    assert [one["pairs"] for one in json.loads(done.stdout)["slices"]["file"]] == [60, 15]


def test_a_failure_among_several_ends_with_its_code_after_what_was_scored(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "tiny", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"")
    output = tmp_path / "report.json"
    done = simpo_eval(place / "run", tmp_path / "broken", "--baseline", "none", "--output", output, "--json")
    assert isinstance(done.exception, UserError)
    assert "1 of 2 models could not be scored" in done.exception.problem
    assert done.exception.exit_code == ExitCode.USAGE
    found = json.loads(output.read_text(encoding="utf-8"))
    assert found == json.loads(done.stdout)
    assert [one["model"] for one in found["evaluations"]] == [f"{place}/run/model"]
    assert found["failed"][0]["model"] == str(tmp_path / "broken")


def test_a_model_keeps_its_own_numbers_where_its_baseline_is_gone(place: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(place / "tiny", broken)
    (broken / "model.safetensors").write_bytes(b"")
    output, page = tmp_path / "report.json", tmp_path / "page.html"
    done = simpo_eval(place / "run", "--baseline", broken, "--output", output, "--html", page, "--json")
    assert isinstance(done.exception, UserError)
    said = "the model was scored, but not compared with the baseline: "
    assert done.exception.problem.startswith(f"{said}{broken}: {broken}/model.safetensors: cannot be read")
    assert done.exception.exit_code == ExitCode.USAGE
    found = json.loads(output.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    assert found == json.loads(done.stdout)
    assert (found["baseline"], found["difference"]) == (None, None)
    assert found["not_compared"]["model"] == str(broken)
    assert f"Not compared with the baseline: {broken}" in "".join(Page(page.read_text(encoding="utf-8")).text)
    alone = json.loads(simpo_eval(place / "run", "--baseline", "none", "--json").stdout)
    assert {**found, "not_compared": None} == {**alone, "token_cache": found["token_cache"]}
    shown = simpo_eval(place / "run", "--baseline", broken)
    assert "\nnot compared  /" in shown.stdout
    assert "\naccuracy " in shown.stdout


def test_nothing_to_score_is_a_mistake_of_the_command_line() -> None:
    refused = simpo_eval("loss.beta=2")
    assert isinstance(refused.exception, UserError)
    assert "nothing is named" in refused.exception.problem


def test_the_page_of_several_models_shows_each_and_escapes_names(document: Document) -> None:
    found = json.loads(json.dumps(document("run", "again", "lora")))
    hostile = "<script>alert('x')</script>{{ 7*7 }}"
    found["evaluations"][0]["model"] = hostile
    found["failed"] = [_failure() | {"problem": hostile}]
    parsed = Page(eval_page(found))
    text = "".join(parsed.text)
    assert text.count(hostile) >= 3
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert "what the recipes say differently" in text
    assert sum(tag == "svg" for tag, _ in parsed.tags) >= 3


DOCS = Path(__file__).parents[2] / "docs"
TOLD_IN_WORDS = {"schema_version", "model", "models", "data", "prompts", "value", "ci", "n", "from", "to", "confidence"}


def keys(node: Any) -> Iterator[str]:
    """The names of all properties of a schema."""
    if isinstance(node, dict):
        properties = node.get("properties", {})
        yield from properties
        for below in node.values():
            yield from keys(below)
    elif isinstance(node, list):
        for below in node:
            yield from keys(below)


def keys_of(name: str) -> set[str]:
    return set(keys(json.loads((DOCS / name).read_text(encoding="utf-8"))))


def told_in(page: str) -> set[str]:
    """The words that stand between backticks."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return {word for quoted in re.findall(r"`([^`]+)`", text) for word in re.split(r"[.,\s]+", quoted)}


def test_every_key_of_scored_pairs_is_explained() -> None:
    alike = {"bins", "type", "beta", "gamma", "largest", "key", "values", "checkpoint", "problem", "fix", "exit_code"}
    assert keys_of("eval.schema.json") - told_in("evaluation.md") - TOLD_IN_WORDS - alike == set()


@pytest.mark.parametrize("name", ["answers.schema.json", "harness.schema.json"])
def test_every_key_of_answers_and_results_is_explained(name: str) -> None:
    assert keys_of(name) - told_in("generation.md") - {"value", "ci", "n"} == set()
