"""Parts that time: what the device can do, and pairs a second of training steps, beside the ways that others take."""

import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from simpo_cli.model.compiled import compiled_layers
from torch import Tensor

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Packing, microbatches, tokens_of_each
from simpo_cli.model.fused.replace import find_stand_ins
from simpo_cli.model.policy import Policy
from simpo_cli.objective import terms_under
from simpo_cli.train.state import make_optimizer, start_moments
from simpo_cli.train.step import accumulate, clip_gradients
from tests.benchmarks.flops import needed_flops, shape_of
from tests.gpu import models
from tests.gpu.check import MissingError, Place, need, require
from tests.gpu.correctness import LOSS

_KERNELS = 20


def ceilings(place: Place) -> tuple[str, dict[str, Any]]:
    """The speed of a large product and of a copy, on random data."""
    side, megabytes = (512, 64) if place.tiny else (8192, 4096)
    a, b = (torch.randn(side, side, device=place.device).to(place.compute) for _ in range(2))
    products = [2 * side**3 / seconds for seconds in _timed(lambda: a @ b, 10, place)]
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=place.device).random_()
    target = torch.empty_like(source)
    copies = [2 * source.numel() / seconds for seconds in _timed(lambda: target.copy_(source), 10, place)]
    place.peak_flops = statistics.median(products)
    facts = {
        "type": str(place.compute).removeprefix("torch."),
        "product_tflops": _spread([p / 1e12 for p in products]),
        "copy_gb_per_second": _spread([c / 1e9 for c in copies]),
    }
    return (
        f"{facts['type']} products {place.peak_flops / 1e12:.3g} TFLOP/s, copies "
        f"{statistics.median(copies) / 1e9:.3g} GB/s read and written (medians of 10)",
        facts,
    )


def _timed(work: Callable[[], Any], times: int, place: Place) -> list[float]:
    """Seconds of each of so many calls, after three that do not count."""
    seconds = []
    for number in range(3 + times):
        _finish(place)
        started = time.perf_counter()
        work()
        _finish(place)
        if number >= 3:
            seconds.append(time.perf_counter() - started)
    return seconds


def _finish(place: Place) -> None:
    if place.on_cuda:
        torch.cuda.synchronize()


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


class _Work(NamedTuple):
    """What is timed.

    Attributes:
        budget: tokens of a micro-batch of ours and of padded rows.
        rows: pairs of a micro-batch of padded rows with whole logits.
        rounds: timed steps of each way, in turn.
    """

    config: Any
    weights: torch.dtype
    lora: bool
    pairs: int
    lengths: models.Lengths
    budget: int
    rows: int
    rounds: int


def speed_8b_lora(place: Place) -> tuple[str, dict[str, Any]]:
    work = _Work(models.llama3_8b(), torch.bfloat16, True, 32, models.LONG, 8192, 4, 3)
    return _compared("8B LoRA", work, place, share=0.45)


def speed_1_5b_full(place: Place) -> tuple[str, dict[str, Any]]:
    work = _Work(models.qwen2_1_5b(), torch.float32, False, 64, models.LONG, 8192, 4, 3)
    return _compared("1.5B full", work, place, share=0.45)


def speed_135m_full(place: Place) -> tuple[str, dict[str, Any]]:
    work = _Work(models.smollm2_135m(), torch.float32, False, 128, models.SHORT, 16384, 8, 5)
    return _compared("135M full", work, place, share=None)


def _compared(name: str, work: _Work, place: Place, *, share: float | None) -> tuple[str, dict[str, Any]]:
    """Ours, ours compiled, ours with Liger, padded rows, and padded rows with whole logits: one step each, in turn."""
    if place.tiny:
        weights = work.weights
        work = _Work(models.tiny(), weights, work.lora, 6, models.TINY, 64, 2, 2)
    trainer = _Trainer(work, place)
    ways: dict[str, Callable[[], None]] = {
        "ours": lambda: trainer.ours("shared_prefix"),
        "compiled": lambda: trainer.ours("shared_prefix", compiled=True),
        "liger": lambda: trainer.ours("shared_prefix", liger=True),
        "padded": lambda: trainer.ours("padded"),
        "whole_logits": trainer.whole_logits,
    }
    measured: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    missing: dict[str, str] = {}
    broken: list[str] = []
    warm_up: dict[str, float] = {}
    for way, step in ways.items():
        started = time.perf_counter()
        try:
            step()
            _finish(place)
        except Exception as error:  # the other ways are still worth timing
            missing[way] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if not isinstance(error, MissingError | torch.OutOfMemoryError):
                broken.append(way)
            traceback.clear_frames(error.__traceback__)
            trainer.policy.zero_grad()
            continue
        warm_up[way] = time.perf_counter() - started
        measured[way] = []
    for _ in range(work.rounds):
        for way in measured:
            if place.on_cuda:
                torch.cuda.reset_peak_memory_stats()
            _finish(place)
            started = time.perf_counter()
            ways[way]()
            _finish(place)
            measured[way].append(time.perf_counter() - started)
            if place.on_cuda:
                peaks[way] = torch.cuda.max_memory_allocated()
    flops = trainer.flops()
    facts: dict[str, Any] = {
        "pairs": work.pairs,
        "tokens": trainer.tokens,
        "needed_tflop": flops / 1e12,
        "missing": missing,
        "ways": {
            way: {
                "seconds": _spread(seconds),
                "pairs_per_second": work.pairs / statistics.median(seconds),
                "tokens_per_second": trainer.tokens / statistics.median(seconds),
                "share_of_products": flops / statistics.median(seconds) / place.peak_flops
                if place.peak_flops
                else None,
                "peak_gb": peaks[way] / 1e9 if way in peaks else None,
                "warm_up_seconds": warm_up[way],
            }
            for way, seconds in measured.items()
        },
        "losses": trainer.losses,
    }
    require("ours" in measured, f"our own step did not run: {missing.get('ours')}", facts)
    trainer.require_same_losses(facts)
    facts["kernels"] = _profiled(lambda: ways["ours"](), place)
    best = min((statistics.median(measured[way]), way) for way in ("ours", "compiled", "liger") if way in measured)
    if share is not None and place.on_cuda and place.peak_flops:
        place.bar(f"{name}: share of the measured product speed", flops / best[0] / place.peak_flops, least=share)
    require(not broken, f"did not run: {', '.join(f'{way} ({missing[way]})' for way in broken)}", facts)
    summary = ", ".join(f"{way} {work.pairs / statistics.median(s):.3g}" for way, s in measured.items())
    if "whole_logits" in measured and place.on_cuda:
        place.bar(
            f"{name}: pairs/s over padded rows with whole logits",
            statistics.median(measured["whole_logits"]) / best[0],
            least=2.5,
        )
    return f"pairs/s: {summary} (medians of {work.rounds}, best of ours: {best[1]})", facts


class _Trainer:
    """One model that takes steps in different ways, always over the same pairs."""

    def __init__(self, work: _Work, place: Place) -> None:
        self._work, self._place = work, place
        AcceleratorState._reset_state(reset_partial_state=True)
        precision = "bf16" if place.on_cuda else "no"
        self._accelerator = Accelerator(mixed_precision=precision, cpu=not place.on_cuda)
        self.policy: Policy = models.build(work.config, place.device, weights=work.weights, lora=work.lora)
        self._optimizer = make_optimizer(self.policy, weight_decay=0.0)
        start_moments(self._optimizer)
        self.pairs = models.make_pairs(work.pairs, work.lengths, work.config.vocab_size)
        self.tokens = sum(pair.num_tokens for pair in self.pairs)
        self.losses: dict[str, float] = {}
        self._is_cpu = not place.on_cuda
        self._stand_ins = find_stand_ins(self.policy.causal)  # on a card Liger's, where that is installed
        self._compiled = compiled_layers(self.policy.layers, strict=False)

    def flops(self) -> float:
        """What the method needs for the step."""
        shape = shape_of(self._work.config)
        return float(
            sum(
                needed_flops(shape, len(p.prompt), len(p.chosen), len(p.rejected), frozen=self._work.lora)
                for p in self.pairs
            )
        )

    def ours(self, packing: Packing, *, compiled: bool = False, liger: bool = False) -> None:
        """A step as the training loop takes it."""
        if liger:
            need("liger_kernel")
        if compiled and self._place.tiny and not self._work.lora:
            raise MissingError("compiled under adapters only, where all is small")
        # what takes the place of a model's own layers and modules while prompts are shared
        self.policy._replaced = self._compiled if compiled else self._stand_ins if liger or self._is_cpu else ()
        with self.policy.packed(packing):
            budget = max(self._work.budget, int(tokens_of_each(self.pairs, packing).max()))
            cut = microbatches(self.pairs, budget, packing)
            sums = accumulate(self.policy, self.pairs, cut, loss=LOSS, accelerator=self._accelerator, step=0)
            clip_gradients(self.policy, 1.0, norm=sums.grad_norm)
            self._optimizer.step()  # at learning rate 0: every step sees the same weights
            self._optimizer.zero_grad()
        way = "compiled" if compiled else "liger" if liger else "ours" if packing == "shared_prefix" else "padded"
        self.losses[way] = sums.loss / sums.pairs

    def whole_logits(self) -> None:
        """A step of padded rows as the usual trainers take it: both responses in one batch, all logits in float32."""
        longest_first = sorted(self.pairs, key=lambda pair: -pair.num_tokens)  # like lengths together, as best for them
        total = torch.zeros((), device=self._place.device)
        with self.policy.untouched() as causal:
            for first in range(0, len(self.pairs), self._work.rows):
                batch = longest_first[first : first + self._work.rows]
                with self._accelerator.autocast():
                    chosen, rejected = _means_from_whole_logits(causal, batch, self._place.device)
                losses = terms_under(LOSS, chosen, rejected).losses
                (losses.sum() / len(self.pairs)).backward()
                total += losses.detach().sum()
            parameters = [p for p in self.policy.parameters() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
        self.losses["whole_logits"] = float(total) / len(self.pairs)

    def require_same_losses(self, facts: dict[str, Any]) -> None:
        """All ways compute the same thing, or the times say nothing."""
        most = 0.02 if self._place.on_cuda else 1e-4
        apart = {way: abs(loss - self.losses["ours"]) for way, loss in self.losses.items()}
        far = {way: difference for way, difference in apart.items() if not difference <= most}
        require(not far, f"losses differ from ours: {far}", facts)


def _means_from_whole_logits(causal: Any, pairs: Sequence[EncodedPair], device: torch.device) -> tuple[Tensor, Tensor]:
    """m(y|x) of chosen and rejected responses, each (P,), from padded rows: all chosen ones, then all rejected ones."""
    rows = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids, real, scored = (torch.zeros(len(rows), width, dtype=torch.int64) for _ in range(3))
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor([*prompt.tolist(), *response.tolist()])
        real[row, :end] = 1
        scored[row, len(prompt) : end] = 1
    ids, real, scored = ids.to(device), real.to(device), scored[:, 1:].to(device)
    logits = causal(input_ids=ids, attention_mask=real, use_cache=False).logits.float()
    logps = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    means = (logps * scored).sum(1) / scored.sum(1)
    return means[: len(pairs)], means[len(pairs) :]


def _profiled(step: Callable[[], None], place: Place) -> list[dict[str, Any]]:
    """The kernels (on a CPU the operators) that take most time of a step."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA if place.on_cuda else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        step()
        _finish(place)
    key = "self_device_time_total" if place.on_cuda else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda event: -getattr(event, key))
    total = sum(getattr(event, key) for event in events) or 1
    return [
        {
            "name": event.key[:160],
            "calls": event.count,
            "milliseconds": getattr(event, key) / 1e3,
            "share": getattr(event, key) / total,
        }
        for event in events[:_KERNELS]
    ]
