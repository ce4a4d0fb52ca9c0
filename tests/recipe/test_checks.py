"""What is said of a recipe: remarks where they belong, and the objective in words."""

import pytest

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import LossRecipe, loss_terms
from tests.recipe.conftest import Write

BASE = "name: a\nmodel:\n  path: org/model\ndata: {train: org/pairs}\n"


@pytest.mark.parametrize(
    ("text", "overrides", "wanted"),
    [
        ("train: {learning_rate: 5e-6}", [], []),
        ("train: {learning_rate: 1e-5}", [], [("REC001", "r.yaml:5")]),
        ("train: {learning_rate: 1e-5}", ["model.lora.rank=8"], []),
        ("train: {learning_rate: 1e-5}", ["model.path=builtin:guide"], []),
        ("", ["train.learning_rate=1e-5"], [("REC001", "override 1")]),
        ("loss: {gamma_beta_ratio: 2}", [], []),
        ("loss: {gamma_beta_ratio: 2.5}", [], [("REC002", "r.yaml:5")]),
        ("loss: {gamma: 5}", [], [("REC002", "r.yaml:5")]),
        ("loss:\n  beta: 0.1\n  gamma: 0.1", [], [("REC003", "r.yaml:6")]),
        ("loss:\n  beta: 0.1\n  gamma: 0.5", [], [("REC002", "r.yaml:7"), ("REC003", "r.yaml:6")]),
        ("train: {pairs_per_step: 8}", [], []),
        ("train: {pairs_per_step: 4}", [], [("REC004", "r.yaml:5")]),
        ("", ["model.weights_dtype=bf16"], []),
        ("", ["model.weights_dtype=fp16"], [("REC005", "override 1")]),
        ("", ["model.weights_dtype=bf16", "model.lora.rank=8", "train.learning_rate=1e-5"], []),
        ("", ["model.lora.dropout=0.1", "train.learning_rate=1e-5"], [("REC006", "override 1")]),
        ("train: {max_steps: 1}", [], [("REC007", "r.yaml:5")]),
        ("train: {max_steps: 1, warmup_ratio: 0}", [], []),
        ("train: {max_steps: 2}", [], []),
        ("train: {max_steps: 10}\ncheckpoint: {every: 11}", [], [("REC008", "r.yaml:6")]),
        ("train: {max_steps: 10}\neval: {every: 11}", [], [("REC008", "r.yaml:6")]),
        ("train: {max_steps: 10}\neval: {every: 10}\ncheckpoint: {every: 10}", [], []),
        ("", ["model.lora.rank=8"], [("REC009", "override 1")]),
        ("", ["model.lora={}", "train.learning_rate=1e-5", "train.pairs_per_step=129"], [("REC016", "override 3")]),
        ("", ["model.lora={}", "train.learning_rate=1e-5", "train.pairs_per_step=128"], []),
        ("", ["train.pairs_per_step=512"], []),
        (
            "train: {learning_rate: 1e-5}",
            ["model.lora.target_modules=[q_proj,v_proj]"],
            [("REC017", "override 1")],
        ),
        ("train: {learning_rate: 1e-5}", ["model.lora.target_modules=[q_proj,up_proj]"], []),
        ("", ["data.holdout=0"], [("REC010", "override 1")]),
        ("", ["data.holdout=0", "data.eval=org/other"], []),
        ("", ["data.eval=org/pairs"], [("REC011", "override 1")]),
        ("train: {max_steps: 10, num_epochs: 2}", [], [("REC014", "r.yaml:5")]),
        ("", ["train.num_epochs=2", "train.max_steps=10"], [("REC014", "override 2")]),
        ("train: {num_epochs: 2}", ["train.max_steps=10"], []),  # a short run of it
        ("train: {num_epochs: 2}", [], []),
        *(("", [f"name={name}"], [("REC015", "override 1")]) for name in ("CON", "nul", "aux.txt", "Com1.log", "run.")),
        *(("", [f"output_dir=runs/{name}/x"], [("REC015", "override 1")]) for name in ("prn", "lpt9.d", "a.")),
        *(("", [f"name={name}"], []) for name in ("console", "com0", "nullify", "a.con")),
        ("", ["data.train=[{path: x, split: a}]", "data.eval=[{path: x, split: b}]"], []),
        ("", ["data.train=[{path: x, split: a}]", "data.eval=[{path: x, split: a}]"], [("REC011", "override 2")]),
        ("", ["data.train=builtin:guide", "data.eval=builtin:guide"], []),
    ],
)
def test_a_remark_is_made_where_it_belongs(
    text: str, overrides: list[str], wanted: list[tuple[str, str]], write: Write
) -> None:
    write("r", BASE + text + "\n")
    found = compose("r.yaml", overrides).warnings
    assert [(finding.code, finding.where) for finding in found] == wanted
    assert all(finding.severity == "warning" and finding.sentence.endswith(".") for finding in found)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (LossRecipe(), "SimPO, sigmoid · beta 2 · gamma 1 (gamma/beta 0.5) · label smoothing off · SFT term off"),
        (
            LossRecipe(beta=10, gamma=3, label_smoothing=0.1, sft_weight=0.25),
            "SimPO, sigmoid · beta 10 · gamma 3 (gamma/beta 0.3) · label smoothing 0.1 · SFT term 0.25",
        ),
        (
            LossRecipe(type="hinge", beta=2.5, gamma_beta_ratio=0.4),
            "SimPO, hinge · beta 2.5 · gamma 1 (gamma/beta 0.4) · label smoothing off · SFT term off",
        ),
    ],
)
def test_every_term_is_named(loss: LossRecipe, words: str) -> None:
    assert loss_terms(loss) == words


@pytest.mark.parametrize(
    ("dtype", "optimizer", "why"),
    [
        ("fp16", "adamw_8bit", "fp16 weights lose small updates to their rounding"),
        ("fp16", "paged_adamw_8bit", "fp16 weights lose small updates to their rounding"),
        ("bf16", "paged_adamw_8bit", "the 8-bit moments of bf16 weights are torchao's, which have no pages"),
    ],
)
def test_8_bit_moments_are_refused_for_weights_that_they_do_not_go_with(
    dtype: str, optimizer: str, why: str, write: Write
) -> None:
    write("r", BASE)
    settings = [f"model.weights_dtype={dtype}", f"train.optimizer={optimizer}"]
    with pytest.raises(
        UserError, match=f"override 2: train.optimizer is {optimizer}, and .* {dtype} .*: {why}"
    ) as caught:
        compose("r.yaml", settings)
    assert caught.value.exit_code == ExitCode.USAGE
    compose("r.yaml", [*settings, "model.lora={}"])  # whose adapters are float32
