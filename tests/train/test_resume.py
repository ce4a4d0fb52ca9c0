"""Going on with a run: bit for bit what an unbroken run gives, and never by accident."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.memory import MemoryNeed, Workload
from simpo_cli.recipe import compose
from simpo_cli.run.events import EvalRecord, RunOutcome, StepRecord
from simpo_cli.run.folder import RunFolder, saved_bytes
from simpo_cli.run.receipt import RunReceipt
from simpo_cli.run.verify import verify_run
from simpo_cli.train import loop, run_plan, saving
from simpo_cli.train.session import train
from simpo_cli.versions import installed_version
from tests.train.conftest import Memory
from tests.train.guide import final_state, rows, timeless

LORA = ["model.lora.rank=4", "model.lora.dropout=0.1", "train.learning_rate=1e-2"]
EVERY = ["checkpoint.every=1", "checkpoint.keep=3", "eval.every=2", "train.num_epochs=2"]


class PowerCutError(Exception):
    """The process is gone; nothing of ours expects this one."""


class Cutting(Memory):
    """An observer under which the power fails at a step, or at an evaluation."""

    def __init__(self, *, step: int | None = None, evaluation: int | None = None) -> None:
        super().__init__()
        self._step, self._evaluation = step, evaluation

    def step(self, record: StepRecord) -> None:
        super().step(record)
        if record.step == self._step:
            raise PowerCutError

    def evaluated(self, record: EvalRecord) -> None:
        super().evaluated(record)
        if record.step == self._evaluation:
            raise PowerCutError


class Place:
    """A folder with a recipe, and runs in it."""

    def __init__(self, folder: Path, tiny_folder: Path, prefs: Path) -> None:
        self.folder = folder
        self.recipe = folder / "run.yaml"
        self.recipe.write_text(
            f"name: tiny\nmodel:\n  path: {tiny_folder}\ndata:\n  train: {prefs}\n  holdout: 8\n  max_length: 64\n"
            "  max_prompt_length: 40\ntrain:\n  pairs_per_step: 8\n  learning_rate: 1e-3\n  precision: fp32\n",
            encoding="utf-8",
        )

    def train(self, run: str, *more: str, observer: Memory | None = None, **options: Any) -> RunOutcome | None:
        composed = compose(str(self.recipe), [f"output_dir={self.folder / run}", *more])
        return train(composed, observer=observer or Memory(), **options)

    def cut(self, run: str, *more: str, step: int | None = None, evaluation: int | None = None, **options: Any) -> None:
        with pytest.raises(PowerCutError):
            self.train(run, *more, observer=Cutting(step=step, evaluation=evaluation), **options)

    def checkpoints(self, run: str) -> list[str]:
        return sorted(path.name for path in (self.folder / run / "checkpoints").iterdir())

    def require_same(self, run: str, other: str) -> None:
        one, two = self.folder / run, self.folder / other
        assert final_state(one) == final_state(two)
        for name in ("metrics.jsonl", "evals.jsonl"):
            assert timeless(one / name) == timeless(two / name)
        measured = [json.loads((p / "run.json").read_text(encoding="utf-8")) for p in (one, two)]
        assert measured[0]["status"] == measured[1]["status"] == "done"
        for document in measured:
            document["data"]["train"].pop("tokens")  # whether they were cached, and how long that took
            for summary in ("before", "after"):
                document["outcome"][summary].pop("model")
        assert measured[0]["outcome"]["before"] == measured[1]["outcome"]["before"]
        assert measured[0]["outcome"]["after"] == measured[1]["outcome"]["after"]
        assert measured[0]["data"] == measured[1]["data"]


def _memory_line(memory: Memory) -> str:
    assert memory.header is not None
    [line] = [line.text for line in memory.header.lines if line.label == "memory"]
    return line


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, prefs: Path) -> Place:
    return Place(tmp_path, tiny_folder, prefs)


@pytest.fixture(scope="module", params=["full", "lora"])
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, prefs: Path
) -> tuple[Place, list[str]]:
    more = [*EVERY, *(LORA if request.param == "lora" else [])]
    place = Place(tmp_path_factory.mktemp(request.param), tiny_folder, prefs)
    place.train("unbroken", *more)
    return place, more


def test_a_run_cut_in_many_places_gives_the_bits_of_an_unbroken_one(unbroken: tuple[Place, list[str]]) -> None:
    place, more = unbroken
    place.cut("cut", *more, evaluation=0)
    place.cut("cut", *more, step=1, resume=True)
    place.cut("cut", *more, step=3, resume=True)
    place.cut("cut", *more, evaluation=4, resume=True)
    memory = Memory()
    place.train("cut", *more, resume=True, observer=memory)
    assert (memory.first_step, memory.steps[0].step) == (3, 4)
    assert not any("self-check" in note for note in memory.notes)  # read, not made again
    place.require_same("cut", "unbroken")


@pytest.mark.parametrize("unbroken", ["full"], indirect=True)
def test_a_run_that_dies_after_its_last_step_is_finished_and_not_trained_again(
    unbroken: tuple[Place, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, more = unbroken
    last = rows(place.folder / "unbroken" / "metrics.jsonl")[-1]["step"]
    with monkeypatch.context() as patch:
        patch.setattr("simpo_cli.train.outcome.save_model", _power_cut)
        with pytest.raises(PowerCutError):
            place.train("late", *more)
    memory = Memory()
    place.train("late", *more, resume=True, observer=memory)
    assert memory.first_step == last
    assert memory.steps == []
    place.require_same("late", "unbroken")


@pytest.mark.parametrize("unbroken", ["full"], indirect=True)
def test_a_finished_run_that_dies_as_it_is_gone_on_with_is_whole_and_keeps_its_results(
    unbroken: tuple[Place, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe is the one of now, or still that of before, and its notes are more than run.json tells of."""
    place, more = unbroken
    run = place.folder / "longer"
    shutil.copytree(place.folder / "unbroken", run)
    before, recipe = json.loads((run / "run.json").read_text("utf-8")), (run / "recipe.yaml").read_bytes()
    longer = [*more, "train.num_epochs=3"]
    with monkeypatch.context() as patch:
        patch.setattr("simpo_cli.run.folder.RunFolder.write_text", _power_cut_at("recipe.yaml"))
        with pytest.raises(PowerCutError):
            place.train("longer", *longer, "train.learning_rate=2e-3", resume=True)
    assert (run / "recipe.yaml").read_bytes() == recipe
    assert verify_run(run).damaged == []
    with monkeypatch.context() as patch:
        patch.setattr("simpo_cli.train.session.build", _power_cut)
        for rate in ("3e-3", "4e-3"):
            with pytest.raises(PowerCutError):
                place.train("longer", *longer, f"train.learning_rate={rate}", resume=True)
            assert (run / "recipe.yaml").read_bytes() != recipe
            assert verify_run(run).damaged == []
    assert json.loads((run / "run.json").read_text("utf-8"))["outcome"] == before["outcome"]
    text = (run / "recipe.yaml").read_text("utf-8")
    (run / "recipe.yaml").write_text(text.replace("4e-3", "5e-3").replace("0.004", "0.005"), "utf-8")
    assert verify_run(run).damaged == ["recipe.yaml"]
    place.train("longer", *longer, resume=True)
    assert verify_run(run).damaged == []
    assert "reopened" not in json.loads((run / "run.json").read_text("utf-8"))


@pytest.mark.parametrize("unbroken", ["full"], indirect=True)
def test_what_a_cut_rotation_and_a_cut_line_have_left_is_put_in_order(
    unbroken: tuple[Place, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, more = unbroken
    last = rows(place.folder / "unbroken" / "metrics.jsonl")[-1]["step"]
    rotate = saving.checkpoint.rotate

    def cut_at_the_last(parent: Path, *rest: Any, **options: Any) -> None:
        if (parent / f"step-{last:08d}").exists():
            raise PowerCutError
        rotate(parent, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(saving.checkpoint, "rotate", cut_at_the_last)
        with pytest.raises(PowerCutError):
            place.train("unrotated", *more)
    assert len(place.checkpoints("unrotated")) == len(place.checkpoints("unbroken")) + 1
    notes = place.folder / "unrotated" / "notes.jsonl"
    before = rows(notes)
    with notes.open("a", encoding="utf-8") as file:
        file.write('{"label": "note", "te')
    place.train("unrotated", *more, resume=True)
    assert place.checkpoints("unrotated") == place.checkpoints("unbroken")
    assert rows(notes)[: len(before)] == before


def _power_cut(*_: object, **__: object) -> None:
    raise PowerCutError


def _power_cut_at(file: str) -> Callable[..., None]:
    """A stand-in for RunFolder.write_text under which the power fails before a file is written."""
    write_text = RunFolder.write_text

    def write_or_die(self: RunFolder, name: str, text: str) -> None:
        if name == file:
            raise PowerCutError
        write_text(self, name, text)

    return write_or_die


@pytest.mark.parametrize("unbroken", ["full"], indirect=True)
def test_it_goes_on_from_a_checkpoint_before_the_newest_when_that_is_damaged(unbroken: tuple[Place, list[str]]) -> None:
    place, more = unbroken
    place.cut("damaged", *more, step=6)
    assert place.checkpoints("damaged")[-1] == "step-00000005"
    weights = place.folder / "damaged" / "checkpoints" / "step-00000005" / "optimizer.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 4
    weights.write_bytes(data)
    memory = Memory()
    place.train("damaged", *more, resume=True, observer=memory)
    assert any(
        "damaged checkpoint step-00000005: optimizer.safetensors holds other bytes" in note
        and "step-00000004 is used instead" in note
        for note in memory.notes
    )
    assert memory.steps[0].step == 5
    place.require_same("damaged", "unbroken")


def test_the_embedded_model_goes_on_bit_for_bit(tmp_path: Path) -> None:
    recipe = tmp_path / "guide.yaml"
    recipe.write_text(
        "name: guide\nmodel: {path: builtin:guide}\ndata:\n  train: [{path: builtin:guide, max_pairs: 24}]\n"
        "  holdout: 4\n  max_length: 128\n  max_prompt_length: 64\n"
        "train: {pairs_per_step: 8, learning_rate: 7e-4, precision: fp32}\ncheckpoint: {every: 1}\n",
        encoding="utf-8",
    )
    for run in ("unbroken", "cut"):
        composed = compose(str(recipe), [f"output_dir={tmp_path / run}"])
        if run == "cut":
            with pytest.raises(PowerCutError):
                train(composed, observer=Cutting(step=2))
        train(composed, observer=Memory(), resume=run == "cut")
    assert final_state(tmp_path / "cut") == final_state(tmp_path / "unbroken")
    assert timeless(tmp_path / "cut" / "metrics.jsonl") == timeless(tmp_path / "unbroken" / "metrics.jsonl")


def test_an_existing_run_is_neither_overwritten_nor_gone_on_with_unless_asked(place: Place) -> None:
    place.cut("run", *EVERY, step=2)
    before = (place.folder / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="already holds a run") as caught:
        place.train("run", *EVERY)
    assert "--resume" in caught.value.fix
    assert "--fresh" in caught.value.fix
    assert (place.folder / "run" / "metrics.jsonl").read_bytes() == before


def test_resume_starts_a_run_where_there_is_none_and_says_when_one_is_complete(place: Place) -> None:
    memory = Memory()
    assert place.train("run", "train.max_steps=2", resume=True, observer=memory) is not None
    assert [record.step for record in memory.steps] == [1, 2]
    everything = {p: p.read_bytes() for p in (place.folder / "run").rglob("*") if p.is_file() and p.name != ".owner"}
    memory = Memory()
    assert place.train("run", "train.max_steps=2", resume=True, observer=memory) is None
    assert memory.notes == [f"{place.folder / 'run'} is complete at step 2 of 2; raise train.max_steps to train longer"]
    assert all(path.read_bytes() == content for path, content in everything.items())


def test_a_finished_run_goes_on_when_its_end_is_moved(place: Place) -> None:
    place.train("run", "eval.every=2")
    memory = Memory()
    place.train("run", "eval.every=2", "train.num_epochs=2", resume=True, observer=memory)
    steps = [row["step"] for row in rows(place.folder / "run" / "metrics.jsonl")]
    assert steps == list(range(1, 9))
    assert [row["step"] for row in rows(place.folder / "run" / "evals.jsonl")] == [0, 2, 4, 6, 8]
    assert any("another schedule from step 4 on: train.num_epochs is 2, was 1" in note for note in memory.notes)
    with pytest.raises(UserError, match="is at step 8, past its end, which is step 4 now"):
        place.train("run", "eval.every=2", resume=True)


def test_a_run_without_any_whole_checkpoint_says_so(place: Place) -> None:
    place.cut("run", *EVERY, step=1)
    [folder] = (place.folder / "run" / "checkpoints").iterdir()
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="no checkpoint in .* can be used: step-00000000: it has no manifest") as caught:
        place.train("run", *EVERY, resume=True)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def _change(place: Place, before: str, after: str) -> None:
    text = place.recipe.read_text(encoding="utf-8")
    assert before in text
    place.recipe.write_text(text.replace(before, after), encoding="utf-8")


def test_another_run_is_refused_and_allowed_by_name(place: Place) -> None:
    place.cut("run", *EVERY, step=2)
    for more, key, sentence in (
        ("seed=7", "seed", "seed is 7, was 42"),
        ("data.max_length=60", "data.max_length", "data.max_length is 60, was 64"),
        ("train.pairs_per_step=4", "train.pairs_per_step", "train.pairs_per_step is 4, was 8"),
        ("model.lora.rank=4", "model.lora.rank", "model.lora.rank is 4, was not set"),
        ("loss.gamma=1.5", "loss.gamma", "loss.gamma is 1.5, was not set"),
        ("loss.beta=2.5", "loss.beta", "loss.beta is 2.5, was 2.0"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)) as caught:
            place.train("run", *EVERY, more, resume=True)
        assert caught.value.exit_code == ExitCode.USAGE
        assert f"--allow-changed {key}" in caught.value.fix
    with pytest.raises(UserError, match=re.escape("--allow-changed loss.bata: there is no such key")) as caught:
        place.train("run", *EVERY, "loss.beta=2.5", resume=True, allow_changed=["loss.beta", "loss.bata"])
    assert caught.value.fix == "Did you mean loss.beta?"
    memory = Memory()
    allowed = ["loss.beta", "seed"]
    place.train("run", *EVERY, "loss.beta=2.5", resume=True, allow_changed=allowed, observer=memory)
    assert "another run from step 1 on: loss.beta is 2.5, was 2.0" in memory.notes
    document = json.loads((place.folder / "run" / "run.json").read_text(encoding="utf-8"))
    assert document["resumed"][0]["from_step"] == 1
    assert document["resumed"][0]["changed"] == ["loss.beta is 2.5, was 2.0"]


def test_changed_pairs_tokenizer_and_template_are_named(place: Place, tmp_path: Path, prefs: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(prefs.read_bytes())
    _change(place, str(prefs), str(mine))
    place.cut("run", *EVERY, step=2)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(mine.read_bytes())
    place.cut("run", *EVERY, f"data.train={moved}", step=2, resume=True)  # the same pairs by another name are the same
    text = mine.read_text(encoding="utf-8")
    mine.write_text(text.replace("Please", "Kindly", 1), encoding="utf-8")
    with pytest.raises(UserError, match=r"the pairs of data.train are others \(.*mine.jsonl\)") as caught:
        place.train("run", *EVERY, resume=True)
    assert "--allow-changed data.train" in caught.value.fix
    mine.write_text(text, encoding="utf-8")

    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="the chat template is another") as caught:
        place.train("run", *EVERY, f"data.chat_template={template}", resume=True)
    assert "--allow-changed data.chat_template" in caught.value.fix


def test_what_auto_made_of_gradient_checkpointing_is_recorded_and_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begins where only checkpointed layers fit, and goes on where there is room for more."""
    needs: list[MemoryNeed] = []
    training = Workload.training

    def remembered(workload: Workload, **options: Any) -> MemoryNeed:
        needs.append(training(workload, **options))
        return needs[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Workload, "training", remembered)
        place.train("run", dry_run=True)
    plain, checkpointed = needs
    free = (checkpointed.total(400) + plain.total(400)) // 2
    assert checkpointed.total(400) < free < plain.total(400)
    memory = Cutting(step=3)
    with monkeypatch.context() as patch:
        patch.setattr(run_plan, "available_bytes", lambda _: free)
        with pytest.raises(PowerCutError):
            place.train("run", *EVERY, observer=memory)
    assert _memory_line(memory).endswith("gradient checkpointing on")
    [identity, *_] = sorted((place.folder / "run" / "checkpoints").glob("*/identity.json"))
    assert json.loads(identity.read_text(encoding="utf-8"))["machine"]["gradient_checkpointing"] is True
    resumed = Memory()
    place.train("run", *EVERY, resume=True, observer=resumed)
    assert _memory_line(resumed).endswith("gradient checkpointing on")
    assert not [note for note in resumed.notes if "not bit-exact" in note]
    fresh = Memory()
    place.train("fresh", *EVERY, dry_run=True, observer=fresh)
    assert _memory_line(fresh).endswith("gradient checkpointing off")


def test_the_schedule_warns_the_machine_is_recorded_and_the_rest_is_silent(place: Place) -> None:
    place.cut("run", *EVERY, step=3)
    memory = Memory()
    more = ["train.learning_rate=5e-4", "train.tokens_per_microbatch=150", "checkpoint.keep=1", "export.dtype=fp32"]
    place.train("run", *EVERY, *more, resume=True, observer=memory)
    said = [note for note in memory.notes if "from step 2" in note]
    assert said[0] == "another schedule from step 2 on: train.learning_rate is 0.0005, was 0.001"
    assert said[1].startswith("not bit-exact from step 2: tokens_per_microbatch 150, was ")
    assert said[2:] == ["resumes from step 2 of 8"]
    [entry] = json.loads((place.folder / "run" / "run.json").read_text(encoding="utf-8"))["resumed"]
    assert entry["from_step"] == 2
    assert len(entry["not_bit_exact"]) == 1
    assert entry["changed"] == []


def test_another_version_of_simpo_is_recorded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.cut("run", *EVERY, step=2)
    monkeypatch.setattr(
        run_plan, "installed_version", lambda name: "99.0" if name == "simpo-cli" else installed_version(name)
    )
    place.train("run", *EVERY, resume=True)
    [entry] = json.loads((place.folder / "run" / "run.json").read_text(encoding="utf-8"))["resumed"]
    assert entry["not_bit_exact"] == [f"simpo-cli 99.0, was {installed_version('simpo-cli')}"]


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_as_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = saving.checkpoint.commit

    def full_at_third(parent: Path, step: int, *rest: Any) -> Any:
        if step == 3:
            raise OSError(28, "No space left on device")
        return commit(parent, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(saving.checkpoint, "commit", full_at_third)
        with pytest.raises(
            UserError, match="step 3 cannot be saved .* No space left on device; that of step 2 is kept"
        ) as caught:
            place.train("run", *EVERY)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert place.checkpoints("run") == ["step-00000001", "step-00000002"]
    document = json.loads((place.folder / "run" / "run.json").read_text(encoding="utf-8"))
    assert (document["status"], document["step"]) == ("failed", 2)
    memory = Memory()
    place.train("run", *EVERY, resume=True, observer=memory)
    assert memory.steps[0].step == 3


def test_too_little_room_is_seen_before_each_save(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def room(_: Path, needed: int, purpose: str) -> None:
        if purpose == "the checkpoint of step 2":
            assert needed > 100_000
            raise UserError("the disk is too full", "", exit_code=ExitCode.ENVIRONMENT)

    monkeypatch.setattr(saving, "require_free_space", room)
    with pytest.raises(UserError, match="too full"):
        place.train("run", *EVERY)
    assert place.checkpoints("run")[-1] == "step-00000001"


def test_the_first_save_is_tried_before_the_first_step(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(saving.checkpoint, "commit", never)
    monkeypatch.setattr(loop, "accumulate", lambda *_, **__: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match="step 0 cannot be saved .* no checkpoint is there yet"):
        place.train("run")


def test_what_a_run_left_is_counted_as_room_it_has_and_damaged_logs_are_named(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(run_plan, "require_free_space", lambda _, needed, __: asked.append(needed))
    place.cut("run", *EVERY, step=4)
    run = place.folder / "run"
    assert verify_run(run).damaged == []
    taken = saved_bytes(run)
    assert taken > 1_000_000
    text = (run / "evals.jsonl").read_text(encoding="utf-8")
    (run / "evals.jsonl").write_text(text.replace('"loss": ', '"loss": 1', 1), encoding="utf-8")
    (run / "metrics.jsonl").write_bytes(b"\xff" + (run / "metrics.jsonl").read_bytes()[1:])
    assert verify_run(run).damaged == ["metrics.jsonl", "evals.jsonl"]
    memory = Memory()
    place.train("run", *EVERY, resume=True, observer=memory)
    assert asked[1] == asked[0] - taken
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert f"{name} is damaged: up to step 3 it holds other lines than were written" in memory.notes
    place.train("run", *EVERY, "train.num_epochs=3", resume=True)
    # what is vouched for at the end is what is there
    assert [file for file in verify_run(run).damaged if file != "metrics.jsonl"] == []


def test_a_disk_that_takes_nothing_more_leaves_the_first_reason_to_be_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write = RunReceipt.write

    def refusing(self: RunReceipt, status: str, *rest: Any, **more: Any) -> None:
        if status == "failed":
            raise UserError("run.json cannot be written", "", exit_code=ExitCode.ENVIRONMENT)
        write(self, status, *rest, **more)

    monkeypatch.setattr(saving.checkpoint, "commit", full)
    monkeypatch.setattr(RunReceipt, "write", refusing)
    with pytest.raises(UserError, match="step 0 cannot be saved"):
        place.train("run")
