"""Runs whose moments are 8 bits, or whose weights are narrow: resumed bit for bit, small on the disk, never mixed."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.model.not_finite import NotFiniteError, require_finite_state
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import TrainRecipe
from simpo_cli.train.forecast import forecast, survey
from simpo_cli.train.optimizer import make_optimizer, start_moments
from tests.train.runs import Memory, Runs, guide_runs

_BF16 = ("model.weights_dtype=bf16", "train.learning_rate=1e-3")
_KINDS: dict[str, tuple[str, ...]] = {
    "bitsandbytes": ("train.optimizer=adamw_8bit",),
    "adapters": ("train.optimizer=adamw_8bit", "model.lora.rank=32", "train.learning_rate=1e-2"),
    "torchao": ("train.optimizer=adamw_8bit", *_BF16),
    "bf16": _BF16,
    "fp16": ("model.weights_dtype=fp16", "train.learning_rate=1e-3"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """With a run of each kind that nobody stopped."""
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    made = guide_runs(tmp_path_factory.mktemp("lean"))
    for kind, more in _KINDS.items():
        made.train(kind, *more)
    return made


def _checkpoint(runs: Runs, run: str) -> Path:
    return max((runs.folder / run / "checkpoints").glob("step-*"))


def _moments(runs: Runs, run: str) -> dict[str, torch.Tensor]:
    return load_file(_checkpoint(runs, run) / "optimizer.safetensors")


@pytest.mark.parametrize("kind", _KINDS)
def test_a_run_that_is_cut_gives_the_bits_of_an_unbroken_one(runs: Runs, kind: str) -> None:
    cut, more = f"{kind}-cut", _KINDS[kind]
    runs.cut(cut, *more, step=1)
    torch.manual_seed(1_000)  # whatever the process has drawn before
    runs.cut(cut, *more, step=4, resume=True)
    runs.train(cut, *more, resume=True)
    runs.require_same(cut, kind)


@pytest.mark.parametrize(("kind", "share"), [("bitsandbytes", 0.98), ("adapters", 0.4), ("torchao", 0.7)])
def test_8_bit_moments_are_8_bits_on_the_disk(runs: Runs, kind: str, share: float) -> None:
    suffix, scale = (".codes", ".scale") if kind == "torchao" else ("state1", "absmax1")
    moments = _moments(runs, kind)
    weights = load_file(_checkpoint(runs, kind) / "weights.safetensors")
    types = Counter(dict.fromkeys((torch.uint8, torch.float32), 0))
    for name, tensor in moments.items():
        types[tensor.dtype] += tensor.numel()
        if name.endswith(suffix) and tensor.dtype == torch.uint8:
            scales = moments[name.replace(suffix, scale)]
            assert tensor.numel() >= 4096
            assert scales.shape == (-(-tensor.numel() // 256),)
            assert int(tensor.to(torch.int64).unique().numel()) > 50  # codes of a step that was taken
    assert types.keys() == {torch.uint8, torch.float32}
    trained = sum(tensor.numel() for tensor in weights.values())
    assert types[torch.uint8] / (2 * trained) > share
    counts = json.loads((_checkpoint(runs, kind) / "optimizer.json").read_text(encoding="utf-8"))
    assert counts == dict.fromkeys(weights, 5)


@pytest.mark.parametrize("kind", _KINDS)
def test_the_disk_that_is_asked_for_holds_the_checkpoint(runs: Runs, kind: str) -> None:
    told = forecast(survey(compose(str(runs.recipe), list(_KINDS[kind])).recipe, weights=True))["disk"]
    written = sum(file.stat().st_size for file in _checkpoint(runs, kind).glob("optimizer.*"))
    written += (_checkpoint(runs, kind) / "weights.safetensors").stat().st_size
    assert (
        written
        <= told["checkpoint_bytes"]
        < written + 2100 * len(load_file(_checkpoint(runs, kind) / "weights.safetensors"))
    )


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_narrow_weights_have_float32_moments(runs: Runs, kind: str) -> None:
    assert {tensor.dtype for tensor in _moments(runs, kind).values()} == {torch.float32}
    weights = load_file(_checkpoint(runs, kind) / "weights.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16 if kind == "bf16" else torch.float16}


def test_plain_adamw_is_saved_as_ever(runs: Runs) -> None:
    """So a checkpoint of before there were other optimizers is read as before."""
    runs.train("plain", "train.max_steps=1")
    files = sorted(file.name for file in _checkpoint(runs, "plain").iterdir())
    assert files == ["identity.json", "manifest.json", "optimizer.safetensors", "progress.json", "weights.safetensors"]
    kinds = {(name.rsplit(".", 1)[1], str(tensor.dtype)) for name, tensor in _moments(runs, "plain").items()}
    assert kinds == {(key, "torch.float32") for key in ("step", "exp_avg", "exp_avg_sq")}


def test_the_loss_is_nearly_that_of_float32_moments(runs: Runs) -> None:
    runs.train("float32", "train.num_epochs=6")
    runs.train("8 bits", "train.num_epochs=6", "train.optimizer=adamw_8bit")
    ours, theirs = ([row["loss"] for row in runs.log(run, "metrics")] for run in ("8 bits", "float32"))
    assert len(ours) == 30
    assert ours != theirs
    assert theirs[-1] < 0.7 * theirs[0]
    assert ours == pytest.approx(theirs, abs=0.01)  # seen: 0.0006


def test_another_optimizer_is_refused_before_its_state_is_looked_for(runs: Runs) -> None:
    for run, name, was in (("bitsandbytes", "adamw", "adamw_8bit"), ("bf16", "adamw_8bit", "adamw")):
        wanted = [*_KINDS[run], f"train.optimizer={name}", "train.num_epochs=2"]
        for allowed in ([], ["train.optimizer"]):
            with pytest.raises(
                UserError, match=f"train.optimizer is {name}, was {was}, and the state of one"
            ) as caught:
                runs.train(run, *wanted, resume=True, allow_changed=allowed)
            assert caught.value.exit_code == ExitCode.USAGE
            assert "--fresh" in caught.value.fix


def test_a_damaged_count_of_steps_has_the_checkpoint_before_used(runs: Runs) -> None:
    more = _KINDS["bitsandbytes"]
    runs.cut("damaged", *more, step=4)
    file = _checkpoint(runs, "damaged") / "optimizer.json"
    file.write_bytes(file.read_bytes().replace(b"3", b"2", 1))
    memory = runs.train("damaged", *more, resume=True)
    assert "step-00000002 is used instead" in memory.said("optimizer.json holds other bytes than were saved")[0]
    runs.require_same("damaged", "bitsandbytes")


@pytest.mark.parametrize(("dtype", "part"), [(torch.float32, "absmax2"), (torch.bfloat16, "exp_avg_sq.scale")])
def test_a_scale_that_is_not_finite_is_not_saved(dtype: torch.dtype, part: str) -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("torchao")
    policy = nn.ParameterList([torch.zeros(8192, dtype=dtype)])
    optimizer: Any = make_optimizer(policy, TrainRecipe(optimizer="adamw_8bit"))
    start_moments(optimizer)
    require_finite_state(policy, optimizer, 1)
    state = optimizer.state[policy[0]]
    scales = state["absmax2"] if dtype == torch.float32 else state["exp_avg_sq"].scale
    scales[3] = float("inf")
    with pytest.raises(NotFiniteError, match=f"the state after step 1 is not saved: {part} of 0"):
        require_finite_state(policy, optimizer, 1)


def test_the_first_screen_says_how_state_and_weights_are_held(runs: Runs) -> None:
    def told(*more: str) -> str:
        memory: Memory = runs.train("dry", *more, dry_run=True)
        return memory.lines["below plan"]

    assert "adamw_8bit of bitsandbytes" in told(*_KINDS["bitsandbytes"])
    sizes = [tensor.numel() for tensor in load_file(_checkpoint(runs, "torchao") / "weights.safetensors").values()]
    share = sum(size for size in sizes if size >= 4096 and size % 256 == 0) / sum(sizes)
    assert told(*_KINDS["torchao"]).startswith("adamw_8bit of torchao ")
    assert f", {100 * share:.0f} % of the moments in 8 bits; bfloat16 weights are" in told(*_KINDS["torchao"])
    assert 0.5 < share < 0.99
    assert told(*_BF16) == "adamw, moments in float32; bfloat16 weights are rounded stochastically"
    assert "moments" not in told()


def test_moments_in_8_bits_are_whole_on_every_device(runs: Runs) -> None:
    """A plan offers no shards of them, and a run refuses them; adapters are whole there anyway."""
    for more, shards in (
        ((), True),
        (_KINDS["adapters"], True),
        (_KINDS["bitsandbytes"], False),
        (_KINDS["torchao"], False),
    ):
        document = forecast(survey(compose(str(runs.recipe), list(more)).recipe, weights=True))
        assert ("fsdp2" in {one["strategy"] for one in document["memory"]}) == shards
        assert ("fsdp2" in {one["strategy"] for one in document["devices"]}) == shards
    with pytest.raises(UserError, match="train.optimizer is not for fsdp2 here: a scale of 8-bit moments") as caught:
        runs.train("sharded", *_KINDS["bitsandbytes"], "distributed.strategy=fsdp2")
    assert caught.value.exit_code == ExitCode.USAGE
