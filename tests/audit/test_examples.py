"""Examples of findings: which pairs are shown."""

import json
from pathlib import Path
from typing import Any

from simpo_cli.audit.examine import NUM_EXAMPLES, collect_examples, examine
from simpo_cli.data.load import PairReader


def shown(tmp_path: Path, records: list[dict[str, Any]]) -> dict[str, list[int]]:
    path = tmp_path / "prefs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def read() -> PairReader:
        return PairReader(str(path), role="train", on_bad_record="skip", on_no_signal="keep")

    examples = collect_examples(examine(read()), read)
    return {code: [int(pair.where.rsplit(":", 1)[1]) for pair in pairs] for code, pairs in examples.items()}


def test_what_contradicts_each_other_is_shown_together(tmp_path: Path) -> None:
    one_way = [{"prompt": f"Question {n} of many?", "chosen": "Yes.", "rejected": "No."} for n in range(5)]
    other_way = [{**record, "chosen": "No.", "rejected": "Yes."} for record in one_way]
    assert shown(tmp_path, [*one_way, *other_way])["LBL002"] == [1, 2, 6]


def test_the_first_few_of_each_and_no_malformed_ones(tmp_path: Path) -> None:
    records = [{"prompt": f"{n}", "chosen": "", "rejected": "b"} for n in range(9)]
    records += [{"prompt": "p", "chosen": f"a\0{'b' * n}", "rejected": "b"} for n in range(2)]
    examples = shown(tmp_path, [*records, {"prompt": "p"}])
    assert examples["EMP001"] == [1, 2, 3]
    assert len(examples["EMP001"]) == NUM_EXAMPLES
    assert examples["CHR001"] == [10, 11]
    assert "FMT001" not in examples


def test_nothing_found_reads_nothing(tmp_path: Path) -> None:
    assert shown(tmp_path, [{"prompt": "p", "chosen": "a", "rejected": "b"}]) == {}
