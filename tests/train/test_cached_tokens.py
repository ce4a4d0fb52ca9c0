"""A run on cached tokens is the run that made them: the same first screen but for one line, the same bits."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from simpo_cli.recipe import compose
from simpo_cli.train.session import train
from tests.train.conftest import Memory
from tests.train.guide import train_tiny


def run(folder: Path, name: str, tiny: Path, prefs: Path, *more: str) -> tuple[dict[str, Any], dict[str, str], Path]:
    """run.json, the lines of the header by their labels, and the folder of a short run."""
    memory = Memory()
    train_tiny(folder, tiny, prefs, "train.max_steps=3", *more, run=name, observer=memory)
    assert memory.header is not None
    labels = [line.label for line in memory.header.lines]
    lines = {label or f"below {labels[i - 1]}": text for i, (label, text, _) in enumerate(memory.header.lines)}
    return json.loads((folder / name / "run.json").read_text(encoding="utf-8")), lines, folder / name


def test_hit_and_miss(tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "cache"))
    first, first_lines, a = run(tmp_path, "a", tiny_folder, prefs, "data.holdout=10")
    second, second_lines, b = run(tmp_path, "b", tiny_folder, prefs, "data.holdout=10")
    made, read = first["data"]["train"].pop("tokens"), second["data"]["train"].pop("tokens")
    assert (made["cache"], read["cache"]) == ("miss", "hit")
    assert made["seconds_saved"] == 0 <= read["seconds_saved"]
    assert made["key"] == read["key"]
    assert (tmp_path / "cache" / "tokens" / made["key"] / "pairs.bin").is_file()
    assert first["data"] == second["data"]
    assert first_lines.pop("tokens").endswith(f"kept for the next run in {tmp_path / 'cache'}")
    assert second_lines.pop("tokens").startswith("from the cache in ")
    del first_lines["memory"], second_lines["memory"]  # what is free on the machine
    assert first_lines == second_lines
    weights = [load_file(next(folder.glob("checkpoints/*/weights.safetensors"))) for folder in (a, b)]
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])


def test_the_first_pair_is_shown_as_the_model_sees_it(tmp_path: Path, tiny_folder: Path, prefs: Path) -> None:
    _, lines, _ = run(tmp_path, "a", tiny_folder, prefs, "data.holdout=0")
    record = json.loads(prefs.read_text(encoding="utf-8").splitlines()[0])
    shown = f"<|im_start|>user⏎{record['prompt']}<|im_end|>⏎<|im_start|>assistant⏎"
    assert lines["example"] == f"prompt    {shown}"
    assert lines["below example"] == f"chosen    {record['chosen']}<|im_end|>"


def test_what_decided_the_order_is_shown_also_from_the_cache(
    tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "cache"))
    judged = tmp_path / "judged.jsonl"
    rows = [json.loads(line) for line in prefs.read_text(encoding="utf-8").splitlines()]
    judged.write_text(
        "\n".join(
            json.dumps({"prompt": row["prompt"], "a": row["rejected"], "b": row["chosen"], "vote": 7, "context": "c"})
            for row in rows
        ),
        encoding="utf-8",
    )
    recipe = tmp_path / "run.yaml"
    recipe.write_text(
        f"name: tiny\nmodel: {{path: {tiny_folder}}}\noutput_dir: {tmp_path}/out\ndata:\n  train: {judged}\n"
        "  max_length: 64\n  max_prompt_length: 40\n"
        "  columns: {answers: [a, b], label: vote}\n  labels: {second: [7]}\n",
        encoding="utf-8",
    )
    for _ in ("made", "read"):
        memory = Memory()
        train(compose(str(recipe)), fresh=False, dry_run=True, observer=memory)
        assert memory.header is not None
        told = [line.text for line in memory.header.lines]
        assert {"vote: 7 means b", "not used: context"} <= set(told)
        assert any(text.startswith(f"{judged}:1: chosen by vote = 7: ") for text in told)


def test_both_sides_and_every_record_are_accounted_for(
    tmp_path: Path, tiny_folder: Path, prefs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMPO_CACHE", str(tmp_path / "cache"))
    rows = prefs.read_text(encoding="utf-8").splitlines()
    (tmp_path / "more.jsonl").write_text("\n".join([*rows[:5], "{oops", json.dumps({"prompt": 1})]), encoding="utf-8")
    sources = f"[{{path: {prefs}, max_pairs: 30}}, {{path: {tmp_path / 'more.jsonl'}, repeat: 3}}]"
    made, read = r"made in [\d.]+ s, kept for the next run in [^·]*", r"from the cache in [\d.]+ s, [\d.]+ s saved"
    for name, said in (("a", made), ("b", read)):
        more = (f"data.train={sources}", f"data.eval={prefs}", "data.on_bad_record=skip", "train.max_steps=2")
        receipt, lines, folder = run(tmp_path, name, tiny_folder, prefs, *more)
        account = receipt["data"]["train"]["records"]
        assert (account["read"], account["refused"], account["repeated"]) == (37, 2, 10)
        assert account["trained"] + account["not_reached"] + account["refused"] == 37 + 10
        refused = [json.loads(line) for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [(row["where"].rpartition(":")[2], row["record"]) for row in refused] == [
            ("6", "{oops"),
            ("7", '{"prompt": 1}'),
        ]
        assert re.fullmatch(said, lines["tokens"])
