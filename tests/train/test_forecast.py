"""What `simpo plan` tells of a run: counted once more pair by pair, and measured in runs of a few seconds."""

import shutil
from pathlib import Path
from statistics import median
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers

from simpo_cli.data.plan import microbatches
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model import policy
from simpo_cli.model.policy import Policy
from simpo_cli.recipe.composition import compose
from simpo_cli.train import timing
from simpo_cli.train.forecast import Survey, forecast, survey
from simpo_cli.train.optimizer import make_optimizer
from tests.model.shapes import LLAMA_8B
from tests.tiny import chatml_tokenizer
from tests.train.runs import Runs


def _surveyed(tiny: Runs, *more: str, weights: bool = False) -> Survey:
    return survey(compose(str(tiny.recipe), list(more)).recipe, weights=weights)


def test_steps_and_tokens_are_those_of_the_plan(tiny: Runs) -> None:
    found = _surveyed(tiny, "train.num_epochs=3", "train.max_steps=9")
    told = forecast(found)["run"]
    lengths = [(len(pair.prompt), len(pair.chosen), len(pair.rejected)) for pair in found.inputs.data.train]
    steps = [found.inputs.plan.pairs_of(step).tolist() for step in range(9)]
    assert len({i for step in steps for i in step}) == len(lengths) < sum(map(len, steps))  # into the third epoch
    assert told["steps"] == 9
    assert told["tokens"] == sum(sum(lengths[i]) for step in steps for i in step)
    rows = [2 * (prompt + max(chosen, rejected)) for prompt, chosen, rejected in lengths]
    assert told["saved_share"] == pytest.approx(1 - sum(map(sum, lengths)) / sum(rows))
    everything = [*lengths, *((len(p.prompt), len(p.chosen), len(p.rejected)) for p in found.inputs.data.held_out)]
    assert told["longest_pair_tokens"] == max(map(sum, everything))
    padded = forecast(_surveyed(tiny, "model.attention=padded"))["run"]
    assert (padded["packing"], padded["saved_share"]) == ("padded", 0)


def test_the_disk_holds_as_much_as_a_run_writes(tiny: Runs) -> None:
    every = ("checkpoint.every=1", "checkpoint.keep=2", "train.max_steps=3")
    told = forecast(_surveyed(tiny, *every))["disk"]
    tiny.train("run", *every, quick=True)
    saved = max((tiny.folder / "run" / "checkpoints").iterdir())
    tensors = sum(file.stat().st_size for file in saved.glob("*.safetensors"))
    model = (tiny.folder / "run" / "model" / "model.safetensors").stat().st_size
    assert told["checkpoint_bytes"] == pytest.approx(tensors, rel=0.1)  # of names, a tiny model has many
    assert told["model_bytes"] == pytest.approx(model, rel=0.1)
    assert told["checkpoints"] == 3  # the oldest waits for the newest
    assert told["total_bytes"] == 3 * told["checkpoint_bytes"] + told["model_bytes"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a recipe says to have a model of 8 B, of which there are no weights."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.AutoConfig.for_model(**LLAMA_8B)
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    chatml_tokenizer(folder)
    return f"model.path={folder}"


def _by_set_up(found: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, Any]]:
    return {(one["strategy"], one["devices"]): one for one in found}


def test_a_model_without_weights_is_planned_on_cards_that_are_not_here(tiny: Runs, llama: str) -> None:
    document = forecast(_surveyed(tiny, llama))
    assert document["model"]["parameters"] == 8_030_261_248
    memory = _by_set_up(document["memory"])
    for (strategy, devices), found in memory.items():
        size = found["bytes"]
        divided = devices if strategy == "fsdp2" else 1
        state = size["weights"] + size["gradients"] + size["optimizer"]
        assert state == pytest.approx(16 * 8_030_261_248 / divided, rel=1e-6)
        parts = (size[name] for name in ("copies", "gathered", "activations", "logits"))
        assert size["total"] == state + sum(parts)
    assert memory["ddp", 2]["bytes"] == memory["ddp", 8]["bytes"]
    fitting = {(one["size_gb"], one["strategy"], one["devices"]) for one in document["devices"] if one["fits"]}
    smallest = {
        size: min((devices for gb, strategy, devices in fitting if (gb, strategy) == (size, "fsdp2")), default=None)
        for size in (24, 48, 80, 141)
    }
    assert smallest == {24: None, 48: 4, 80: 2, 141: 2}  # of 128 GB in all, and 10 GB of whole layers on each
    assert {size for size, strategy, _ in fitting if strategy != "fsdp2"} == {141}
    for one in document["devices"]:
        assert one["fits"] == (one["bytes"]["total"] <= 1e9 * one["size_gb"])
    assert document["disk"]["model_bytes"] == 2 * 8_030_261_248  # in the type that config.json says


def test_what_the_recipe_sets_is_what_is_planned(tiny: Runs, llama: str) -> None:
    adapted = forecast(_surveyed(tiny, llama, "model.lora={}", "model.gradient_checkpointing=false"))
    for found in (*adapted["memory"], *adapted["devices"]):
        assert not found["gradient_checkpointing"]
    longest = adapted["run"]["longest_pair_tokens"]
    assert {found["tokens_per_microbatch"] for found in adapted["memory"]} == {longest}
    fixed = forecast(_surveyed(tiny, llama, "train.tokens_per_microbatch=5000", "distributed.cpu_offload=true"))
    assert {found["tokens_per_microbatch"] for found in (*fixed["memory"], *fixed["devices"])} == {5000}
    offloaded = _by_set_up(fixed["memory"])["fsdp2", 4]["bytes"]
    assert offloaded["weights"] == offloaded["optimizer"] == 0
    assert offloaded["on_host"] == pytest.approx(4 * 8_030_261_248, rel=1e-6)


def test_activations_on_the_host_are_planned_there(tiny: Runs, llama: str) -> None:
    """By hand: what 32 layers keep of a token is on the host, but for one layer at a time."""
    fixed = ("train.tokens_per_microbatch=4096", "train.precision=bf16")
    for checkpointing in ("true", "false"):
        more = (*fixed, f"model.gradient_checkpointing={checkpointing}")
        here, there = (
            _by_set_up(forecast(_surveyed(tiny, llama, *more, f"model.activation_offload={on}"))["memory"])["none", 1][
                "bytes"
            ]
            for on in ("false", "true")
        )
        inputs = 32 * 4096 * 4096 * 4  # layers, tokens, numbers of a state, bytes
        kept = there["on_host"]
        assert here["on_host"] == 0
        assert kept == inputs if checkpointing == "true" else kept > 10 * inputs
        assert there["activations"] < here["activations"] - 0.9 * kept
        if checkpointing == "false":
            assert there["activations"] < 1.5 * kept / 32  # of one layer, and its gradients
        assert there["weights"] == here["weights"]
        assert there["total"] < here["total"] - 0.9 * kept


def test_the_hub_is_asked_for_weights_only_where_they_are_wanted(
    tiny: Runs, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Path(shutil.copytree(tiny_folder, tiny.folder / ("c" * 40), ignore=shutil.ignore_patterns("*.safetensors")))
    asked: list[list[str]] = []

    def snapshot_download(*_: object, allow_patterns: list[str], **__: object) -> str:
        asked.append(allow_patterns)
        return str(bare)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    here = forecast(_surveyed(tiny))
    there = forecast(_surveyed(tiny, "model.path=org/tiny"))
    assert not any("*.safetensors" in patterns for patterns in asked)
    assert {**there, "model": None} == {**here, "model": None}
    with pytest.raises(UserError, match="holds no weights"):
        _surveyed(tiny, "model.path=org/tiny", weights=True)
    assert "*.safetensors" in asked[-1]


def test_the_time_is_that_of_micro_batches_from_all_over_the_run(tiny: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _surveyed(tiny, "train.tokens_per_microbatch=150", weights=True)
    clock = [0.0]
    computed: list[list[str]] = []
    tokens: list[int] = []

    def accumulate(_policy: object, batch: Any, share: Any, **_: object) -> None:
        assert share.microbatches == [range(len(batch))]
        computed.append([pair.where for pair in batch])
        tokens.append(sum(pair.num_tokens for pair in batch))
        clock[0] += 0.25 * len(computed)

    class Optimizer:
        def step(self) -> None:
            clock[0] += 2.0

    monkeypatch.setattr(timing, "accumulate", accumulate)
    monkeypatch.setattr(timing, "start_moments", lambda _: None)
    monkeypatch.setattr(timing, "make_optimizer", lambda *_: Optimizer())
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    told = timing.measure(found)
    assert computed[0] == computed[1]  # the first one warms up
    speeds = [count / (0.25 * number) for number, count in enumerate(tokens[1:], start=2)]
    assert told["tokens_per_second"] == {"median": median(speeds), "low": min(speeds), "high": max(speeds), "n": 9}
    run = forecast(found, told)["run"]
    assert told["expected_seconds"] == pytest.approx(run["tokens"] / median(speeds) + 2.0 * run["steps"])
    steps = [found.inputs.data.train.select(found.inputs.plan.pairs_of(step)) for step in range(4)]
    cuts = [[{pairs[i].where for i in cut} for cut in microbatches(pairs, 150, "shared_prefix")] for pairs in steps]
    at = [cuts[step].index(set(batch)) for step, batch in zip((0, 0, 0, 1, 1, 2, 2, 3, 3), computed[1:], strict=True)]
    assert {0, 1, 2} <= set(at)  # and not only full ones


def test_a_measured_run_is_timed_as_it_would_train_and_nothing_moves(
    tiny: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = []

    def remembered(policy: Any, recipe: Any) -> torch.optim.Optimizer:
        policies.append(policy)
        return make_optimizer(policy, recipe)

    monkeypatch.setattr(timing, "make_optimizer", remembered)
    found = _surveyed(tiny, "model.lora={rank: 2}", weights=True)
    told = timing.measure(found)
    assert told["tokens_per_second"]["low"] > 0
    [policy] = policies
    assert policy.training
    assert policy.packing == "shared_prefix"
    grown = [weight for name, weight in policy.named_parameters() if "lora_B" in name]
    assert grown
    assert not any(weight.any() for weight in grown)  # the learning rate is 0


def test_what_does_not_fit_here_is_not_timed(tiny: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "available_bytes", lambda _: 1000)
    monkeypatch.setattr(timing, "load_start", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match="does not fit in memory") as caught:
        timing.measure(_surveyed(tiny, weights=True))
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_divided_model_keeps_no_narrow_copies_of_its_weights(tiny: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its memory is predicted: weights are gathered anew wherever they are used, and cast anew."""
    kept: list[bool] = []
    forward = Policy.forward

    def seen(model: Policy, packed: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            kept.append(torch.is_autocast_cache_enabled())
        return forward(model, packed)

    monkeypatch.setattr(Policy, "forward", seen)
    monkeypatch.setattr(policy, "find_fused_layers", lambda _: [])  # they round elsewhere, and fsdp2 has none
    for strategy in ("none", "fsdp2"):
        kept.clear()
        more = ("train.precision=bf16", "train.max_steps=1", f"distributed.strategy={strategy}")
        tiny.train(strategy, *more, quick=True)
        assert set(kept) == {strategy == "none"}
    [ours], [theirs] = (tiny.log(run, "metrics") for run in ("none", "fsdp2"))
    for name in ("loss", "grad_norm", "rewards/margins"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
