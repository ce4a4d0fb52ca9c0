"""The shapes of what a run writes: keys that somebody here uses, with types and bounds; others may hold any JSON."""

from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Ge, Le, Len
from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

SCHEMA_VERSION = 2
"""Of run.json."""

_MOST = 2**53  # what is more is exact in no other reader
_OTHERS_TOO = with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))

Count = Annotated[int, Ge(0), Le(_MOST)]
Number = Annotated[float, Ge(-1e100), Le(1e100)]
Bound = Number | None


@_OTHERS_TOO
class Share(TypedDict):
    value: Annotated[float, Ge(0), Le(1)]
    ci: Annotated[list[Number], Len(2, 2)]
    n: Count


@_OTHERS_TOO
class Measured(TypedDict):
    value: Number
    ci: Annotated[list[Bound], Len(2, 2)]
    n: Count


@_OTHERS_TOO
class Lengths(TypedDict):
    chosen_longer: Share | None
    chosen_shorter: Share | None
    balanced: Share | None
    spearman: Measured | Number | None  # a number in runs of before 0.2


@_OTHERS_TOO
class Baselines(TypedDict):
    longer_wins: NotRequired[Share | None]
    surface: NotRequired[Share | None]


Scored = TypedDict(
    "Scored",
    {
        "pairs": Count,
        "prompts": Count,
        "effective_prompts": NotRequired[Number],
        "accuracy": Share,
        "target_reached": Share,
        "margin": Measured,
        "loss": Measured,
        "logps/chosen": Measured,
        "logps/rejected": Measured,
        "ties": Count,
        "length": Lengths,
        "baselines": Baselines,
    },
)
_OTHERS_TOO(Scored)


@_OTHERS_TOO
class Difference(TypedDict):
    accuracy: Measured
    p_value: Annotated[float, Ge(0), Le(1)]
    test: Literal["mcnemar-exact", "sign-flip-by-prompt"]
    length_balanced: NotRequired[Measured | None]


@_OTHERS_TOO
class Answer(TypedDict):
    question: str
    before: str
    after: str


@_OTHERS_TOO
class Kept(TypedDict):
    kept_share: Number
    rounded_back_share: Number


@_OTHERS_TOO
class Outcome(TypedDict):
    steps: NotRequired[Count]
    seconds: NotRequired[Annotated[Number, Ge(0)]]
    error: NotRequired[str]
    before: NotRequired[Scored]
    after: NotRequired[Scored]
    difference: NotRequired[Difference]
    answers: NotRequired[list[Answer]]
    export: NotRequired[Kept | None]


@_OTHERS_TOO
class File(TypedDict):
    path: str
    identity: str
    size: Count


@_OTHERS_TOO
class Records(TypedDict):
    read: Count
    repeated: Count
    trained: Count
    held_out: Count
    not_reached: Count
    refused: Count
    dropped: dict[str, Count]


@_OTHERS_TOO
class Source(TypedDict):
    decision: str
    files: list[File]
    records: Records
    counts: dict[str, Count]


@_OTHERS_TOO
class Data(TypedDict):
    train: Source
    eval: Source | None
    train_pairs_with_held_out_prompts: NotRequired[Count]


@_OTHERS_TOO
class Plan(TypedDict):
    steps: Count
    pairs_per_step: Annotated[int, Ge(1), Le(_MOST)]


@_OTHERS_TOO
class Model(TypedDict):
    name: str
    revision: str | None
    files: dict[str, str]
    parameters: Count
    trainable_parameters: Count
    weights_dtype: str
    code: NotRequired[dict[str, str]]


@_OTHERS_TOO
class Alert(TypedDict):
    code: str
    key: str
    limit: Number
    step: Count
    last_step: Count
    times: Count
    sentence: str
    remedy: Annotated[str, Len(1)]


@_OTHERS_TOO
class Facts(TypedDict):
    size: Count
    sha256: str


@_OTHERS_TOO
class Deviation(TypedDict):
    tokens: Count
    highest: Number
    gradient: Bound


@_OTHERS_TOO
class SelfCheck(TypedDict):
    packing: str
    why_padded: str | None
    difference: Deviation | None


@_OTHERS_TOO
class Hardware(TypedDict):
    device: str
    threads: Count
    cpu_capability: str
    compute: str
    platform: str


@_OTHERS_TOO
class Resumed(TypedDict):
    at: str
    from_step: Count
    not_bit_exact: list[str]


@_OTHERS_TOO
class Receipt(TypedDict):
    """run.json."""

    schema_version: NotRequired[Annotated[int, Ge(1), Le(SCHEMA_VERSION)]]
    status: Literal["running", "done", "stopped", "failed"]
    step: NotRequired[Count]
    started: str
    seed: int
    command: str
    resumed: NotRequired[list[Resumed]]
    recipe_sha256: NotRequired[str]
    recipe_origins: NotRequired[dict[str, str]]
    reopened: NotRequired[list[str]]
    tokenizer_sha256: NotRequired[str]
    template_sha256: NotRequired[str]
    versions: dict[str, str | None]
    hardware: Hardware
    model: Model
    plan: Plan
    data: Data
    self_check: NotRequired[SelfCheck | None]
    health: NotRequired[list[Alert]]
    outcome: NotRequired[Outcome | None]
    files: NotRequired[dict[str, Facts]]


@_OTHERS_TOO
class MetricsRow(TypedDict):
    step: Count
    loss: Number


EvalsRow = TypedDict(
    "EvalsRow",
    {
        "step": Count,
        "pairs": Count,
        "loss": Number,
        "accuracy": Number,
        "accuracy_low": Number,
        "accuracy_high": Number,
        "margin": Number,
        "logps/chosen_delta": Number,
        "logps/rejected_delta": Number,
        "probe_pairs": Count,
    },
)
_OTHERS_TOO(EvalsRow)


@_OTHERS_TOO
class PairRow(TypedDict):
    where: str
    prompt: str
    pair: NotRequired[Annotated[str, Len(32, 32)]]
    chosen_tokens: Count
    rejected_tokens: Count
    chosen_before: Number
    rejected_before: Number
    chosen_after: Number
    rejected_after: Number


@_OTHERS_TOO
class SampleRow(TypedDict):
    line: Annotated[int, Ge(1), Le(_MOST)]
    why: str
    prompt: str
    chosen: str
    rejected: str


@_OTHERS_TOO
class NoteRow(TypedDict):
    label: str
    text: str
    code: NotRequired[str]


@_OTHERS_TOO
class Progress(TypedDict):
    seconds: Annotated[Number, Ge(0)]
    evaluated_at: Annotated[int, Ge(-1), Le(_MOST)]
    lines: dict[str, Count]
    self_check: dict[str, Any]
    answers_before: list[str]
    chosen_before: list[Number] | None
    rejected_before: list[Number] | None
    digests: NotRequired[dict[str, str]]
    health: NotRequired[dict[str, Any]]


Files = list[Annotated[list[str], Len(2, 2)]]


@_OTHERS_TOO
class IdentityData(TypedDict):
    train: Files
    eval: Files | None


@_OTHERS_TOO
class IdentityModel(TypedDict):
    revision: str | None
    files: Any
    code: NotRequired[dict[str, str]]


@_OTHERS_TOO
class IdentityPlan(TypedDict):
    train_pairs: Count
    held_out_pairs: Count
    tokens: NotRequired[str]
    rendered_at: NotRequired[str | None]


@_OTHERS_TOO
class Identity(TypedDict):
    recipe: dict[str, Any]
    data: IdentityData
    model: IdentityModel
    tokenizer: str
    template: str
    plan: IdentityPlan
    machine: dict[str, Any]


SHAPES: dict[str, TypeAdapter[Any]] = {
    "run.json": TypeAdapter(Receipt),
    "metrics.jsonl": TypeAdapter(MetricsRow),
    "evals.jsonl": TypeAdapter(EvalsRow),
    "evals-pairs.jsonl": TypeAdapter(PairRow),
    "evals-samples.jsonl": TypeAdapter(SampleRow),
    "notes.jsonl": TypeAdapter(NoteRow),
    "progress.json": TypeAdapter(Progress),
    "identity.json": TypeAdapter(Identity),
}
