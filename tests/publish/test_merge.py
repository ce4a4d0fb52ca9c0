"""Merged adapters: the same model in one piece, or nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft.tuners.lora import LoraModel
from transformers import AutoModelForCausalLM

from simpo_cli.errors import UserError
from simpo_cli.model.load import load_model
from simpo_cli.model.source import find_model
from simpo_cli.publish import merge
from simpo_cli.publish.merge import merge_adapters
from tests.tiny import save_tiny_model
from tests.train.runs import tiny_runs

_ADAPTERS = ("model.lora.rank=4", "train.learning_rate=1e-2", "train.num_epochs=2", "train.warmup_ratio=0")


def _run_of(folder: Path, model: Path, prefs: Path, *overrides: str) -> Path:
    tiny_runs(folder, model, prefs, *_ADAPTERS).train("run", *overrides)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, prefs: Path) -> Path:
    return _run_of(tmp_path_factory.mktemp("merge"), tiny_folder, prefs)


def test_the_merged_folder_says_what_the_adapters_say(run: Path, tmp_path: Path) -> None:
    merged = merge_adapters(run, tmp_path / "merged")
    assert merged.dtype == "float32"
    assert merged.largest_difference < 1e-4
    assert merged.change > 100 * merged.lost
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any("lora" in name for name, _ in own.named_parameters())
    ids = torch.randint(0, 400, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapters = load_model(find_model(str(run / "model")), torch.float32)(input_ids=ids).logits
        torch.testing.assert_close(own(input_ids=ids).logits, adapters, rtol=0, atol=1e-4)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"} <= names
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.library_name == "transformers"
    assert "Adapters merged into a llama model" in card.text
    assert f"its logits compared at {merged.num_positions:,} positions of real responses" in card.text
    assert "| accuracy | " in card.text
    assert str(run) not in card.content
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_large_vocabulary_is_compared_at_fewer_positions(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = merge_adapters(run, tmp_path / "all").num_positions
    monkeypatch.setattr(merge, "_MOST_LOGITS", 400 * 70)
    assert everywhere > merge_adapters(run, tmp_path / "some").num_positions == 70


def test_a_word_that_no_response_holds_counts_too(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that lost one of its rows on the way scores every token of the responses nearly as before."""
    pack = merge.pack
    seen: set[int] = set()
    monkeypatch.setattr(merge, "pack", lambda *given: (seen.update((found := pack(*given)).targets.tolist()), found)[1])
    merge_and_unload = LoraModel.merge_and_unload

    def damaged(model: Any, **settings: Any) -> Any:
        merged = merge_and_unload(model, **settings)
        unseen = next(word for word in range(400) if word not in seen)
        with torch.no_grad():
            merged.lm_head.weight[unseen] = 0.0
        return merged

    monkeypatch.setattr(LoraModel, "merge_and_unload", damaged)
    with pytest.raises(UserError, match="a logit differs by .* nats in float32"):
        merge_adapters(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_type_that_loses_the_update_is_refused(tmp_path: Path, prefs: Path) -> None:
    """A small update of large weights falls between two of the type's numbers."""
    model = save_tiny_model(tmp_path / "start")
    run = _run_of(tmp_path, model, prefs, "train.learning_rate=1e-6")
    with pytest.raises(UserError, match="not the model that was trained: saved in bfloat16") as caught:
        merge_adapters(run, tmp_path / "merged", torch.bfloat16)
    assert "fp32" in caught.value.fix
    assert not [path for path in tmp_path.iterdir() if "merged" in path.name]
    assert merge_adapters(run, tmp_path / "merged", torch.float32).dtype == "float32"


def test_an_adapter_on_a_tied_head_is_refused(tmp_path: Path, prefs: Path) -> None:
    model = save_tiny_model(tmp_path / "start", tie_word_embeddings=True)
    run = _run_of(tmp_path, model, prefs, "model.lora.target_modules=[q_proj,lm_head]")
    with pytest.raises(UserError, match="a logit differs by .* nats in float32"):
        merge_adapters(run, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
