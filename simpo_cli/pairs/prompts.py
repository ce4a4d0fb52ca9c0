"""Which prompts are asked: of a file, of pairs or of the built-in world; and which of them rounds hold out."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from simpo_cli.builtin.corpus import free_prompts
from simpo_cli.data.load import PairReader
from simpo_cli.data.messages import is_transcript_prompt, transcript_turns
from simpo_cli.data.pair import Message
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.folder import write_lines
from simpo_cli.evaluate.generate.prompts import Prompted, key_of, prompts_in
from simpo_cli.files import MalformedError, parse
from simpo_cli.recipe.schema import Recipe


def prompts_of(name: str, *, of_pairs: bool) -> Iterator[Prompted]:
    """The prompts that a name means, as they are read: those of a file, or the built-in world's that no pair asks.

    Args:
        of_pairs: the name is one of pairs, whose prompts are meant.

    Raises:
        UserError: nothing is there, or it holds pairs and they are not asked for.
    """
    if of_pairs:
        for pair in PairReader(name, role="train", on_no_signal="keep"):
            yield Prompted(pair.prompt, pair.where, {})
        return
    if name == "builtin:guide":
        for number, turns in enumerate(free_prompts(), start=1):
            yield Prompted(tuple(Message(**turn) for turn in turns), f"{name}:{number}", {})
        return
    for prompt, where, record in prompts_in(name):
        if {"chosen", "rejected"} <= record.keys():
            raise UserError(
                "is a pair, and prompts are wanted.",
                "Add --of-pairs (in a recipe pairs.of_pairs: true) to ask its prompt.",
                where=where,
            )
        try:
            parse(json.dumps({"record": record}).encode())  # as the folder of answers keeps it
        except MalformedError as error:
            raise UserError(f"cannot be kept: {error}.", "Leave the field out of the record.", where=where) from error
        if isinstance(prompt, str) and is_transcript_prompt(prompt):  # a pair of it is read as a conversation, too
            prompt = tuple(transcript_turns(prompt))
        yield Prompted(prompt, where, record)


def split_prompts(recipe: Recipe) -> tuple[list[Prompted], list[Prompted]]:
    """Prompts that are held out, and those that rounds ask, each in the order of a hash.

    Held out are prompts of data.eval where it is given, and else some of pairs.prompts. None of them is asked.

    Raises:
        UserError: a file is refused, or no prompt is left to ask.
    """
    wanted = recipe.pairs
    assert wanted.prompts is not None, "refused before"
    by_key = {key_of(one.prompt): one for one in prompts_of(wanted.prompts, of_pairs=wanted.of_pairs)}
    if recipe.data.eval is not None:
        pairs = PairReader(recipe.data.sources(recipe.data.eval), role="eval", on_no_signal="keep")
        others = {key_of(pair.prompt): Prompted(pair.prompt, pair.where, {}) for pair in pairs}
        held_out = dict(_by_hash(others, "held out")[: wanted.held_out_prompts])
    else:
        others = held_out = dict(_by_hash(by_key, "held out")[: wanted.held_out_prompts])
    asked = {key: one for key, one in by_key.items() if key not in others}
    if not asked or not held_out:
        raise UserError(
            f"{len(by_key):,} prompts are in {wanted.prompts}, and {len(asked):,} are left to ask when "
            f"{len(held_out):,} are held out.",
            "Name a file with more prompts, or lower pairs.held_out_prompts.",
            key="pairs.prompts",
        )
    return list(held_out.values()), [one for _, one in _by_hash(asked, f"asked {recipe.seed}")]


def _by_hash(prompts: Mapping[str, Prompted], salt: str) -> list[tuple[str, Prompted]]:
    return sorted(prompts.items(), key=lambda one: hashlib.sha256(f"{salt} {one[0]}".encode()).digest())


def prompts_of_round(asked: Sequence[Prompted], number: int, count: int) -> list[Prompted]:
    """The prompts of a round, the next ones each time, and again from the beginning behind the last."""
    count = min(count, len(asked))
    start = (number - 1) * count
    return [asked[place % len(asked)] for place in range(start, start + count)]


def write_prompts(file: Path, prompts: Sequence[Prompted]) -> None:
    """Write prompts as JSON lines that `prompts_in` reads."""
    write_lines(file, [_as_row(one) for one in prompts])


def _as_row(prompted: Prompted) -> dict[str, Any]:
    prompt = prompted.prompt
    if isinstance(prompt, str):
        return {**prompted.record, "prompt": prompt}
    rest = {key: value for key, value in prompted.record.items() if key != "prompt"}
    return {**rest, "messages": [turn.as_record() for turn in prompt]}
