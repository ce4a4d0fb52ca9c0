"""Our own launcher, with real processes: how they begin, how each end of theirs is told, and that none is left."""

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from simpo_cli.cli import main as cli
from simpo_cli.cli import train as command
from simpo_cli.distributed import launch as launcher
from simpo_cli.distributed.launch import launch, same_command, to_tell
from simpo_cli.distributed.ranks import join
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.redaction import remember
from simpo_cli.run.folder import OUT_OF_MEMORY
from simpo_cli.run.receipt import command_to_resume
from tests.cli.seen import Simpo, typed, write_run_recipe

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()
WORKER = """
import os, signal, sys, time
from simpo_cli.distributed.launch import follow_launcher, leave_word, to_tell
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.run.stop import Stopped, StopRequest

follow_launcher()
rank = int(os.environ["RANK"])

def end(problem, code, *, shared=False, consequence=False):
    error = UserError(problem, "Mend it.", exit_code=ExitCode(code))
    error.is_shared, error.is_consequence = shared, consequence
    if (told := to_tell(error)) is not None:
        print(told.problem, flush=True)
    leave_word(error)
    sys.exit(code)

def train():
    with StopRequest() as stop:
        ready()
        try:
            while True:
                stop.check()
                time.sleep(0.01)
        except Stopped as stopped:
            end(f"saved after {stopped.name}", 75, shared=True)

def ready():
    os.write(os.open("alive", os.O_WRONLY), b"%d\\n" % os.getpid())  # open as long as this process lives

exec(sys.argv[1])
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which worker.py is; afterwards no process is left."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(launcher, "_SECONDS_TO_END", 600)
    before = set(psutil.Process().children())  # of other tests, such as a pool of tokenizers
    yield tmp_path
    assert set(psutil.Process().children()) <= before


def started(statement: str, *, num: int = 2, may_restart: Callable[[], bool] = lambda: False) -> int:
    return launch([sys.executable, "worker.py", textwrap.dedent(statement)], num, may_restart)


def test_every_process_finds_its_place_and_one_has_the_terminal(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # a person's own
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE OMP_NUM_THREADS MASTER_ADDR MASTER_PORT"
    statement = f"""
        print("seen", rank, file=sys.stderr)
        open(f"of-{{rank}}", "w").write(" ".join(os.environ[name] for name in "{names}".split()))
        assert not [name for name in os.environ if name.startswith("SIMPO_LAUNCH")]
    """
    assert started(statement, num=3) == ExitCode.DONE
    assert capfd.readouterr() == ("", "seen 0\n")
    places = [(place / f"of-{rank}").read_text().split() for rank in range(3)]
    assert [words[:-1] for words in places] == [[str(r), str(r), "3", "3", "3", "127.0.0.1"] for r in range(3)]
    assert len({words[-1] for words in places}) == 1


@pytest.mark.parametrize(("cores", "num", "threads"), [(8, 2, "4"), (8, 3, "2"), (2, 4, "1")])
def test_cores_are_shared(monkeypatch: pytest.MonkeyPatch, cores: int, num: int, threads: str) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert launcher._environment(num, restarts=0)["OMP_NUM_THREADS"] == threads


WAITS = "time.sleep(20); end('was left to itself', 5)"
GONE = "end('gone', 4, consequence=True)"


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("first", "second", "code", "printed", "told"),
    [
        ("0", "0", 0, "", None),
        ("end('no data', 2, shared=True)", "end('no data', 2, shared=True)", 2, "no data\n", None),
        ("end('mine', 4)", GONE, 4, "mine\n", None),
        ("import atexit; atexit.register(time.sleep, 20); end('mine', 5)", GONE, 5, "mine\n", None),
        (GONE, "end('bad', 5)", 5, "", "rank 1 on HOST: bad"),
        (WAITS, "end('bad', 5)", 5, "", "rank 1 on HOST: bad"),
        (GONE, GONE, 4, "", "gone"),
        ("end('saved', 75, shared=True)", "end('saved', 75, shared=True)", 75, "saved\n", None),
        # longer than others may take
        ("time.sleep(0.6); end('saved', 75, shared=True)", "end('saved', 75, shared=True)", 75, "saved\n", None),
        (WAITS, "end('alone, before all listen', 75)", 75, "", "rank 1 on HOST: alone, before all listen"),
        (WAITS, "end('interrupted alone', 130, shared=True)", 130, "", "rank 1 on HOST: interrupted alone"),
        ("time.sleep(0.6); end('too', 2, shared=True)", "end('too', 2, shared=True)", 2, "too\n", None),
        ("time.sleep(0.6); end('mine', 4)", GONE, 4, "mine\n", None),
        (
            WAITS,
            "os.kill(os.getpid(), 9)",
            4,
            "",
            "rank 1 on HOST was killed by SIGKILL, most often because the memory",
        ),
        ("os.kill(os.getpid(), 9)", GONE, 4, "", "rank 0 on HOST was killed by SIGKILL"),
        (
            WAITS,
            "print('a line\\n' * 30 + 'what it was', file=sys.stderr); os.abort()",
            4,
            "",
            "rank 1 on HOST was killed by SIGABRT. It printed:\n" + "a line\n" * 19 + "what it was",
        ),
        (WAITS, "os._exit(7)", 1, "", "rank 1 on HOST ended with exit code 7."),
        ("os._exit(141)", WAITS, 141, "", None),
        ("0", WAITS, 0, "", None),
        ("0", GONE, 0, "", None),  # rank 0 has written everything
        ("0", "end('late', 4)", 4, "", "rank 1 on HOST: late"),
    ],
)
def test_an_end_is_told_once_and_none_waits_for_what_does_not_come(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    first: str,
    second: str,
    code: int,
    printed: str,
    told: str | None,
) -> None:
    if "sleep" in first + second:
        monkeypatch.setattr(launcher, "_SECONDS_TO_END", 0.3)
    statement = f"if rank == 0: {first}\nelse: {second}"
    if told is None:
        assert started(statement) == code
    else:
        with pytest.raises(UserError) as caught:
            started(statement)
        assert caught.value.exit_code == code
        assert told.replace("HOST", HOST) in caught.value.problem
        assert code != 4 or told.startswith("gone") or "late" in told or "--resume" in caught.value.fix
    assert capfd.readouterr() == (printed, "")


@pytest.mark.parametrize("allowed", [True, False])
def test_a_run_that_failed_starts_once_more_where_it_may(place: Path, allowed: bool) -> None:
    asks = []

    def may_restart() -> bool:
        asks.append((place / "starts").read_text().split())
        return allowed

    statement = """
        open("starts", "a").write(os.environ["TORCHELASTIC_RESTART_COUNT"] + " ")
        end("no memory", 4, shared=True)
    """
    assert started(statement, may_restart=may_restart) == ExitCode.ENVIRONMENT
    assert asks == [["0", "0"]]
    assert (place / "starts").read_text().split() == ["0", "0", *(["1", "1"] if allowed else [])]


@pytest.mark.usefixtures("place")
def test_a_restart_that_succeeds_is_a_success_and_one_more_is_not_asked_for() -> None:
    statement = "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0': end('no memory', 4)"
    assert started(statement, num=1, may_restart=lambda: True) == ExitCode.DONE
    assert started("0", may_restart=lambda: pytest.fail("asked after a success")) == ExitCode.DONE


@pytest.mark.usefixtures("place")
def test_a_process_that_cannot_be_started_takes_the_others_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = subprocess.Popen, []

    def limited(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", limited)
    with pytest.raises(UserError, match="rank 2 of 4 cannot be started: Resource temporarily unavailable") as caught:
        started(WAITS, num=4)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


LAUNCHER = """
import signal, sys
from simpo_cli.distributed import launch
from simpo_cli.errors import UserError

worker, changed, ignored = sys.argv[1:]
exec(changed)
for name in ("SIGTERM", "SIGINT", "SIGHUP"):  # whatever has started the tests
    signal.signal(getattr(signal, name), signal.SIG_IGN if name == ignored else signal.SIG_DFL)
try:
    code = launch.launch([sys.executable, "worker.py", worker], 2, lambda: print("may it restart?"))
except UserError as error:
    print(error.problem, flush=True)
    code = error.exit_code
except KeyboardInterrupt:
    code = 130
sys.exit(code)
"""


class Launched:
    """A launcher in a process group of its own, with two workers that are ready; `alive` ends when they have."""

    def __init__(self, worker: str, changed: str = "", ignored: str = "") -> None:
        os.mkfifo("alive")
        held = os.open("alive", os.O_RDWR)  # or opening it for reading waits for a worker that may never come
        self.alive = os.fdopen(os.open("alive", os.O_RDONLY), "rb", buffering=0)
        command = [sys.executable, "-c", LAUNCHER, worker, changed, ignored]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        ready = b""
        while ready.count(b"\n") < 2:
            ready += self.alive.read(100)
        os.close(held)
        self.workers = [int(word) for word in ready.split()]

    def ends(self) -> tuple[int, str]:
        """The launcher's exit code and what was printed, once all processes have ended."""
        printed, _ = self.process.communicate(timeout=60)
        try:
            assert select.select([self.alive], [], [], 60)[0], "a process outlives its launcher"
            assert self.alive.read() == b""  # which comes when nobody is left who could write
        finally:
            for worker in map(psutil.Process, filter(psutil.pid_exists, self.workers)):
                worker.kill()
            self.alive.close()
        return self.process.returncode, printed


@pytest.mark.parametrize(
    "changed",
    [
        "import os; os.environ['ONLY'] = 'pipe'",
        pytest.param(
            "import os; os.environ['ONLY'] = 'signal'",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="of Linux"),
        ),
    ],
)
def test_processes_end_when_their_launcher_is_killed(place: Path, changed: str) -> None:
    text = WORKER.replace(
        "follow_launcher()\n",
        "from simpo_cli.distributed import launch\n"
        "if os.environ['ONLY'] == 'pipe': sys.platform = 'any'\n"
        "else: launch._end_with_launcher = lambda pipe: None\n"
        "follow_launcher()\n",
        1,
    )
    (place / "worker.py").write_text(text, encoding="utf-8")
    launched = Launched("ready(); time.sleep(600)", changed)
    launched.process.kill()
    assert launched.ends() == (-signal.SIGKILL, "")


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_the_launcher_stops_all_and_saves(name: str) -> None:
    launched = Launched("train()")
    launched.process.send_signal(getattr(signal, name))
    assert launched.ends() == (ExitCode.SAVED, "saved after SIGTERM\n")


@pytest.mark.usefixtures("place")
def test_an_interrupt_of_the_terminal_reaches_all_and_counts_once() -> None:
    launched = Launched("train()")
    os.killpg(launched.process.pid, signal.SIGINT)
    assert launched.ends() == (ExitCode.SAVED, "saved after SIGINT\n")


@pytest.mark.usefixtures("place")
def test_the_second_interrupt_kills_what_does_not_end() -> None:
    launched = Launched(
        """
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: os.write(fd, b"asked\\n"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        fd = os.open("alive", os.O_WRONLY)
        ready(); time.sleep(600); time.sleep(600)
    """.replace("\n        ", "\n")
    )
    launched.process.send_signal(signal.SIGINT)
    asked = b""
    while asked.count(b"asked\n") < 2:
        asked += launched.alive.read(100)
    launched.process.send_signal(signal.SIGINT)
    assert launched.ends() == (ExitCode.INTERRUPTED, "")


@pytest.mark.usefixtures("place")
def test_a_stop_before_processes_listen_is_told_and_saves() -> None:
    launched = Launched("ready(); time.sleep(600)")
    launched.process.send_signal(signal.SIGHUP)
    assert launched.ends() == (ExitCode.SAVED, "Stopped by SIGHUP; what was saved is kept.\n")


@pytest.mark.usefixtures("place")
def test_an_interrupt_of_the_terminal_before_processes_listen_is_told_and_saves() -> None:
    launched = Launched("signal.signal(signal.SIGINT, signal.SIG_DFL); ready(); time.sleep(600)")
    os.killpg(launched.process.pid, signal.SIGINT)
    assert launched.ends() == (ExitCode.SAVED, "Stopped by SIGINT; what was saved is kept.\n")


def test_what_a_process_alone_prints_leaves_stdout_to_its_caller(capfd: pytest.CaptureFixture[str]) -> None:
    assert launcher.run_alone([sys.executable, "-c", "print('a table'); raise SystemExit(3)"]) == 3
    assert capfd.readouterr() == ("", "a table\n")


@pytest.mark.parametrize(
    ("typed", "resumed"),
    [
        ("train run.yaml --fresh", "simpo train run.yaml --resume"),
        ("pairs round demo-round --rule a.py:b --resume", "simpo pairs round demo-round --rule a.py:b --resume"),
        ("pairs sample p.jsonl --model m --num-processes 2", "simpo pairs sample p.jsonl --model m --num-processes 2"),
    ],
)
def test_the_command_that_resumes_is_one_that_can_be_typed(
    monkeypatch: pytest.MonkeyPatch, typed: str, resumed: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["simpo", *typed.split()])
    assert command_to_resume() == resumed


@pytest.mark.usefixtures("place")
def test_a_process_that_cannot_listen_is_given_up_when_a_stop_has_ended_another() -> None:
    launched = Launched(
        "if rank == 0: signal.signal(signal.SIGTERM, signal.SIG_IGN)\nready(); time.sleep(20); os._exit(7)",
        "launch._SECONDS_TO_END = 0.3",
    )
    launched.process.terminate()
    assert launched.ends() == (ExitCode.SAVED, "Stopped by SIGTERM; what was saved is kept.\n")


@pytest.mark.usefixtures("place")
def test_a_hangup_that_nohup_has_ignored_stays_so() -> None:
    launched = Launched("train()", ignored="SIGHUP")
    os.killpg(launched.process.pid, signal.SIGHUP)
    launched.process.send_signal(signal.SIGTERM)
    assert launched.ends() == (ExitCode.SAVED, "saved after SIGTERM\n")


def test_the_same_command_finds_no_modules_where_the_person_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/simpo", "train", "demo"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert same_command() == [sys.executable, "-P", "-m", "simpo_cli", "train", "demo"]
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", "that of python -m simpo_cli")
    assert same_command() == [sys.executable, "-m", "simpo_cli", "train", "demo"]


LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
PLACE = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}


def _error(exit_code: ExitCode = ExitCode.USAGE, *, shared: bool = False, consequence: bool = False) -> UserError:
    error = UserError("it is bad.", "Mend it.", where="run.yaml:3", exit_code=exit_code)
    error.is_shared, error.is_consequence = shared, consequence
    return error


def test_under_another_launcher_an_error_of_all_is_told_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [_error(shared=True), _error(consequence=True), _error(ExitCode.SAVED)]
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    assert [to_tell(error) for error in silent] == [None] * 3
    assert waited == [launcher._SECONDS_FOR_THE_TELLER] * 3  # so that the first is not ended before it has told
    own = to_tell(_error(ExitCode.NUMBERS))
    assert str(own) == f"run.yaml:3: rank 3 on {HOST}: it is bad.\n  Mend it."
    assert own is not None
    assert own.exit_code == ExitCode.NUMBERS
    monkeypatch.setenv("RANK", "0")
    assert [to_tell(error) for error in silent] == silent
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert [to_tell(error) for error in silent] == silent
    monkeypatch.setenv("WORLD_SIZE", "none")
    assert [to_tell(error) for error in silent] == silent
    assert len(waited) == 3


def test_the_last_word_is_left_when_it_is_printed_and_tells_no_value_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "_folder", tmp_path)
    printed = []
    monkeypatch.setattr(cli, "_say", lambda text: printed.append((text, list(tmp_path.iterdir()))))
    remember("DISK", "/secret-disk")
    error = UserError("/secret-disk is full.", "Free some space.", exit_code=ExitCode.ENVIRONMENT)
    assert cli._end(error) == ExitCode.ENVIRONMENT
    assert printed == [("Error: /secret-disk is full.\n  Free some space.", [])]
    [word] = tmp_path.iterdir()
    assert "${oc.env:DISK} is full." in word.read_text(encoding="utf-8")
    assert "secret" not in word.read_text(encoding="utf-8")


@pytest.fixture
def simpo(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simpo:
    """Types a command beside run.yaml, on a machine that shows two cards."""
    write_run_recipe(tmp_path, "several", "builtin:guide")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("simpo_cli.cli.options.has_cards", lambda: True)
    monkeypatch.setattr(launcher, "_SECONDS_FOR_THE_TELLER", 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    return typed(capfd)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been launched, or trained in this process, with what."""
    runs: list[Any] = []
    monkeypatch.setattr(command, "launch", lambda *args: runs.append(args) or 75)
    monkeypatch.setattr("simpo_cli.train.session.train", lambda _, **modes: runs.append(modes))
    return runs


WANTED = [
    ("distributed.num_processes=2", 2),
    ("distributed.num_processes=1", 1),
    ("distributed.strategy=none", 1),
    ("--dry-run", 1),
]


@pytest.mark.parametrize(
    ("words", "num"),
    [([], 2), *((words.split(), num) for words, num in WANTED)],
)
def test_there_is_a_process_for_every_card(simpo: Simpo, runs: list[Any], words: list[str], num: int) -> None:
    seen = simpo("train", "run.yaml", *words)
    [run] = runs
    if num == 1:
        assert (seen.code, "observer" in run) == (ExitCode.DONE, True)
        return
    assert seen.code == ExitCode.SAVED  # whatever the launcher returns
    assert (run[0][-len(words) - 2 :], run[1]) == (["train", "run.yaml", *words], num)
    assert seen.err == f"{num} processes{'' if words else ', one for each visible card'}\n"


def test_without_the_driver_of_a_card_torch_is_not_asked(
    simpo: Simpo, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simpo_cli.cli.options.has_cards", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: pytest.fail("torch was asked"))
    assert simpo("train", "run.yaml").code == ExitCode.DONE
    assert simpo("train", "run.yaml", "distributed.num_processes=5").code == ExitCode.SAVED
    assert [isinstance(run, dict) or run[1] for run in runs] == [True, 5]


HALF = {"WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("words", "environment", "told"),
    [
        (["distributed.num_processes=3"], {}, "override 1: distributed.num_processes is 3, and 2 cards are visible."),
        (["distributed.num_processes=3"], LAUNCHED, "override 1: distributed.num_processes is 3, and the launcher sta"),
        (["loss.bata=1"], LAUNCHED, "override 1: loss.bata is not a key of loss."),
        (["--nothing"], LAUNCHED, "No such option: --nothing"),
        (["--fresh", "--resume"], LAUNCHED, "--resume continues a run and --fresh sets it aside."),
        (["output_dir=."], LAUNCHED, "output_dir . holds files that are not a run."),
        ([], HALF, "the environment names WORLD_SIZE=2, and no RANK."),
    ],
)
def test_what_does_not_fit_is_refused_once_a_host(
    simpo: Simpo, monkeypatch: pytest.MonkeyPatch, words: list[str], environment: dict[str, str], told: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    seen = simpo("train", "run.yaml", *words)
    assert seen.code == ExitCode.USAGE
    assert seen.err.startswith("Error: ")
    assert told in seen.err
    if environment == LAUNCHED and "output_dir=." not in words:  # where rank 0 alone looks
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert simpo("train", "run.yaml", *words) == (ExitCode.USAGE, "", "")


def test_more_processes_of_another_launcher_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda card: pytest.fail(f"there is no card {card}"))
    for name, value in {"RANK": "7", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="process 3 of this host finds no card for itself: it sees 2") as caught:
        join("cuda", 1)
    assert (caught.value.exit_code, caught.value.is_shared) == (ExitCode.USAGE, False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(UserError, match="process 4 of this host") as caught:
        join("cuda", 1)
    assert caught.value.is_shared  # told once a host


def test_a_launcher_that_starts_anew_resumes_and_only_the_first_process_draws(
    simpo: Simpo, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    (Path("runs") / "several").mkdir(parents=True)
    (Path("runs") / "several" / "run.json").touch()
    assert simpo("train", "run.yaml").code == ExitCode.USAGE  # there is a run already
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert simpo("train", "run.yaml", "--fresh").code == ExitCode.DONE
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert simpo("train", "run.yaml") == (ExitCode.DONE, "", "")
    assert [(run["fresh"], run["resume"], type(run["observer"]).__name__) for run in runs] == [
        (False, True, "WithReport"),
        (False, False, "Unwatched"),
    ]


def test_memory_that_ran_out_in_a_step_starts_the_processes_once_more(
    simpo: Simpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = Path("runs") / "several" / OUT_OF_MEMORY
    answers = []

    def launched(_command: list[str], _num: int, may_restart: Callable[[], bool]) -> int:
        answers.append(may_restart())
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
        (note.parent / "run.json").touch()
        answers.append(may_restart())
        return 4

    monkeypatch.setattr(command, "launch", launched)
    first = simpo("train", "run.yaml")
    os.utime(note, (0, 0))
    monkeypatch.setattr(command, "launch", lambda *args: answers.append(args[2]()) or 4)
    second = simpo("train", "run.yaml", "--resume")
    assert answers == [False, True, False]  # what an earlier run has left is no reason
    assert "ran out of memory: resuming once" in first.err
    assert "ran out of memory" not in second.err


def test_what_every_process_misses_is_two_lines(tmp_path: Path) -> None:
    write_run_recipe(tmp_path, "several", "builtin:guide", "distributed:\n  num_processes: 2\n")
    misses = """if True:
        import threading
        follows = "launcher" in [thread.name for thread in threading.enumerate()]
        raise ModuleNotFoundError(name="nowhere" if follows else "no launcher")
    """
    (tmp_path / "transformers.py").write_text(misses, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "simpo_cli", "train", "run.yaml"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.ENVIRONMENT
    missed = "the package nowhere is not installed, and this command needs it."
    assert done.stderr == f"2 processes\nError: {missed}\n  Run pip install 'nowhere'\n"
