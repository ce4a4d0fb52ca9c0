"""Health in real runs of the embedded model: what is written where, stopping and going on; watching moves nothing."""

import json
from pathlib import Path

import pytest

from simpo_cli.errors import ExitCode
from simpo_cli.train import build
from simpo_cli.train.health import AnswerProbe, UnhealthyError
from tests.train.conftest import Memory
from tests.train.guide import Guide
from tests.train.same_bits import final_state, rows, timeless

# a rate at which nothing but noise is learned: drift is at its threshold by step 2
WILD = ("train.learning_rate=5e-2", "train.warmup_ratio=0", "health.both_fall=0.5", "health.endless_answers=null")
STOP = "health.stop_on=[HEA002]"


@pytest.fixture
def guide(tmp_path: Path) -> Guide:
    return Guide(tmp_path)


def test_an_alert_is_on_the_screen_in_the_notes_in_run_json_and_in_the_table(guide: Guide) -> None:
    memory = Memory()
    outcome = guide.train("run", *WILD, observer=memory)
    assert outcome is not None
    said = [note for note in memory.notes if note.startswith("HEA002")]
    assert len(said) == 1
    assert said[0].startswith("HEA002 step 2: chosen and rejected responses fell by ")
    assert said[0].endswith(" (health.both_fall 0.5); lower train.learning_rate")
    noted = [row["text"] for row in rows(guide.folder / "run" / "notes.jsonl") if row["label"] == "note"]
    assert said[0] in noted
    [alert] = [alert for alert in guide.receipt("run")["health"] if alert["code"] == "HEA002"]
    assert (alert["step"], alert["key"], alert["limit"]) == (2, "both_fall", 0.5)
    evals = rows(guide.folder / "run" / "evals.jsonl")
    falls = [min(-row["logps/chosen_delta"], -row["logps/rejected_delta"]) for row in evals]
    assert alert["value"] == falls[1]
    assert alert["worst"] == max(falls)
    assert alert["times"] == sum(fall >= 0.5 for fall in falls)
    [row] = [row for row in outcome.table.rows if row.label == "health"]
    assert "HEA002" in row.remark


def test_stop_on_stops_at_a_whole_step_again_and_again_until_the_recipe_changes(guide: Guide) -> None:
    guide.train("unbroken", *WILD)
    with pytest.raises(UnhealthyError, match="stopped by health.stop_on, .* HEA002 step 2") as caught:
        guide.train("run", *WILD, STOP, "checkpoint.every=null")
    assert caught.value.exit_code == ExitCode.NUMBERS
    assert guide.require_all_finite("run") == [2]
    receipt = guide.receipt("run")
    assert (receipt["status"], receipt["step"]) == ("stopped", 2)
    assert "HEA002" in receipt["outcome"]["error"]

    memory = Memory()
    with pytest.raises(UnhealthyError, match="HEA002 step 2"):
        guide.train("run", *WILD, STOP, "checkpoint.every=null", resume=True, observer=memory)
    assert memory.steps == []

    guide.train("run", *WILD, "checkpoint.every=null", resume=True, observer=memory)
    assert memory.steps[0].step == 3
    assert not any(note.startswith("HEA002") for note in memory.notes)  # it was said before the stop
    assert final_state(guide.folder / "run") == final_state(guide.folder / "unbroken")
    for log in ("metrics.jsonl", "evals.jsonl", "answers.jsonl"):
        assert timeless(guide.folder / "run" / log) == timeless(guide.folder / "unbroken" / log)
    assert guide.receipt("run")["health"] == guide.receipt("unbroken")["health"]


def test_what_is_seen_at_the_very_end_ends_a_complete_run_with_5(guide: Guide) -> None:
    memory = Memory()
    with pytest.raises(UnhealthyError, match="the run is complete and model/ is saved, and .* HEA002 step 5") as caught:
        guide.train("run", *WILD, STOP, "eval.every=null", observer=memory)
    assert caught.value.exit_code == ExitCode.NUMBERS
    assert memory.outcome is not None
    assert guide.receipt("run")["status"] == "done"
    assert (guide.folder / "run" / "model" / "model.safetensors").is_file()


def test_watching_changes_no_weight_and_no_number(guide: Guide) -> None:
    short = ("train.max_steps=2", "eval.every=1")
    guide.train("watched", *short, "health.num_answers=6")
    guide.train("not", *short, "health.num_answers=0", "health.chosen_fall=null", "health.gradient_spike=null")
    assert final_state(guide.folder / "watched") == final_state(guide.folder / "not")
    assert timeless(guide.folder / "watched" / "metrics.jsonl") == timeless(guide.folder / "not" / "metrics.jsonl")
    assert not (guide.folder / "not" / "answers.jsonl").exists()


def test_probe_answers_are_kept_step_by_step(guide: Guide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "AnswerProbe", AnswerProbe)  # in their full length
    guide.train("run", "health.num_answers=2", "health.answer_tokens=40", "train.max_steps=2")
    answers = rows(guide.folder / "run" / "answers.jsonl")
    assert [answer["step"] for answer in answers] == [0, 0, 2, 2]
    assert all(answer["ended"] and 5 < answer["tokens"] < 40 and answer["repeated"] == 0.0 for answer in answers[:2])
    assert answers[0]["question"] != answers[1]["question"]
    assert answers[0]["question"] == answers[2]["question"]
    evals = rows(guide.folder / "run" / "evals.jsonl")
    assert evals[0]["answers/endless"] == evals[0]["answers/looping"] == 0.0


def test_lost_updates_and_a_lost_change_are_seen(guide: Guide) -> None:
    memory = Memory()
    guide.train("run", "model.weights_dtype=bf16", "train.learning_rate=1e-6", observer=memory)
    [said] = [note for note in memory.notes if note.startswith("HEA005")]
    assert "of the updates are lost" in said
    assert "model.weights_dtype=fp32" in said
    guide.train("narrow", "train.learning_rate=1e-6", "export.dtype=bf16", observer=memory)
    [said] = [note for note in memory.notes if note.startswith("HEA006")]
    assert "export.dtype=fp32" in said
    narrow = json.loads((guide.folder / "narrow" / "run.json").read_text(encoding="utf-8"))
    [alert] = [alert for alert in narrow["health"] if alert["code"] == "HEA006"]
    kept = narrow["outcome"]["export"]["kept_share"]
    assert alert["worst"] == pytest.approx(kept, abs=0.1)
    estimated = rows(guide.folder / "narrow" / "evals.jsonl")[-2]["export/kept_share"]
    assert estimated == pytest.approx(kept, abs=0.1)
