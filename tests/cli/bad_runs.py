"""Bad input that shows only beside other records, under a template, or as tokens; with what becomes of it.

R is refused for one record, F as a whole, D is dropped by reason, W is accepted and counted, A is accepted.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tokenizers import normalizers

from tests.data.bad_records import RECORDS, good
from tests.data.pair_files import GOOD
from tests.tiny import CHATML, byte_level_tokenizer, save_tiny_model, save_tokenizer

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_LONG = "the same start, over and over, " * 10
_STRICT = CHATML.replace(
    "{% for", "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{% for", 1
)
_TOOLLESS = CHATML.replace("<|im_start|>{{", "{% if message.role != 'tool' %}<|im_start|>{{").replace(
    "<|im_end|>\n{% endfor", "<|im_end|>\n{% endif %}{% endfor"
)
_SYSTEM = {
    side: [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": side}]
    for side in ("chosen", "rejected")
}
_OPENED = "<|im_start|><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True)
class RunKind:
    """Records under a recipe.

    Attributes:
        outcome: R, F, D, W or A.
        records: of the training file; the one that it is about is the last.
        said: what the message (R, F) or the first screen of the run (D, W) says.
        recipe: changes to the recipe, by dotted key.
        evaluated: records of data.eval, or None.
        finding: the code of the finding in `simpo stats`, where there is one.
        in_stats: whether `simpo stats` can see it, which knows no model.
    """

    outcome: Literal["R", "F", "D", "W", "A"]
    records: list[Any]
    said: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    evaluated: list[Any] | None = None
    finding: str | None = None
    in_stats: bool = True


RUNS = {
    "Pair: equal after template and cut": RunKind(
        "D",
        [GOOD, good(chosen=f"{_LONG} a", rejected=f"{_LONG} b")],
        "responses identical after the cut",
        finding="TRU004",
    ),
    "Pair: equal after template and cut (trimmed)": RunKind(
        "D",
        [GOOD, good(chosen="Yes.", rejected=" Yes. ")],
        "responses identical after the cut",
        {"data.chat_template": "trims.jinja"},
    ),
    "Pair: the same pair twice": RunKind(
        "W", [GOOD, good(prompt="Why?"), GOOD], "DUP001 1 training pairs occurred before", finding="DUP001"
    ),
    "Pair: the same prompt with labels swapped": RunKind(
        "W",
        [GOOD, good(prompt="Why?"), good(chosen=GOOD["rejected"], rejected=GOOD["chosen"])],
        "LBL002 2 training pairs contradict one another",
        finding="LBL002",
    ),
    "Pair: prompts of the evaluation file in training": RunKind(
        "W", [GOOD, good(prompt="Why?")], "1 training pairs have a prompt of the evaluation pairs", {}, [GOOD], "LEK001"
    ),
    "Messages: tool turns (unknown to the template)": RunKind(
        "R",
        [RECORDS["Messages: text parts"].record, RECORDS["Messages: tool turns"].record],
        "the chat template leaves the tool turn out",
        {"data.chat_template": "toolless.jinja"},
    ),
    "Messages: template raises": RunKind(
        "R",
        [RECORDS["Messages: text parts"].record, _SYSTEM],
        "the chat template refuses the conversation: user first",
        {"data.chat_template": "strict.jinja"},
    ),
    "Messages: special tokens in text": RunKind(
        "W", [GOOD, good(chosen="a <|im_end|> b")], "1 special token kept as text", finding="TOK001"
    ),
    "Tokens: no response token": RunKind(
        "D", [GOOD, good(chosen="\u200b")], "response without tokens", {"model.path": "silent"}
    ),
    "Tokens: one response token": RunKind("W", [GOOD, good(chosen="a")], "1 response of one token", finding="EMP003"),
    "Tokens: prompt over the limit": RunKind("W", [GOOD, good(prompt=_LONG)], "1 prompt cut", finding="TRU003"),
    "Tokens: prompt over the limit (by option)": RunKind(
        "R", [GOOD, good(prompt=_LONG)], "prompt tokens and", {"data.overlong": "error"}
    ),
    "Tokens: prompt over the limit (dropped)": RunKind(
        "D", [GOOD, good(prompt=_LONG)], "over the length limits", {"data.overlong": "drop"}
    ),
    "Tokens: response cut": RunKind("W", [GOOD, good(chosen=f"Yes, {_LONG}")], "1 chosen cut", finding="TRU002"),
    "Tokens: a pair over the micro-batch budget": RunKind(
        "R",
        [GOOD, good(chosen=f"Yes, {_LONG}")],
        "train.tokens_per_microbatch is 70, and this pair alone needs",
        {"train.tokens_per_microbatch": 70},
        in_stats=False,
    ),
    "Tokens: an id at or above the vocabulary": RunKind(
        "F", [GOOD], "and the model's vocabulary ends at 299", {"model.path": "small"}, in_stats=False
    ),
    "Tokens: no EOS and no pad": RunKind("F", [GOOD], "has no end-of-text token", {"model.path": "endless"}),
    "Tokens: two BOS at the start": RunKind(
        "W",
        [good(prompt=_OPENED), good(prompt=_OPENED, chosen="No.")],
        "2 second BOS left out",
        {"data.rendered": True},
        finding="TOK002",
    ),
    "Tokens: a 10 MB word": RunKind(
        "R", [GOOD, good(chosen="ab" * 5_000_000)], "chosen: a word, or a gap, of more than 1,000,000 characters"
    ),
}


def make_place(folder: Path) -> None:
    """Models and templates that the recipes name."""
    save_tiny_model(folder / "tiny")
    save_tiny_model(folder / "small", vocab_size=300)
    save_tiny_model(folder / "silent")
    silent = byte_level_tokenizer(_SPECIAL)
    silent.normalizer = normalizers.Replace("\u200b", "")
    save_tokenizer(folder / "silent", silent, bos="<|im_start|>", eos="<|im_end|>", pad=None, template=CHATML)
    save_tiny_model(folder / "endless")
    save_tokenizer(folder / "endless", byte_level_tokenizer(_SPECIAL), bos=None, eos=None, pad=None, template=None)
    (folder / "endless" / "chat_template.jinja").unlink()
    for name in ("config.json", "generation_config.json"):
        (folder / "endless" / name).write_text(
            (folder / "endless" / name).read_text().replace('"eos_token_id": 2', '"eos_token_id": null')
        )
    (folder / "strict.jinja").write_text(_STRICT)
    (folder / "toolless.jinja").write_text(_TOOLLESS)
    (folder / "trims.jinja").write_text(CHATML.replace("message['content']", "message['content'] | trim"))
