"""Two runs compared: the statistics against scipy on the stored pairs, what differs, and what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from simpo_cli.cli import main as cli
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.report.run_files import read_run
from simpo_cli.report.two_runs import caveats, compare_runs, comparison_verdict, recipe_differences, write_comparison
from tests.cli.test_help import imported_by
from tests.report.made_run import RECIPE, eval_row, outcome, pair_row, write_run
from tests.report.parsed_page import Page, require_stands_alone

RISE = outcome((0.3, 0.2, 0.4), 0.001)
EVALS = [eval_row(0, 0.5), eval_row(4, 0.8)]
HOSTILE = "<script>alert('x')</script>\x1b[31m"


def _write(path: Path, rows: list[dict[str, Any]], **run: Any) -> Path:
    write_run(path, **{"outcome": RISE, "evals": EVALS, **run})
    if rows:
        (path / "evals-pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _rows(right: str, folder: str = "", *, shift: int = 0) -> list[dict[str, Any]]:
    """A pair for each letter: right (+), wrong (-) or a tie (=) after training; chosen is longer in every other one."""
    gap = {"+": 0.25, "-": -0.5, "=": 0.0}
    rows = []
    for number, letter in enumerate(right, start=shift):
        row = {**pair_row(number), "rejected_after": -1.0, "chosen_after": -1.0 + gap[letter]}
        rows.append({**row, "where": f"{folder}prefs.jsonl:{number}", "chosen_tokens": 4 + 2 * (number % 2)})
        rows[-1]["rejected_tokens"] = 5
    return rows


FIRST = "+" * 20 + "-" * 20
SECOND = "+" * 18 + "-" * 2 + "+" * 14 + "-" * 6


def _page(first: Path, second: Path) -> tuple[Page, str]:
    written, _ = write_comparison(first, second, None)
    page = require_stands_alone(written.read_text(encoding="utf-8"))
    return page, " ".join(" ".join(page.text).replace("\u00a0", " ").split())


def test_the_statistics_are_of_the_pairs_that_both_hold_out(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", _rows(FIRST, "data/"))
    second = _write(tmp_path / "b", _rows(SECOND, "/elsewhere/data/"))
    page, text = _page(first, second)
    p_value = stats.binomtest(14, 16).pvalue  # 14 that B alone has right, 2 that A alone has
    assert "On the same held-out pairs B is right in 80.0 % and A in 50.0 %: +30.0 points" in text
    assert f"n = 40 pairs of 40 prompts, p = {p_value:.2g}, exact McNemar test). Length-balanced: +30.0 (" in text
    assert "One run of each: another seed may say otherwise." in text
    assert "14 pairs won, 2 pairs lost, 24 pairs the same." in text
    gained = [0.0] * 18 + [-0.75] * 2 + [0.75] * 14 + [0.0] * 6
    low, high = stats.t.interval(0.95, 39, loc=sum(gained) / 40, scale=stats.sem(gained))
    assert f"margin, nats/token {sum(gained) / 40:+.3f} {low:+.3f} to {high:+.3f}" in text
    assert text.count("Held-out accuracy rose 30.0 points") == 2  # both verdicts
    assert "verdict good" in page.raw
    figures = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]
    assert [figure.split(".")[0] for figure in figures] == [
        "Difference of the margins of each shared pair: mean +0",
        "Held-out accuracy",
        "Held-out loss",
        "Held-out margin",
        "Drift of chosen log-probs",
        "Training loss",
        "Training margin",
        "Gradient norm",
        "Learning rate",
    ]
    assert "A: from 1.000 at step 1 to 0.250 at step 4" in figures[5]


def test_only_what_is_shared_counts_and_the_rest_is_said(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", _rows("+" * 40))
    second = _write(tmp_path / "b", _rows("-" * 40, shift=30))
    runs = compare_runs(read_run(first), read_run(second))
    assert "B is right in 0.0 % and A in 100.0 %: -100.0 points" in comparison_verdict(runs)
    assert [said.split(";")[0] for said in caveats(runs)] == [
        "10 of the 40 held-out pairs of A are shared",
        "10 of the 40 held-out pairs of B are shared",
    ]


def test_chance_is_called_chance(tmp_path: Path) -> None:
    first, second = _write(tmp_path / "a", _rows("+-" * 20)), _write(tmp_path / "b", _rows("+-" * 19 + "-+"))
    runs = compare_runs(read_run(first), read_run(second))
    assert "p = 1, exact McNemar test), not distinguishable from zero." in comparison_verdict(runs)


def test_pairs_of_one_record_are_matched_in_their_order(tmp_path: Path) -> None:
    twice = [{**row, "where": "prefs.jsonl:1", "prompt": "0", "pair": "0" * 32} for row in _rows("+-")]
    first, second = _write(tmp_path / "a", twice), _write(tmp_path / "b", twice)
    shared = compare_runs(read_run(first), read_run(second)).shared
    assert shared is not None
    assert shared.gained is not None
    assert shared.gained.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "why"),
    [(_rows("+" * 40, shift=100), "The runs share no held-out pairs."), ([], "B scored no held-out pairs at the end.")],
)
def test_runs_without_shared_pairs_show_recipes_and_curves_and_say_so(
    rows: list[dict[str, Any]], why: str, tmp_path: Path
) -> None:
    first, second = _write(tmp_path / "a", _rows(FIRST)), _write(tmp_path / "b", rows)
    page, text = _page(first, second)
    assert f"{why} So no test compares them" in text
    assert "On the same held-out pairs" not in text
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == 8


def test_log_probs_of_other_tokens_are_not_compared(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", _rows(FIRST))
    second = _write(tmp_path / "b", _rows(SECOND), tokenizer_sha256="9" * 64)
    _, text = _page(first, second)
    assert "The two score other tokens (another tokenizer or template)" in text
    assert "+30.0 points" in text
    assert "nats/token" not in text


def test_what_differs_is_said_and_names_are_not(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", _rows(FIRST))
    other = RECIPE.replace("made-up", json.dumps(HOSTILE)).replace("beta: 2.0", "beta: 2.5") + "seed: 7\n"
    second = _write(tmp_path / "b", _rows(SECOND), recipe=other, versions={"python": "3.11.0", "torch": HOSTILE})
    page, text = _page(first, second)
    recipe = text.split("What differs in the recipes")[1].split("What else differs")[0]
    assert recipe.split() == ["A", "B", "loss.beta", "2.0", "2.5", "seed", "not", "set", "7"]
    others = text.split("What else differs")[1].split("Curves")[0]
    visible = HOSTILE.replace("\x1b", "\\x1b")
    assert f"torch not set {visible}" in others
    assert "simpo-cli 0.1.0 not set" in others
    assert "python" not in others
    assert {tag for tag, _ in page.tags}.isdisjoint({"script"})


def test_steps_of_other_sizes_are_counted_in_pairs(tmp_path: Path) -> None:
    plan = {"steps": 4, "pairs_per_step": 16, "tokens_per_microbatch": 1024}
    page, _ = _page(_write(tmp_path / "a", _rows(FIRST)), _write(tmp_path / "b", _rows(SECOND), plan=plan))
    loss = next(a["aria-label"] or "" for _, a in page.tags if (a.get("aria-label") or "").startswith("Training loss"))
    assert "A: from 1.000 at step 8 to 0.250 at step 32" in loss
    assert "B: from 1.000 at step 16 to 0.250 at step 64" in loss


def test_files_that_changed_between_the_runs_are_said(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", _rows(FIRST))
    data = json.loads((first / "run.json").read_text())["data"]
    data["train"]["files"][0]["identity"] = "8" * 64
    second = _write(tmp_path / "b", _rows(SECOND), data=data)
    assert caveats(compare_runs(read_run(first), read_run(second))) == []  # what the pairs say tells them apart
    for run in (first, second):
        file = run / "evals-pairs.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({key: row[key] for key in row if key != "pair"}) + "\n" for row in rows))
    runs = compare_runs(read_run(first), read_run(second))
    assert runs.shared is not None
    assert runs.shared.pairs == 40
    [said] = caveats(runs)
    assert said.startswith("A run does not tell what its held-out pairs say, so they were matched by prompt")
    assert said.endswith("and the files are not the same.")


def test_pairs_are_known_by_what_they_say_and_not_by_their_place(tmp_path: Path) -> None:
    moved = [{**row, "where": f"other.jsonl:{900 - number}"} for number, row in enumerate(_rows(SECOND))]
    first, second = _write(tmp_path / "a", _rows(FIRST)), _write(tmp_path / "b", moved[::-1])
    runs = compare_runs(read_run(first), read_run(second))
    assert "B is right in 80.0 % and A in 50.0 %: +30.0 points" in comparison_verdict(runs)
    assert caveats(runs) == []


@pytest.mark.parametrize("swapped", [1, 40])
def test_pairs_whose_labels_are_swapped_are_other_pairs_and_it_is_said(
    swapped: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = [
        {**row, "pair": row["pair"][16:] + row["pair"][:16]} if number < swapped else row
        for number, row in enumerate(_rows(SECOND))
    ]
    first, second = _write(tmp_path / "a", _rows(FIRST)), _write(tmp_path / "b", theirs)
    runs = compare_runs(read_run(first), read_run(second))
    assert (0 if runs.shared is None else runs.shared.pairs) == 40 - swapped
    assert caveats(runs)[0].startswith(
        f"{swapped} pair{'s have' if swapped > 1 else ' has'} chosen and rejected the oth"
    )
    assert cli.run(["report", str(first), str(second)]) == ExitCode.DONE
    assert "chosen and rejected the other way round in the two" in capsys.readouterr().err


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = _write(tmp_path / "a", _rows(FIRST)), _write(tmp_path / "b", _rows(SECOND))
    assert cli.run(["report", str(first), str(second)]) == ExitCode.DONE
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["A", "B", "B - A", "recipes the same, names aside", "report"]
    assert lines[-1] == f"report  {second / 'against-a.html'}"
    assert not (first / "report.html").exists()
    mine = tmp_path / "mine.html"
    mine.write_text("my thesis")
    assert cli.run(["report", str(first), str(second), "--output", str(mine)]) == ExitCode.USAGE
    assert mine.read_text() == "my thesis"
    assert cli.run(["report", str(first), "--output", str(tmp_path / "one.html")]) == ExitCode.DONE
    assert "Held-out accuracy rose" in (tmp_path / "one.html").read_text(encoding="utf-8")


def test_what_cannot_be_compared_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _write(tmp_path / "a", [])
    with pytest.raises(UserError, match="are one run"):
        write_comparison(run, tmp_path / "." / "a", None)
    with pytest.raises(UserError, match="is not a run"):
        write_comparison(run, tmp_path, tmp_path / "page.html")
    assert cli.run(["report", str(run), str(run), str(run)]) == ExitCode.USAGE
    assert "3 runs are named" in capsys.readouterr().err


def test_it_never_loads_torch(tmp_path: Path) -> None:
    _write(tmp_path / "a", _rows(FIRST))
    _write(tmp_path / "b", _rows(SECOND))
    code, imported = imported_by("report", "a", "b", cwd=tmp_path)
    assert code == ExitCode.DONE
    assert imported.isdisjoint({"torch", "transformers", "datasets", "accelerate", "peft"})


def _recipe(**changes: str) -> str:
    lines = {"name": "a", "model": "{path: builtin:guide}", "data": "{train: prefs.jsonl}", "loss": "{gamma: 1.0}"}
    return "".join(f"{key}: {text}\n" for key, text in {**lines, **changes}.items())


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"name": "b", "output_dir": "elsewhere"}, []),
        ({"seed": "42", "train": "{learning_rate: 1.0e-6, num_epochs: 1}"}, []),  # the defaults, written out
        ({"loss": "{gamma_beta_ratio: 0.5, beta: 2}"}, []),
        ({"data": "{train: [{path: prefs.jsonl}], holdout: 0.05}"}, []),
        ({"data": "{train: [{path: moved/prefs.jsonl}]}"}, []),  # the same file
        ({"loss": "{gamma: 1.5}"}, ["loss.gamma"]),
        ({"data": "{train: [{path: prefs.jsonl, max_pairs: 5}]}"}, ["data.train.0.max_pairs"]),
        ({"model": "{path: builtin:guide, lora: {rank: 8}}"}, ["model.lora"]),
    ],
)
def test_recipes_differ_where_they_say_something_else(
    tmp_path: Path, changes: dict[str, str], differing: list[str]
) -> None:
    first = _write(tmp_path / "a", _rows(FIRST), recipe=_recipe())
    second = _write(tmp_path / "b", _rows(SECOND), recipe=_recipe(**changes))
    rows = recipe_differences(compare_runs(read_run(first), read_run(second)))
    assert list(dict.fromkeys("model.lora" if "lora" in key else key for key, _, _ in rows)) == differing
