"""What this project does on a card, shown in six minutes: python -m tests.gpu.check [--tiny] [--only PART ...]

Parts run one after another, the most telling first. What is known is written to a file after every part, so a time-out
loses nothing; a part that breaks is a FAIL and not the end; a part that would pass the time is left out. `--tiny` does
all of it on a CPU with small shapes, so that the script is right on the day when there is a card.
"""

import argparse
import gc
import importlib
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

Status = Literal["PASS", "FAIL", "SKIP"]

_SECONDS = 340.0  # of six minutes, with room for a start and an end
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "tokenizers", "huggingface-hub", "triton", "liger-kernel")


@dataclass
class Place:
    """Where the parts run, and what they know of one another.

    Attributes:
        tiny: small shapes on a CPU instead of real ones on a card.
        peak_flops: bf16 products a second (float32 on a CPU), once measured.
        bars: what the issue of a number is: name, value, least or most, whether it was met.
    """

    device: torch.device
    tiny: bool
    folder: Path
    peak_flops: float | None = None
    bars: list[dict[str, Any]] = field(default_factory=list)

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compute(self) -> torch.dtype:
        return torch.bfloat16 if self.on_cuda else torch.float32

    def bar(self, name: str, value: float, *, least: float | None = None, most: float | None = None) -> None:
        """Hold a number against what was asked for; missing it is told, and no failure."""
        met = (least is None or value >= least) and (most is None or value <= most)
        self.bars.append({"name": name, "value": value, "least": least, "most": most, "met": met})


class MissingError(Exception):
    """A part cannot run here; the message says what it lacks."""


@dataclass(frozen=True)
class Part:
    """Attributes:
    run: does the work; returns a sentence and the numbers. It raises AssertionError where something is wrong, and
        `MissingError` where it cannot run.
    seconds: about what it takes on a card.
    """

    name: str
    run: Callable[[Place], tuple[str, dict[str, Any]]]
    seconds: float


@dataclass
class Outcome:
    part: str
    status: Status
    seconds: float
    summary: str
    facts: dict[str, Any] = field(default_factory=dict)


def parts() -> list[Part]:
    """All parts, the most telling first."""
    from tests.gpu import correctness, runs, speed

    return [
        Part("ceilings", speed.ceilings, 6),
        Part("kernels", correctness.kernels, 8),
        Part("agreement", correctness.agreement, 12),
        Part("self-check", correctness.self_check, 12),
        Part("speed-8b-lora", speed.speed_8b_lora, 95),
        Part("speed-1.5b-full", speed.speed_1_5b_full, 65),
        Part("memory", correctness.memory, 35),
        Part("out-of-memory", runs.out_of_memory, 15),
        Part("repeat-and-resume", runs.repeat_and_resume, 50),
        Part("speed-135m-full", speed.speed_135m_full, 30),
        Part("cuda-tests", runs.cuda_tests, 30),
    ]


def run_parts(chosen: Sequence[Part], place: Place, output: Path) -> list[Outcome]:
    """Run parts, and write what is known after each of them."""
    started, outcomes = time.perf_counter(), list[Outcome]()
    began = datetime.now(UTC).isoformat(timespec="seconds")
    for part in chosen:
        elapsed = time.perf_counter() - started
        if not place.tiny and elapsed + part.seconds > _SECONDS:
            summary = f"left out: {elapsed:.0f} s are gone and it takes about {part.seconds:.0f}"
            outcomes.append(Outcome(part.name, "SKIP", 0.0, summary))
        else:
            print(f"{part.name} ...", file=sys.stderr, flush=True)
            outcomes.append(_run(part, place))
            _clear(place)
        _write(output, place, outcomes, began, time.perf_counter() - started)
    return outcomes


def _run(part: Part, place: Place) -> Outcome:
    started, facts = time.perf_counter(), dict[str, Any]()
    status: Status
    try:
        summary, facts = part.run(place)
        status = "PASS"
    except MissingError as error:
        status, summary = "SKIP", str(error)
    except Exception as error:  # whatever a card does to a part, the others are still worth running
        status, summary = "FAIL", f"{type(error).__name__}: {error}".splitlines()[0][:300]
        facts = {**getattr(error, "facts", {}), "traceback": traceback.format_exc().splitlines()[-30:]}
        traceback.clear_frames(error.__traceback__)
    return Outcome(part.name, status, time.perf_counter() - started, summary, facts)


class WrongError(AssertionError):
    """A part measured something that is not as it should be; `facts` is what it measured."""

    def __init__(self, problem: str, facts: dict[str, Any]) -> None:
        super().__init__(problem)
        self.facts = facts


def require(holds: bool, problem: str, facts: dict[str, Any]) -> None:
    if not holds:
        raise WrongError(problem, facts)


def _clear(place: Place) -> None:
    torch._dynamo.reset()
    gc.collect()
    if place.on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _write(output: Path, place: Place, outcomes: Sequence[Outcome], began: str, seconds: float) -> None:
    document = {
        "schema_version": 1,
        "started": began,
        "seconds": round(seconds, 1),
        "tiny": place.tiny,
        "machine": describe(place.device),
        "parts": [asdict(outcome) for outcome in outcomes],
        "bars": place.bars,
    }
    new = output.with_name(f".{output.name}.new")
    new.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(new, output)


def describe(device: torch.device) -> dict[str, Any]:
    """The device and the versions; nothing that names this one machine."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    facts: dict[str, Any] = {
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


def show(outcomes: Sequence[Outcome], bars: Sequence[dict[str, Any]]) -> None:
    """The table on stdout."""
    for outcome in outcomes:
        print(f"{outcome.status:<5} {outcome.part:<18} {outcome.seconds:6.1f} s  {outcome.summary}")
    for bar in bars:
        wanted = f"at least {bar['least']:g}" if bar["least"] is not None else f"at most {bar['most']:g}"
        print(f"{'met' if bar['met'] else 'MISSED':<7} {bar['name']}: {bar['value']:.3g} ({wanted})")


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in parts()]
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="everything on a CPU, with small shapes")
    parser.add_argument("--only", nargs="+", choices=names, metavar="PART", help=f"some parts: {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"), help="where the numbers are written")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("there is no CUDA device here; --tiny runs on a CPU", file=sys.stderr)
        return 4
    device = torch.device("cpu" if options.tiny else "cuda")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = Place(device, options.tiny, Path(folder))
        chosen = [part for part in parts() if not options.only or part.name in options.only]
        outcomes = run_parts(chosen, place, options.output)
    show(outcomes, place.bars)
    return 1 if any(outcome.status == "FAIL" for outcome in outcomes) else 0


def need(module: str) -> Any:
    """A module that may not be there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingError(f"{module} is not installed") from error


if __name__ == "__main__":
    from tests.gpu.check import main as run  # under its own name, so that the parts meet the same classes

    sys.exit(run())
