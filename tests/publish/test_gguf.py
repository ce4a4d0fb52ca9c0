"""GGUF files: read back by others they are the model, and nothing is kept of one that is not."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf as library
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.publish import gguf
from simpo_cli.publish.gguf import export_gguf, require_writable
from tests.tiny import chatml_tokenizer, tiny_config, tiny_model
from tests.train.runs import tiny_runs, write_prefs

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-scaled": ("llama", {"rope_parameters": _LLAMA3_ROPE}),
    "mistral": ("mistral", {"head_dim": 16, "sliding_window": 300}),
    "qwen2": ("qwen2", {"num_key_value_heads": 4}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True, "hidden_size": 64, "head_dim": 32}),
}


def _run_of(folder: Path, model_type: str, changes: dict[str, Any], *overrides: str) -> Path:
    tiny_model(model_type, **changes).save_pretrained(folder / "start")
    chatml_tokenizer(folder / "start")
    prefs = write_prefs(folder / "prefs.jsonl", pairs=24, prompts=20)
    tiny_runs(folder, folder / "start", prefs, *overrides).train("run", "train.num_epochs=1")
    return folder / "run"


@pytest.fixture(scope="module", params=_MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run_of(tmp_path_factory.mktemp(request.param), *_MODELS[request.param])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run_of(tmp_path_factory.mktemp("llama"), "llama", {})


def _stored(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: library.dequantize(tensor.data, tensor.tensor_type) for tensor in _reader(file).tensors}


def _reader(file: Path) -> Any:
    return library.GGUFReader(file)


def _taken_in_turns(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Row by row: the first of the first half of a head, the first of its second half, the second of the first ..."""
    dim = len(weight) // heads
    order = [head * dim + half * dim // 2 + i for head in range(heads) for i in range(dim // 2) for half in (0, 1)]
    return weight[torch.tensor(order)]


def test_a_file_holds_the_model_as_llama_cpp_reads_it(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    written = export_gguf(run, file, "bf16")
    assert written.difference <= 1e-6
    assert 0 < written.rounding[1] < written.rounding[0] < 0.5  # the matrices were float32
    assert written.num_tokens > 100
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    model: Any = AutoModelForCausalLM.from_pretrained(run / "model")
    config, tensors = model.config, _stored(file)
    fields = {name: field.contents() for name, field in _reader(file).fields.items()}
    name = fields["general.architecture"]
    assert name == ("llama" if config.model_type in ("llama", "mistral") else config.model_type)
    assert fields[f"{name}.context_length"] == (300 if config.model_type == "mistral" else 512)
    assert fields[f"{name}.attention.head_count_kv"] == config.num_key_value_heads
    assert fields[f"{name}.attention.key_length"] == model.model.layers[0].self_attn.head_dim
    assert fields[f"{name}.rope.freq_base"] == config.rope_parameters["rope_theta"]
    assert fields["tokenizer.chat_template"] == (run / "model" / "chat_template.jinja").read_text(encoding="utf-8")
    attention = model.model.layers[1].self_attn
    for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
        weight = getattr(attention, f"{part}_proj").weight.detach().bfloat16().float()
        wanted = _taken_in_turns(weight, heads) if name == "llama" else weight
        np.testing.assert_array_equal(tensors[f"blk.1.attn_{part}.weight"], wanted.numpy())
    norm = model.model.layers[1].post_attention_layernorm.weight.detach().numpy()
    np.testing.assert_array_equal(tensors["blk.1.ffn_norm.weight"], norm)  # vectors stay float32
    assert ("output.weight" in tensors) == (not config.tie_word_embeddings)
    rope = config.rope_parameters["rope_type"]
    assert ("rope_freqs.weight" in tensors) == (rope == "llama3")
    if rope == "llama3":  # slow angles are divided by the factor, fast ones are as they were
        factors = tensors["rope_freqs.weight"]
        assert (factors[0], factors[-1]) == (pytest.approx(1.0), pytest.approx(8.0))


def test_q8_0_is_the_model_with_its_weights_rounded(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    written = export_gguf(run, file, "q8_0")
    assert written.difference <= 1e-6
    assert 0 < written.rounding[1] < written.rounding[0] < 1.5
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    down, embedding = (_reader_type(file, name) for name in ("blk.0.ffn_down.weight", "token_embd.weight"))
    assert (down, embedding) == ("BF16", "Q8_0")  # 48 is no multiple of 32
    weight = model.get_input_embeddings().weight.detach().numpy()
    blocks = weight.reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    error = np.abs(_stored(file)["token_embd.weight"].reshape(-1, 32) - blocks)
    usual = step[:, 0] > 1e-4  # the steps are stored as float16
    assert usual.mean() > 0.9
    assert (error <= 0.57 * step)[usual].all()  # half a step, and the 11 bits of the step itself


def _reader_type(file: Path, name: str) -> str:
    return next(tensor.tensor_type.name for tensor in _reader(file).tensors if tensor.name == name)


def _without_interleaving(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gguf, "_interleaved", lambda numbers, _: numbers.detach())


def _with_swapped_tensors(patch: pytest.MonkeyPatch) -> None:
    tensors = gguf._tensors
    other = {"blk.0.ffn_up.weight": "blk.0.ffn_gate.weight", "blk.0.ffn_gate.weight": "blk.0.ffn_up.weight"}

    def swapped(model: Any) -> Iterator[Any]:
        return (tensor._replace(name=other.get(tensor.name, tensor.name)) for tensor in tensors(model))

    patch.setattr(gguf, "_tensors", swapped)


def _with_a_row_lost(patch: pytest.MonkeyPatch) -> None:
    """The embedding of a token that is in no text."""
    tensors = gguf._tensors

    def damaged(model: Any) -> Iterator[Any]:
        for tensor in tensors(model):
            numbers = tensor.numbers.detach().clone()
            if tensor.name == "token_embd.weight":
                numbers[-1] = 0
            yield tensor._replace(numbers=numbers)

    patch.setattr(gguf, "_tensors", damaged)


def _with_another(setting: str, factor: float) -> Any:
    def plant(patch: pytest.MonkeyPatch) -> None:
        write = getattr(library.GGUFWriter, setting)
        patch.setattr(library.GGUFWriter, setting, lambda self, value: write(self, value * factor))

    return plant


def _with_tokens_swapped(patch: pytest.MonkeyPatch) -> None:
    add = library.GGUFWriter.add_token_list

    def swapped(self: Any, tokens: Any) -> None:
        tokens = list(tokens)
        a, b = (tokens.index(letter) for letter in "ae")
        tokens[a], tokens[b] = tokens[b], tokens[a]
        add(self, tokens)

    patch.setattr(library.GGUFWriter, "add_token_list", swapped)


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (_without_interleaving, "the log-probability of a response token differs by"),
        (_with_swapped_tensors, "the log-probability of a response token differs by"),
        (_with_a_row_lost, "1 of its weights differ, such as model.embed_tokens.weight"),
        (_with_another("add_layer_norm_rms_eps", 10), "rms_norm_eps is"),
        (_with_another("add_rope_freq_base", 2), "rope_theta is"),
        (_with_another("add_context_length", 2), "max_position_embeddings is 1024 instead of 512"),
        (_with_tokens_swapped, "a text has other tokens"),
    ],
)
def test_a_file_that_is_another_model_is_not_kept(
    plant: Any, said: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(UserError, match=said):
        export_gguf(llama, tmp_path / "x.gguf", "q8_0")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["rope_theta", "rms_norm_eps"])
def test_settings_that_matter_show_in_the_log_probabilities_too(
    name: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "_require_same_settings", lambda *_: None)
    setting, factor = {"rope_theta": ("add_rope_freq_base", 0.5), "rms_norm_eps": ("add_layer_norm_rms_eps", 1e5)}[name]
    _with_another(setting, factor)(monkeypatch)
    with pytest.raises(UserError, match="log-probability of a response token differs by"):
        export_gguf(llama, tmp_path / "x.gguf", "bf16")


def test_scaled_positions_are_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run_of(tmp_path, *_MODELS["llama-scaled"])
    monkeypatch.setattr(gguf, "_plain_frequencies", lambda _: torch.ones(4))
    with pytest.raises(UserError, match="log-probability of a response token differs by"):
        export_gguf(run, tmp_path / "x.gguf", "bf16")


def test_adapters_are_merged_into_the_file(tmp_path: Path) -> None:
    run = _run_of(tmp_path, "llama", {}, "model.lora.rank=4", "train.learning_rate=1e-2", "train.warmup_ratio=0")
    written = export_gguf(run, tmp_path / "x.gguf", "bf16")
    assert written.merge is not None
    change, lost = written.merge
    assert change > 10 * lost > 0
    read: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32)
    adapted: Any = AutoModelForCausalLM.from_pretrained(run / "model")
    ids = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        off = (read(ids).logits - adapted(ids).logits).square().mean().sqrt()
        adapted.disable_adapters()
        moved = (read(ids).logits - adapted(ids).logits).square().mean().sqrt()
    assert off < 5 * lost
    assert moved > 5 * off


def test_bf16_that_loses_what_adapters_learned_is_refused_and_q8_0_is_told(tmp_path: Path) -> None:
    run = _run_of(tmp_path, "llama", {}, "model.lora.rank=4", "train.learning_rate=1e-6")
    with pytest.raises(UserError, match="not the model that was trained: in bf16") as caught:
        export_gguf(run, tmp_path / "x.gguf", "bf16")
    assert "--merge --dtype fp32" in caught.value.fix
    assert not list(tmp_path.glob("*x.gguf*"))
    change, lost = export_gguf(run, tmp_path / "x.gguf", "q8_0").merge or (0.0, 0.0)
    assert lost > change > 0


def _source(model_type: str, code: dict[str, str] | None = None, **changes: Any) -> Any:
    return SimpleNamespace(name="a-model", code=code or {}, config=tiny_config(model_type, **changes))


_SCALED = {"rope_theta": 10000.0, "factor": 2.0}


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (_source("olmo2"), "its model_type is olmo2, and llama, mistral, qwen2, qwen3 are known"),
        (_source("llama", {"modeling.py": "0"}), "its model_type is llama"),
        (_source("llama", rope_parameters={"rope_type": "linear", **_SCALED}), r"scaled \(rope_type linear\)"),
        (_source("qwen2", rope_parameters=_LLAMA3_ROPE), r"scaled \(rope_type llama3\)"),
        (_source("llama", attention_bias=True), r"biases \(attention_bias\)"),
        (_source("llama", mlp_bias=True), r"biases \(mlp_bias\)"),
        (
            _source("llama", rope_parameters={"rope_type": "default", **_SCALED, "partial_rotary_factor": 0.5}),
            "a part of each head has no rotary positions",
        ),
        (_source("qwen3", hidden_act="gelu"), "its activation is gelu"),
    ],
)
def test_what_would_be_written_wrong_is_refused_by_name(source: Any, why: str) -> None:
    with pytest.raises(UserError, match=f"a-model cannot be written as GGUF here: .*{why}") as caught:
        require_writable(source, "python convert_hf_to_gguf.py RUN/model")
    assert "convert_hf_to_gguf.py RUN/model" in caught.value.fix


def test_a_tokenizer_without_a_name_is_refused_with_the_converter(tmp_path: Path) -> None:
    run = _run_of(tmp_path, "llama", {})
    for folder in (tmp_path / "start", run / "model"):
        file = folder / "tokenizer.json"
        description = json.loads(file.read_text(encoding="utf-8"))
        description["pre_tokenizer"]["add_prefix_space"] = True
        file.write_text(json.dumps(description), encoding="utf-8")
    with pytest.raises(UserError, match="the format names no pre-tokenizer of its definition") as caught:
        export_gguf(run, tmp_path / "x.gguf", "bf16")
    assert f"convert_hf_to_gguf.py {run}/model --outtype bf16" in caught.value.fix
    assert not (tmp_path / "x.gguf").exists()


def test_pairs_beyond_a_sliding_window_prove_nothing(tmp_path: Path) -> None:
    run = _run_of(tmp_path, "mistral", {"sliding_window": 8})
    with pytest.raises(UserError, match="every compared pair is longer than the 8 tokens"):
        export_gguf(run, tmp_path / "x.gguf", "bf16")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OSError("32768 requested and 26592 written")], ids=str
)
def test_a_full_disk_is_told_and_nothing_is_left(
    llama: Path, tmp_path: Path, error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system says it, and as numpy does, which writes the numbers."""

    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(library.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(UserError, match="x.gguf cannot be written: No space left on device") as caught:
        export_gguf(llama, tmp_path / "x.gguf", "bf16")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert list(tmp_path.iterdir()) == []


def test_the_bare_name_of_another_architecture_does_no_harm(llama: Path, tmp_path: Path) -> None:
    recipe = llama / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("name: tiny", "name: mistral"), encoding="utf-8")
    assert export_gguf(llama, tmp_path / "x.gguf", "q8_0").difference <= 1e-6


@pytest.mark.slow
def test_a_real_model_reads_back_as_itself(tmp_path: Path) -> None:
    folder = os.environ.get("SIMPO_TEST_MODEL")
    if not folder:
        pytest.skip("SIMPO_TEST_MODEL names no model folder")
    prefs = write_prefs(tmp_path / "prefs.jsonl", pairs=24, prompts=20)
    tiny_runs(tmp_path, Path(folder), prefs, "train.max_steps=1", "train.pairs_per_step=2").train("run")
    bf16 = export_gguf(tmp_path / "run", tmp_path / "bf16.gguf", "bf16")
    q8_0 = export_gguf(tmp_path / "run", tmp_path / "q8_0.gguf", "q8_0")
    assert max(bf16.difference, q8_0.difference) <= 1e-3
    assert q8_0.num_bytes < 0.6 * bf16.num_bytes
    assert max(bf16.rounding[1], q8_0.rounding[1]) < 0.1
