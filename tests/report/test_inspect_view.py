"""`simpo inspect` for a person: borders of tokens, what is shortened, and the way from log-probs to the loss."""

import copy
from typing import Any

import pytest
from rich.cells import cell_len

from simpo_cli.report.inspect_view import print_inspection, shade, token_lines
from tests.report import made_run
from tests.report.screen import printed

HOSTILE = "[bold]\x1b[2J\u202e\r:smile:"


def tokens(*texts: str, logp: float | None = None) -> list[dict[str, Any]]:
    scored = {} if logp is None else {"logp": logp}
    return [{"id": 10 + n, "text": text, **scored} for n, text in enumerate(texts)]


DOCUMENT: dict[str, Any] = {
    "schema_version": 1,
    "recipe": "recipe.yaml",
    "decision": "plain text, explicit prompt, response = the whole answer",
    "tokenizer": {"path": "tiny", "used": "by its chat template", "max_length": 2048, "max_prompt_length": 1800},
    "objective": made_run.OBJECTIVE,
    "model": {"path": "tiny", "packing": "prompts shared"},
    "no_model": None,
    "pairs": [
        {
            "number": 4211,
            "where": "prefs.jsonl:4211",
            "left_out": None,
            "remarks": ["tokenized apart"],
            "prompt": {
                "num_tokens": 3,
                "num_cut": 0,
                "bos": "<|im_start|>",
                "tokens": tokens("<|im_start|>", "user", "\n"),
            },
            "chosen": {
                "num_tokens": 3,
                "num_cut": 0,
                "end": "<|im_end|>",
                "logp_sum": -4.5,
                "logp_mean": -1.5,
                "reward": -3.0,
                "tokens": [
                    {"id": 1, "text": "Open", "logp": -0.25},
                    {"id": 2, "text": " Settings", "logp": -4.0},
                    {"id": 3, "text": "<|im_end|>", "logp": -0.25},
                ],
            },
            "rejected": {
                "num_tokens": 2,
                "num_cut": 7,
                "end": None,
                "logp_sum": -4.0,
                "logp_mean": -2.0,
                "reward": -4.0,
                "tokens": tokens("No", "pe", logp=-2.0),
            },
            "margin": 1.0,
            "past_target": False,
            "loss": 0.6931,
        }
    ],
}


def test_the_whole_screen() -> None:
    assert (
        printed(print_inspection, DOCUMENT, width=120)
        == """recipe.yaml
data      plain text, explicit prompt, response = the whole answer
tokens    of tiny · by its chat template · cut at 2,048 (prompts at 1,800)
reward    r = beta × m, m = the sum of a response's log-probs / its tokens: length is divided out
loss      SimPO, sigmoid · beta 2 · gamma 1 (gamma/beta 0.5) · label smoothing off · SFT term off
model     tiny · prompts shared

pair 4,211 · prefs.jsonl:4211
note      prompt and responses are tokenized apart, as in generation: a token would straddle them
prompt    3 tokens, seen and not scored · begins with BOS <|im_start|>
          <|im_start|>user⏎
chosen    3 tokens scored · ends with <|im_end|>
          Open│ Settings│<|im_end|>
          sum of log-probs -4.500 / 3 tokens = m -1.500 · reward 2 × -1.500 = -3.000
          least likely ' Settings' -4.00 at 2 · 'Open' -0.25 at 1 · '<|im_end|>' -0.25 at 3
rejected  2 tokens scored · the last 7 tokens cut off, with the end token
          No│pe
          sum of log-probs -4.000 / 2 tokens = m -2.000 · reward 2 × -2.000 = -4.000
          least likely 'No' -2.00 at 1 · 'pe' -2.00 at 2
margin    r(chosen) - r(rejected) = -3.000 - (-4.000) = 1.000: not past the target, gamma 1.000
loss      d = margin - gamma = 0.000 · -log sigmoid(d) = 0.693
"""
    )


def test_without_a_model_there_are_tokens_and_the_reason() -> None:
    document = {**copy.deepcopy(DOCUMENT), "model": None, "no_model": "its weights are not here"}
    text = printed(print_inspection, document)
    assert "model     no log-probs: its weights are not here\n" in text
    assert "Open│ Settings│<|im_end|>" in text
    assert "sum of log-probs" not in text
    assert "sigmoid(d)" not in text


def test_what_is_lost_or_left_out_is_said() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["pairs"][0]["chosen"]["end"] = None
    assert "NO END TOKEN" in printed(print_inspection, document)
    document["pairs"][0]["prompt"]["num_cut"] = 1
    assert "the oldest 1 token cut off" in printed(print_inspection, document)
    document["pairs"][0]["left_out"] = "responses identical after the cut"
    text = printed(print_inspection, document)
    assert "left out  training does not use this pair: responses identical after the cut" in text
    assert "margin" not in text
    document["pairs"][0]["prompt"] = None
    assert printed(print_inspection, document).count("\n") < text.count("\n")


def test_numbers_that_are_not_finite_are_said() -> None:
    document = copy.deepcopy(DOCUMENT)
    pair = document["pairs"][0]
    pair["margin"] = pair["loss"] = pair["chosen"]["logp_mean"] = pair["chosen"]["tokens"][1]["logp"] = None
    text = printed(print_inspection, document)
    assert "m nan" in text
    assert "' Settings' nan at 2" in text
    assert "-log sigmoid(d) = nan" in text


def test_long_responses_are_shortened_in_the_middle_unless_all_is_asked_for() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["pairs"][0]["chosen"]["tokens"] = tokens(*(f"w{n}," for n in range(300)), logp=-1.0)
    text = printed(print_inspection, document)
    assert "│… 228 tokens …│" in text.replace("\n          ", "")
    assert "w47,│" in text
    assert "w48," not in text
    assert "w276," in text
    whole = printed(print_inspection, document, full=True).replace("\n          ", "")
    assert all(f"w{n}," in whole for n in range(300))


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
@pytest.mark.parametrize("width", [30, 80, 120])
def test_text_of_others_is_shown_and_not_obeyed(width: int, encoding: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    pair = document["pairs"][0]
    pair["where"] = HOSTILE
    pair["prompt"]["tokens"] = tokens(HOSTILE * 9, "你好" * 40, "a" * 500)
    pair["chosen"]["tokens"] = tokens(HOSTILE, "", "\n\n", "é" * 300, "🙂", logp=-3.0)
    shown = printed(print_inspection, document, width=width, encoding=encoding)
    assert not set("\x1b\r\u202e") & set(shown)
    assert all(cell_len(line) <= width for line in shown.splitlines())
    assert "[bold]\\x1b[2J\\u202e\\r:smile:" in shown.replace("\n", "").replace(" ", "")
    assert "<11>" in shown  # a token without text is named by its id


def test_shades_go_by_probability() -> None:
    assert shade(None) == "bold"
    assert [shade(logp) for logp in (0.0, -0.6, -0.8, -2.2, -2.4, -4.5, -4.7, float("-inf"))] == [
        *["bold green"] * 2,
        *["bold"] * 2,
        *["bold yellow"] * 2,
        *["bold red"] * 2,
    ]


def test_a_character_of_several_tokens_is_told_apart_only_where_borders_are() -> None:
    split = tokens("\ufffd", "\ufffd", "你", "!")
    [scored] = token_lines(split, 80, "utf-8", extent=None)
    [read] = token_lines(split, 80, "utf-8", extent=None, style="dim")
    assert (scored.plain, read.plain) == ("\ufffd│\ufffd│你│!", "你!")


def test_lines_break_at_borders_and_lose_nothing() -> None:
    texts = [f"t{n}" for n in range(40)]
    lines = token_lines(tokens(*texts), 20, "utf-8", extent=None)
    assert all(line.cell_len <= 20 for line in lines)
    assert "".join(line.plain for line in lines).split("│") == texts
    [short] = token_lines(tokens(*texts[:12]), 200, "utf-8", extent=(2, 2))
    assert short.plain.count("│") == 11  # under a handful more is not worth leaving out
