"""A causal language model that transformers does not know: a folder with Python code of its own."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import dynamic_module_utils

from tests.tiny import chatml_tokenizer

AUTO_MAP = {"AutoConfig": "configuration_means.MeansConfig", "AutoModelForCausalLM": "modeling_means.MeansForCausalLM"}
CODE = ("configuration_means.py", "mixing_means.py", "modeling_means.py")

_CONFIGURATION = """
from transformers import PreTrainedConfig


class MeansConfig(PreTrainedConfig):
    model_type = "means"
    attribute_map = {"hidden_size": "width", "num_hidden_layers": "depth"}

    def __init__(self, vocab_size=400, width=16, depth=2, **others):
        self.vocab_size, self.width, self.depth = vocab_size, width, depth
        super().__init__(**others)
"""

_MIXING = """
import torch
from torch import nn


class Mixing(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, states, seen):
        means = (states * seen).cumsum(1) / seen.cumsum(1).clamp(min=1)
        return states + torch.tanh(self.mix(means))
"""

_MODELING = """
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from .configuration_means import MeansConfig
from .mixing_means import Mixing


class MeansModel(PreTrainedModel):
    config_class = MeansConfig
    base_model_prefix = "model"
    _supports_attention_backend = CLAIMS

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Mixing(config.width) for _ in range(config.depth))
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None, **others):
        states = self.embed(input_ids)
        seen = states.new_ones(input_ids.shape) if attention_mask is None else attention_mask.to(states.dtype)
        for layer in self.layers:
            states = layer(states, seen[..., None])
        return BaseModelOutput(last_hidden_state=states)


class MeansForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = MeansConfig
    base_model_prefix = "model"
    _supports_attention_backend = CLAIMS

    def __init__(self, config):
        super().__init__(config)
        self.model = MeansModel(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **others):
        return {"input_ids": input_ids, "attention_mask": attention_mask}  # there is nothing to be cached

    def forward(self, input_ids, attention_mask=None, **others):
        states = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(states))
"""


def save_own_model(folder: Path, *, ran: Path, claims_to_share: bool = False) -> Path:
    """A model folder: code, random weights, configuration, ChatML tokenizer.

    Args:
        folder: where to.
        ran: a folder that the code makes when it is run, whichever file of it.
        claims_to_share: its class says that it computes its attention through the interface, which is not so.
    """
    folder.mkdir(parents=True)
    width = 16
    mark = f"import os\n\nos.makedirs({str(ran)!r}, exist_ok=True)\n"
    sources = (_CONFIGURATION, _MIXING, _MODELING.replace("CLAIMS", str(claims_to_share)))
    for name, source in zip(CODE, sources, strict=True):
        (folder / name).write_text(mark + source, encoding="utf-8")
    config: dict[str, Any] = {
        "model_type": "means",
        "architectures": ["MeansForCausalLM"],
        "auto_map": AUTO_MAP,
        "vocab_size": 400,
        "width": width,
        "depth": 2,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    chatml_tokenizer(folder)
    draw = torch.Generator().manual_seed(0)
    shapes = {"model.embed.weight": (400, width), "lm_head.weight": (400, width)}
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.mix.weight": (width, width), f"model.layers.{layer}.mix.bias": (width,)}
    weights = {name: 0.3 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def modules_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where transformers copies code before it runs it: a folder of the test, and nothing of it stays imported."""
    cache = tmp_path / "modules"
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = forget_remote_code()
    yield cache
    forget_remote_code()
    sys.modules.update(before)


def forget_remote_code() -> dict[str, Any]:
    """Take what was imported of models' code out of the interpreter's list."""
    names = [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]
    return {name: sys.modules.pop(name) for name in names}
