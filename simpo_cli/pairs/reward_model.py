"""`--reward-model`: a sequence classifier with one output, as transformers saves it, whose output is the score.

It reads the conversation with its answer as its own chat template writes it, whole, with what its tokenizer puts around
a plain text (BOS; [CLS] and [SEP]) where the template has not written that itself. Texts of a batch are padded on the
right behind an attention mask, so that a score is the same, to rounding, whatever is scored beside it.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from simpo_cli.data.file_bytes import sha256_of
from simpo_cli.data.model_files import ADAPTER_CONFIG, read_json
from simpo_cli.data.pair import Message
from simpo_cli.data.tokenizer import EncodingError, TemplateError, TextTokenizer, load_tokenizer
from simpo_cli.errors import UserError
from simpo_cli.model import remote_code
from simpo_cli.model.backend import multiplies_in_bf16
from simpo_cli.model.device import device_type
from simpo_cli.model.folder import ReadConfig, read_config, stored_weights, weight_files
from simpo_cli.model.load import apply_soft_cap
from simpo_cli.model.source import DTYPE_NAMES, locate_model
from simpo_cli.pairs.scorer import Answered, Score, ScorerKind
from simpo_cli.stages import stage

_MOMENT = datetime(2024, 7, 26)  # for templates that write today's date: a score must not change with the day
_NAME_ONE = "Name a sequence classifier with one output, trained on preferences."


class RewardModel:
    """A scorer by a reward model.

    Args:
        path: a folder, or the id of a model on the hub, with @REVISION behind it or not.
        batch_size: answers that go through the model together.

    Raises:
        UserError: it is no sequence classifier with one output, lacks weights, has no chat template, or needs remote
            code that may not be run.
    """

    kind: ScorerKind = "reward_model"

    def __init__(self, path: str, *, batch_size: int = 8) -> None:
        self.batch_size, self._path, self.has_scored = batch_size, path, False
        is_here = Path(path).expanduser().is_dir()
        name, _, revision = (path, "", "") if is_here else path.partition("@")
        folder, commit = locate_model(name, revision or None)
        read = _read(path, folder)
        stored = stored_weights(path, folder).dtype
        self._tokenizer = load_tokenizer(str(folder), moment=_MOMENT)
        if not self._tokenizer.has_template:
            raise UserError(
                f"the reward model {path} has no chat template, so nobody knows how it reads a conversation.",
                "Put the template that it was trained with beside it, as chat_template.jinja.",
            )
        kind = device_type()
        dtype = stored if multiplies_in_bf16(kind) else torch.float32
        self._model = _load(path, folder, read, dtype, torch.device(kind))
        config = self._model.config.get_text_config()
        self._pad_id: int | None = getattr(config, "pad_token_id", None)
        self._vocab_size: int = config.vocab_size
        self._max_length = _max_length(config, folder)
        with stage("hashing the weights of the reward model"):
            weights = {file.name: sha256_of(file) for file in weight_files(path, folder)}
        self.identity: dict[str, Any] = {
            "kind": self.kind,
            "model": path,
            "revision": commit,
            "weights": weights,
            "config_sha256": sha256_of(folder / "config.json"),
            "tokenizer": self._tokenizer.identity,
            "template_sha256": hashlib.sha256(self._tokenizer.template_source.encode()).hexdigest(),
            "code": dict(read.code),
            "batch_size": batch_size,
            "dtype": DTYPE_NAMES[dtype],
        }

    def score(self, answers: Sequence[Answered]) -> list[Score]:
        """One score an answer, in order.

        Raises:
            UserError: the tokenizer gives ids beyond the model's vocabulary.
        """
        read = [self._ids_or_reason(one) for one in answers]
        texts = [one for one in read if not isinstance(one, str)]
        # without a token to pad with, the model itself takes one text at a time
        rows = 1 if self._pad_id is None else self.batch_size
        outputs = iter([out for i in range(0, len(texts), rows) for out in self._outputs(texts[i : i + rows])])
        return [Score(None, one) if isinstance(one, str) else _score_of(next(outputs)) for one in read]

    def close(self) -> None:
        """Let go of the model."""
        del self._model

    def _ids_or_reason(self, answered: Answered) -> list[int] | str:
        """The tokens of a conversation with its answer, or why it has no score."""
        try:
            ids = conversation_ids(self._tokenizer, answered.question.turns, answered.answer.text)
        except TemplateError:
            return "template"
        except EncodingError:
            return "not tokenizable"
        if not ids:
            return "template"
        if max(ids) >= self._vocab_size:
            raise UserError(
                f"{self._path} has {self._vocab_size} tokens in its vocabulary, and its tokenizer gives id {max(ids)}.",
                "Tokenizer and weights belong to different models; fetch both from one place.",
                where=answered.question.where,
            )
        return "too long" if self._max_length is not None and len(ids) > self._max_length else ids

    def _outputs(self, texts: Sequence[Sequence[int]]) -> list[float]:
        """What the model gives texts that go through it together."""
        device, longest = self._model.device, max(map(len, texts))
        padded = [[*ids, *[self._pad_id or 0] * (longest - len(ids))] for ids in texts]
        seen = [[1] * len(ids) + [0] * (longest - len(ids)) for ids in texts]
        with torch.inference_mode():
            output = self._model(
                input_ids=torch.tensor(padded, device=device), attention_mask=torch.tensor(seen, device=device)
            )
        found: list[float] = output.logits[:, 0].float().tolist()
        return found


def conversation_ids(tokenizer: TextTokenizer, turns: Sequence[Message], answer: str) -> list[int]:
    """The tokens of a conversation and its answer, by the template; special tokens that these spell out stay text.

    Raises:
        TemplateError, EncodingError: the template, or the tokenizer, refuses them.
        UserError: the template never ends.
    """
    messages = [*turns, Message("assistant", answer)]
    is_masked = any(tokenizer.has_special_literal(one.content) for one in messages)
    if is_masked:
        messages = [
            one if one.fields else replace(one, content=tokenizer.mask_literals(one.content)) for one in messages
        ]
    text = tokenizer.render(messages, generation_prompt=False)
    (ids,) = tokenizer.encode_batch([text], "masked" if is_masked else "parsed")
    before, behind = tokenizer.plain_ends
    before = [] if ids[: len(before)] == before else before
    behind = [] if ids[-len(behind) :] == behind else behind
    return [*before, *ids, *behind]


def _score_of(output: float) -> Score:
    return Score(output) if math.isfinite(output) else Score(None, "not finite")


def _read(path: str, folder: Path) -> ReadConfig:
    """The configuration of a reward model; UserError for what is none."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    if (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{path} holds adapters, not a whole reward model.", "Merge them into their model first.")
    read = read_config(path, folder, remote_code.CLASSIFIER)
    architecture = next(iter(read.config.architectures or ()), "")
    is_own = remote_code.CLASSIFIER in (read.raw.get("auto_map") or {})
    if is_own and not read.code:
        raise remote_code.NeedsRemoteCodeError(path)
    if architecture.endswith(("ForCausalLM", "ForConditionalGeneration")):
        raise UserError(f"{path} is a generator, not a reward model: it has no trained head.", _NAME_ONE)
    is_known = type(read.config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if not is_own and (not is_known or not architecture.endswith("ForSequenceClassification")):
        raise UserError(
            f"{path} holds {architecture or 'a model that does not say what it is'}, not a sequence classifier: it has "
            "no trained head.",
            _NAME_ONE,
        )
    if read.config.num_labels != 1:
        raise UserError(
            f"{path} is a classifier with {read.config.num_labels} outputs, and a reward model has one.", _NAME_ONE
        )
    if read.quantization is not None:
        raise UserError(
            f"the weights of the reward model {path} are quantised ({read.quantization}).",
            "Name the unquantised model that it was made from.",
        )
    return read


@stage("loading the weights of the reward model")
def _load(path: str, folder: Path, read: ReadConfig, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForSequenceClassification

    with remote_code.faults_of(path, read.code):
        try:
            loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                folder,
                config=read.config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                trust_remote_code=bool(read.code),
                **({} if device.type == "cpu" else {"device_map": {"": device}}),
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            if read.code:  # which may be to blame
                raise
            raise UserError(
                f"the weights of {path} do not load: {(str(error).splitlines() or [type(error).__name__])[0]}",
                "The folder is damaged, or its weights belong to another configuration.",
            ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the reward model {path} lacks {len(missing)} of its weights, such as {missing[-1]}: its scores would be "
            "random numbers.",
            "Fetch it again; where it is a generator, name a model that was trained on preferences.",
        )
    apply_soft_cap(model)
    return model.eval().requires_grad_(False)


def _max_length(config: Any, folder: Path) -> int | None:
    """Most tokens that the model takes: by its positions and, where it knows fewer than it has, by its tokenizer."""
    said = read_json(folder / "tokenizer_config.json").get("model_max_length")
    limits = [getattr(config, "max_position_embeddings", None), said]
    return min((limit for limit in limits if isinstance(limit, int)), default=None)
