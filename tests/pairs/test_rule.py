"""Rules: what they are asked, what counts as a number, and what hostile ones can do to the process that asks."""

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from simpo_cli.builtin import corpus
from simpo_cli.data.pair import Message
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.folder import Answer
from simpo_cli.evaluate.generate.prompts import Question
from simpo_cli.pairs.rule import Rule
from simpo_cli.pairs.scorer import Answered, Score

Make = Callable[..., Rule]


@pytest.fixture
def rule(tmp_path: Path) -> Iterator[Make]:
    """Makes a rule of a file's text; what it started has ended behind the test."""
    made: list[Rule] = []

    def make(text: str, function: str = "score", **settings: float) -> Rule:
        file = tmp_path / "rule.py"
        file.write_text(text, encoding="utf-8")
        made.append(Rule(f"{file}:{function}", **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()
    assert [child.cmdline() for child in psutil.Process().children() if "rule_worker" in str(child.cmdline())] == []


def asked(text: str, *, prompt: str = "How?", record: dict[str, Any] | None = None) -> Answered:
    question = Question("k", (Message("user", prompt),), (5,), "prompts.jsonl:1", {}, record or {})
    return Answered(question, Answer("k", text, (7,), ended=True))


def body(*lines: str) -> str:
    """A rule that gives every answer `good` a 1, and does these things for any other."""
    return "\n    ".join(["import os, sys, time\ndef score(prompt, answer):", "if answer == 'good': return 1", *lines])


def refusal(spec: str, **settings: float) -> UserError:
    with pytest.raises(UserError) as refused:
        Rule(spec, **settings)
    assert refused.value.exit_code == ExitCode.USAGE
    assert refused.value.fix
    return refused.value


def test_a_rule_gets_prompt_and_answer_and_its_number_is_the_score(rule: Make) -> None:
    draw = random.Random(7)
    texts = ["".join(chr(draw.randrange(1, 0x10FFFF)) for _ in range(draw.randint(0, 50))) for _ in range(40)]
    texts.append("half \ud83d")
    scorer = rule("def score(prompt, answer):\n    return sum(map(ord, answer)) - len(prompt) / 2")
    scores = scorer.score([asked(text, prompt=f"a\nb {i}\r\u2028") for i, text in enumerate(texts)])
    wanted = [sum(map(ord, text)) - len(f"a\nb {i}\r\u2028") / 2 for i, text in enumerate(texts)]
    assert scores == [Score(value) for value in wanted]


def test_a_third_argument_is_the_record_with_the_conversation(rule: Make) -> None:
    text = "def score(p, a, record):\n    return a == record['reference'] + record['messages'][-1]['content']"
    right, wrong = (asked(text, prompt="2+2?", record={"reference": "4"}) for text in ("42+2?", "5"))
    assert rule(text).score([right, wrong]) == [Score(1.0), Score(0.0)]


def test_several_turns_are_shown_as_a_conversation(rule: Make) -> None:
    turns = (Message("system", "Be kind."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    answered = Answered(Question("k", turns, (5,), "p:1"), Answer("k", "", (), ended=True))
    text = f"def score(prompt, answer):\n    return prompt == {answered.question.text!r} and 'Be kind' in prompt"
    assert rule(text).score([answered]) == [Score(1.0)]


@pytest.mark.parametrize(
    ("value", "score"),
    [
        ("True", Score(1.0)),
        ("False", Score(0.0)),
        ("-3", Score(-3.0)),
        ("__import__('fractions').Fraction(1, 4)", Score(0.25)),
        ("__import__('numpy').float32(0.5)", Score(0.5)),
        ("'3'", Score(None, "not a number")),
        ("b'3'", Score(None, "not a number")),
        ("None", Score(None, "not a number")),
        ("1j", Score(None, "not a number")),
        ("[1]", Score(None, "not a number")),
        ("float('nan')", Score(None, "not finite")),
        ("-float('inf')", Score(None, "not finite")),
        ("10**400", Score(None, "not finite")),
        ("-1.5e308", Score(None, "too large")),
        ("1 / 0", Score(None, "ZeroDivisionError")),
        ("sys.exit()", Score(None, "SystemExit")),
        ("(_ for _ in ()).throw(KeyboardInterrupt)", Score(None, "KeyboardInterrupt")),
        ("(_ for _ in ()).throw(type('Own', (BaseException,), {'__str__': lambda self: 1 / 0}))", Score(None, "Own")),
        ("score(prompt, answer)", Score(None, "RecursionError")),
        ("os._exit(3)", Score(None, "died")),
        ("os.kill(os.getpid(), 11)", Score(None, "died")),
        ("os.closerange(3, 256)", Score(None, "died")),
    ],
)
def test_what_is_no_number_has_its_reason_and_the_next_answer_is_scored(value: str, score: Score, rule: Make) -> None:
    assert rule(body(f"return {value}")).score([asked("good"), asked("bad"), asked("good")]) == [
        Score(1.0),
        score,
        Score(1.0),
    ]


@pytest.mark.parametrize(
    "deed",
    [
        "print('hello'); print('{\"value\": 99}')",
        "os.write(1, b'{\"value\": 99}\\n'); os.write(2, b'{\"value\": 99}\\n')",
        "print('x' * 5_000_000)",
        "sys.stdout.close()",
        "sys.stdin.read()",
        "os.closerange(0, 3)",
        "os.fork()",
        "os.system('echo 99; sleep 1000 &')",
        "sys.stdout = sys.stderr = None",
        "os.chdir('/')",
    ],
)
def test_what_a_rule_does_besides_changes_no_score(deed: str, rule: Make, capfd: pytest.CaptureFixture[str]) -> None:
    answers = [asked("bad"), asked("good"), asked("bad"), asked("good")]
    assert rule(body(deed, "return 2")).score(answers) == [Score(2.0), Score(1.0), Score(2.0), Score(1.0)]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("deed", ["while True: pass", "time.sleep(1000)", "os.fork(); time.sleep(1000)"])
def test_a_rule_that_hangs_is_killed_and_started_again(deed: str, rule: Make) -> None:
    scores = rule(body(deed), timeout=0.5).score([asked("good"), asked("bad"), asked("good")])
    assert scores == [Score(1.0), Score(None, "timed out"), Score(1.0)]


def test_a_death_is_noticed_though_a_child_holds_the_pipes(rule: Make) -> None:
    deed = "os.fork() and os._exit(3); time.sleep(1000)"
    assert rule(body(deed), timeout=0.5).score([asked("good"), asked("bad")])[1] == Score(None, "died")


def test_what_a_rule_started_ends_with_it(rule: Make, tmp_path: Path) -> None:
    noted = tmp_path / "child"
    scorer = rule(
        body(
            f"child = os.fork()\n    if not child: time.sleep(1000)\n    open({str(noted)!r}, 'w').write(str(child))",
            "return 2",
        )
    )
    assert scorer.score([asked("bad")]) == [Score(2.0)]
    child = psutil.Process(int(noted.read_text()))
    scorer.close()
    assert not psutil.wait_procs([child], timeout=10)[1]
    scorer.close()


def test_a_rule_in_a_loop_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "rule.py").write_text(
        "import os\ndef score(p, a):\n    open('pid', 'w').write(str(os.getpid()))\n    while 1: pass"
    )
    lines = (
        "import os, signal, sys, threading, time",
        "from tests.pairs.test_rule import asked, Rule",
        "def kill():",
        "    while not (os.path.exists('pid') and open('pid').read()): time.sleep(0.01)",
        "    os.kill(os.getpid(), signal.SIGKILL)",
        "threading.Thread(target=kill).start()",
        "Rule('rule.py:score').score([asked('a')])",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), *sys.path]))}
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=tmp_path, env=environment, check=False)
    assert done.returncode == -9
    pid = int((tmp_path / "pid").read_text())
    if psutil.pid_exists(pid) and sys.platform == "linux":
        assert not psutil.wait_procs([psutil.Process(pid)], timeout=10)[1]


def test_files_beside_a_rule_can_be_imported_and_those_of_the_worker_cannot(rule: Make, tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 5")
    assert rule("import beside\ndef score(p, a): return beside.VALUE").score([asked("a")]) == [Score(5.0)]
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        rule("import reward_model\ndef score(p, a): return 1")


def test_dataclasses_and_sets_work_as_in_a_module_and_alike_in_every_process(rule: Make) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport os\n"
        "@dataclass\nclass C:\n    x: int\n"
        "def score(p, a): return 'die' in a and os._exit(1) or hash('text') % 2**40 + C(1).x"
    )
    first, _, second = rule(text).score([asked("a"), asked("die"), asked("a")])
    assert first == second
    assert first.value is not None


def test_the_bytes_that_were_hashed_are_those_that_run(rule: Make, tmp_path: Path) -> None:
    text = body("os._exit(1)")
    scorer = rule(text)
    digest = hashlib.sha256((tmp_path / "rule.py").read_bytes()).hexdigest()
    assert scorer.identity == {"kind": "rule", "rule": "rule.py:score", "sha256": digest}
    (tmp_path / "rule.py").write_text("def score(p, a): return 77")
    assert scorer.score([asked("good"), asked("bad"), asked("good")]) == [Score(1.0), Score(None, "died"), Score(1.0)]


def test_what_names_no_rule_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rule.txt").write_text("")
    assert "does not name a file and a function" in refusal("rule.py").problem
    assert "does not name a file and a function" in refusal(f"{tmp_path}/rule.py:").problem
    assert "no Python file" in refusal(f"{tmp_path}/rule.txt:score").problem
    assert "does not exist" in refusal(f"{tmp_path}/missing.py:score").problem
    (tmp_path / "folder.py").mkdir()
    assert "is a folder" in refusal(f"{tmp_path}/folder.py:score").problem


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("\n\nimport nothing_of_that_name", "cannot be imported: ModuleNotFoundError: No module named", 3),
        ("x = 1\ndef score(p, a)\n    return 1", "cannot be imported: SyntaxError", 2),
        ("def f():\n    1 / 0\nf()", "cannot be imported: ZeroDivisionError: division by zero.", 2),
        ("import json\njson.loads('')", "cannot be imported: JSONDecodeError", 2),
        ("import sys\nsys.exit(2)", "cannot be imported: SystemExit: 2.", 2),
        ("import os\nos._exit(2)", "ends the process when it is imported (exit status 2).", None),
        ("while True: pass", "takes more than 0.5 s to import.", None),
        ("def scores(prompt, answer): return 1", "has no function score.", None),
        ("score = 3", "has no function score.", None),
        ("def score(): return 1", "score does not take a prompt and an answer", None),
        ("def score(*, prompt, answer): return 1", "score does not take a prompt and an answer", None),
        ("def score(a, b, c, d): return 1", "score does not take a prompt and an answer", None),
    ],
)
def test_a_file_that_will_not_do_is_refused_at_once(text: str, problem: str, line: int | None, tmp_path: Path) -> None:
    file = tmp_path / "rule.py"
    file.write_text(text)
    error = refusal(f"{file}:score", timeout=0.5)
    assert error.problem.startswith(problem)
    assert error.where == (f"{file}:{line}" if line else str(file))


def test_the_function_that_was_meant_is_named(tmp_path: Path) -> None:
    (tmp_path / "rule.py").write_text("def grade(prompt, answer): return 1\ndef length(p, a): return 2")
    assert refusal(f"{tmp_path}/rule.py:grades").fix == "Did you mean grade?"
    assert refusal(f"{tmp_path}/rule.py:zzz").fix == "Did you mean grade or length?"


def test_a_first_batch_without_a_score_stops_with_the_commonest_reason(rule: Make) -> None:
    scorer = rule(body("if answer == 'bad': return {}['reference']", "return None"))
    with pytest.raises(UserError) as stopped:
        scorer.score([asked("none"), asked("bad"), asked("bad")])
    assert stopped.value.problem == (
        "none of the first 3 answers got a score; 2 times: KeyError, such as: 'reference'."
    )
    assert scorer.score([asked("bad"), asked("good")]) == [Score(None, "KeyError"), Score(1.0)]
    assert scorer.score([asked("bad")]) == [Score(None, "KeyError")]
    assert scorer.score([]) == []


def test_the_built_in_world_checks_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    record = corpus.preference_pairs("eval", 3)[0]
    question, right, wrong = (record[name][-1]["content"] for name in ("prompt", "chosen", "rejected"))
    scorer = Rule("builtin:guide")
    answers = [asked(text, prompt=question) for text in (right, wrong, right[: len(right) // 2])]
    good, bad, cut, unknown = scorer.score([*answers, asked(right, prompt="What is love?")])
    assert good == Score(1.0)
    assert bad.value is not None
    assert cut.value is not None
    assert bad.value <= 0.5
    assert 0 < cut.value < 1
    assert unknown == Score(None, "unknown question")
    assert scorer.identity["rule"] == "builtin:guide"
    assert len(scorer.identity["sha256"]) == 64
    scorer.close()
    with pytest.raises(UserError, match="1 times: unknown question, such as: What is love?"):
        Rule("builtin:guide").score([asked(right, prompt="What is love?")])


def test_programs_that_a_rule_starts_do_not_hold_its_pipes(rule: Make) -> None:
    lines = "import os", "def score(p, a):", "    held = 0", "    for fd in range(3, 64):"
    text = "\n".join(
        [*lines, "        try: held += os.get_inheritable(fd)", "        except OSError: pass", "    return held"]
    )
    assert rule(text).score([asked("a")]) == [Score(0.0)]
