"""Keys that people write by habit: each leads to a key that there is, or to what to do instead."""

import pytest

from simpo_cli.errors import UserError
from simpo_cli.recipe import compose
from simpo_cli.recipe.fields import all_keys
from simpo_cli.recipe.validate import HABITS


def _refused(override: str) -> UserError:
    with pytest.raises(UserError) as refused:
        compose("demo", [override])
    return refused.value


@pytest.mark.parametrize("key", sorted(HABITS))
def test_every_habit_leads_somewhere(key: str) -> None:
    habit = HABITS[key]
    assert habit.key or habit.note
    if habit.key:
        assert habit.key in {*all_keys(), "model.lora"}
    error = _refused(f"train.{key}=1")
    assert error.problem.startswith(f"train.{key} is not a key of train.")
    assert (habit.key or habit.note) in error.fix


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.device=cuda", "CUDA_VISIBLE_DEVICES=0 chooses a card, ACCELERATE_USE_CPU=true the CPU."),
        ("ref_model=m", "SimPO has no reference model: leave it out."),
        ("per_device_train_batch_size=2", "Did you mean train.pairs_per_step? It counts the pairs of a whole step"),
        ("train.Gradient-Accumulation-Steps=2", "Did you mean train.pairs_per_step?"),
        ("train.fp16=true", "Did you mean train.precision? It is auto, bf16 or fp32: in fp16"),
        ("loss.simpo_gamma=1", "Did you mean loss.gamma?"),
        ("train.output_dir=x", "Did you mean output_dir?"),
        ("train.beta=2", "Did you mean loss.beta?"),
        ("loss.bata=2", "Did you mean beta?"),
    ],
)
def test_what_is_said(override: str, said: str) -> None:
    assert said in _refused(override).fix
