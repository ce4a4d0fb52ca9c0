"""A real model on real pairs: SIMPO_TEST_MODEL names a folder such as SmolLM2-135M-Instruct."""

import json
import os
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

from simpo_cli.data.encode import encode_pairs
from simpo_cli.data.plan import microbatches
from simpo_cli.data.tokenizer import load_tokenizer
from simpo_cli.model.load import load_model
from simpo_cli.model.policy import Policy
from simpo_cli.model.shares import Share
from simpo_cli.model.source import find_model
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import DataRecipe, LossRecipe
from simpo_cli.train.session import train
from simpo_cli.train.step import accumulate
from tests.data.pair_files import load_pairs
from tests.model.reference import simpo_loss_backward
from tests.train.runs import Memory

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SIMPO_TEST_MODEL" not in os.environ, reason="SIMPO_TEST_MODEL names no model folder"),
]

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def model_folder() -> str:
    return os.environ["SIMPO_TEST_MODEL"]


@pytest.fixture
def ultrafeedback() -> str:
    file = DATA / "ultrafeedback_train_1k.jsonl.gz"
    if not file.is_file():
        pytest.skip("the shared preference data are not there")
    return str(file)


def test_a_step_on_sixteen_real_pairs_agrees_with_an_independent_reference(
    model_folder: str, ultrafeedback: str
) -> None:
    """Loss, rewards and gradient against one sequence at a time with plain log-softmax, in float32."""
    data = DataRecipe(train=ultrafeedback, max_length=256, max_prompt_length=128)
    texts = load_pairs(ultrafeedback, role="train").pairs[:16]
    pairs = encode_pairs(texts, load_tokenizer(model_folder), data).pairs
    assert len(pairs) == 16
    source = find_model(model_folder)

    policy = Policy(load_model(source, torch.float32), "shared_prefix").train()
    cut = microbatches(pairs, 2048, policy.packing)
    assert len(cut) > 2
    sums = accumulate(policy, pairs, Share(cut), loss=LossRecipe(), accelerator=Accelerator(cpu=True), step=0)
    gradients = {name: p.grad for name, p in policy.model.named_parameters()}

    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    loss = simpo_loss_backward(reference, pairs, beta=2.0, gamma=1.0)
    difference = norm = 0.0
    for name, parameter in reference.named_parameters():
        ours = gradients[name]
        assert ours is not None
        assert parameter.grad is not None
        difference += float((ours - parameter.grad).double().square().sum())
        norm += float(parameter.grad.double().square().sum())
    print(
        f"loss {sums.loss / 16:.8f} against {loss:.8f}, gradient differs by {(difference / norm) ** 0.5:.2e} relative"
    )
    assert sums.loss / 16 == pytest.approx(loss, rel=1e-5)
    assert (difference / norm) ** 0.5 < 1e-3


def test_three_steps_of_the_shipped_recipe(model_folder: str, ultrafeedback: str, tmp_path: Path) -> None:
    composed = compose(
        "smollm2-135m",
        [
            f"model.path={model_folder}",
            f"data.train={ultrafeedback}",
            "data.holdout=8",
            "data.max_length=256",
            "data.max_prompt_length=128",
            "train.max_steps=3",
            f"output_dir={tmp_path / 'run'}",
        ],
    )
    memory = Memory()
    train(composed, fresh=False, dry_run=False, observer=memory)
    assert [record.step for record in memory.steps] == [1, 2, 3]
    assert all(record.pairs == 8 for record in memory.steps)
    assert memory.evals[0].logps_chosen_delta == 0.0
    assert memory.evals[-1].logps_chosen_delta != 0.0
    receipt = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert receipt["status"] == "done"

    folder = tmp_path / "run" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name the capital of France."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    answer = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in answer
