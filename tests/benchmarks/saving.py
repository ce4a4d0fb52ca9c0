"""What checkpoints cost: processor time of a save and of its verification, beside that of a training step.

    python -m tests.benchmarks.saving [--model FOLDER] [--data FILE] [--steps N] [--saves N]

Trains the shipped recipe `smollm2-135m` for a few steps and saves its whole state after each, as `simpo train` does:
logs synced, files hashed and synced, older checkpoints removed, run.json written. Processor time is of this process
with all its threads, so that other work on the machine does not count; waiting for the disk is told beside it. Prints
what was seen on this machine, and asserts nothing.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.process import Took, timed

_MB = 10**6
_SHARE = 0.02  # of a run's time, which saving and verifying may take


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/smollm2-135m-instruct", help="the model's folder")
    parser.add_argument("--data", default="../shared/data/llamafactory_dpo_en_demo.json", help="a file of pairs")
    parser.add_argument("--steps", type=int, default=3, help="training steps; at least 2")
    parser.add_argument("--saves", type=int, default=5, help="saves, and readings of one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="simpo-saving-") as folder:
        steps, saves, readings, size, planned = _measure(options, Path(folder))
    print(f"state       {size / _MB:,.0f} MB: weights and both moments, float32")
    print(f"step        {_told(steps)}   (the first one left aside)")
    print(f"save        {_told(saves)}   {size / _MB / _median(saves):,.0f} MB a processor second")
    print(f"verified    {_told(readings)}   {size / _MB / _median(readings):,.0f} MB a processor second")
    print(f"sha256      {_hashing_speed() / _MB:,.0f} MB a processor second, alone")
    share = (2 * _median(saves) + _median(readings)) / (planned * _median(steps))
    print(f"by default  two saves and a reading in {planned} steps: {100 * share:.2f} % of the steps' processor time")
    print(
        f"at most {100 * _SHARE:.0f} % from checkpoint.every={-(-_median(saves) // (_SHARE * _median(steps))):.0f} on"
    )


def _measure(options: argparse.Namespace, place: Path) -> tuple[list[Took], list[Took], list[Took], int, int]:
    """Steps, saves, readings of a checkpoint, its bytes, and the steps of the recipe as it is shipped."""
    from simpo_cli.cli.options import quiet_libraries

    quiet_libraries()
    from simpo_cli.recipe.composition import compose
    from simpo_cli.run.folder import RunFolder
    from simpo_cli.run.receipt import RunReceipt
    from simpo_cli.run.stop import StopRequest
    from simpo_cli.train.build import build
    from simpo_cli.train.loop import run_steps
    from simpo_cli.train.run_plan import prepare
    from simpo_cli.train.saving import CheckpointSaver, ResumeState

    planned = compose("smollm2-135m").recipe.train.max_steps
    assert planned is not None
    composed = compose(
        "smollm2-135m",
        [
            f"model.path={Path(options.model).absolute()}",
            f"data.train={Path(options.data).absolute()}",
            "data.holdout=0",  # an evaluation takes its time with and without saves
            f"train.max_steps={options.steps}",
            "checkpoint.every=1",
            f"output_dir={place / 'run'}",
        ],
    )
    run = prepare(composed.recipe)
    folder = RunFolder.create(place / "run")
    stop, watcher = StopRequest(), _Watcher(folder.append)
    training, check, _ = build(run, watcher, stop, ResumeState(), [])  # type: ignore[arg-type]
    content = {**run.receipt(composed, {}), "self_check": check.as_json()}
    receipt = RunReceipt(folder, run.data, run.plan, content)
    saver = CheckpointSaver(folder, training, receipt, run.identity(content), None)
    saves: list[Took] = []

    def save() -> None:
        saves.append(timed(saver.save))
        watcher.restart()

    run_steps(training, save)
    while len(saves) < options.saves:
        saver.saved_at = None  # the same state once more
        saves.append(timed(saver.save))
    latest = ResumeState.of(folder.path).saved[0].checkpoint

    def read() -> None:
        for name in latest.manifest.files:
            with latest.open(name):
                pass

    readings = [timed(read) for _ in range(options.saves)]
    folder.close()
    size = sum(facts.size for facts in latest.manifest.files.values())
    return watcher.steps[1:], saves, readings, size, planned


class _Watcher:
    """An observer that keeps the times of the steps and writes their lines, as a run does."""

    def __init__(self, append: Callable[[str, dict[str, Any]], None]) -> None:
        self._append = append
        self.steps: list[Took] = []
        self.restart()

    def restart(self) -> None:
        """A step begins."""
        self._began = time.process_time(), time.perf_counter()

    def step(self, record: Any) -> None:
        processor, clock = self._began
        self.steps.append(Took(time.perf_counter() - clock, time.process_time() - processor))
        self._append("metrics.jsonl", record.as_metrics())

    def note(self, _text: str, _code: str = "", /) -> None:
        pass


def _hashing_speed() -> float:
    data = bytes(256 * _MB)
    return len(data) / _median([timed(lambda: hashlib.sha256(data)) for _ in range(5)])


def _median(took: Sequence[Took]) -> float:
    return statistics.median(one.processor for one in took)


def _told(took: Sequence[Took]) -> str:
    least, most = (limit(one.processor for one in took) for limit in (min, max))
    clock = statistics.median(one.clock for one in took)
    return (
        f"{_median(took):6.2f} s of processors ({least:.2f} to {most:.2f}, n {len(took)}), {clock:.2f} s by the clock"
    )


if __name__ == "__main__":
    main()
