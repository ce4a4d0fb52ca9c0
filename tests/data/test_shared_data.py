"""Real preference files, third-party and kept outside the project: their counts, their prompts, their means."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from simpo_cli.audit.dataset import PreferenceDataset
from simpo_cli.data.pair import prompt_messages
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import LoadedPairs, load_pairs

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"the real preference files are not at {FOLDER}")

HH = "hh_rlhf_harmless_base_test_public.jsonl.gz"
ULTRAFEEDBACK = "ultrafeedback_train_1k.jsonl.gz"
ULTRAFEEDBACK_PARQUET = "ultrafeedback_train_1k_scores.parquet"
LLAMA_FACTORY = "llamafactory_dpo_en_demo.json"
ORCA = "orca_dpo_pairs_validation.jsonl"
TOOLS = "medicalgpt_toolcall_dpo_zh_demo.jsonl"
LLMBAR = "llmbar_adversarial_neighbor.json"


def load(name: str, **columns: str) -> LoadedPairs:
    return load_pairs([DataSource(path=str(FOLDER / name), columns=columns)], role="train")


_WHOLE, _LAST = "the whole answer", "last assistant turn"
_ULTRAFEEDBACK_DROPPED = {"empty response": 2, "identical responses": 4}


@pytest.mark.parametrize(
    ("name", "records", "dropped", "layout", "response"),
    [
        (HH, 1743, {"empty response": 4}, "conversational, implicit prompt", _LAST),
        (ULTRAFEEDBACK, 1000, _ULTRAFEEDBACK_DROPPED, "plain text, explicit prompt", _WHOLE),
        (ULTRAFEEDBACK_PARQUET, 1000, _ULTRAFEEDBACK_DROPPED, "conversational, implicit prompt", _LAST),
        (LLAMA_FACTORY, 300, {}, "conversational, explicit prompt (conversations)", _WHOLE),
        (
            "llamafactory_v1_dpo_demo.jsonl",
            10,
            {},
            "conversational, implicit prompt, chosen_messages over rejected_messages",
            _LAST,
        ),
        (TOOLS, 11, {}, "conversational, explicit prompt (conversations)", _WHOLE),
        (
            ORCA,
            284,
            {},
            "conversational, explicit prompt (input.messages), preferred_output over non_preferred_output",
            _WHOLE,
        ),
    ],
)
def test_every_file_loads_to_its_count(
    name: str, records: int, dropped: dict[str, int], layout: str, response: str
) -> None:
    loaded = load(name)
    assert loaded.records_read == records
    assert loaded.dropped == dropped
    assert len(loaded.pairs) == records - sum(dropped.values())
    assert not loaded.bad_records
    assert loaded.decision == f"{layout}, {records:,} pairs, response = {response}"


@pytest.mark.parametrize(
    ("name", "chosen", "rejected"),
    [(HH, 31.1, 39.0), (ULTRAFEEDBACK, 194.6, 174.2), (LLAMA_FACTORY, 222.8, 242.8), (ORCA, 128.7, 223.8)],
)
def test_mean_words(name: str, chosen: float, rejected: float) -> None:
    dataset = PreferenceDataset(FOLDER / name)
    words = [[len(pair[side].split()) for pair in dataset] for side in ("chosen", "rejected")]
    means = [sum(lengths) / len(lengths) for lengths in words]
    assert [round(mean, 1) for mean in means] == [chosen, rejected]
    lengths = {"avg_chosen_len": int(means[0]), "avg_rejected_len": int(means[1])}
    assert dataset.stats() == {"count": len(dataset), **lengths}


def test_both_files_of_ultrafeedback_give_the_same_pairs() -> None:
    texts, conversations = load(ULTRAFEEDBACK), load(ULTRAFEEDBACK_PARQUET)
    assert texts.warnings == conversations.warnings == {"tied scores": 111}
    for a, b in zip(texts.pairs, conversations.pairs, strict=True):
        assert (prompt_messages(a.prompt), a.chosen, a.rejected) == (prompt_messages(b.prompt), b.chosen, b.rejected)
        assert re.findall(r"\d+$", a.where) == re.findall(r"\d+$", b.where)


def test_the_prompts_of_hh_are_what_both_sides_share() -> None:
    """Against a reference of a few lines that shares no code."""
    marker = "\n\nAssistant:"
    with gzip.open(FOLDER / HH, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    dataset = PreferenceDataset(FOLDER / HH)
    own_marker_differs = two_assistants = 0
    for record, pair in zip(records, dataset, strict=True):
        chosen, rejected = record["chosen"], record["rejected"]
        same = 0
        while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
            same += 1
        end = chosen[:same].rindex(marker) + len(marker)
        prompt = pair["prompt"]
        if "\n\nHuman: " in prompt or prompt.endswith(marker):
            assert "\n\n" + prompt == chosen[:end]
        else:  # a single question
            assert f"\n\nHuman: {prompt}{marker}" == chosen[:end]
        assert chosen[end:] == (f" {pair['chosen']}" if pair["chosen"] else chosen[end:])
        assert rejected[end:] == f" {pair['rejected']}"
        own_marker_differs += chosen.rindex(marker) != end - len(marker) or rejected.rindex(marker) != end - len(marker)
    for found in dataset.pairs:
        roles = [turn.role for turn in found.prompt]  # type: ignore[union-attr]
        two_assistants += any(a == b == "assistant" for a, b in zip(roles, [*roles[1:], "assistant"], strict=True))
    assert own_marker_differs > 0
    assert two_assistants > 0


def test_llama_factory_turns() -> None:
    pairs = load(LLAMA_FACTORY).pairs
    roles = [[turn.role for turn in prompt_messages(pair.prompt)] for pair in pairs]
    assert sum(turns[0] == "system" for turns in roles) == 80
    assert sum(turns.count("user") > 1 for turns in roles) == 106
    assert all(turns[-1] == "user" for turns in roles)
    assert sum(any("\f" in turn.content for turn in prompt_messages(pair.prompt)) for pair in pairs) == 1


def test_tool_conversations() -> None:
    pairs = load(TOOLS).pairs
    assert Counter(prompt_messages(pair.prompt)[-1].role for pair in pairs) == {"user": 7, "tool": 4}
    assert all(pair.tools is not None and json.loads(pair.tools) for pair in pairs)


def test_unpaired_feedback_is_refused() -> None:
    with pytest.raises(UserError, match="unpaired feedback"):
        load("llamafactory_kto_en_demo.json")


@pytest.mark.parametrize("columns", [{"chosen": "output_1", "rejected": "output_2", "label": "label"}, {}])
def test_the_label_of_llmbar_is_the_number_of_the_better_output(columns: dict[str, str]) -> None:
    loaded = load(LLMBAR, **columns)
    records = json.loads((FOLDER / LLMBAR).read_text(encoding="utf-8"))
    assert [pair.chosen for pair in loaded.pairs] == [record[f"output_{record['label']}"] for record in records]
    assert len(loaded.pairs) == 134
