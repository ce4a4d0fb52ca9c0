"""A run's adapters merged into the weights beside which they were trained, and the proof that the model is the same.

A merge can go wrong without a word: in a narrow type most of the update may be rounded away, and an adapter on a head
that shares its weights with the embedding would change both. So the folder that was written is loaded again as others
load it, and its logits, of the whole vocabulary where responses of the run's own pairs stand, are held beside those of
the adapters themselves; the merge is kept only if they say the same.

Adapters that were trained beside quantised weights are merged into the weights before those were rounded. That is
another model than the one that was trained, so both score the held-out pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import probe
from simpo_cli.data.prepare import PreparedData, make_plan, prepare_data
from simpo_cli.errors import UserError
from simpo_cli.evaluate.metrics import compare_scores, summarise
from simpo_cli.evaluate.scoring import open_model
from simpo_cli.files import disk_faults
from simpo_cli.formatting import MARGIN_DIGITS, change_cell, number_cell, points_cell, share_cell, thousands
from simpo_cli.model.backend import release_memory
from simpo_cli.model.load import load_model
from simpo_cli.model.packed import pack
from simpo_cli.model.policy import Policy
from simpo_cli.model.rounding import export_dtype
from simpo_cli.model.source import DTYPE_NAMES, ModelSource, find_model, start_model
from simpo_cli.publish.card import CARD, Trained, model_card
from simpo_cli.publish.export import copy_tokenizer, written_whole
from simpo_cli.recipe.composition import compose
from simpo_cli.recipe.schema import Recipe
from simpo_cli.redaction import redacted
from simpo_cli.run.documents import read_receipt
from simpo_cli.statistics import as_json

_COMPARED_PAIRS = 8
_MOST_LOGITS = 2**25  # held for each of three models at once: 128 MB as float32
_FEWEST_POSITIONS = 64
MOST_DIFFERENCE = 1e-3  # nats, of any logit, by the merge itself in float32
MOST_LOST = 0.5  # of what training changed, by the save in the folder's type


@dataclass(frozen=True, slots=True)
class Merged:
    """A merge that was kept."""

    folder: Path
    dtype: str
    num_positions: int  # where logits of the whole vocabulary were compared
    largest_difference: float  # of any logit, merged in float32 against the adapters, in nats
    change: float  # root mean square of what training changed in the logits, in nats
    lost: float  # the same of saved against adapters: what the narrower type cost
    unrounded: "Unrounded | None" = None  # what it is beside the model that was trained, if that was quantised


@dataclass(frozen=True, slots=True)
class Unrounded:
    """A merge beside the quantised model with the adapters that it is made of, on the held-out pairs."""

    quantization: str
    trained: Mapping[str, Any]  # what was measured of the quantised model, as `simpo eval --json` has it
    merged: Mapping[str, Any]  # of the merge
    difference: Mapping[str, Any]  # of the second less the first, by pair

    def __str__(self) -> str:
        """On 500 held-out pairs the accuracy is 71.2 % (67.1 to 75.0), and was 70.8 % (66.7 to 74.6) beside nf4: ..."""
        trained, merged, change = self.trained, self.merged, self.difference
        margins = (number_cell(one["margin"], digits=MARGIN_DIGITS) for one in (merged, trained))
        return (
            "on {} held-out pairs the accuracy is {}, and was {} beside {}: a change of {} points; the mean margin is "
            "{}, and was {}: a change of {}".format(
                thousands(merged["pairs"]),
                share_cell(merged["accuracy"]),
                share_cell(trained["accuracy"]),
                self.quantization,
                points_cell(change["accuracy"]),
                *margins,
                change_cell(change["margin"], digits=MARGIN_DIGITS),
            )
        )


def merge_adapters(run: Path, folder: Path, dtype: torch.dtype | None = None) -> Merged:
    """Write a folder with the run's model in one piece, whole or not at all.

    Args:
        run: the folder of a run whose model/ holds adapters.
        folder: what to write; nothing may be there.
        dtype: type of the weights; None takes the recipe's export.dtype.

    Raises:
        UserError: the merged model differs from the adapters, their base is there quantised only, or the disk does not
            take it (exit code 4).
    """
    source = find_model(str(run / "model"))
    recipe = compose(str(run / "recipe.yaml")).recipe
    base = source.whole
    data = prepare_data(recipe)
    pairs = compared_pairs(data)
    merged = merge_in_memory(source, pairs)
    dtype = export_dtype(recipe, base) if dtype is None else dtype
    with disk_faults(f"the merged model cannot be written to {folder}"), written_whole(folder) as temporary:
        merged.model.to(dtype).save_pretrained(temporary, safe_serialization=True)
        merged.model = None
        copy_tokenizer(source, temporary, recipe.data.chat_template)
        change, lost = merged.change, merged.lost(load_model(find_model(str(temporary)), torch.float32))
        if lost > max(MOST_LOST * change, MOST_DIFFERENCE):
            raise differs(
                f"saved in {DTYPE_NAMES[dtype]} its logits are {lost:.2g} nats from the adapters', which changed them "
                f"by {change:.2g} (root mean squares over the vocabulary at {merged.num_positions:,} positions)",
                "Keep more digits: --dtype fp32.",
            )
        checked = (
            "Before it was kept, this folder was loaded again and its logits compared at "
            f"{merged.num_positions:,} positions of real responses: over the whole vocabulary they are {lost:.2g} nats "
            f"from those of the adapters, which changed them by {change:.2g} (root mean squares). The numbers below "
            "were measured with the adapters."
        )
        unrounded = _beside_quantised(recipe, run, temporary, data.held_out)
        if unrounded is not None:
            checked += (
                f" These were trained beside weights in {unrounded.quantization}, which are whole here. In comparison, "
                f"{unrounded}."
            )
        steps = make_plan(recipe, len(data.train)).num_steps
        trained = Trained(recipe, base, data, steps, DTYPE_NAMES[dtype], checked)
        # what was measured of the adapters holds for the merge, whose log-probs were just compared with theirs
        card = model_card(trained, read_receipt(run).get("outcome") or {})
        (temporary / CARD).write_text(redacted(card), encoding="utf-8")
    return Merged(folder, DTYPE_NAMES[dtype], merged.num_positions, merged.difference, change, lost, unrounded)


def _beside_quantised(recipe: Recipe, run: Path, merged: Path, held_out: Sequence[EncodedPair]) -> Unrounded | None:
    """Score a merge beside the quantised model that was trained; None if nothing was quantised, or held out."""
    if recipe.model.quantization is None or not held_out:
        return None
    scores = []
    plain = replace(recipe.model, path=str(merged), revision=None, quantization=None, lora=None, adapter=None)
    for model in (replace(recipe.model, path=str(run / "model"), revision=None), plain):
        scores.append(
            open_model(replace(recipe, model=model), start_model(model), held_out).score(held_out, model.path)
        )
        release_memory()
    trained, whole = scores
    return Unrounded(
        recipe.model.quantization,
        as_json(summarise(trained, recipe.loss)),
        as_json(summarise(whole, recipe.loss)),
        as_json(compare_scores(trained, whole, recipe.loss)),
    )


class MergedInMemory:
    """A model with its adapters merged in float32, and what is needed to tell what became of them.

    Attributes:
        model: the merged model; None once somebody has let it go.
        difference: the largest of any logit, merged against the adapters, in nats.
        change: root mean square of what training changed in the logits, in nats.
    """

    def __init__(self, model: Any, pairs: Sequence[EncodedPair], before: Tensor, wanted: Tensor) -> None:
        self.model = model
        self._pairs, self._wanted = pairs, wanted
        self.difference = float((_logits(model, pairs) - wanted).abs().max())
        self.change = _root_mean_square(wanted - before)

    @property
    def num_positions(self) -> int:
        """Where logits of the whole vocabulary are compared."""
        return len(self._wanted)

    def lost(self, saved: nn.Module) -> float:
        """Root mean square of what a narrower type changed in the logits, in nats."""
        return _root_mean_square(_logits(saved, self._pairs) - self._wanted)


def compared_pairs(data: PreparedData) -> list[EncodedPair]:
    """The run's own pairs by which an export is compared: held out, if it held any out."""
    known = data.held_out or data.train
    return [known[i] for i in probe(known, _COMPARED_PAIRS)]


def merge_in_memory(source: ModelSource, pairs: Sequence[EncodedPair]) -> MergedInMemory:
    """Merge a folder's adapters into the weights under them.

    Raises:
        UserError: the merged model differs from the adapters, or the weights under them are there quantised only.
    """
    if source.is_stored_quantised:
        raise UserError(
            f"the weights of {source.whole.name} are stored quantised ({source.quantization}): nothing merges into "
            "them.",
            "Use the adapters as they are; or merge them, in peft, into the unquantised model that it was made from.",
        )
    adapted: Any = load_model(source, torch.float32)
    with adapted.disable_adapter():
        before = _logits(adapted, pairs)
    wanted = _logits(adapted, pairs)
    merged = MergedInMemory(adapted.merge_and_unload(safe_merge=True), pairs, before, wanted)
    if merged.difference > MOST_DIFFERENCE:
        raise differs(
            f"a logit differs by {merged.difference:.2g} nats in float32",
            "Adapters on a head that shares its weights with the embedding cannot be merged; use them as they are.",
        )
    return merged


def _logits(model: nn.Module, pairs: Sequence[EncodedPair]) -> Tensor:
    """(K, V) logits at positions spread evenly over the pairs' responses, in nats, by the model's own layers.

    All positions where they are few, and of a large vocabulary as many as `_MOST_LOGITS` allows.
    """
    policy = Policy(model).eval()
    lengths = [len(pair.chosen) + len(pair.rejected) for pair in pairs]
    most = max(_FEWEST_POSITIONS, _MOST_LOGITS // int(policy.causal.config.get_text_config().vocab_size))
    chosen = torch.linspace(0, sum(lengths) - 1, min(most, sum(lengths))).round().long()
    found, start = [], 0
    with torch.no_grad():
        for pair, length in zip(pairs, lengths, strict=True):
            at = chosen[(chosen >= start) & (chosen < start + length)] - start
            found.append(policy.logits(pack([pair], torch.device("cpu")), at))
            start += length
    return torch.cat(found)


def _root_mean_square(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def differs(how: str, fix: str) -> UserError:
    return UserError(f"the merged model is not the model that was trained: {how}. Nothing was written.", fix)
