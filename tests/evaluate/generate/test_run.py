"""`simpo eval --generate` end to end on tiny models: a run, an adapter, a checkpoint, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from simpo_cli.cli.main import run as simpo
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate import decode
from simpo_cli.evaluate.generate.folder import MANIFEST
from simpo_cli.evaluate.generate.measures import answers_document
from simpo_cli.evaluate.generate.run import Wanted, answer_prompts
from tests.evaluate.conftest import HELD_OUT, ignore
from tests.evaluate.local_judge import completion, judge_server
from tests.report.made_answers import fill_in

Answer = Callable[..., Path]
SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "answers.schema.json").read_text(encoding="utf-8"))


@pytest.fixture
def answer(place: Path, tmp_path: Path) -> Answer:
    """Let a model of the place answer into a folder."""

    def answered(name: str, *overrides: str, baseline: str | None = None, say: Any = ignore, **changes: Any) -> Path:
        values: dict[str, Any] = {
            "prompts": None,
            "num_prompts": 5,
            "max_new_tokens": 4,
            "temperature": 0.7,
            "engine": "transformers",
            "folder": tmp_path / "answers",
        }
        return answer_prompts(str(place / name), overrides, baseline, Wanted(**{**values, **changes}), say)

    return answered


def test_a_run_and_the_model_that_it_started_from(answer: Answer, place: Path) -> None:
    said: list[str] = []
    path = answer("run", say=said.append)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    assert {side: model["path"] for side, model in manifest["models"].items()} == {
        "base": str(place / "tiny"),
        "trained": str(place / "run" / "model"),
    }
    hashes = [tuple(model["sha256"].values()) for model in manifest["models"].values()]
    assert hashes[0] != hashes[1]
    assert manifest["stop_tokens"] == [{"id": 2, "text": "<|im_end|>"}]
    assert manifest["prompts"]["count"] == 5
    assert said[-1] == "run, sampled: 5 of 5"
    document = answers_document(path)
    assert document["measures"]["greedy"]["prompts"] == 5
    assert document["people"] is None
    for mode in ("greedy", "sampled"):
        rows = json.loads((path / "alpaca_eval" / mode / "run.json").read_text(encoding="utf-8"))
        assert [set(row) for row in rows] == [{"instruction", "output", "generator", "dataset"}] * 5
        arena = path / "arena_hard" / mode
        asked = [json.loads(line) for line in (arena / "question.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("tiny", "run"):
            told = (arena / "model_answer" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            assert [json.loads(line)["uid"] for line in told] == [question["uid"] for question in asked]


def test_a_second_call_goes_on_and_another_one_is_refused(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_MOST_ROWS", 2)
    asked: list[str] = []
    batch = decode.answer_batch

    def stopped_at_the_fourth(model: Any, questions: Any, *rest: Any) -> Any:
        if len(asked) >= 6:
            raise KeyboardInterrupt
        asked.extend(question.key for question in questions)
        return batch(model, questions, *rest)

    monkeypatch.setattr(decode, "answer_batch", stopped_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        answer("run")
    monkeypatch.setattr(
        decode, "answer_batch", lambda *given: (again.extend(q.key for q in given[1]), batch(*given))[1]
    )
    again: list[str] = []
    path = answer("run")
    assert len(asked) + len(again) == 2 * 2 * 5, "every model answered every prompt once in either mode"
    straight = answer("run", folder=path.parent / "straight")
    for name in ("base.greedy", "base.sampled", "trained.greedy", "trained.sampled"):
        assert (path / f"{name}.jsonl").read_bytes() == (straight / f"{name}.jsonl").read_bytes()
    again.clear()
    answer("run")
    assert not again, "all is there"
    with pytest.raises(UserError, match="made otherwise: decoding.temperature is 0.8, was 0.7"):
        answer("run", temperature=0.8)
    with pytest.raises(UserError, match="made otherwise: prompts.count is 4, was 5, prompts.sha256 differs"):
        answer("run", num_prompts=4)


def test_adapters_and_checkpoints_answer_as_they_are(answer: Answer, place: Path, tmp_path: Path) -> None:
    checkpoint = max((place / "run" / "checkpoints").iterdir())
    for number, name in enumerate(("lora", str(checkpoint.relative_to(place)))):
        path = answer(name, folder=tmp_path / str(number))
        texts = [(path / f"{side}.greedy.jsonl").read_text(encoding="utf-8") for side in ("base", "trained")]
        assert texts[0] != texts[1], name
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        assert len(manifest["models"]["trained"]["sha256"]) == 2, "what is below it counts too"


def test_a_file_of_prompts_and_another_baseline(answer: Answer, place: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.json"
    file.write_text('["one?", "two?", "one?"]', encoding="utf-8")
    path = answer("run", baseline=str(place / "again"), prompts=str(file), num_prompts=None)
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    assert (manifest["models"]["base"]["name"], manifest["models"]["trained"]["name"]) == ("again", "run")
    assert manifest["prompts"]["count"] == 2
    assert manifest["prompts"]["left_out"] == {"asked already": 1}


def test_without_a_number_at_most_a_hundred_are_asked_and_the_length_is_what_fits(answer: Answer) -> None:
    path = answer("run", num_prompts=None, max_new_tokens=1)
    questions = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["prompts"]
    assert questions["count"] + questions["left_out"]["asked already"] == HELD_OUT


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("recipe.yaml", {}, "there is nothing to compare with"),
        ("run", {"baseline": "none"}, "there is nothing to compare with"),
        ("run", {"num_prompts": 0}, "--num-prompts is 0"),
        ("run", {"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ("run", {"max_new_tokens": 5000}, "no room for answers of 5,000"),
        ("run", {"temperature": 0.0}, "--temperature is 0"),
        ("run", {"temperature": float("nan")}, "--temperature is nan"),
        ("run", {"prompts": "nowhere.json"}, "there is no file of prompts"),
        ("lora", {"engine": "vllm"}, "vLLM is not installed, or one of the models is an adapter"),
    ],
)
def test_what_is_refused(answer: Answer, name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        answer(name, **changes)


def test_a_folder_with_other_things_in_it_is_left_alone(answer: Answer, tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists and holds no answers"):
        answer("run")
    (tmp_path / "answers" / "mine.txt").unlink()
    (tmp_path / "answers" / ".prompts.jsonl").write_text("x")  # of a call that was killed as it began
    answer("run")


def test_the_command_generates_judges_and_shows(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    folder = tmp_path / "answers"
    generate = ["--generate", "--num-prompts", "5", "--max-new-tokens", "4", "--answers", str(folder)]
    with judge_server(lambda _: completion("Verdict: A")) as server:
        judge = ["--judge", server.url, "--judge-model", "toy"]
        assert simpo(["eval", str(place / "run"), *generate, *judge, "--json"]) == ExitCode.DONE
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.validate(document)
    assert document["judges"][0]["first_shown_wins"] == 1.0
    replies = 2 * (5 - document["measures"]["greedy"]["same_answers"])
    assert f"judged: {replies} of {replies}" in shown.err
    fill_in(folder, lambda _row: "tie")
    assert simpo(["eval", str(folder), "--json"]) == ExitCode.DONE
    filled = json.loads(capsys.readouterr().out)
    validator.validate(filled)
    assert filled["people"]["open"] == 0
    for broken in ({**filled, "extra": 1}, {**filled, "people": {}}, {**filled, "judges": None}):
        assert not validator.is_valid(broken)
    assert simpo(["eval", str(folder)]) == ExitCode.DONE
    shown = capsys.readouterr()
    assert shown.out.startswith("answers of run and tiny\n5 prompts of ")
    assert "The answer shown first won 100.0 % of the decided verdicts." in shown.out
    assert "Only 5 prompts: too few to conclude much," in shown.out
    assert shown.err == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--num-prompts", "3"], "--num-prompts says how answers are made."),
        (["--judge", "http://localhost/v1", "--judge-model", "x"], "a judge compares answers, and none are named."),
        (["--judge-model", "x"], "--judge-model needs a judge."),
        (["--generate", "--judge", "http://localhost/v1"], "--judge does not say which model judges."),
        (["--generate", "--html", "x.html"], "--html is for scoring pairs, and none are scored here."),
        (["--generate", "--judge", "localhost", "--judge-model", "x"], "which is no address."),
    ],
)
def test_options_that_would_do_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert simpo(["eval", str(place / "run"), *options]) == ExitCode.USAGE
    first, _ = capsys.readouterr().err.splitlines()
    assert first.endswith(said)
