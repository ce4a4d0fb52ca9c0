"""The recipe: every key of a run, its type, its default, its bounds and a sentence that says what it does.

Sections are frozen pydantic dataclasses, strict: "40" is no number and true is no 1. The sentence under a field is its
documentation everywhere: in `simpo recipe schema` and in the JSON Schema that editors use. What concerns one value
stands in its annotation; what concerns several is checked in `__post_init__`, which raises `FieldError`. The composer
turns both into errors with file and line.
"""

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from simpo_cli.recipe.command_sections import PairsRecipe, TuneRecipe
from simpo_cli.recipe.mapping import Columns, Labels, check_columns, check_labels
from simpo_cli.recipe.values import STRICT, FieldError, FolderName, Holdout, OutputDir, Path, checked


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraRecipe:
    """Train small matrices beside the frozen weights (LoRA, arXiv:2106.09685) instead of all weights."""

    rank: Annotated[int, checked("Usual values are 8 to 64.", ge=1)] = 16
    """Rank of the update of each matrix."""
    alpha: Annotated[float, checked("Twice the rank is usual.", gt=0)] = 32.0
    """Scale of the update: it is multiplied by alpha / rank."""
    dropout: Annotated[float, checked("SimPO is run with 0.", ge=0, lt=1)] = 0.0
    """Share of the adapter's inputs set to zero during training; 0 keeps a step independent of how it is cut up."""
    target_modules: Annotated[str | list[str], checked("Name layers, or leave it at all-linear.", min_length=1)] = (
        "all-linear"
    )
    """Which layers get an adapter: `all-linear` (all but the output head), or module names, `lm_head` among them."""
    use_rslora: bool = False
    """Multiply the update by alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv:2312.03732)."""
    use_dora: bool = False
    """Also learn the magnitude of each output row (DoRA, arXiv:2402.09353)."""
    init: Literal["default", "pissa"] = "default"
    """How an adapter begins: at no update, or with its weight's main components (PiSSA, arXiv:2404.02948)."""

    def __post_init__(self) -> None:
        if self.init == "pissa" and self.use_dora:
            raise FieldError("init", "is pissa, and use_dora is true", "Leave one of the two out.", ("use_dora",))

    @property
    def saved_rank(self) -> int:
        """Rank of the adapter that a run writes; see `adapters.save_adapters`."""
        return 2 * self.rank if self.init == "pissa" else self.rank


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelRecipe:
    """The model that training starts from."""

    path: Annotated[Path, checked("Name a folder, a hub id or builtin:guide.")]
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
    activation_offload: bool = False
    """Keep what layers save for the backward pass in the host's memory until then: less memory on the card, slower."""
    quantization: Literal["nf4", "int8"] | None = None
    """Hold the frozen weights under adapters in 4 bits (nf4, QLoRA) or 8 bits (int8); null holds them as they are."""
    lora: LoraRecipe | None = None
    """Train adapters instead of all weights; null trains all weights."""
    adapter: Literal["continue", "merge"] | None = None
    """Of an adapter as start model: train it further, or merge it first; null continues it where lora is set."""

    def __post_init__(self) -> None:
        if self.adapter == "continue" and self.lora is None:
            fix = "Add model.lora={}, or leave model.adapter out to merge the adapter."
            raise FieldError("adapter", "is continue, and lora is null, which trains all weights", fix, ("lora",))
        if self.quantization is None:
            return
        is_set = f"is {self.quantization}, and "
        if self.lora is None:
            fix = "Add model.lora={}, which trains adapters, or leave quantization out."
            raise FieldError(
                "quantization", f"{is_set}lora is null: quantised weights cannot be trained", fix, ("lora",)
            )
        if self.lora.init == "pissa":
            fix = "Leave lora.init out: quantised weights cannot give their components to an adapter."
            raise FieldError("quantization", f"{is_set}lora.init is pissa", fix, ("lora.init",))
        if self.adapter == "merge":
            fix = "Merge it first (simpo export RUN --merge, or peft), and name the merged folder as model.path."
            raise FieldError(
                "quantization", f"{is_set}adapter is merge: nothing merges into rounded weights", fix, ("adapter",)
            )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataSource:
    """One file, folder or hub data set of pairs, when `data.train` or `data.eval` is a list."""

    path: Annotated[Path, checked("Name a file, a folder or a hub id.")]
    """A file, a folder, a hub id, or `builtin:guide`; required."""
    split: str | None = None
    """Split of a hub data set, such as `train_prefs`."""
    columns: Columns = field(default_factory=dict)
    """Which column plays which part, such as `{prompt: input, answers: [output_1, output_2], label: winner}`."""
    labels: Labels = field(default_factory=dict)
    """What the values of the label mean, such as `{first: [0], second: [1], tie: [2]}` or `{first: {below: 0}}`."""
    direction: Literal["first"] | None = None
    """`first` says that the first of the two responses is the better one in every record."""
    max_pairs: Annotated[int | None, checked("Use null for all pairs.", ge=1)] = None
    """Use at most this many pairs, the first ones; null uses all."""
    repeat: Annotated[int, checked("1 uses the source once.", ge=1)] = 1
    """Use the source this many times in an epoch."""

    def __post_init__(self) -> None:
        check_columns(self.columns)
        check_labels(self.labels)


def _as_sources(value: Any) -> Any:
    return [DataSource(path=value)] if isinstance(value, str) else value


Sources = Annotated[
    list[DataSource],
    BeforeValidator(_as_sources, json_schema_input_type=str | list[DataSource]),
    checked("Name a file of preference pairs, or leave eval at null.", min_length=1),
]
"""A recipe may name one source by its path alone; read, it is a list of one."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DataRecipe:
    """Where the pairs come from and how they become tokens."""

    train: Sources
    """Training pairs: a file, folder, hub id or `builtin:guide`, or a list of sources; required."""
    eval: Sources | None = None
    """Held-out pairs, of the same form; null takes `holdout` from the training pairs."""
    holdout: Annotated[Holdout, checked("Use 0.05 or 200.")] = 0.05
    """Pairs held out when eval is null: a count or a share, chosen by hash of the prompt; 0 holds none out."""
    columns: Columns = field(default_factory=dict)
    """Which column plays which part in every source that does not say otherwise, such as `{prompt: question}`."""
    labels: Labels = field(default_factory=dict)
    """What the values of the label mean in every source without labels of its own."""
    direction: Literal["first"] | None = None
    """`first` says of every source that the first of the two responses is the better one."""
    max_length: Annotated[int, checked("Usual values are 512 to 4096.", ge=8)] = 2048
    """Most tokens of prompt and one response together."""
    max_prompt_length: Annotated[int, checked("Leave room for the question.", ge=1)] = 1800
    """Most tokens of the prompt; its oldest turns go first, and the system turn stays."""
    min_response_tokens: Annotated[int, checked("A response without tokens has no mean log-probability.", ge=1)] = 1
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
        if self.max_prompt_length >= self.max_length:
            problem = f"is {self.max_prompt_length}, must be below max_length ({self.max_length})"
            fix = f"Leave room for the response, for example data.max_prompt_length: {self.max_length // 2}"
            raise FieldError("max_prompt_length", problem, fix, ("max_length",))
        check_columns(self.columns)
        check_labels(self.labels)

    def sources(self, named: Sequence[DataSource]) -> list[DataSource]:
        """The sources of `train` or `eval`, each with what the section says of every source."""
        return [
            replace(
                source,
                columns={**self.columns, **source.columns},
                labels=source.labels or self.labels,
                direction=source.direction or self.direction,
            )
            for source in named
        ]


_MARGIN_FIX = "gamma is gamma_beta_ratio times beta; 0 asks for no margin."
LossType = Literal["sigmoid", "hinge"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LossRecipe:
    """The objective of SimPO (arXiv:2405.14734, Eq. 6): -log sigmoid(beta * (m_w - m_l) - gamma)."""

    type: LossType = "sigmoid"
    """Shape of the loss over the reward difference."""
    beta: Annotated[float, checked("The authors use 2 to 10.", gt=0)] = 2.0
    """Scale of the reward: beta times the mean log-probability of a response. The authors use 2 to 10."""
    gamma: Annotated[float | None, checked(_MARGIN_FIX, ge=0)] = None
    """Target reward margin, in units of the reward; null follows from gamma_beta_ratio."""
    gamma_beta_ratio: Annotated[float | None, checked(_MARGIN_FIX, ge=0)] = None
    """The same margin divided by beta; 0.5 when neither is given. The authors use 0.1 to 0.8."""
    label_smoothing: Annotated[float, checked("At 0.5 the labels say nothing.", ge=0, lt=0.5)] = 0.0
    """Assumed share of flipped labels (sigmoid only)."""
    sft_weight: Annotated[float, checked("0 is SimPO.", ge=0)] = 0.0
    """Weight of an added -m(chosen) term; 0 is SimPO."""

    def __post_init__(self) -> None:
        if self.label_smoothing and self.type != "sigmoid":
            problem = f"has no meaning for the {self.type} loss"
            raise FieldError("label_smoothing", problem, "Set it to 0, or loss.type to sigmoid.", ("type",))

    @property
    def margin(self) -> float:
        """gamma, in units of the reward, whichever of the two ways it was given."""
        return self.beta * self.margin_beta_ratio if self.gamma is None else self.gamma

    @property
    def margin_beta_ratio(self) -> float:
        """gamma / beta, whichever of the two ways it was given."""
        if self.gamma is not None:
            return self.gamma / self.beta
        return 0.5 if self.gamma_beta_ratio is None else self.gamma_beta_ratio


def loss_terms(loss: LossRecipe) -> str:
    """SimPO, sigmoid · beta 2 · gamma 1 (gamma/beta 0.5) · label smoothing off · SFT term off."""
    return " · ".join(
        (
            f"SimPO, {loss.type}",
            f"beta {loss.beta:g}",
            f"gamma {loss.margin:g} (gamma/beta {loss.margin_beta_ratio:g})",
            f"label smoothing {loss.label_smoothing:g}" if loss.label_smoothing else "label smoothing off",
            f"SFT term {loss.sft_weight:g}" if loss.sft_weight else "SFT term off",
        )
    )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainRecipe:
    """How the weights move."""

    pairs_per_step: Annotated[int, checked("The authors use 128.", ge=1)] = 128
    """Pairs in one optimizer step, over all devices; memory and devices decide only how they are cut up."""
    tokens_per_microbatch: Annotated[int, checked("Use auto, or the tokens that fit.", ge=1)] | Literal["auto"] = "auto"
    """Tokens that go through the model at once; auto goes by the memory there is."""
    num_epochs: Annotated[int, checked("The authors use 1.", ge=1)] = 1
    """Passes over the training pairs."""
    max_steps: Annotated[int | None, checked("Use null for all.", ge=1)] = None
    """Stop after this many steps; null runs all epochs. The learning rate schedule ends there too."""
    learning_rate: Annotated[float, checked("The authors use 3e-7 to 1e-6 for full tuning.", gt=0)] = 1e-6
    """Highest learning rate. The authors use 3e-7 to 1e-6 for full tuning; adapters need more, such as 1e-5."""
    lr_scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: Annotated[float, checked("The authors use 0.1.", ge=0, lt=1)] = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW with betas 0.9 and 0.999, epsilon 1e-8. adamw holds both moments in float32, 8 bytes a trained parameter;
    adamw_8bit in 8 bits, 2 bytes; paged_adamw_8bit too, and on CUDA they move to the host when memory runs out."""
    weight_decay: Annotated[float, checked("The authors use 0.", ge=0)] = 0.0
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, checked("The authors use 1.0.", ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass; auto is bf16 where the device multiplies in it, else fp32."""
    deterministic: bool = False
    """Ask torch for deterministic kernels: equal bits from run to run on one machine, slower on CUDA."""


HeldOutPart = Literal["all", "choosing", "confirming"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvalRecipe:
    """When the held-out pairs are scored during training; before the first and after the last step they always are."""

    every: Annotated[int | None, checked("Use null for start and end only.", ge=1)] = None
    """Steps between evaluations; null evaluates only at the start and at the end."""
    part: HeldOutPart = "all"
    """Half of the held-out pairs, by hash of the prompt: `simpo tune` chooses by one and confirms on the other."""

    @property
    def half(self) -> str:
        """What a count of held-out pairs is followed by."""
        return "" if self.part == "all" else f" (the {self.part} half)"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointRecipe:
    """When the training state is written."""

    every: Annotated[int | None, checked("Use null for the end only.", ge=1)] = None
    """Steps between checkpoints; null writes one at the end only."""
    keep: Annotated[int, checked("The newest checkpoint always stays.", ge=1)] = 2
    """Newest checkpoints that stay on disk."""
    best: bool = False
    """Also keep the checkpoint with the lowest loss on the half of the held-out pairs that eval.part calls choosing."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExportRecipe:
    """How the final model is written."""

    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type of the weights in model/; auto is the start model's own."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrackingRecipe:
    """Where the numbers go besides metrics.jsonl."""

    report_to: list[str] = field(default_factory=list)
    """Trackers by accelerate's names (tensorboard, wandb, trackio, ...); none unless named."""
    log_every: Annotated[int, checked("1 logs every step.", ge=1)] = 1
    """Steps between lines of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DistributedRecipe:
    """How a run is spread over devices; none of it changes what a step computes."""

    strategy: Literal["auto", "none", "ddp", "fsdp2"] = "auto"
    """ddp keeps the model whole on every device, fsdp2 shards it; auto shards what does not fit; none is one device."""
    num_processes: Annotated[int, checked("One process drives one device.", ge=1)] | Literal["auto"] = "auto"
    """Processes to start, one a device; auto is every visible card, and one process on a CPU."""
    cpu_offload: bool = False
    """Keep shards and optimizer state of fsdp2 in the memory of the host: much slower, for models that do not fit."""
    timeout: Annotated[float, checked("It is in seconds, such as 1800.", gt=0)] = 1800.0
    """Seconds after which a process that does not answer is given up, and the run ends with what was saved."""

    def __post_init__(self) -> None:
        if self.cpu_offload and self.strategy not in ("auto", "fsdp2"):
            fix = "Set distributed.strategy to fsdp2, or leave cpu_offload out."
            raise FieldError("cpu_offload", f"belongs to fsdp2, and strategy is {self.strategy}", fix, ("strategy",))
        if self.strategy == "none" and self.num_processes not in ("auto", 1):
            fix = "Set distributed.strategy to auto, or num_processes to 1."
            raise FieldError("num_processes", f"is {self.num_processes}, and strategy is none", fix, ("strategy",))


_Share = Annotated[float | None, checked("It is a share; null switches the warning off.", gt=0, le=1)]
_Nats = Annotated[float | None, checked("It is in nats a token, such as 0.2; null switches the warning off.", gt=0)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class HealthRecipe:
    """When a run says that it goes wrong, and when it stops for it; docs/health.md has every code with its formula."""

    stop_on: list[Literal["HEA001", "HEA002", "HEA003", "HEA004", "HEA005", "HEA006", "HEA007", "HEA008"]] = field(
        default_factory=list
    )
    """Codes that stop the run, saved at a whole step and with exit code 5; the others only warn."""
    chosen_fall: _Nats = 0.2
    """HEA001: chosen responses fell by this much, nats a token, while the margin rose; null never warns."""
    both_fall: _Nats = 1.0
    """HEA002: chosen and rejected responses both fell by this much, nats a token; null never warns."""
    gradient_weight: _Share = 0.05
    """HEA003: the mean weight of a pair, sigma(-d), is at most this: the loss is saturated; null never warns."""
    gradient_spike: Annotated[
        float | None, checked("It is a multiple of the usual norm, such as 20; null switches the warning off.", gt=1)
    ] = 20.0
    """HEA004: a gradient norm is this many times the median of the 32 steps before it; null never warns."""
    lost_updates: _Share = 0.5
    """HEA005: this share of the updates is lost to the rounding of fp16 weights; null never warns."""
    kept_change: _Share = 0.8
    """HEA006: a save in export.dtype keeps at most this share of what training changed; null never warns."""
    looping_answers: _Share = 0.3
    """HEA007: this share of the probe answers repeats itself and did not at the start; null never warns."""
    endless_answers: _Share = 0.3
    """HEA008: this share of the probe answers does not end any more and did at the start; null never warns."""
    num_answers: Annotated[int, checked("0 asks nothing.", ge=0, le=8)] = 6
    """Held-out prompts, 8 at most, that the model answers greedily at each evaluation; 0 generates nothing."""
    answer_tokens: Annotated[int, checked("A loop shows after some 30 tokens; 128 is usual.", ge=8)] = 128
    """Most tokens of such an answer."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Recipe:
    """One run, wholly described."""

    name: Annotated[
        FolderName, checked("Use letters, digits, dashes, underscores and dots, with a letter or digit first.")
    ]
    """Name of the run; the file's name by default, and itself the last part of the output folder by default."""
    seed: Annotated[int, checked("42 is the authors' seed.", ge=0, le=2**32 - 1)] = 42
    """Fixes the order of the pairs and the start of adapters."""
    output_dir: Annotated[OutputDir, checked("Use runs/${name}.")] = "runs/${name}"
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
    distributed: DistributedRecipe = field(default_factory=DistributedRecipe)
    """How the run is spread over devices."""
    pairs: PairsRecipe = field(default_factory=PairsRecipe)
    """How `simpo pairs round` gets its pairs."""
    tune: TuneRecipe = field(default_factory=TuneRecipe)
    """How `simpo tune` searches for better numbers."""

    def __post_init__(self) -> None:
        if not self.checkpoint.best:
            return
        asks, related = "asks for the checkpoint with the lowest held-out loss, and ", ("eval.every", "data.holdout")
        if self.data.eval is None and self.data.holdout == 0:
            fix = "Name pairs in data.eval, or set data.holdout above 0."
            raise FieldError("checkpoint.best", f"{asks}no pairs are held out", fix, related)
        if self.eval.every is None:
            fix = "Set eval.every to the same number of steps as checkpoint.every."
            raise FieldError("checkpoint.best", f"{asks}eval.every is null", fix, related)
