"""`simpo pairs` as it is typed: what each command prints, and one sentence for what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.cli.main import run
from simpo_cli.errors import ExitCode
from simpo_cli.pairs import rounds, samples
from tests.cli.seen import Simpo, typed
from tests.pairs.folders import Made, write_answers

PROMPTS = '{"prompt": "How do I invite a teammate?", "answer": "People"}\n{"prompt": "What is new?", "answer": "x"}\n'
RULE = 'def score(prompt, answer, record):\n    return len(answer) + (record["answer"] in answer)\n'


@pytest.fixture
def simpo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simpo:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(PROMPTS, encoding="utf-8")
    (tmp_path / "rule.py").write_text(RULE, encoding="utf-8")
    return typed(capfd)


def test_from_prompts_to_pairs(simpo: Simpo) -> None:
    words = ("--model", "builtin:guide", "-n", "3", "--max-new-tokens", "12", "--seed", "3")
    seen = simpo("pairs", "sample", "prompts.jsonl", *words)
    assert (seen.code, seen.out) == (0, ""), seen.err
    assert "sampling 3 x 2 answers by builtin-guide (transformers) into answers/builtin-guide" in seen.err
    assert "next: simpo pairs score answers/builtin-guide --rule FILE.py:function" in seen.err
    again = simpo("pairs", "sample", "prompts.jsonl", *words, "--json")
    assert json.loads(again.out)["decoding"]["seed"] == 3
    assert "all 6 answers are in answers/builtin-guide" in again.err
    seen = simpo("pairs", "score", "answers/builtin-guide", "--rule", "rule.py:score", "--json")
    document = json.loads(seen.out)
    assert (document["answers"], document["scorer"]["rule"]) == (6, "rule.py:score")
    assert document["without_score"] == {}


def _scored(folder: Path) -> None:
    write_answers(
        folder / "answers",
        {
            "How do I invite a teammate, please?": [
                Made("Open People and press Invite.", 1.0),
                Made("I cannot say.", 0.25),
            ],
            "What is new in this app today?": [Made("Nothing at all.", 0.5), Made("Everything is.", 0.5)],
        },
    )


def test_make_prints_the_ledger_and_the_audit(simpo: Simpo, tmp_path: Path) -> None:
    _scored(tmp_path)
    seen = simpo("pairs", "make", "answers", "-o", "prefs.jsonl")
    assert seen.code == 0, seen.err
    assert seen.out.startswith(
        "prefs.jsonl\n"
        "prompts                  2\n"
        "  all scores are equal   1\n"
        "pairs                    1\n"
        "chosen, in tokens: longer in 1, equal in 0, shorter in 0\n"
        "no bar: of two bad answers the less bad one is chosen (--min-score)\n"
        "\n"
        "prefs.jsonl\n"
    ), seen.out
    assert "Could a model win by length alone?" in seen.out
    assert "next: simpo train RECIPE data.train=prefs.jsonl" in seen.err
    document = json.loads(simpo("pairs", "make", "answers", "-o", "prefs.jsonl", "--json").out)
    assert (document["pairs"], document["audit"]["count"]) == (1, 1)
    assert simpo("stats", "prefs.jsonl", "--fail-on", "error").code == 0


REFUSED: dict[str, tuple[str, str]] = {
    "pairs sample prompts.jsonl --model builtin:guide -n 0": ("-n is 0, must be at least 1.", ""),
    "pairs sample prompts.jsonl --model nowhere": ("nowhere is neither a run, nor a model folder, nor a recipe.", ""),
    "pairs sample prompts.jsonl --model builtin:guide --temperature 0": ("gives the same answer 5 times.", "Add -n 1"),
    "pairs sample missing.jsonl --model builtin:guide": ("there is no file of prompts missing.jsonl.", "Name a JSON"),
    "pairs sample prefs.jsonl --model builtin:guide": ("prefs.jsonl:1: is a pair, and prompts", "Add --of-pairs"),
    "pairs sample empty.jsonl --model builtin:guide": ("holds no records: it is empty.", "Name a file"),
    "pairs score answers": ("nothing says who scores.", "Give one of --rule, --reward-model and --judge."),
    "pairs score answers --rule a.py:b --judge http://x": ("several are to score.", "Give one of"),
    "pairs score answers --rule rule.py:score --yes": ("are about a judge.", "Add --judge URL."),
    "pairs score answers --judge http://127.0.0.1:9": ("does not say which model grades.", "Add --judge-model NAME."),
    "pairs score nothing --rule rule.py:score": ("nothing is no folder of answers.", "Make one with: simpo pairs"),
    "pairs score answers --reward-model builtin:guide": ("is a generator, not a reward model", "Name a sequence"),
    "pairs make answers -o answers": ("-o answers is a folder.", "Name a file"),
    "pairs make answers -o prefs.json": ("does not end in .jsonl.", "Pairs are written as JSON lines"),
    "pairs make answers -o prefs.jsonl": ("exists and is not what simpo pairs make wrote.", "Name another file."),
    "pairs make answers -o new.jsonl --by judge": ("has no scores by judge, but by rule.", "Use --by rule."),
    "pairs make answers -o new.jsonl --min-score 9": ("no pair is left of 2 prompts", "Sample more answers"),
    "pairs make answers -o new.jsonl --min-margin nan": ("--min-margin is nan, must be a finite number.", "Leave it"),
    "pairs make answers -o new.jsonl --min-score -inf": ("--min-score is -inf, must be a finite number.", "Leave it"),
    "pairs score answers --rule rule.py:score --rule-timeout inf": ("'--rule-timeout'", "Usage: simpo pairs score"),
    "pairs make answers -o new.jsonl --weaker answers": (
        "holds answers of the same model.",
        "Name answers of a weaker",
    ),
    "pairs make answers -o new.jsonl --weaker answers --min-score 1": ("makes pairs without scores.", "Leave --by"),
    "pairs round demo --rule builtin:guide": ("the recipe names no prompts to ask.", "Add pairs.prompts=FILE"),
    "pairs round demo-round": ("nothing says who scores.", "Give one of"),
    "pairs round demo-round --rule missing.py:f": ("missing.py", ""),
    "pairs round demo-round --judge http://user:pw@127.0.0.1:9 --judge-model m --yes": (
        "--judge holds a password or a query, which would be written down.",
        "Put the key into the environment variable OPENAI_API_KEY",
    ),
    "pairs round demo-round --rule builtin:guide --rounds 0": ("--rounds is 0, must be at least 1.", "3 is"),
    "pairs round demo-round --rule builtin:guide --resume --fresh": (
        "--fresh sets them aside.",
        "Give one of the two.",
    ),
    "pairs round demo-round --rule builtin:guide name=answers output_dir=answers": ("exists and holds no rounds.", ""),
    "pairs round demo-round --rule builtin:guide pairs.prompts=empty.jsonl": ("holds no records", ""),
    "pairs round demo-round --rule builtin:guide pairs.prompts=prefs.jsonl": (
        "is a pair, and prompts",
        "Add --of-pairs",
    ),
    "pairs round demo-round --rule builtin:guide pairs.temperature=0": ("pairs.temperature is 0", ""),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_cannot_be_done_is_one_sentence_with_its_fix_and_exit_code_2(
    simpo: Simpo, tmp_path: Path, line: str
) -> None:
    _scored(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "prefs.jsonl").write_text('{"prompt": "a?", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    seen = simpo(*line.split())
    problem, fix = REFUSED[line]
    error = seen.err[seen.err.index("Error: ") :]
    assert (seen.code, seen.out) == (ExitCode.USAGE, "")
    assert problem in error.splitlines()[0]
    assert fix in error.splitlines()[1]
    assert len(error.splitlines()) == 2, error


def test_texts_leave_the_machine_only_when_somebody_says_yes(
    simpo: Simpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scored(tmp_path)
    command = ("pairs", "score", "answers", "--judge", "https://judge.example/v1", "--judge-model", "m")
    monkeypatch.setattr("sys.stdin", io.StringIO())  # nobody is there to ask
    seen = simpo(*command)
    assert seen.code == ExitCode.USAGE
    assert "nothing was sent.\n  Answer y, or add --yes." in seen.err
    asked: list[Any] = []
    monkeypatch.setattr("typer.confirm", lambda text, **_: asked.append(text))
    seen = simpo(*command)
    assert seen.code == ExitCode.USAGE
    assert "nothing was sent." in seen.err
    assert asked == ["4 answers with their prompts would be sent to judge.example. Send them?"]


def test_rounds_refuse_scores_of_a_rule_that_was_edited_between_them(
    simpo: Simpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rule.py").write_text("def score(prompt, answer):\n    return len(answer)\n", encoding="utf-8")
    pairs = [{"prompt": f"What of number {number}?", "chosen": "yes", "rejected": "no"} for number in range(24)]
    (tmp_path / "prefs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs), encoding="utf-8")
    (tmp_path / "round.yaml").write_text(
        "name: r\nmodel: {path: builtin:guide}\ndata: {train: '-', max_length: 128, max_prompt_length: 64}\n"
        "train: {pairs_per_step: 2, max_steps: 1, precision: fp32}\nhealth: {num_answers: 0}\n"
        "pairs: {prompts: prefs.jsonl, of_pairs: true, prompts_per_round: 4, answers_per_prompt: 4, temperature: 1,\n"
        "  min_score: null, max_new_tokens: 40, held_out_prompts: 10}\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(rounds, "fallen", lambda _: None)
    monkeypatch.setattr(rounds, "run_alone", lambda command: run(command[command.index("simpo_cli") + 1 :]))
    line = ("pairs", "round", "round.yaml", "--rule", "rule.py:score", "--resume", "--rounds")
    seen = simpo(*line, "1")
    assert seen.code == 0, seen.err
    curve = (tmp_path / "runs/r/rounds.json").read_bytes()
    (tmp_path / "rule.py").write_text("def score(prompt, answer):\n    return -len(answer)\n", encoding="utf-8")
    seen = simpo(*line, "2")
    assert seen.code == ExitCode.USAGE
    assert "answers/scores.rule.jsonl: holds scores by another scorer than the start model's: sha256" in seen.err
    assert (tmp_path / "runs/r/rounds.json").read_bytes() == curve
    document = json.loads(curve)
    for damage in ({"best": 9}, {"best": "x"}, {"rounds": 3}, {"rounds": [{}]}, {"stopped": {}}, {"scoring": [1]}):
        (tmp_path / "runs/r/rounds.json").write_text(json.dumps(document | damage), encoding="utf-8")
        seen = simpo("report", "runs/r")
        assert seen.code == ExitCode.USAGE, damage
        assert "Error: runs/r/rounds.json: " in seen.err


def test_rounds_are_not_set_aside_while_somebody_makes_them(simpo: Simpo, tmp_path: Path) -> None:
    (tmp_path / "runs/demo-round").mkdir(parents=True)
    (tmp_path / "runs/demo-round/rounds.json").write_text("{}", encoding="utf-8")
    with samples.locked(tmp_path / "runs/demo-round"):
        seen = simpo("pairs", "round", "demo-round", "--rule", "builtin:guide", "--fresh")
    assert seen.code == ExitCode.ENVIRONMENT
    assert "another process works on runs/demo-round." in seen.err
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["demo-round"]
