"""`simpo plan`: the screen, the document, and what is refused; a dry run shows the same."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import transformers

from simpo_cli.report.plan_view import print_plan
from tests.cli.seen import Simpo, typed, write_run_recipe
from tests.evaluate.test_eval_command import keys_of, told_in
from tests.model.shapes import LLAMA_8B
from tests.report.screen import printed
from tests.tiny import chatml_tokenizer, save_tiny_model

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "plan.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    save_tiny_model(folder / "tiny")
    config = transformers.AutoConfig.for_model(**LLAMA_8B)
    config.dtype = torch.bfloat16
    config.save_pretrained(folder / "llama")  # without weights
    chatml_tokenizer(folder / "llama")
    write_run_recipe(folder, "plan", "tiny")
    return folder


@pytest.fixture
def simpo(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Simpo:
    """Types a command in that folder."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return typed(capsys)


def document_of(simpo: Simpo, *words: str) -> dict[str, Any]:
    seen = simpo("plan", "run.yaml", *words, "--json")
    assert seen.code == 0, seen.err
    document: dict[str, Any] = json.loads(seen.out)
    return document


SCREEN = """\
model    llama · 8,030.3 M parameters, 8,030.3 M trained · weights float32
steps    3 of 8 pairs, 1 epoch of 24 pairs
tokens   1.2k, every prompt once: 32 % fewer than in padded rows · longest pair
         52
disk     208.8 GB: 2 checkpoints of 96.4 GB, model 16.1 GB
time     not measured: simpo plan --time loads the model and times some
         micro-batches here

Memory of a device, GB
                  one device     ddp   fsdp2 × 2   fsdp2 × 4   fsdp2 × 8
weights                 32.1    32.1        16.1         8.0         4.0
gradients               32.1    32.1        16.1         8.0         4.0
optimizer state         64.2    64.2        32.1        16.1         8.0
copies                   2.1     2.1           -           -           -
gathered                   -       -        10.5        10.2        10.2
activations              0.0     0.0         0.0         0.0         0.0
logits                   0.0     0.0           -           -           -
in all                 130.6   130.6        74.8        42.3        26.2
At the peak of a step: micro-batches of 52 tokens, gradient checkpointing on.
copies: of weights in bf16, and the head's gradient · gathered: layers that are
whole while they are used, gradients on their way to other devices

Which devices would do?
           one device            ddp            fsdp2
24 GB               -              -                -
48 GB               -              -     4 (off, 243)
80 GB               -              -     2 (off, 235)
141 GB   1 (off, 637)   2 (off, 637)   2 (off, 4,325)
The smallest number that fits, of up to 8; in brackets gradient checkpointing,
and the tokens of a micro-batch.
distributed.strategy: auto takes ddp where it fits, else fsdp2.
"""


def test_the_screen(simpo: Simpo) -> None:
    document = document_of(simpo, "model.path=llama")
    assert printed(print_plan, document, width=80) == SCREEN
    for width in (30, 80, 120):
        assert all(len(line) <= width for line in printed(print_plan, document, width=width).splitlines())


def test_a_dry_run_shows_the_same_below(simpo: Simpo) -> None:
    planned = simpo("plan", "run.yaml")
    assert planned.code == 0, planned.err
    assert simpo("train", "run.yaml", "--dry-run").err.endswith(f"no weight was read\n{planned.out}")


def test_documents_keep_to_their_schema_and_every_key_is_explained(simpo: Simpo) -> None:
    validator = jsonschema.Draft202012Validator(SCHEMA)
    validator.check_schema(SCHEMA)
    plain, timed = document_of(simpo), document_of(simpo, "--time")
    adapted = document_of(simpo, "model.path=llama", "model.lora={}", "distributed.cpu_offload=true")
    for document in (plain, timed, adapted):
        validator.validate(document)
    assert {**timed, "time": None} == plain
    assert not validator.is_valid({**plain, "extra": 1})
    assert keys_of("plan.schema.json") - told_in("plan.md") == set()


def test_the_time_is_shown_where_it_was_measured(simpo: Simpo) -> None:
    document = document_of(simpo)
    speed = {"median": 1234.0, "low": 1000.0, "high": 2000.0, "n": 9}
    document["time"] = {"device": "cpu, 2 cores", "tokens_per_second": speed, "expected_seconds": 3723.4}
    assert (
        "time     1:02:03 for the steps on cpu, 2 cores: 1.2k tokens a second, median of 9 micro-batches (1.0k to "
        "2.0k); evaluations, answers and checkpoints come on top\n"
    ) in printed(print_plan, document, width=200)


def test_a_plan_is_written_to_a_file_and_replaces_nothing_else(simpo: Simpo, place: Path) -> None:
    for _ in range(2):
        seen = simpo("plan", "run.yaml", "--output", "plan.json")
        assert (seen.code, seen.out) == (0, "")
    assert json.loads(Path("plan.json").read_text(encoding="utf-8")) == document_of(simpo)
    before = (place / "prefs.jsonl").read_bytes()
    seen = simpo("plan", "run.yaml", "--output", "prefs.jsonl")
    assert (seen.code, seen.out) == (2, "")
    assert "is not a report of simpo" in seen.err
    assert (place / "prefs.jsonl").read_bytes() == before
    assert not (place / "runs").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nosuch"], 2, "nosuch"),
        (["run.yaml", "loss.bata=2"], 2, "Did you mean beta"),
        (["run.yaml", "data.train=nothing.jsonl"], 2, "override 1: data.train: nothing.jsonl does not exist"),
        (["run.yaml", "model.path=/no/model"], 2, "override 1: the model folder /no/model does not exist"),
        (["run.yaml", "model.path=nobody/no-such-model"], 4, "override 1: nobody/no-such-model is not here"),
        (["run.yaml", "data.max_length=5000"], 2, "override 1: data.max_length is 5000, and tiny knows 512 positions"),
        (["run.yaml", "train.tokens_per_microbatch=20"], 2, "tokens_per_microbatch is 20, and this pair alone needs"),
        (["run.yaml", "model.path=llama", "--time"], 2, "llama holds no weights"),
    ],
)
def test_what_a_run_would_refuse_is_refused(simpo: Simpo, words: list[str], code: int, said: str) -> None:
    seen = simpo("plan", *words)
    assert (seen.code, seen.out) == (code, ""), seen.err
    assert said in seen.err
    assert len(seen.err.strip().splitlines()) == 2
