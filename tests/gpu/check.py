"""What this project does on a card, shown in six minutes: python -m tests.gpu.check [--tiny] [--only PART ...]

Parts run one after another, the most telling first. What is known is written to a file after every part, so a time-out
loses nothing; a part that breaks is a FAIL and not the end; a part that would pass the time is left out. `--tiny` does
all of it on a CPU with small shapes, so that the script is right on the day when there is a card.

The parts run in a process of their own, because an error on a card can make all later work of its process fail, or end
it. Then, and when a part hangs, that part is a FAIL and the rest run in a new process.
"""

import argparse
import gc
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simpo_cli.model.allocator import expand_segments

if TYPE_CHECKING:
    import torch

Status = Literal["PASS", "FAIL", "SKIP"]
Facts = dict[str, Any]

_SECONDS = 345.0  # of six minutes, with room for a start and an end
_HUNG_SECONDS = 150.0  # at least so long is waited for a part
_NO_DEVICE = 4
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "huggingface-hub", "triton", "liger-kernel")
_OURS = ("simpo_cli", "tests")


@dataclass
class Place:
    """Where the parts run, and what they know of one another.

    Attributes:
        tiny: small shapes on a CPU instead of real ones on a card.
        ends: `time.monotonic()` by which the part that runs should be done; what is repeated is repeated until then.
        known: what the part that runs knows so far; see `keep`.
        write: puts it into the file.
        peak_flops: bf16 products a second (float32 on a CPU), once measured.
        bars: numbers with an aim: name, value, least or most, whether it was met.
    """

    device: "torch.device"
    tiny: bool
    folder: Path
    ends: float = 0.0
    known: Facts = field(default_factory=dict)
    write: Callable[[Facts], None] = field(default=lambda _: None)
    peak_flops: float | None = None
    bars: list[Facts] = field(default_factory=list)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compute(self) -> "torch.dtype":
        import torch

        return torch.bfloat16 if self.on_cuda else torch.float32

    def bar(self, name: str, value: float, *, least: float | None = None, most: float | None = None) -> None:
        """Hold a number against its aim; missing it is told, and no failure."""
        met = (least is None or value >= least) and (most is None or value <= most)
        self.bars.append({"name": name, "value": value, "least": least, "most": most, "met": met})

    def keep(self, facts: Facts) -> None:
        """Write down what a part knows before its end, which it may not reach."""
        self.known = facts
        self.write(facts)

    def finish(self) -> None:
        """Wait until the device has done all that it was given."""
        if self.on_cuda:
            import torch

            torch.cuda.synchronize()

    def release(self) -> None:
        """Give back the memory that nothing holds any more, and count its peak anew."""
        gc.collect()  # models under adapters hold one another in circles
        if self.on_cuda:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def allocated(self) -> int:
        """Bytes of the tensors on a card; 0 on a CPU, where nobody counts them."""
        import torch

        return torch.cuda.memory_allocated() if self.on_cuda else 0

    def peak(self) -> int:
        """The most that they were since `release`."""
        import torch

        return torch.cuda.max_memory_allocated() if self.on_cuda else 0


class MissingError(Exception):
    """A part cannot run here; the message says what it lacks."""


class WrongError(AssertionError):
    """A part measured something that is not as it should be; `facts` is what it measured."""

    def __init__(self, problem: str, facts: Facts) -> None:
        super().__init__(problem)
        self.facts = facts


def require(holds: bool, problem: str, facts: Facts) -> None:
    if not holds:
        raise WrongError(problem, facts)


def need(module: str) -> Any:
    """A module that may not be there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed") from error


@dataclass(frozen=True)
class Part:
    """Something to show.

    Attributes:
        work: module and function that does it. The function returns a sentence and the numbers; it raises
            AssertionError where something is wrong, and `MissingError` where it cannot run.
        seconds: about what it takes on a card.
    """

    name: str
    work: tuple[str, str]
    seconds: float


PARTS = [  # the most telling first
    Part("ceilings", ("tests.gpu.speed", "ceilings"), 6),
    Part("kernels", ("tests.gpu.correctness", "kernels"), 8),
    Part("agreement", ("tests.gpu.correctness", "agreement"), 10),
    Part("self-check", ("tests.gpu.correctness", "self_check"), 12),
    Part("speed-8b-lora", ("tests.gpu.speed", "speed_8b_lora"), 60),
    Part("speed-1.5b-full", ("tests.gpu.speed", "speed_1_5b_full"), 55),
    Part("memory", ("tests.gpu.correctness", "memory"), 30),
    Part("lean-state", ("tests.gpu.correctness", "lean_state"), 5),
    Part("out-of-memory", ("tests.gpu.runs", "out_of_memory"), 20),
    Part("measured-microbatch", ("tests.gpu.runs", "measured_microbatch"), 10),
    Part("repeat-and-resume", ("tests.gpu.runs", "repeat_and_resume"), 40),
    Part("speed-135m-full", ("tests.gpu.speed", "speed_135m_full"), 30),
    Part("one-rank-fsdp2", ("tests.gpu.runs", "one_rank_fsdp2"), 29),
    Part("cuda-tests", ("tests.gpu.runs", "cuda_tests"), 30),
]


@dataclass
class Outcome:
    part: str
    status: Status
    seconds: float
    summary: str
    facts: Facts = field(default_factory=dict)


# The file: all that is known, after every part


class Document:
    """What the check knows, in a file that is replaced as a whole, so that it is never half of anything."""

    def __init__(self, file: Path, content: Facts) -> None:
        self.file, self.content = file, content

    @classmethod
    def new(cls, file: Path, *, tiny: bool) -> "Document":
        started = datetime.now(UTC).isoformat(timespec="seconds")
        content: Facts = {"schema_version": 1, "started": started, "seconds": 0.0, "tiny": tiny, "machine": None}
        document = cls(file, {**content, "parts": [], "bars": [], "running": None})
        document.write()
        return document

    @classmethod
    def read(cls, file: Path) -> "Document":
        return cls(file, json.loads(file.read_text(encoding="utf-8")))

    @property
    def outcomes(self) -> list[Outcome]:
        return [Outcome(**part) for part in self.content["parts"]]

    @property
    def elapsed(self) -> float:
        return (datetime.now(UTC) - datetime.fromisoformat(self.content["started"])).total_seconds()

    def begin(self, part: str, facts: Facts) -> None:
        """Name the part that is about to run, or what is known of it so far."""
        self.content["running"] = {"part": part, "facts": facts}
        self.write()

    def end(self, outcome: Outcome) -> None:
        self.content["parts"].append(asdict(outcome))
        self.content["running"] = None
        self.write()

    def write(self) -> None:
        self.content["seconds"] = round(self.elapsed, 1)
        new = self.file.with_name(f".{self.file.name}.new")
        new.write_text(json.dumps(self.content, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(new, self.file)


# The process that runs the parts


def run_parts(chosen: Sequence[Part], place: Place, document: Document) -> bool:
    """Run parts and write what is known after each; whether the process is of further use."""
    place.bars = document.content["bars"]
    for part in chosen:
        left = _SECONDS - document.elapsed
        if not place.tiny and part.seconds > left:
            summary = f"left out: {document.elapsed:.0f} s are gone and it takes about {part.seconds:.0f}"
            document.end(Outcome(part.name, "SKIP", 0.0, summary))
            continue
        place.ends = time.monotonic() + part.seconds
        place.write = partial(document.begin, part.name)
        place.keep({})
        outcome = _run(part, place)
        document.end(outcome)
        print(f"{outcome.status:<5} {outcome.part} {outcome.seconds:.1f} s", file=sys.stderr, flush=True)
        try:
            _clear(place)
        except Exception as error:
            print(f"a new process for the rest: {error}".splitlines()[0], file=sys.stderr, flush=True)
            return False
    return True


def _run(part: Part, place: Place) -> Outcome:
    started, facts = time.perf_counter(), Facts()
    module, function = part.work
    status: Status
    try:
        summary, facts = getattr(importlib.import_module(module), function)(place)
        status = "PASS"
    except MissingError as error:
        status, summary = "SKIP", str(error)
    except ModuleNotFoundError as error:
        ours = (error.name or "").partition(".")[0] in _OURS
        status, summary = "FAIL" if ours else "SKIP", f"{error.name} is not installed"
    except Exception as error:  # whatever a card does to a part, the others are still worth running
        status, summary = "FAIL", f"{type(error).__name__}: {error}".splitlines()[0][:300]
        facts = {**place.known, **getattr(error, "facts", {}), "traceback": traceback.format_exc().splitlines()[-30:]}
        traceback.clear_frames(error.__traceback__)
    return Outcome(part.name, status, time.perf_counter() - started, summary, facts)


def _clear(place: Place) -> None:
    """Leave nothing of a part behind. Raises where the device does not take work any more."""
    import torch

    torch.compiler.reset()
    place.finish()
    place.release()


def describe(device: "torch.device") -> Facts:
    """The device and the versions; nothing that names this one machine."""
    import torch

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    facts: Facts = {
        "device": f"CPU, {torch.get_num_threads()} threads",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": found,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
        }
    return facts


def work(chosen: Sequence[Part], document: Document) -> int:
    """Run the parts that have no outcome yet."""
    import torch

    tiny = bool(document.content["tiny"])
    if not tiny and not torch.cuda.is_available():
        print("there is no CUDA device here; --tiny runs on a CPU", file=sys.stderr)
        return _NO_DEVICE
    device = torch.device("cpu" if tiny else "cuda")
    document.content["machine"] = describe(device)
    with tempfile.TemporaryDirectory() as folder:
        run_parts(chosen, Place(device, tiny, Path(folder)), document)
    return 0


# The process that sees to it that all of them run


def supervise(chosen: Sequence[Part], file: Path, *, tiny: bool) -> Document | None:
    """Run parts in processes of their own; what is known at the end, or None where there is no device."""
    document = Document.new(file, tiny=tiny)
    rest = list(chosen)
    while rest:
        # a group of its own, so that what a part started ends with it
        worker = subprocess.Popen(_command(file, [part.name for part in rest]), process_group=0)
        try:
            why = _watched(worker, file, tiny=tiny)
        finally:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
        if worker.returncode == _NO_DEVICE:
            return None
        document = Document.read(file)
        if (running := document.content["running"]) is not None:
            document.end(Outcome(running["part"], "FAIL", 0.0, why, running["facts"]))
        done = {outcome.part for outcome in document.outcomes}
        left = [part for part in rest if part.name not in done]
        if len(left) == len(rest):  # not even the first of them began
            document.end(Outcome("start", "FAIL", 0.0, why))
            break
        rest = left
    return document


def _command(file: Path, parts: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tests.gpu.check", "--work", "--output", str(file), "--only", *parts]


def _patience(part: str | None, *, tiny: bool) -> float:
    """Seconds after which a part hangs; None is what comes before the first one."""
    usual = next((known.seconds for known in PARTS if known.name == part), 0.0)
    return 270.0 if tiny else max(_HUNG_SECONDS, 2.5 * usual)


def _watched(worker: "subprocess.Popen[bytes]", file: Path, *, tiny: bool) -> str:
    """Wait until the process ends or a part hangs, in which case it is ended; how it ended."""
    part, since = None, time.monotonic()
    while worker.poll() is None:
        running = Document.read(file).content["running"]
        now = None if running is None else running["part"]
        if now != part:
            part, since = now, time.monotonic()
        most = _patience(part, tiny=tiny)
        if time.monotonic() - since > most:
            return f"hung: it was ended after {most:g} s"
        time.sleep(0.1)
    code = worker.returncode
    return f"the process ended by {signal.Signals(-code).name}" if code < 0 else f"the process ended with code {code}"


def show(outcomes: Sequence[Outcome], bars: Sequence[Facts]) -> None:
    """The table on stdout."""
    for outcome in outcomes:
        print(f"{outcome.status:<5} {outcome.part:<18} {outcome.seconds:6.1f} s  {outcome.summary}")
    for bar in bars:
        wanted = f"at least {bar['least']:g}" if bar["least"] is not None else f"at most {bar['most']:g}"
        print(f"{'met' if bar['met'] else 'MISSED':<7} {bar['name']}: {bar['value']:.3g} ({wanted})")


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="everything on a CPU, with small shapes")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"some parts: {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where the numbers are written")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    chosen = [part for part in PARTS if not options.only or part.name in options.only]
    if options.work:
        return work(chosen, Document.read(options.output))
    expand_segments()  # as the command does, before torch is loaded
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    document = supervise(chosen, options.output, tiny=options.tiny)
    if document is None:
        return _NO_DEVICE
    show(document.outcomes, document.content["bars"])
    return 1 if any(outcome.status == "FAIL" for outcome in document.outcomes) else 0


if __name__ == "__main__":
    from tests.gpu.check import main as run  # under its own name, so that the parts meet the same classes

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the worker is ended, too
    sys.exit(run())
