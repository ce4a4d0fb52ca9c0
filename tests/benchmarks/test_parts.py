"""The parts of the benchmarks: operations, samples, processes that take turns, predictions, pairs of the audit."""

import json
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.benchmarks.audit import made_pairs, measure, write_evaluation, write_pairs
from tests.benchmarks.flops import Shape, needed_flops, padded_flops, shape_of
from tests.benchmarks.predict import MemoryModel, choose_sizes, fit_memory
from tests.benchmarks.sample import TooFewError, by_hash, made_up_pair, steps_from
from tests.benchmarks.turns import ChildSide, StoppedError, take_turns
from tests.benchmarks.work import Work
from tests.tiny import tiny_config, tiny_model

SMALL = Shape(linear=1000, layers=2, attention=8, hidden=4, vocabulary=50)


def test_the_needed_operations_of_a_pair_counted_by_hand() -> None:
    # Prompt of 3, responses of 2 and 1: 6 tokens.
    linear = 2 * 1000 * 6
    # Prompt: 1 + 2 + 3. Chosen: the second sees itself, the first and the prompt: 4 + 5. Rejected: 4.
    seen = 6 + 9 + 4
    attention = 2 * (2 * 8 + 2 * 8) * seen  # layers * (score + value)
    # Positions that predict: the prompt's last one (for both responses) and the first token of chosen.
    head = 2 * 4 * 50 * 2
    assert needed_flops(SMALL, 3, 2, 1) == 3 * (linear + attention + head)


def test_the_seen_positions_are_those_of_a_mask_written_out_and_padding_never_costs_less() -> None:
    draw = random.Random(5)
    only_attention = Shape(linear=0, layers=1, attention=1, hidden=0, vocabulary=0)
    for _ in range(20):
        prompt, chosen, rejected = (draw.randint(1, 12) for _ in range(3))
        part = [0] * prompt + [1] * chosen + [2] * rejected
        seen = sum(
            key <= query and part[key] in (0, part[query]) for query in range(len(part)) for key in range(len(part))
        )
        assert needed_flops(only_attention, prompt, chosen, rejected) == 3 * 4 * seen
        width = prompt + max(chosen, rejected)
        assert padded_flops(SMALL, 2, width) > needed_flops(SMALL, prompt, chosen, rejected)


def test_the_shape_read_from_a_configuration_is_that_of_the_module() -> None:
    model, config = tiny_model("llama"), tiny_config("llama")
    inside = sum(layer.weight.numel() for layer in model.model.modules() if isinstance(layer, nn.Linear))
    shape = shape_of(config)
    assert shape.linear == inside
    assert shape.attention == model.model.layers[0].self_attn.q_proj.out_features
    assert (shape.hidden, shape.vocabulary) == (model.lm_head.in_features, model.lm_head.out_features)


def test_the_sample_depends_on_the_pairs_and_not_on_their_order() -> None:
    pairs = [made_up_pair(5 + i, 7, 400, seed=i) for i in range(40)]
    mixed = random.Random(3).sample(pairs, 40)
    assert by_hash(pairs, 1) == by_hash([*mixed, *mixed[:5]], 1)
    assert by_hash(pairs, 1) != by_hash(pairs, 2)


def test_the_warm_up_takes_short_pairs_that_are_not_measured() -> None:
    ordered = by_hash([made_up_pair(5 + i, 7, 400, seed=i) for i in range(40)], 1)
    taken = steps_from(ordered, 4, 5)
    assert taken[4:] == ordered[:20]
    assert all(pair in ordered[20:36] for pair in taken[:4])
    assert max(pair.num_tokens for pair in taken[:4]) <= min(
        pair.num_tokens for pair in ordered[20:36] if pair not in taken[:4]
    )
    with pytest.raises(TooFewError, match="40 pairs are too few"):
        steps_from(ordered, 8, 5)


def test_work_is_read_as_it_was_written(tmp_path: Path) -> None:
    pairs = [made_up_pair(5, 7, 400, seed=i) for i in range(6)]
    work = Work(model="folder", pairs=pairs, pairs_per_step=3, microbatch=1, precision="bf16")
    again = Work.load(work.save(tmp_path / "work.json"))
    assert again == work
    assert again.num_steps == 2
    assert again.step(1) == pairs[3:]


_ECHO = """
import time
from tests.benchmarks.turns import Channel
channel = Channel()
print("noise of a library")
channel.say(ready=True)
while (turn := channel.wait()) is not None:
    if turn.message.get("fail"):
        raise SystemExit("could not go on")
    time.sleep(turn.message["rest"])
    channel.say(heard=turn.message, **turn.measured())
"""


@dataclass
class Writer:
    """A side that writes down when it was asked."""

    name: str
    book: list[str]

    def ask(self, **message: Any) -> dict[str, Any]:
        self.book.append(self.name)
        return {**message, "asked": len(self.book)}


def test_the_sides_are_asked_in_turn() -> None:
    book: list[str] = []
    answers = take_turns([Writer("a", book), Writer("b", book), Writer("c", book)], 3, do="step")
    assert book == ["a", "b", "c"] * 3
    assert [row["asked"] for row in answers["b"]] == [2, 5, 8]
    assert all(row["do"] == "step" for row in answers["c"])


def test_a_process_answers_waits_without_working_and_ends_with_its_input() -> None:
    with ChildSide("echo", [sys.executable, "-c", _ECHO]) as side:
        assert side.ready == {"ready": True}
        first = side.ask(rest=0.05)
        assert first["heard"] == {"rest": 0.05}
        assert 0.05 <= first["seconds"] < 5
        time.sleep(0.3)
        assert side.ask(rest=0)["idle_cpu_seconds"] < 0.2


def test_a_process_that_ends_early_is_reported_with_its_last_words() -> None:
    died = pytest.raises(StoppedError, match=r"(?s)echo ended with exit code 1.*could not go on")
    with ChildSide("echo", [sys.executable, "-c", _ECHO]) as side, died:
        side.ask(fail=True)


def test_memory_is_found_again_from_three_peaks_and_no_part_of_it_is_negative() -> None:
    true = MemoryModel(fixed=2.7e9, per_token=0.95e6, per_score=950.0)
    found = fit_memory({width: round(true.peak(2, width)) for width in (192, 384, 576)}, rows=2)
    assert found.peak(8, 1024) == pytest.approx(true.peak(8, 1024), rel=1e-5)
    widest = found.widest(8, 14e9)
    assert found.peak(8, widest) <= 14e9 < found.peak(8, widest + 1)
    assert MemoryModel(10.0, 1.0, 0.0).widest(2, 9.0) == 0  # the state alone is too much
    bending = fit_memory({100: 1_000_000, 200: 1_900_000, 300: 2_700_000}, rows=2)  # downwards
    assert bending.per_score == 0.0
    assert bending.peak(2, 400) == pytest.approx(3.6e6, rel=0.02)


def test_sizes_are_halved_where_most_time_goes() -> None:
    costs = {"short": [100.0, 50.0, 25.0], "long": [400.0, 200.0, 100.0]}
    assert choose_sizes(costs, 500) == {"short": 16, "long": 16}
    assert choose_sizes(costs, 300) == {"short": 16, "long": 8}
    assert choose_sizes(costs, 1) == {"short": 4, "long": 4}


def test_made_pairs_hold_what_the_audit_finds(tmp_path: Path) -> None:
    file, evaluation = tmp_path / "pairs.jsonl", tmp_path / "eval.jsonl"
    write_pairs(file, 1500, seed=3)
    write_evaluation(evaluation, 1500, seed=3)
    pairs = [tuple(record.values()) for record in map(json.loads, file.read_text().splitlines())]
    assert pairs == list(made_pairs(1500, seed=3))
    assert pairs != list(made_pairs(1500, seed=4))
    swapped = {(prompt, rejected, chosen) for prompt, chosen, rejected in pairs}
    held_out = [json.loads(line)["prompt"] for line in evaluation.read_text().splitlines()]
    same = [pair[0] in held_out for pair in pairs]
    near = {pair for pair in pairs if pair[1].endswith(" indeed")}
    expected = {
        "DUP001": len(pairs) - len(set(pairs)),
        "DUP002": len(near),
        "LBL002": sum(pair in swapped for pair in pairs),
        "LEK001": sum(same),
        "LEK002": sum(pair[0].upper() in held_out and not is_same for pair, is_same in zip(pairs, same, strict=True)),
    }
    assert min(expected.values()) > 5
    measured = measure("whole audit", str(file), str(evaluation), "")
    assert {code: measured["found"].get(code) for code in expected} == expected
    assert measured["processor_seconds"] > 0
    assert measured["peak_bytes"] > 2**20
