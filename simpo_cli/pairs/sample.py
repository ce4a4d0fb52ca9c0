"""`simpo pairs sample`: a model answers every prompt several times.

Each answer draws from random numbers of its own, which follow from the seed, the prompt's hash and the answer's number:
the same whatever else is asked, by however many processes.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

import torch

from simpo_cli import __version__
from simpo_cli.data.encode import answer_opening
from simpo_cli.data.prepare import prepare_tokenizer
from simpo_cli.distributed.place import Place
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.decode import (
    Decoding,
    answer_batch,
    batches_by_length,
    open_for_answers,
    opened_vllm,
    rows_that_fit,
)
from simpo_cli.evaluate.generate.folder import Answer, Mode
from simpo_cli.evaluate.generate.prompts import Question, questions_of
from simpo_cli.evaluate.generate.run import (
    Answering,
    Engine,
    Wanted,
    asked_as_json,
    choose_decoding,
    choose_engine,
    decoding_as_json,
    described,
    short_name,
)
from simpo_cli.evaluate.targets import Target, find_speaker
from simpo_cli.model.device import device_type
from simpo_cli.names import kind_of
from simpo_cli.pairs.prompts import prompts_of
from simpo_cli.pairs.samples import ANSWERS, SCHEMA_VERSION, BatchLog, Row, RowKey, SampleFolder, locked
from simpo_cli.stages import stage

_MOST_ROWS = 128
"""Of a batch of transformers: more are hardly faster, seen from 1.1 M parameters on two cores."""
_CPU_TOKENS = 16_384
"""Of a batch on a CPU, prompts of mean length: there a larger one is no faster, and takes minutes that a kill loses."""
_ROWS_OF_VLLM = 1024
"""It batches by itself; so many are lost with a kill."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """The options of `simpo pairs sample`.

    Attributes:
        of_pairs: the file holds pairs, and their prompts are asked.
        num_prompts: how many are asked, the first ones; None asks all.
        answers_per_prompt: how often each is answered.
        temperature: 0 is greedy decoding, which has one answer to a prompt.
        max_new_tokens: None is 512, or what there is room for.
        engine: what runs the model; None is vLLM where it is installed.
    """

    of_pairs: bool = False
    num_prompts: int | None = None
    answers_per_prompt: int = 5
    temperature: float = 0.8
    seed: int = 1
    max_new_tokens: int | None = None
    engine: Engine | None = None


def sample(
    prompts: str,
    model: str,
    options: Sampling,
    folder: Path | None,
    say: Callable[[str], None],
    place: Place | None = None,
) -> SampleFolder:
    """Let a model answer prompts, and return the folder of its answers; a folder that is there is continued.

    Args:
        prompts: a file of prompts, of pairs with `of_pairs`, or `builtin:guide`.
        model: a run, a model, a checkpoint, an adapter or a recipe.
        folder: where the answers go; None is answers/NAME, by the name of the model.
        say: called with what is being done, a line at a time.
        place: of this process among several, each of which makes a share of the batches; the first writes the file.

    Raises:
        UserError: a name means nothing, or a prompt or a value is refused.
    """
    _require_sense(options)
    target = find_speaker(model)
    recipe = target.recipe
    tokenizer = prepare_tokenizer(recipe)
    read = prompts_of(prompts, of_pairs=options.of_pairs)
    questions = questions_of(read, prompts, tokenizer, recipe.data, options.num_prompts)
    answering = Answering(_name_of(target, model), target, target.source())
    wanted = Wanted(
        prompts=prompts,
        num_prompts=options.num_prompts,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature or 1.0,
        engine=options.engine,
        folder=folder,
    )
    decoding = replace(
        choose_decoding([answering], questions.asked, wanted, recipe, tokenizer),
        temperature=options.temperature,
        seed=options.seed,
    )
    engine = choose_engine([answering], options.engine)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "kind": "samples",
        "tool": f"simpo {__version__}",
        "model": described(answering),
        "engine": engine,
        "engine_version": version(engine),
        "decoding": {"answers_per_prompt": options.answers_per_prompt, **decoding_as_json(decoding)},
        **asked_as_json(questions, prompts, decoding, tokenizer, recipe),
        "batch_rows": _rows(answering, questions.asked, decoding, engine),
    }
    opening = answer_opening(questions.asked[0].turns, tokenizer, recipe.data)
    path = folder or Path("answers") / answering.name
    if place is None or place.is_first:
        SampleFolder.require_usable(path)
        with locked(path):
            made = SampleFolder.make(path, manifest, questions.asked)
            return _answer(made, answering, decoding, engine, opening, say, place)
    return _answer(_follow(path), answering, decoding, engine, opening, say, place)


def _name_of(target: Target, named: str) -> str:
    """What a model is called: a run by the name of its recipe, that of a recipe by its own."""
    if target.of_run is not None:
        return target.of_run.name
    return short_name(target.recipe.model.path if kind_of(named) == "recipe" else named)


def _follow(path: Path) -> SampleFolder:
    """The folder that the first process makes."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return SampleFolder.open(path)
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _require_sense(options: Sampling) -> None:
    if options.answers_per_prompt < 1:
        raise UserError(f"-n is {options.answers_per_prompt}, must be at least 1.", "5 is usual.")
    if options.num_prompts is not None and options.num_prompts < 1:
        raise UserError(f"--num-prompts is {options.num_prompts}, must be at least 1.", "Leave it out for all.")
    if not 0 <= options.temperature <= 10:
        raise UserError(f"--temperature is {options.temperature:g}, must be 0 to 10.", "0.8 is usual; 0 is greedy.")
    if options.temperature == 0 and options.answers_per_prompt > 1:
        raise UserError(
            f"greedy decoding (--temperature 0) gives the same answer {options.answers_per_prompt} times.",
            "Add -n 1, or raise the temperature.",
        )


def _rows(answering: Answering, questions: Sequence[Question], decoding: Decoding, engine: Engine) -> int:
    """How many answers a batch has."""
    if engine == "vllm":
        return _ROWS_OF_VLLM
    source, device, most = answering.source, torch.device(device_type()), _MOST_ROWS
    if device.type == "cpu":
        tokens = fmean(len(one.ids) for one in questions) + decoding.max_new_tokens
        most = max(1, min(most, int(_CPU_TOKENS / tokens)))
    return rows_that_fit(source.text_config, device, questions, decoding, source.stored_dtype, most)


def _answer(
    folder: SampleFolder,
    answering: Answering,
    decoding: Decoding,
    engine: Engine,
    opening: str,
    say: Callable[[str], None],
    place: Place | None,
) -> SampleFolder:
    """Make the batches that are missing, or this process's share of them, and write the file when all are there.

    `opening` is what the template's generation prompt already holds of an answer, such as `<think>`: in a pair, and
    before whoever scores it, the answer begins with it.
    """
    num, rank, world = folder.answers_per_prompt, 0, 1
    if place is not None:
        rank, world = place.rank, place.world_size
    if folder.is_whole:
        say(f"all {num * len(folder.questions):,} answers are in {folder.path}")
        return folder
    decoding = replace(decoding, **{key: folder.manifest["decoding"][key] for key in ("max_new_tokens", "seed")})
    asked = [replace(one, key=f"{one.key}.{number}") for one in folder.questions for number in range(num)]
    batches = batches_by_length(asked, folder.manifest["batch_rows"])
    row_keys = [[_row_key(one.key) for one in batch] for batch in batches]
    log = BatchLog(folder.path, ANSWERS, {"manifest": folder.manifest}, rank)
    done = log.done(row_keys)
    left = [number for number in range(rank, len(batches), world) if number not in done]
    if left:
        resumed = f", {len(done):,} of {len(batches):,} batches are there" if done else ""
        say(
            f"sampling {num} x {len(folder.questions):,} answers by {folder.manifest['model']['name']} ({engine}) into "
            f"{folder.path}{resumed}"
        )
        mode: Mode = "greedy" if decoding.temperature == 0 else "sampled"
        with _opened(engine, answering, decoding, folder.questions) as answer, stage("answering", len(left)) as working:
            for number in left:
                log.add(number, [_row(one, opening) for one in answer(batches[number], mode)])
                working.advance()
    if rank == 0:
        _finish(folder, log, row_keys, world)
    return folder


@contextmanager
def _opened(
    engine: Engine, answering: Answering, decoding: Decoding, questions: Iterable[Question]
) -> Iterator[Callable[[Sequence[Question], Mode], list[Answer]]]:
    """The model, as a function that answers a batch."""
    if engine == "vllm":
        with opened_vllm(answering.source, decoding, max(len(one.ids) for one in questions)) as answer:
            yield answer
        return
    target = answering.target
    model = open_for_answers(answering.source, None if target.checkpoint is None else target.load_checkpoint)
    yield lambda batch, mode: answer_batch(model, batch, decoding, mode)


def _row(answer: Answer, opening: str) -> Row:
    key, number = _row_key(answer.key)
    text = f"{opening}{answer.text}" if answer.text else ""
    return {"key": key, "number": number, "output": text, "ended": answer.ended, "ids": list(answer.ids)}


def _row_key(key: str) -> RowKey:
    """Of an answer whose question was asked by this key."""
    key, number = key.rsplit(".", 1)
    return key, int(number)


def _finish(folder: SampleFolder, log: BatchLog, row_keys: Sequence[Sequence[RowKey]], world: int) -> None:
    """Wait for the batches of the other processes, and write the file."""
    while len(done := log.done(row_keys)) < len(row_keys):
        if world == 1:
            raise AssertionError("a batch is missing that nobody else makes")
        time.sleep(0.2)
    rows = {(row["key"], row["number"]): row for batch in done.values() for row in batch}
    numbers = range(folder.answers_per_prompt)
    log.finish(rows[one.key, number] for one in folder.questions for number in numbers)
