"""The objective against plain Python floats that share no code with it; and what a new loss takes."""

import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simpo_cli.objective import Objective, segment_means
from simpo_cli.recipe.schema import LossRecipe
from tests.data.pair_files import write_pairs
from tests.tiny import save_tiny_model


def _reference(chosen: float, rejected: float, beta: float, gamma: float, kind: str, e: float, sft: float) -> float:
    d = beta * chosen - beta * rejected - gamma
    sigmoid = (1 - e) * math.log1p(math.exp(-d)) + e * math.log1p(math.exp(d))
    return (max(0.0, 1.0 - d) if kind == "hinge" else sigmoid) + sft * -chosen


_MEAN = st.floats(-20, 0)


@given(
    pairs=st.lists(st.tuples(_MEAN, _MEAN), min_size=1, max_size=5),
    beta=st.floats(0.1, 10),
    gamma=st.floats(0, 5),
    kind=st.sampled_from(["sigmoid", "hinge"]),
    smoothing=st.sampled_from([0.0, 0.1, 0.3]),
    sft=st.sampled_from([0.0, 0.5]),
)
def test_terms_are_the_equation(
    pairs: list[tuple[float, float]], beta: float, gamma: float, kind: str, smoothing: float, sft: float
) -> None:
    smoothing = 0.0 if kind == "hinge" else smoothing
    loss = LossRecipe(type=kind, beta=beta, gamma=gamma, label_smoothing=smoothing, sft_weight=sft)  # type: ignore[arg-type]
    objective = Objective(loss)
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    terms = objective.terms(chosen, rejected)
    expected = [_reference(c, r, beta, gamma, kind, smoothing, sft) for c, r in pairs]
    assert terms.losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert objective.losses(chosen.numpy(), rejected.numpy()).tolist() == terms.losses.tolist()
    assert terms.rewards_chosen.tolist() == pytest.approx([beta * c for c, _ in pairs])
    assert terms.rewards_rejected.tolist() == pytest.approx([beta * r for _, r in pairs])
    margins = objective.margin(*np.array(pairs).T)
    assert margins.tolist() == (terms.rewards_chosen - terms.rewards_rejected).tolist()
    assert margins.tolist() == [objective.margin(c, r) for c, r in pairs]


def test_gradient_of_the_sigmoid_loss_and_its_weight() -> None:
    """d loss / d m_w = -beta * sigmoid(-d), and the opposite for m_l: Eq. 6 differentiated by hand."""
    chosen = torch.tensor([-1.0, -3.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-2.0, -1.0], dtype=torch.float64, requires_grad=True)
    objective = Objective(LossRecipe(beta=2.5, gamma=0.75))
    terms = objective.terms(chosen, rejected)
    assert not terms.rewards_chosen.requires_grad
    assert not terms.rewards_rejected.requires_grad
    terms.losses.sum().backward()
    expected = [-2.5 / (1 + math.exp(2.5 * (c - r) - 0.75)) for c, r in ((-1.0, -2.0), (-3.0, -1.0))]
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == pytest.approx(expected)
    assert rejected.grad.tolist() == pytest.approx([-g for g in expected])
    weights = objective.gradient_weight(objective.margin(chosen, rejected).detach())
    assert weights.tolist() == pytest.approx([-g / 2.5 for g in expected])


def test_the_gradient_weight_leaves_label_smoothing_out_and_ends_at_the_hinge() -> None:
    margins = torch.tensor([-3.0, 0.0, 1.0, 1.9, 2.0, 7.0], dtype=torch.float64)
    plain, smooth = (Objective(LossRecipe(gamma=1, label_smoothing=e, sft_weight=e)) for e in (0.0, 0.1))
    assert smooth.gradient_weight(margins).tolist() == plain.gradient_weight(margins).tolist()
    assert Objective(LossRecipe(gamma=1, type="hinge")).gradient_weight(margins).tolist() == [1, 1, 1, 1, 0, 0]


def test_extreme_margins_stay_finite() -> None:
    objective = Objective(LossRecipe(beta=10.0, gamma=5.0))
    terms = objective.terms(torch.tensor([-0.0, -2000.0]), torch.tensor([-2000.0, -0.0]))
    assert torch.isfinite(terms.losses).all()
    assert terms.losses[1].item() == pytest.approx(20005.0)


def test_the_formula_names_the_terms_that_are_on() -> None:
    losses = (LossRecipe(), LossRecipe(type="hinge", sft_weight=0.5), LossRecipe(label_smoothing=0.1))
    assert [Objective(loss).formula for loss in losses] == [
        "-log sigmoid(d)",
        "max(0, 1 - d) + 0.5 × -m(chosen)",
        "0.9 × -log sigmoid(d) + 0.1 × -log sigmoid(-d)",
    ]


def test_segment_means_divides_each_response_by_its_own_length() -> None:
    draw, lengths = random.Random(3), [1, 7, 2, 30]
    values = [[draw.uniform(-5, 0) for _ in range(n)] for n in lengths]
    flat = torch.tensor([value for row in values for value in row], dtype=torch.float64)
    means = segment_means(flat, torch.tensor(lengths))
    assert means.tolist() == pytest.approx(list(map(statistics.fmean, values)))


def test_margins_and_formulas_need_no_torch() -> None:
    program = (
        "import sys; from simpo_cli.objective import Objective; from simpo_cli.recipe.schema import LossRecipe;"
        "o = Objective(LossRecipe()); print(o.margin(-1.0, -2.0), o.formula, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2.0 -log sigmoid(d) False\n"


_COMMANDS = """
import contextlib, json, sys
from simpo_cli.cli.main import run
for arguments in json.loads(sys.argv[1]):
    with open(arguments[0] + ".json", "w") as out, contextlib.redirect_stdout(out):
        assert run(arguments) == 0, arguments
"""


def test_a_new_loss_is_a_function_a_name_and_a_case(tmp_path: Path) -> None:
    """The three, and this test's arithmetic: then it can be trained, scored, inspected and measured at the start."""
    package = tmp_path / "simpo_cli"
    shutil.copytree(Path(__file__).parents[1] / "simpo_cli", package, ignore=shutil.ignore_patterns("__pycache__"))
    function = 'def squared_loss(d: "Tensor") -> "Tensor":\n    return d**2\n\n\n'
    case = '            case "squared":\n                return Shape(squared_loss, lambda d: -2 * d, "d^2")\n'
    for file, place, more in (
        ("recipe/schema.py", 'Literal["sigmoid", ', '"squared", '),
        ("objective.py", "\n\n\n", function),
        ("objective.py", "match self.loss.type:\n", case),
    ):
        source = (package / file).read_text(encoding="utf-8")
        assert place in source
        (package / file).write_text(source.replace(place, place + more, 1), encoding="utf-8")
    save_tiny_model(tmp_path / "tiny")
    rows = [{"prompt": f"Question {i}?", "chosen": "yes please " * (i % 3 + 1), "rejected": "no"} for i in range(16)]
    pairs = write_pairs(tmp_path, "pairs.jsonl", rows)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: squared\noutput_dir: {tmp_path}/run\nmodel: {{path: {tmp_path}/tiny}}\n"
        "loss: {type: squared, gamma: 0.7}\n"
        f"data: {{train: {pairs}, eval: {pairs}, max_length: 64, max_prompt_length: 40}}\n"
        "train: {pairs_per_step: 16, max_steps: 1, precision: fp32}\n",
        encoding="utf-8",
    )
    commands = [
        ["train", str(recipe)],
        ["eval", str(recipe), "--json", "--pairs", "scored.jsonl"],
        ["inspect", str(recipe), "--json", "-n", "16"],
        ["stats", pairs, "--json", "--recipe", str(recipe), "--model", str(tmp_path / "tiny")],
        ["report", "run"],
    ]
    program, environment = [sys.executable, "-c", _COMMANDS], {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([*program, json.dumps(commands)], env=environment, cwd=tmp_path, check=True)
    scored, inspected, stats = (
        json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) for name in ("eval", "inspect", "stats")
    )
    rows = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text(encoding="utf-8").splitlines()]
    distances = [2 * (row["chosen"] - row["rejected"]) - 0.7 for row in rows]
    loss, weight = sum(d**2 for d in distances) / 16, sum(-2 * d for d in distances) / 16
    [step] = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(step)["loss"] == pytest.approx(loss, rel=1e-4)
    assert json.loads(step)["gradient_weight"] == pytest.approx(weight, rel=1e-4)
    assert scored["loss"]["value"] == pytest.approx(loss, rel=1e-6)
    assert stats["model"]["loss"]["value"] == pytest.approx(loss, rel=1e-6)
    assert stats["model"]["gradient_weight"]["value"] == pytest.approx(weight, rel=1e-6)
    assert sum(pair["loss"] for pair in inspected["pairs"]) / 16 == pytest.approx(loss, rel=1e-4)
