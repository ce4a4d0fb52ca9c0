"""Going on with a run: bit for bit what an unbroken run gives, and never by accident."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model import memory
from simpo_cli.model.memory import MemoryNeed, Workload
from simpo_cli.run.folder import RunFolder, saved_bytes
from simpo_cli.run.receipt import RunReceipt
from simpo_cli.run.verify import verify_run
from simpo_cli.train import loop, run_plan, saving
from simpo_cli.versions import installed_version
from tests.train.runs import EVERY, PowerCutError, Runs, power_cut, tiny_runs

LORA = ("model.lora.rank=4", "model.lora.dropout=0.1", "train.learning_rate=1e-2")
ADAPTERS = {
    "lora": LORA,
    "nf4": (*LORA, "model.quantization=nf4"),
    "int8": (*LORA, "model.quantization=int8"),
    "pissa": (*LORA, "model.lora.init=pissa"),
}
LAST = 8


@pytest.fixture
def tiny(tmp_path: Path, tiny_folder: Path, prefs: Path) -> Runs:
    return tiny_runs(tmp_path, tiny_folder, prefs, *EVERY)


@pytest.fixture(scope="module", params=["full", *ADAPTERS])
def unbroken(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, prefs: Path
) -> Runs:
    """With a run that nobody stopped, and room for others beside it."""
    more = ADAPTERS.get(request.param, ())
    runs = tiny_runs(tmp_path_factory.mktemp(request.param), tiny_folder, prefs, *EVERY, *more)
    runs.train("unbroken")
    assert runs.log("unbroken", "metrics")[-1]["step"] == LAST
    return runs


full = pytest.mark.parametrize("unbroken", ["full"], indirect=True)


def test_a_run_cut_in_many_places_gives_the_bits_of_an_unbroken_one(unbroken: Runs) -> None:
    unbroken.cut("cut", evaluation=0)
    unbroken.cut("cut", step=1, resume=True)
    unbroken.cut("cut", step=3, resume=True)
    unbroken.cut("cut", evaluation=4, resume=True)
    memory = unbroken.train("cut", resume=True)
    assert (memory.first_step, memory.steps[0].step) == (3, 4)
    assert memory.said("self-check") == []  # read, not made again
    unbroken.require_same("cut", "unbroken")


@pytest.mark.parametrize("unbroken", ["lora", "pissa"], indirect=True)
def test_adapters_start_the_same_whatever_drew_random_numbers_before(unbroken: Runs) -> None:
    torch.manual_seed(1_000)
    unbroken.train("again")
    unbroken.require_same("again", "unbroken")


@full
def test_a_run_that_dies_after_its_last_step_is_finished_and_not_trained_again(
    unbroken: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("simpo_cli.train.outcome.save_model", power_cut)
        unbroken.cut("late")
    memory = unbroken.train("late", resume=True)
    assert (memory.first_step, memory.steps) == (LAST, [])
    unbroken.require_same("late", "unbroken")


@full
def test_a_finished_run_that_dies_as_it_is_gone_on_with_is_whole_and_keeps_its_results(
    unbroken: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recipe is the one of now, or still that of before, and its notes are more than run.json tells of."""
    run = unbroken.folder / "longer"
    shutil.copytree(unbroken.folder / "unbroken", run)
    before, recipe = unbroken.receipt("longer"), (run / "recipe.yaml").read_bytes()
    write_text = RunFolder.write_text

    def write_or_die(folder: RunFolder, name: str, text: str) -> None:
        if name == "recipe.yaml":
            raise PowerCutError
        write_text(folder, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write_text", write_or_die)
        unbroken.cut("longer", "train.num_epochs=3", "train.learning_rate=2e-3", resume=True)
    assert (run / "recipe.yaml").read_bytes() == recipe
    assert verify_run(run).damaged == []
    with monkeypatch.context() as patch:
        patch.setattr("simpo_cli.train.session.build", power_cut)
        for rate in ("3e-3", "4e-3"):
            unbroken.cut("longer", "train.num_epochs=3", f"train.learning_rate={rate}", resume=True)
            assert (run / "recipe.yaml").read_bytes() != recipe
            assert verify_run(run).damaged == []
    assert unbroken.receipt("longer")["outcome"] == before["outcome"]
    text = (run / "recipe.yaml").read_text("utf-8")
    (run / "recipe.yaml").write_text(text.replace("4e-3", "5e-3").replace("0.004", "0.005"), "utf-8")
    assert verify_run(run).damaged == ["recipe.yaml"]
    unbroken.train("longer", "train.num_epochs=3", resume=True)
    assert verify_run(run).damaged == []
    assert "reopened" not in unbroken.receipt("longer")


@full
def test_what_a_cut_rotation_and_a_cut_line_have_left_is_put_in_order(
    unbroken: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotate = saving.rotate

    def cut_at_the_last(parent: Path, *rest: Any, **options: Any) -> None:
        if (parent / f"step-{LAST:08d}").exists():
            raise PowerCutError
        rotate(parent, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "rotate", cut_at_the_last)
        unbroken.cut("unrotated")
    kept = unbroken.checkpoints("unbroken")
    assert len(unbroken.checkpoints("unrotated")) == len(kept) + 1
    before = unbroken.log("unrotated", "notes")
    with (unbroken.folder / "unrotated" / "notes.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"label": "note", "te')
    unbroken.train("unrotated", resume=True)
    assert unbroken.checkpoints("unrotated") == kept
    assert unbroken.log("unrotated", "notes")[: len(before)] == before


@full
def test_it_goes_on_from_a_checkpoint_before_the_newest_when_that_is_damaged(unbroken: Runs) -> None:
    unbroken.cut("damaged", step=6)
    assert unbroken.checkpoints("damaged")[-1] == 5
    moments = unbroken.folder / "damaged" / "checkpoints" / "step-00000005" / "optimizer.safetensors"
    data = bytearray(moments.read_bytes())
    data[-9] ^= 4
    moments.write_bytes(data)
    memory = unbroken.train("damaged", resume=True)
    [said] = memory.said("damaged checkpoint step-00000005: optimizer.safetensors holds other bytes")
    assert "step-00000004 is used instead" in said
    assert memory.steps[0].step == 5
    unbroken.require_same("damaged", "unbroken")


def test_resume_starts_a_run_where_there_is_none_and_says_when_one_is_complete(tiny: Runs) -> None:
    memory = tiny.train("run", "train.max_steps=2", resume=True)
    assert memory.outcome is not None
    assert [record.step for record in memory.steps] == [1, 2]
    run = tiny.folder / "run"
    everything = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file.name != ".owner"}
    memory = tiny.train("run", "train.max_steps=2", resume=True)
    assert memory.outcome is None
    assert memory.notes == [f"{run} is complete at step 2 of 2; raise train.max_steps to train longer"]
    assert all(file.read_bytes() == content for file, content in everything.items())


def test_a_finished_run_goes_on_when_its_end_is_moved(tiny: Runs) -> None:
    tiny.train("run", "train.num_epochs=1")
    memory = tiny.train("run", resume=True)
    assert [row["step"] for row in tiny.log("run", "metrics")] == list(range(1, 9))
    assert [row["step"] for row in tiny.log("run", "evals")] == [0, 2, 4, 6, 8]
    assert "another schedule from step 4 on: train.num_epochs is 2, was 1" in memory.notes
    with pytest.raises(UserError, match="is at step 8, past its end, which is step 4 now"):
        tiny.train("run", "train.num_epochs=1", resume=True)


def test_a_run_without_any_whole_checkpoint_says_so(tiny: Runs) -> None:
    tiny.cut("run", step=1)
    [folder] = (tiny.folder / "run" / "checkpoints").iterdir()
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="no checkpoint in .* can be used: step-00000000: it has no manifest") as caught:
        tiny.train("run", resume=True)
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_another_run_is_refused_and_allowed_by_name(tiny: Runs) -> None:
    tiny.cut("run", step=2)
    for more, sentence in (
        ("seed=7", "seed is 7, was 42"),
        ("data.max_length=60", "data.max_length is 60, was 64"),
        ("train.pairs_per_step=4", "train.pairs_per_step is 4, was 8"),
        ("model.lora.rank=4", "model.lora.rank is 4, was not set"),
        ("loss.gamma=1.5", "loss.gamma is 1.5, was not set"),
        ("loss.beta=2.5", "loss.beta is 2.5, was 2.0"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)) as caught:
            tiny.train("run", more, resume=True)
        assert caught.value.exit_code == ExitCode.USAGE
        assert f"--allow-changed {more.partition('=')[0]}" in caught.value.fix
    with pytest.raises(UserError, match=re.escape("--allow-changed loss.bata: there is no such key")) as caught:
        tiny.train("run", "loss.beta=2.5", resume=True, allow_changed=["loss.beta", "loss.bata"])
    assert caught.value.fix == "Did you mean loss.beta?"
    memory = tiny.train("run", "loss.beta=2.5", resume=True, allow_changed=["loss.beta", "seed"])
    assert "another run from step 1 on: loss.beta is 2.5, was 2.0" in memory.notes
    [resumed] = tiny.receipt("run")["resumed"]
    assert (resumed["from_step"], resumed["changed"]) == (1, ["loss.beta is 2.5, was 2.0"])


def test_pairs_may_move_and_a_changed_template_is_named(tiny: Runs, tmp_path: Path, prefs: Path) -> None:
    tiny.cut("run", step=2)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(prefs.read_bytes())
    tiny.cut("run", f"data.train={moved}", step=2, resume=True)  # the same pairs by another name are the same
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}",
        encoding="utf-8",
    )
    with pytest.raises(UserError, match="the chat template is another") as caught:
        tiny.train("run", f"data.chat_template={template}", resume=True)
    assert "--allow-changed data.chat_template" in caught.value.fix


def test_what_auto_made_of_gradient_checkpointing_is_recorded_and_stays(
    tiny: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run begins where only checkpointed layers fit, and goes on where there is room for more."""
    monkeypatch.setattr(memory, "_CPU_HEAP", memory._Heap())  # of so few layers a CPU's heap takes as much either way
    needs: list[MemoryNeed] = []
    training = Workload.training

    def remembered(workload: Workload, **options: Any) -> MemoryNeed:
        needs.append(training(workload, **options))
        return needs[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Workload, "training", remembered)
        tiny.train("run", dry_run=True)
    plain, checkpointed = needs[:2]  # the forecast of a dry run asks for more
    free = (checkpointed.total(400) + plain.total(400)) // 2
    assert checkpointed.total(400) < free < plain.total(400)
    with monkeypatch.context() as patch:
        patch.setattr(run_plan, "available_bytes", lambda _: free)
        begun = tiny.cut("run", step=3)
    assert begun.lines["memory"].endswith("gradient checkpointing on")
    [identity, *_] = sorted((tiny.folder / "run" / "checkpoints").glob("*/identity.json"))
    assert json.loads(identity.read_text(encoding="utf-8"))["machine"]["gradient_checkpointing"] is True
    resumed = tiny.train("run", resume=True)
    assert resumed.lines["memory"].endswith("gradient checkpointing on")
    assert resumed.said("not bit-exact") == []
    assert tiny.train("fresh", dry_run=True).lines["memory"].endswith("gradient checkpointing off")


def test_the_schedule_warns_machine_and_versions_are_recorded_and_the_rest_is_silent(
    tiny: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.cut("run", step=3)
    monkeypatch.setattr(
        run_plan, "installed_version", lambda name: "99.0" if name == "simpo-cli" else installed_version(name)
    )
    more = ("train.learning_rate=5e-4", "train.tokens_per_microbatch=150", "checkpoint.keep=1", "export.dtype=fp32")
    said = tiny.train("run", *more, resume=True).said("from step 2")
    assert said[0] == "another schedule from step 2 on: train.learning_rate is 0.0005, was 0.001"
    newer = f"simpo-cli 99.0, was {installed_version('simpo-cli')}"
    assert said[1].startswith(f"not bit-exact from step 2: {newer}")
    assert "tokens_per_microbatch 150, was " in said[1]
    assert said[2:] == ["resumes from step 2 of 8"]
    [entry] = tiny.receipt("run")["resumed"]
    assert (entry["from_step"], entry["changed"]) == (2, [])
    assert len(entry["not_bit_exact"]) == 2
    assert entry["not_bit_exact"][0] == newer


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_as_it_was(
    tiny: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = saving.commit

    def full_at_third(parent: Path, step: int, *rest: Any) -> Any:
        if step == 3:
            raise OSError(28, "No space left on device")
        return commit(parent, step, *rest)

    said = "step 3 cannot be saved .* No space left on device; that of step 2 is kept"
    with monkeypatch.context() as patch:
        patch.setattr(saving, "commit", full_at_third)
        with pytest.raises(UserError, match=said) as caught:
            tiny.train("run")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert tiny.checkpoints("run") == [1, 2]
    assert (tiny.receipt("run")["status"], tiny.receipt("run")["step"]) == ("failed", 2)
    assert tiny.train("run", resume=True).steps[0].step == 3


def test_too_little_room_is_seen_before_each_save(tiny: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def room(_: Path, needed: int, purpose: str) -> None:
        if purpose == "the checkpoint of step 2":
            assert needed > 100_000
            raise UserError("the disk is too full", "", exit_code=ExitCode.ENVIRONMENT)

    monkeypatch.setattr(saving, "require_free_space", room)
    with pytest.raises(UserError, match="too full"):
        tiny.train("run")
    assert tiny.checkpoints("run")[-1] == 1


@pytest.mark.parametrize("takes_the_receipt", [True, False])
def test_the_first_save_is_tried_before_the_first_step_and_its_reason_is_the_one_to_be_read(
    tiny: Runs, monkeypatch: pytest.MonkeyPatch, takes_the_receipt: bool
) -> None:
    def never(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    write = RunReceipt.write

    def refusing(self: RunReceipt, status: str, *rest: Any, **more: Any) -> None:
        if status == "failed" and not takes_the_receipt:
            raise UserError("run.json cannot be written", "", exit_code=ExitCode.ENVIRONMENT)
        write(self, status, *rest, **more)

    monkeypatch.setattr(saving, "commit", never)
    monkeypatch.setattr(RunReceipt, "write", refusing)
    monkeypatch.setattr(loop, "accumulate", lambda *_, **__: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match="step 0 cannot be saved .* no checkpoint is there yet"):
        tiny.train("run")


def test_what_a_run_left_is_counted_as_room_it_has_and_damaged_logs_are_named(
    tiny: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(run_plan, "require_free_space", lambda _, needed, __: asked.append(needed))
    tiny.cut("run", step=4)
    run = tiny.folder / "run"
    assert verify_run(run).damaged == []
    taken = saved_bytes(run)
    assert taken > 1_000_000
    text = (run / "evals.jsonl").read_text(encoding="utf-8")
    (run / "evals.jsonl").write_text(text.replace('"loss": ', '"loss": 1', 1), encoding="utf-8")
    (run / "metrics.jsonl").write_bytes(b"\xff" + (run / "metrics.jsonl").read_bytes()[1:])
    assert verify_run(run).damaged == ["metrics.jsonl", "evals.jsonl"]
    memory = tiny.train("run", resume=True)
    assert asked[1] == asked[0] - taken
    for name in ("metrics.jsonl", "evals.jsonl"):
        assert f"{name} is damaged: up to step 3 it holds other lines than were written" in memory.notes
    tiny.train("run", "train.num_epochs=3", resume=True)
    # what is vouched for at the end is what is there
    assert [file for file in verify_run(run).damaged if file != "metrics.jsonl"] == []
