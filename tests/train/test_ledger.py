"""The account of the records adds up, whatever became of them."""

import json
from pathlib import Path

import pytest

from simpo_cli.data.prepare import make_plan, prepare_data
from simpo_cli.recipe import compose
from simpo_cli.run.receipt import ledger, ledgers


def _write(file: Path, count: int) -> None:
    rows = [{"prompt": f"Question {i}?", "chosen": f"Yes {i}, do.", "rejected": f"No {i}!"} for i in range(count)]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[5]["chosen"] = ""
    lines = [json.dumps(row) for row in rows]
    lines[7] = '{"prompt": "broken'
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.parametrize(("sources", "repeated"), [("a", 0), ("a, b", 0), ("a twice", 27)])
@pytest.mark.parametrize("own_eval", [False, True])
def test_every_record_is_somewhere(
    tmp_path: Path, tiny_folder: Path, sources: str, repeated: int, own_eval: bool
) -> None:
    for name in ("a", "b", "e"):
        _write(tmp_path / f"{name}.jsonl", 30)
    named = {
        "a": f"{tmp_path}/a.jsonl",
        "a, b": f"[{{path: {tmp_path}/a.jsonl}}, {{path: {tmp_path}/b.jsonl}}]",
        "a twice": f"[{{path: {tmp_path}/a.jsonl, repeat: 2}}]",
    }[sources]
    (tmp_path / "run.yaml").write_text("name: x\n", encoding="utf-8")
    recipe = compose(
        str(tmp_path / "run.yaml"),
        [
            f"model.path={tiny_folder}",
            f"data.train={named}",
            "data.on_bad_record=skip",
            "data.min_response_tokens=3",
            *([f"data.eval={tmp_path}/e.jsonl"] if own_eval else ["data.holdout=6"]),
            "train.pairs_per_step=8",
            "train.max_steps=2",
        ],
    ).recipe
    data = prepare_data(recipe)
    plan = make_plan(recipe, len(data.train))
    for steps, trained in ((0, 0), (1, 8), (2, 16)):
        accounts = ledgers(data, plan, steps)
        account = accounts["train"]
        assert account["read"] == (60 if sources == "a, b" else 30)
        assert account["repeated"] == repeated
        assert account["trained"] == trained
        assert account["held_out"] == (0 if own_eval else len(data.held_out))
        assert account["refused"] == (2 if sources == "a, b" else 1)
        assert sum(account["dropped"].values()) >= 2
        assert account["trained"] + account["not_reached"] == len(data.train)
        account = accounts["eval"]
        assert (account is not None) == own_eval
        assert account is None or [account[name] for name in ("read", "held_out", "refused")] == [30, 27, 1]
    with pytest.raises(AssertionError, match=r"\d+ records read, repetitions counted, and \d+ accounted for"):
        ledger(data.train_source, trained=1)
