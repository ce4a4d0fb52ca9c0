"""A run on cached tokens is the run that made them: the same first screen but for one line, the same bits."""

import json
import re
from pathlib import Path

import pytest

from tests.train.runs import Runs, final_state


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "cache"))


def test_hit_and_miss(tiny: Runs) -> None:
    first, second = (tiny.train(run, "train.max_steps=3") for run in ("a", "b"))
    sources = [tiny.receipt(run)["data"] for run in ("a", "b")]
    made, read = (source["train"].pop("tokens") for source in sources)
    assert (made["cache"], read["cache"]) == ("miss", "hit")
    assert made["seconds_saved"] == 0 <= read["seconds_saved"]
    assert made["key"] == read["key"]
    assert (tiny.folder / "cache" / "tokens" / made["key"] / "pairs.bin").is_file()
    assert sources[0] == sources[1]
    assert first.lines["tokens"].endswith(f"kept for the next run in {tiny.folder / 'cache'}")
    assert second.lines["tokens"].startswith("from the cache in ")
    screens = []
    for memory in (first, second):
        assert memory.header is not None  # what is free on the machine may differ
        screens.append([line for line in memory.header.lines if line.label not in ("tokens", "memory")])
    assert screens[0] == screens[1]
    assert final_state(tiny.folder / "a") == final_state(tiny.folder / "b")


def test_the_first_pair_is_shown_as_the_model_sees_it(tiny: Runs, prefs: Path) -> None:
    lines = tiny.train("run", "data.holdout=0", dry_run=True).lines
    record = json.loads(prefs.read_text(encoding="utf-8").splitlines()[0])
    shown = f"<|im_start|>user⏎{record['prompt']}<|im_end|>⏎<|im_start|>assistant⏎"
    assert lines["example"] == f"prompt    {shown}"
    assert lines["below example"] == f"chosen    {record['chosen']}<|im_end|>"


def test_what_decided_the_order_is_shown_also_from_the_cache(tiny: Runs, prefs: Path) -> None:
    judged = tiny.folder / "judged.jsonl"
    rows = [json.loads(line) for line in prefs.read_text(encoding="utf-8").splitlines()]
    votes = [{"prompt": row["prompt"], "a": row["rejected"], "b": row["chosen"], "vote": 7, "x": "c"} for row in rows]
    judged.write_text("\n".join(map(json.dumps, votes)), encoding="utf-8")
    more = (f"data.train={judged}", "data.columns={answers: [a, b], label: vote}", "data.labels={second: [7]}")
    for _ in ("made", "read"):
        memory = tiny.train("run", *more, dry_run=True)
        assert memory.header is not None
        told = [line.text for line in memory.header.lines]
        assert {"vote: 7 means b", "not used: x"} <= set(told)
        assert any(text.startswith(f"{judged}:1: chosen by vote = 7: ") for text in told)


def test_both_sides_and_every_record_are_accounted_for(tiny: Runs, prefs: Path) -> None:
    rows = prefs.read_text(encoding="utf-8").splitlines()
    some = tiny.folder / "some.jsonl"
    some.write_text("\n".join([*rows[:5], "{oops", json.dumps({"prompt": 1})]), encoding="utf-8")
    sources = f"[{{path: {prefs}, max_pairs: 30}}, {{path: {some}, repeat: 3}}]"
    made, read = r"made in [\d.]+ s, kept for the next run in [^·]*", r"from the cache in [\d.]+ s, [\d.]+ s saved"
    for run, said in (("a", made), ("b", read)):
        more = (f"data.train={sources}", f"data.eval={prefs}", "data.on_bad_record=skip", "train.max_steps=2")
        lines = tiny.train(run, *more).lines
        account = tiny.receipt(run)["data"]["train"]["records"]
        assert (account["read"], account["refused"], account["repeated"]) == (37, 2, 10)
        assert account["trained"] + account["not_reached"] + account["refused"] == 37 + 10
        refused = [(row["where"].rpartition(":")[2], row["record"]) for row in tiny.log(run, "rejected")]
        assert refused == [("6", "{oops"), ("7", '{"prompt": 1}')]
        assert re.fullmatch(said, lines["tokens"])
