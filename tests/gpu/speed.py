"""Parts that time: what the device can do, and pairs a second of training steps, beside the ways that others take."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from simpo_cli.data.pair import EncodedPair
from simpo_cli.data.plan import Packing, microbatches, row_tokens_of_each, tokens_of_each
from simpo_cli.model.backend import available_bytes
from simpo_cli.model.load import ParameterCounts
from simpo_cli.model.memory import Workload
from simpo_cli.model.out_of_memory import OutOfMemoryError
from simpo_cli.model.policy import Policy
from simpo_cli.model.shares import Share
from simpo_cli.objective import Objective
from simpo_cli.recipe.schema import TrainRecipe
from simpo_cli.train.optimizer import make_optimizer, start_moments
from simpo_cli.train.step import accumulate, clip_gradients
from tests.benchmarks.flops import needed_flops, shape_of
from tests.gpu import models
from tests.gpu.check import MissingError, Place, need, require
from tests.gpu.correctness import LOSS

_KERNELS = 20
_ROUNDS = 2  # of every way at least, however slow; more until the part's time is gone
_MOST_ROUNDS = 9
_PROFILE_SECONDS = 8.0  # and what else comes behind the rounds
_TOKENS = 16384  # of a micro-batch at most, as `tokens_per_microbatch: auto` has it


def ceilings(place: Place) -> tuple[str, dict[str, Any]]:
    """The speed of a large product and of a copy, on random data: zeros take less power and run faster."""
    side, megabytes = (256, 16) if place.tiny else (8192, 1024)
    a, b = (torch.randn(side, side, device=place.device).to(place.compute) for _ in range(2))
    c = torch.empty_like(a)
    products = [2 * side**3 / seconds for seconds in _timed(lambda: torch.mm(a, b, out=c), 20, place)]
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
        f"{facts['type']} products {place.peak_flops / 1e12:.3g} TFLOP/s (n {len(products)}), copies "
        f"{statistics.median(copies) / 1e9:.3g} GB/s read and written (n {len(copies)}), medians",
        facts,
    )


def _timed(work: Callable[[], Any], times: int, place: Place) -> list[float]:
    """Seconds of each of so many calls, after three that do not count; on a card by its own clock."""
    for _ in range(3):
        work()
    place.finish()
    if not place.on_cuda:
        return [_clocked(work, place) for _ in range(times)]
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
    for first, last in events:
        first.record()
        work()
        last.record()
    place.finish()
    return [first.elapsed_time(last) / 1e3 for first, last in events]


def _clocked(work: Callable[[], Any], place: Place) -> float:
    place.finish()
    started = time.perf_counter()
    work()
    place.finish()
    return time.perf_counter() - started


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


class _Work(NamedTuple):
    """What is timed.

    Attributes:
        rows: pairs of a micro-batch of padded rows with whole logits.
    """

    config: Any
    weights: torch.dtype
    lora: bool
    pairs: int
    lengths: models.Lengths
    rows: int


def speed_8b_lora(place: Place) -> tuple[str, dict[str, Any]]:
    return _compared("8B LoRA", _Work(models.llama3_8b(), torch.bfloat16, True, 16, models.LONG, 4), place, share=0.45)


def speed_1_5b_full(place: Place) -> tuple[str, dict[str, Any]]:
    return _compared(
        "1.5B full", _Work(models.qwen2_1_5b(), torch.float32, False, 32, models.LONG, 4), place, share=0.45
    )


def speed_135m_full(place: Place) -> tuple[str, dict[str, Any]]:
    return _compared("135M full", _Work(models.smollm2_135m(), torch.float32, False, 128, models.SHORT, 16), place)


def _compared(name: str, work: _Work, place: Place, *, share: float | None = None) -> tuple[str, dict[str, Any]]:
    """Ours, ours with Liger, padded rows, padded rows with whole logits and ours compiled: one step each, in turn.

    The compiler takes longest and may break; what is measured before it is written down before it.
    """
    if place.tiny:
        work = _Work(models.tiny(), work.weights, work.lora, 6, models.TINY, 2)
    if place.peak_flops is None:
        ceilings(place)
    trainer = _Trainer(work, place)
    times = _Times(trainer, place)
    times.warm_up("ours", lambda: trainer.ours("ours"))
    times.warm_up("liger", lambda: trainer.ours("liger"))
    times.warm_up("padded", lambda: trainer.ours("padded", "padded"))
    times.warm_up("whole_logits", trainer.whole_logits)
    times.rounds(_ROUNDS, _ROUNDS)
    place.keep(times.facts())
    times.profile("ours")
    place.keep(times.facts())
    times.warm_up("compiled", lambda: trainer.ours("compiled"))
    times.rounds(_ROUNDS, _MOST_ROUNDS)
    times.profile("compiled")
    facts = times.facts()
    require(not times.broken, f"{', '.join(times.broken)} did not run: {[*times.broken.values()][:1]}", facts)
    if "ours" in times.missing:
        raise MissingError(f"our step: {times.missing['ours']}")
    trainer.require_same_losses(facts)
    medians = {way: statistics.median(seconds) for way, seconds in times.seconds.items() if seconds}
    best = min(("ours", "compiled", "liger"), key=lambda way: medians.get(way, float("inf")))
    if place.on_cuda:
        assert place.peak_flops is not None
        if share is not None:
            reached = trainer.flops() / medians[best] / place.peak_flops
            place.bar(f"{name}: share of the measured product speed", reached, least=share)
        if "whole_logits" in medians:
            times_as_fast = medians["whole_logits"] / medians[best]
            place.bar(f"{name}: pairs/s over padded rows with whole logits", times_as_fast, least=2.5)
    told = ", ".join(f"{way} {work.pairs / seconds:.3g}" for way, seconds in medians.items())
    left_out = "".join(f"; {way}: {why}" for way, why in times.missing.items())
    return f"pairs/s: {told} (medians, n {len(times.seconds[best])}, best of ours: {best}){left_out}", facts


class _Times:
    """Steps of several ways, taken in turn.

    Attributes:
        ways: those that ran, each as a step.
        seconds: of each way, step by step.
        missing: ways that cannot run here, and why.
        broken: ways that should run and do not, and what they raised.
    """

    def __init__(self, trainer: "_Trainer", place: Place) -> None:
        self._trainer, self._place = trainer, place
        self.ways: dict[str, Callable[[], None]] = {}
        self.seconds: dict[str, list[float]] = {}
        self.missing: dict[str, str] = {}
        self.broken: dict[str, str] = {}
        self._warm_up: dict[str, float] = {}
        self._peaks: dict[str, int] = {}
        self._kernels: dict[str, list[dict[str, Any]]] = {}

    def warm_up(self, way: str, step: Callable[[], None]) -> None:
        """Take the first step of a way, which is not counted; if it cannot be taken the others go on."""
        with self._apart(way):
            self._warm_up[way] = _clocked(step, self._place)
            self.ways[way], self.seconds[way] = step, []

    def rounds(self, least: int, most: int) -> None:
        """Let every way take a step in turn, and again until the time is gone."""
        took = 0.0
        for number in range(most):
            started = time.monotonic()
            if number >= least and (self._place.tiny or started + took + _PROFILE_SECONDS > self._place.ends):
                break
            for way, step in [*self.ways.items()]:
                with self._apart(way):
                    if self._place.on_cuda:
                        torch.cuda.reset_peak_memory_stats()
                    self.seconds[way].append(_clocked(step, self._place))
                    self._peaks[way] = self._place.peak()
            took = time.monotonic() - started

    def profile(self, way: str) -> None:
        """What takes most time in a step of a way, if that is one that runs."""
        if way in self.ways:
            with self._apart(f"the profile of {way}"):
                self._kernels[way] = _profiled(self.ways[way], self._place)

    @contextmanager
    def _apart(self, way: str) -> Iterator[None]:
        """What breaks in a way ends that way and no other."""
        try:
            yield
            return
        except MissingError as error:
            self.missing[way] = str(error)
        except (torch.OutOfMemoryError, OutOfMemoryError):
            self.missing[way] = "out of memory"
        except Exception as error:  # a compiler or a kernel that breaks here
            self.broken[way] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        self.ways.pop(way, None)
        self._trainer.zero_grad()
        self._place.release()

    def facts(self) -> dict[str, Any]:
        trainer, flops = self._trainer, self._trainer.flops()
        rows = {}
        for way, seconds in self.seconds.items():
            if seconds:
                middle = statistics.median(seconds)
                rows[way] = {
                    "seconds": _spread(seconds),
                    "pairs_per_second": len(trainer.pairs) / middle,
                    "tokens_per_second": trainer.tokens / middle,
                    "share_of_products": flops / middle / (self._place.peak_flops or float("inf")),
                    "peak_gb": self._peaks[way] / 1e9 if self._peaks[way] else None,
                    "warm_up_seconds": self._warm_up[way],
                }
        return {
            "pairs": len(trainer.pairs),
            "tokens": trainer.tokens,
            "microbatch_tokens": trainer.budget,
            "padded_pairs": trainer.rows,
            "needed_tflop": flops / 1e12,
            "missing": self.missing,
            "broken": self.broken,
            "ways": rows,
            "losses": dict(trainer.losses),
            "kernels": self._kernels,
        }


class _Trainer:
    """One model that takes steps in different ways, always over the same pairs and at learning rate 0.

    Attributes:
        budget: tokens of a micro-batch, but for whole logits.
        rows: pairs of a micro-batch of padded rows with whole logits; halved where they do not fit.
    """

    def __init__(self, work: _Work, place: Place) -> None:
        self._work, self._place = work, place
        AcceleratorState._reset_state(reset_partial_state=True)
        precision = "bf16" if place.on_cuda else "no"
        self._accelerator = Accelerator(mixed_precision=precision, cpu=not place.on_cuda)
        self.pairs = models.make_pairs(work.pairs, work.lengths, work.config.vocab_size)
        self.tokens = sum(pair.num_tokens for pair in self.pairs)
        available = available_bytes(place.device)  # before there is a model
        self._policy = models.build(work.config, place.device, weights=work.weights, lora=work.lora)
        self._optimizer = make_optimizer(self._policy, TrainRecipe())
        start_moments(self._optimizer)
        self.budget, self.rows = self._most_tokens(available), work.rows
        self._policies: dict[str, Policy] = {}
        self.losses: dict[str, float] = {}

    def _most_tokens(self, available: int) -> int:
        """Tokens of a micro-batch as a run chooses them; never less than the longest pair needs."""
        longest = int(tokens_of_each(self.pairs, "shared_prefix").max())
        workload = Workload(
            config=self._work.config,
            parameters=ParameterCounts.of(self._policy.model),
            weights=self._work.weights,
            compute=self._place.compute,
            lora_rank=models.LORA.rank if self._work.lora else None,
            longest_row=int(row_tokens_of_each(self.pairs).max()),
            device=self._place.device,
            available=available,
        )
        most = 64 if self._place.tiny else _TOKENS
        return max(longest, workload.training(checkpointing=False).comfortable_tokens(most))

    def flops(self) -> float:
        """What the method needs for the step."""
        shape = shape_of(self._work.config)
        return float(
            sum(
                needed_flops(shape, len(p.prompt), len(p.chosen), len(p.rejected), frozen=self._work.lora)
                for p in self.pairs
            )
        )

    def zero_grad(self) -> None:
        self._optimizer.zero_grad()

    def ours(self, way: str, packing: Packing = "shared_prefix") -> None:
        """A step as the training loop takes it."""
        policy = self._policies.get(way) or self._policies.setdefault(way, self._policy_for(way))
        with _graphs_only(self._place), policy.packed(packing):
            budget = max(self.budget, int(tokens_of_each(self.pairs, packing).max()))
            cut = microbatches(self.pairs, budget, packing)
            sums = accumulate(policy, self.pairs, Share(cut), loss=LOSS, accelerator=self._accelerator, step=0)
            clip_gradients(policy, 1.0, norm=sums.grad_norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
        self.losses[way] = sums.loss / sums.pairs

    def _policy_for(self, way: str) -> Policy:
        """The same model, with what takes the place of its layers or their parts while prompts are shared."""
        policy = Policy(self._policy.model).train()
        match way:
            case "compiled":
                policy.compile_layers(True)
            case "liger":
                need("liger_kernel")
                if not self._place.on_cuda:
                    raise MissingError("Liger's kernels need a card")
                require(policy.num_liger_layers > 0, "Liger is installed, and none of its kernels is used", {})
            case _ if self._place.on_cuda:
                models.without_fused_layers(policy)
        return policy

    def whole_logits(self) -> None:
        """A step of padded rows as the usual trainers take it: both responses in one batch, all logits in float32."""
        while True:
            try:
                return self._whole_logits()
            except torch.OutOfMemoryError:
                if self.rows == 1:
                    raise
            self.rows //= 2
            self.zero_grad()
            self._place.release()

    def _whole_logits(self) -> None:
        longest_first = sorted(self.pairs, key=lambda pair: -pair.num_tokens)  # like lengths together, as best for them
        total = torch.zeros((), device=self._place.device)
        with self._policy.untouched() as causal:
            for first in range(0, len(self.pairs), self.rows):
                batch = longest_first[first : first + self.rows]
                with self._accelerator.autocast():
                    chosen, rejected = _means_from_whole_logits(causal, batch, self._place.device)
                losses = Objective(LOSS).terms(chosen, rejected).losses
                (losses.sum() / len(self.pairs)).backward()
                total += losses.detach().sum()
            parameters = [p for p in self._policy.parameters() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
        self.losses["whole_logits"] = float(total) / len(self.pairs)

    def require_same_losses(self, facts: dict[str, Any]) -> None:
        """All ways compute the same thing, or the times say nothing."""
        narrow = torch.bfloat16 in (self._work.weights, self._place.compute)
        most = 0.02 if narrow else 1e-4
        apart = {way: abs(loss - self.losses["ours"]) for way, loss in self.losses.items()}
        far = {way: difference for way, difference in apart.items() if not difference <= most}
        require(not far, f"losses differ from ours: {far}", facts)


def _graphs_only(place: Place) -> AbstractContextManager[Any]:
    """Where all is small, layers are made into graphs and no code is made of these, which takes a minute on a CPU."""
    graphs = partial(torch.compile, backend="aot_eager")
    return mock.patch.object(torch, "compile", graphs) if place.tiny else nullcontext()


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
    logits = causal(input_ids=ids, attention_mask=real, use_cache=False).logits.float()[:, :-1]
    # as TRL does it: a row of the batch at a time, which holds less than a log-softmax of all
    normalisers = torch.stack([row.logsumexp(-1) for row in logits])
    logps = logits.gather(2, ids[:, 1:, None]).squeeze(2) - normalisers
    means = (logps * scored).sum(1) / scored.sum(1)
    return means[: len(pairs)], means[len(pairs) :]


def _profiled(step: Callable[[], None], place: Place) -> list[dict[str, Any]]:
    """The kernels (on a CPU the operators) that take most time of a step."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA if place.on_cuda else ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        step()
        place.finish()
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
