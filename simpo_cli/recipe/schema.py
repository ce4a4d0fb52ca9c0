"""The recipe: every key of a run, its type, its default and a sentence that says what it does.

Sections are frozen dataclasses. The sentence under a field is its documentation everywhere: in `simpo recipe schema`
and in the JSON Schema that editors use. A section checks its own values in `__post_init__` and raises `FieldError`; the
composer turns that into an error with file and line.
"""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal, get_args


class FieldError(ValueError):
    """A value outside its range.

    Args:
        key: the field within its section (dotted when it lies deeper).
        problem: the rest of a sentence that begins with the key, without its full stop.
        fix: one sentence that says how to mend it.
        related: other keys that take part; the place of the error is that of the first key that somebody wrote.
    """

    def __init__(self, key: str, problem: str, fix: str, related: tuple[str, ...] = ()) -> None:
        self.key, self.problem, self.fix, self.related = key, problem, fix, related
        super().__init__(f"{key} {problem}")


def _require(holds: bool, key: str, problem: str, fix: str, related: tuple[str, ...] = ()) -> None:
    if not holds:
        raise FieldError(key, problem, fix, related)


def _is_path(text: str) -> bool:
    """Whether a text can be a path or an id at all: not blank, no control characters."""
    return bool(text.strip()) and not has_control_characters(text)


def has_control_characters(text: str) -> bool:
    """Whether a name holds what a terminal would obey: no name of ours does, and none is read."""
    return any(ord(char) < 32 or ord(char) == 127 for char in text)


def _why(text: str) -> str:
    """The reason to add where it is one that cannot be seen."""
    return ": it holds a control character" if has_control_characters(text) else ""


def is_folder_name(name: str) -> bool:
    """Whether a text can be the name of a run: one part of a path that no shell or file system takes otherwise."""
    return (
        bool(name)
        and name == name.strip()
        and name[0] not in "-.~"
        and ".." not in name
        and name.isprintable()
        and not any(char in "/\\" for char in name)
        and len(name.encode(errors="replace")) <= 200
    )


def _finite(value: float) -> bool:
    return math.isfinite(value)


@dataclass(frozen=True, kw_only=True)
class LoraRecipe:
    """Train small matrices beside the frozen weights (LoRA, arXiv:2106.09685) instead of all weights."""

    rank: int = 16
    """Rank of the update of each matrix."""
    alpha: float = 32.0
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Share of the adapter's inputs set to zero during training; 0 keeps a step independent of how it is cut up."""
    target_modules: str | list[str] = "all-linear"
    """Which linear layers get an adapter: `all-linear` (all but the output head), or a list of module names."""
    use_dora: bool = False
    """Also learn the magnitude of each output row (DoRA, arXiv:2402.09353)."""

    def __post_init__(self) -> None:
        _require(self.rank >= 1, "rank", f"is {self.rank}, must be at least 1", "Usual values are 8 to 64.")
        _require(
            self.alpha > 0 and _finite(self.alpha),
            "alpha",
            f"is {self.alpha}, must be above 0",
            "Twice the rank is usual.",
        )
        _require(
            0 <= self.dropout < 1, "dropout", f"is {self.dropout}, must be from 0 to below 1", "SimPO is run with 0."
        )
        _require(bool(self.target_modules), "target_modules", "is empty", "Name layers, or leave it at all-linear.")


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """The model that training starts from."""

    path: str
    """A folder of a model or of a LoRA adapter, a hub id such as `org/model`, or `builtin:guide`; required."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; the commit it resolves to is recorded."""
    weights_dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type that the weights are held in; auto is float32 for full tuning and the checkpoint's own under adapters."""
    attention: Literal["auto", "shared_prefix", "padded"] = "auto"
    """How pairs go through the model: shared_prefix computes every prompt once; auto falls back to padded rows."""
    compile: bool | Literal["auto"] = "auto"
    """Run the decoder's layers as compiled code while prompts are shared; auto does in long runs on a card."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, a third more time; auto does where too little fits."""
    lora: LoraRecipe | None = None
    """Train adapters instead of all weights; null trains all weights."""
    adapter: Literal["continue", "merge"] | None = None
    """Of an adapter as start model: train it further, or merge it first; null continues it where lora is set."""

    def __post_init__(self) -> None:
        _require(
            _is_path(self.path),
            "path",
            f"is {self.path!r}{_why(self.path)}",
            "Name a folder, a hub id or builtin:guide.",
        )
        _require(
            self.adapter != "continue" or self.lora is not None,
            "adapter",
            "is continue, and lora is null, which trains all weights",
            "Add model.lora={}, or leave model.adapter out to merge the adapter.",
            related=("lora",),
        )


Part = Literal[
    "prompt",
    "input",
    "system",
    "history",
    "tools",
    "chosen",
    "rejected",
    "answers",
    "label",
    "scores",
    "rank",
    "best",
    "score_chosen",
    "score_rejected",
]
"""What a column mapping may name."""
Columns = dict[Part, str | list[str]]
Side = Literal["first", "second", "tie"]
Labels = dict[Side, list[Any] | dict[Literal["below", "above"], float]]

_SEVERAL = ("answers", "label", "scores", "rank")


def _check_mapping(columns: Columns, labels: Labels) -> None:
    """Check what `columns` and `labels` say, as far as that needs no data."""
    for key, named, known in (("columns", columns, get_args(Part)), ("labels", labels, get_args(Side))):
        for part in named:
            near = difflib.get_close_matches(part, known, n=1)
            fix = f"Did you mean {near[0]}?" if near else f"It has {', '.join(known)}."
            _require(part in known, f"{key}.{part}", f"is no part of {key}", fix)
    for part, fields in columns.items():
        listed = [fields] if isinstance(fields, str) else fields
        several = part in _SEVERAL
        _require(
            all(listed) and (isinstance(fields, str) or (several and len(fields) > 1)),
            f"columns.{part}",
            f"is {fields!r}",
            f"Name one field: {part}: FIELD" + (f", or several: {part}: [FIELD, FIELD]." if several else "."),
        )
    played: dict[str, str] = {}
    for part, fields in columns.items():
        for name in [] if part == "best" else [fields] if isinstance(fields, str) else fields:
            _require(
                name not in played,
                f"columns.{part}",
                f"is {name!r}, which is columns.{played.get(name)} as well",
                "Name another field: each plays one part.",
            )
            played[name] = part
    best = columns.get("best", "highest")
    _require(best in ("highest", "lowest"), "columns.best", f"is {best!r}", "Say which score is best: highest, lowest.")
    _check_labels(labels)


def _check_labels(labels: Labels) -> None:
    """Check that each value of a label has one meaning, and some value one that orders a pair."""
    _require(
        not labels or bool(labels.get("first") or labels.get("second")),
        "labels",
        "says of no value which response it prefers",
        "Write first: [..] and second: [..].",
    )
    sides: dict[tuple[bool, Any], str] = {}  # YAML's true is Python's 1, and no 1 of JSON
    bounds: dict[str, tuple[str, float]] = {}
    for side, meant in labels.items():
        if isinstance(meant, dict):
            fix = f"Write {side}: {{below: 0}} or {side}: {{above: 0}}."
            _require(len(meant) == 1 and meant.keys() <= {"below", "above"}, f"labels.{side}", f"is {meant!r}", fix)
            bounds[side] = next(iter(meant.items()))
            continue
        for value in meant:
            _require(
                not isinstance(value, list | dict), f"labels.{side}", f"has the value {value!r}", "List single values."
            )
            other = sides.setdefault((isinstance(value, bool), value), side)
            _require(
                other == side,
                f"labels.{side}",
                f"has the value {value!r}, which labels.{other} has as well",
                "Give each value one meaning.",
            )
    for (key, (word, number)), (_, (other_word, limit)) in combinations(bounds.items(), 2):
        apart = word != other_word and (number <= limit if word == "below" else limit <= number)
        _require(
            apart,
            f"labels.{key}",
            f"is {word} {number:g}, and another side has some of these numbers as well",
            "Write first: {below: 0} and second: {above: 0}, or the reverse.",
        )


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One file, folder or hub data set of pairs, when `data.train` or `data.eval` is a list."""

    path: str
    """A file, a folder, a hub id, or `builtin:guide`; required."""
    split: str | None = None
    """Split of a hub data set, such as `train_prefs`."""
    columns: Columns = field(default_factory=dict)
    """Which column plays which part, such as `{prompt: input, answers: [output_1, output_2], label: winner}`."""
    labels: Labels = field(default_factory=dict)
    """What the values of the label mean, such as `{first: [0], second: [1], tie: [2]}` or `{first: {below: 0}}`."""
    direction: Literal["first"] | None = None
    """`first` says that the first of the two responses is the better one in every record."""
    max_pairs: int | None = None
    """Use at most this many pairs, the first ones; null uses all."""
    repeat: int = 1
    """Use the source this many times in an epoch."""

    def __post_init__(self) -> None:
        _require(
            _is_path(self.path), "path", f"is {self.path!r}{_why(self.path)}", "Name a file, a folder or a hub id."
        )
        _require(
            self.max_pairs is None or self.max_pairs >= 1,
            "max_pairs",
            f"is {self.max_pairs}, must be at least 1",
            "Use null for all pairs.",
        )
        _require(self.repeat >= 1, "repeat", f"is {self.repeat}, must be at least 1", "1 uses the source once.")
        _check_mapping(self.columns, self.labels)


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where the pairs come from and how they become tokens."""

    train: str | list[DataSource]
    """Training pairs: a file, folder, hub id or `builtin:guide`, or a list of sources; required."""
    eval: str | list[DataSource] | None = None
    """Held-out pairs, of the same form; null takes `holdout` from the training pairs."""
    holdout: int | float = 0.05
    """Pairs held out when eval is null: a count or a share, chosen by hash of the prompt; 0 holds none out."""
    columns: Columns = field(default_factory=dict)
    """Which column plays which part in every source that does not say otherwise, such as `{prompt: question}`."""
    labels: Labels = field(default_factory=dict)
    """What the values of the label mean in every source without labels of its own."""
    direction: Literal["first"] | None = None
    """`first` says of every source that the first of the two responses is the better one."""
    max_length: int = 2048
    """Most tokens of prompt and one response together."""
    max_prompt_length: int = 1800
    """Most tokens of the prompt; its oldest turns go first, and the system turn stays."""
    min_response_tokens: int = 1
    """Pairs with a shorter response carry no signal; the end token is not counted."""
    overlong: Literal["truncate", "drop", "error"] = "truncate"
    """What happens to a pair that is over the limits."""
    on_bad_record: Literal["error", "skip"] = "error"
    """Stop at a malformed record, or count it and write it to rejected.jsonl."""
    on_no_signal: Literal["drop", "error"] = "drop"
    """Drop and count pairs that cannot teach (an empty or identical response), or stop."""
    chat_template: str | None = None
    """A Jinja file that replaces the model's own template, or `none` to use prompts and responses as plain text."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Extra variables for the template, such as `{enable_thinking: false}`."""
    rendered: bool = False
    """The texts already hold the template's markers: use them as they are."""

    def __post_init__(self) -> None:
        for key, sources in (("train", self.train), ("eval", self.eval)):
            holds = sources is None or (_is_path(sources) if isinstance(sources, str) else len(sources) > 0)
            problem = f"is {sources!r}{_why(sources) if isinstance(sources, str) else ''}"
            _require(holds, key, problem, "Name a file of preference pairs, or leave eval at null.")
        _require(
            _finite(self.holdout) and self.holdout >= 0,
            "holdout",
            f"is {self.holdout}, must be 0 or more",
            "Use 0.05 or 200.",
        )
        _require(
            isinstance(self.holdout, int) or self.holdout < 1,
            "holdout",
            f"is {self.holdout}, neither a share below 1 nor a whole count",
            "Use 0.05 or 200.",
        )
        _require(
            self.max_length >= 8,
            "max_length",
            f"is {self.max_length}, must be at least 8",
            "Usual values are 512 to 4096.",
        )
        _require(
            self.max_prompt_length >= 1,
            "max_prompt_length",
            f"is {self.max_prompt_length}, must be at least 1",
            "Leave room for the question.",
        )
        _require(
            self.max_prompt_length < self.max_length,
            "max_prompt_length",
            f"is {self.max_prompt_length}, must be below max_length ({self.max_length})",
            f"Leave room for the response, for example data.max_prompt_length: {self.max_length // 2}",
            related=("max_length",),
        )
        _require(
            self.min_response_tokens >= 1,
            "min_response_tokens",
            f"is {self.min_response_tokens}, must be at least 1",
            "A response without tokens has no mean log-probability.",
        )
        _check_mapping(self.columns, self.labels)

    def sources(self, named: str | Sequence[DataSource]) -> list[DataSource]:
        """The sources that `train` or `eval` names, each with what the section says of every source."""
        listed = [DataSource(path=named)] if isinstance(named, str) else named
        return [
            replace(
                source,
                columns={**self.columns, **source.columns},
                labels=source.labels or self.labels,
                direction=source.direction or self.direction,
            )
            for source in listed
        ]


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """The objective of SimPO (arXiv:2405.14734, Eq. 6): -log sigmoid(beta * (m_w - m_l) - gamma)."""

    type: Literal["sigmoid", "hinge"] = "sigmoid"
    """Shape of the loss over the reward difference."""
    beta: float = 2.0
    """Scale of the reward: beta times the mean log-probability of a response. The authors use 2 to 10."""
    gamma: float | None = None
    """Target reward margin, in units of the reward; null follows from gamma_beta_ratio."""
    gamma_beta_ratio: float | None = None
    """The same margin divided by beta; 0.5 when neither is given. The authors use 0.1 to 0.8."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels (sigmoid only)."""
    sft_weight: float = 0.0
    """Weight of an added -m(chosen) term; 0 is SimPO."""

    def __post_init__(self) -> None:
        _require(
            _finite(self.beta) and self.beta > 0, "beta", f"is {self.beta}, must be above 0", "The authors use 2 to 10."
        )
        for key, value in (("gamma", self.gamma), ("gamma_beta_ratio", self.gamma_beta_ratio)):
            _require(
                value is None or (_finite(value) and value >= 0),
                key,
                f"is {value}, must be 0 or more",
                "gamma is gamma_beta_ratio times beta; 0 asks for no margin.",
            )
        _require(
            0 <= self.label_smoothing < 0.5,
            "label_smoothing",
            f"is {self.label_smoothing}, must be from 0 to below 0.5",
            "At 0.5 the labels say nothing.",
        )
        _require(
            not (self.label_smoothing and self.type == "hinge"),
            "label_smoothing",
            "has no meaning for the hinge loss",
            "Set it to 0, or loss.type to sigmoid.",
            related=("type",),
        )
        _require(
            _finite(self.sft_weight) and self.sft_weight >= 0,
            "sft_weight",
            f"is {self.sft_weight}, must be 0 or more",
            "0 is SimPO.",
        )

    @property
    def margin(self) -> float:
        """gamma, in units of the reward, whichever of the two ways it was given."""
        if self.gamma is not None:
            return self.gamma
        return self.beta * (0.5 if self.gamma_beta_ratio is None else self.gamma_beta_ratio)

    @property
    def margin_beta_ratio(self) -> float:
        """gamma / beta, whichever of the two ways it was given."""
        if self.gamma is not None:
            return self.gamma / self.beta
        return 0.5 if self.gamma_beta_ratio is None else self.gamma_beta_ratio


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """How the weights move."""

    pairs_per_step: int = 128
    """Pairs in one optimizer step, over all devices; memory and devices decide only how they are cut up."""
    tokens_per_microbatch: int | Literal["auto"] = "auto"
    """Tokens that go through the model at once; auto goes by the memory there is."""
    num_epochs: int = 1
    """Passes over the training pairs."""
    max_steps: int | None = None
    """Stop after this many steps; null runs all epochs. The learning rate schedule ends there too."""
    learning_rate: float = 1e-6
    """Highest learning rate. The authors use 3e-7 to 1e-6 for full tuning; adapters need more, such as 1e-5."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    optimizer: Literal["adamw"] = "adamw"
    """AdamW with betas 0.9 and 0.999, epsilon 1e-8."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass; auto is bf16 where the device multiplies in it, else fp32."""
    deterministic: bool = False
    """Ask torch for deterministic kernels: equal bits from run to run on one machine, slower on CUDA."""

    def __post_init__(self) -> None:
        _require(
            self.pairs_per_step >= 1,
            "pairs_per_step",
            f"is {self.pairs_per_step}, must be at least 1",
            "The authors use 128.",
        )
        _require(
            self.tokens_per_microbatch == "auto" or self.tokens_per_microbatch >= 1,
            "tokens_per_microbatch",
            f"is {self.tokens_per_microbatch}, must be at least 1",
            "Use auto, or the tokens that fit.",
        )
        _require(self.num_epochs >= 1, "num_epochs", f"is {self.num_epochs}, must be at least 1", "The authors use 1.")
        _require(
            self.max_steps is None or self.max_steps >= 1,
            "max_steps",
            f"is {self.max_steps}, must be at least 1",
            "Use null for all.",
        )
        _require(
            _finite(self.learning_rate) and self.learning_rate > 0,
            "learning_rate",
            f"is {self.learning_rate}, must be above 0",
            "The authors use 3e-7 to 1e-6 for full tuning.",
        )
        _require(
            0 <= self.warmup_ratio < 1,
            "warmup_ratio",
            f"is {self.warmup_ratio}, must be from 0 to below 1",
            "The authors use 0.1.",
        )
        _require(
            _finite(self.weight_decay) and self.weight_decay >= 0,
            "weight_decay",
            f"is {self.weight_decay}, must be 0 or more",
            "The authors use 0.",
        )
        _require(
            _finite(self.max_grad_norm) and self.max_grad_norm >= 0,
            "max_grad_norm",
            f"is {self.max_grad_norm}, must be 0 or more",
            "The authors use 1.0.",
        )


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    """When the held-out pairs are scored during training; before the first and after the last step they always are."""

    every: int | None = None
    """Steps between evaluations; null evaluates only at the start and at the end."""

    def __post_init__(self) -> None:
        _require(
            self.every is None or self.every >= 1,
            "every",
            f"is {self.every}, must be at least 1",
            "Use null for start and end only.",
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointRecipe:
    """When the training state is written."""

    every: int | None = None
    """Steps between checkpoints; null writes one at the end only."""
    keep: int = 2
    """Newest checkpoints that stay on disk."""
    best: bool = False
    """Also keep the checkpoint with the lowest held-out loss."""

    def __post_init__(self) -> None:
        _require(
            self.every is None or self.every >= 1,
            "every",
            f"is {self.every}, must be at least 1",
            "Use null for the end only.",
        )
        _require(self.keep >= 1, "keep", f"is {self.keep}, must be at least 1", "The newest checkpoint always stays.")


@dataclass(frozen=True, kw_only=True)
class ExportRecipe:
    """How the final model is written."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type of the weights in model/; auto is the start model's own."""


@dataclass(frozen=True, kw_only=True)
class TrackingRecipe:
    """Where the numbers go besides metrics.jsonl."""

    report_to: list[str] = field(default_factory=list)
    """Trackers by accelerate's names (tensorboard, wandb, trackio, ...); none unless named."""
    log_every: int = 1
    """Steps between lines of metrics.jsonl."""

    def __post_init__(self) -> None:
        _require(self.log_every >= 1, "log_every", f"is {self.log_every}, must be at least 1", "1 logs every step.")


@dataclass(frozen=True, kw_only=True)
class HealthRecipe:
    """When a run says that it goes wrong, and when it stops for it; docs/health.md has every code with its formula."""

    stop_on: list[Literal["HEA001", "HEA002", "HEA003", "HEA004", "HEA005", "HEA006", "HEA007", "HEA008"]] = field(
        default_factory=list
    )
    """Codes that stop the run, saved at a whole step and with exit code 5; the others only warn."""
    chosen_fall: float | None = 0.2
    """HEA001: chosen responses fell by this much, nats a token, while the margin rose; null never warns."""
    both_fall: float | None = 1.0
    """HEA002: chosen and rejected responses both fell by this much, nats a token; null never warns."""
    gradient_weight: float | None = 0.05
    """HEA003: pairs pull with at most this share of their full weight, so little is left to learn; null never warns."""
    gradient_spike: float | None = 20.0
    """HEA004: a gradient norm is this many times the median of the 32 steps before it; null never warns."""
    lost_updates: float | None = 0.5
    """HEA005: this share of the updates is lost to the rounding of bf16 or fp16 weights; null never warns."""
    kept_change: float | None = 0.8
    """HEA006: a save in export.dtype keeps at most this share of what training changed; null never warns."""
    looping_answers: float | None = 0.3
    """HEA007: this share of the probe answers repeats itself and did not at the start; null never warns."""
    endless_answers: float | None = 0.3
    """HEA008: this share of the probe answers does not end any more and did at the start; null never warns."""
    num_answers: int = 6
    """Held-out prompts, 8 at most, that the model answers at each evaluation, word by word; 0 asks nothing."""
    answer_tokens: int = 128
    """Most tokens of such an answer."""

    def __post_init__(self) -> None:
        for key in ("gradient_weight", "lost_updates", "looping_answers", "endless_answers", "kept_change"):
            share = getattr(self, key)
            _require(
                share is None or 0 < share <= 1,
                key,
                f"is {share}, must be above 0 and at most 1",
                "It is a share; null switches the warning off.",
            )
        for key, nats in (("chosen_fall", self.chosen_fall), ("both_fall", self.both_fall)):
            _require(
                nats is None or (_finite(nats) and nats > 0),
                key,
                f"is {nats}, must be above 0",
                "It is in nats a token, such as 0.2; null switches the warning off.",
            )
        _require(
            self.gradient_spike is None or (_finite(self.gradient_spike) and self.gradient_spike > 1),
            "gradient_spike",
            f"is {self.gradient_spike}, must be above 1",
            "It is a multiple of the usual norm, such as 20; null switches the warning off.",
        )
        _require(
            0 <= self.num_answers <= 8,
            "num_answers",
            f"is {self.num_answers}, must be from 0 to 8",
            "0 asks nothing.",
        )
        _require(
            self.answer_tokens >= 8,
            "answer_tokens",
            f"is {self.answer_tokens}, must be at least 8",
            "A loop shows after some 30 tokens; 128 is usual.",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, wholly described."""

    name: str
    """Name of the run; required, and the last part of the output folder by default."""
    seed: int = 42
    """Fixes the order of the pairs and the start of adapters."""
    output_dir: str = "runs/${name}"
    """The run folder."""
    model: ModelRecipe
    """The model that training starts from."""
    data: DataRecipe
    """Where the pairs come from and how they become tokens."""
    loss: LossRecipe = field(default_factory=LossRecipe)
    """The objective."""
    train: TrainRecipe = field(default_factory=TrainRecipe)
    """How the weights move."""
    eval: EvalRecipe = field(default_factory=EvalRecipe)
    """When the held-out pairs are scored."""
    checkpoint: CheckpointRecipe = field(default_factory=CheckpointRecipe)
    """When the training state is written."""
    health: HealthRecipe = field(default_factory=HealthRecipe)
    """When a run says that it goes wrong, and when it stops for it."""
    export: ExportRecipe = field(default_factory=ExportRecipe)
    """How the final model is written."""
    tracking: TrackingRecipe = field(default_factory=TrackingRecipe)
    """Where the numbers go besides metrics.jsonl."""

    def __post_init__(self) -> None:
        _require(
            is_folder_name(self.name),
            "name",
            f"is {self.name!r}, which is not usable as a folder name{_why(self.name)}",
            "Use letters, digits, dashes, underscores and dots, with a letter or digit first.",
        )
        _require(
            0 <= self.seed < 2**32, "seed", f"is {self.seed}, must be from 0 to 4294967295", "42 is the authors' seed."
        )
        _require(
            _is_path(self.output_dir),
            "output_dir",
            f"is {self.output_dir!r}, which is not usable as a folder{_why(self.output_dir)}",
            "Use runs/${name}.",
        )
        has_pairs_to_compare = self.data.eval is not None or self.data.holdout > 0
        _require(
            not self.checkpoint.best or (has_pairs_to_compare and self.eval.every is not None),
            "checkpoint.best",
            "asks for the checkpoint with the lowest held-out loss, and "
            + ("eval.every is null" if has_pairs_to_compare else "no pairs are held out"),
            "Set eval.every to the same number of steps as checkpoint.every."
            if has_pairs_to_compare
            else "Name pairs in data.eval, or set data.holdout above 0.",
            related=("eval.every", "data.holdout"),
        )
