"""`simpo eval --generate`: a model and its baseline answer the same prompts, from names to the folder of answers."""

import hashlib
import importlib.util
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from simpo_cli import __version__
from simpo_cli.data.encode import Rules
from simpo_cli.data.file_bytes import sha256_of
from simpo_cli.data.prepare import prepare_tokenizer
from simpo_cli.data.tokenizer import TextTokenizer, load_tokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generate.blind import write_blind
from simpo_cli.evaluate.generate.decode import Decoding, answers_of, vllm_answers_of
from simpo_cli.evaluate.generate.folder import MODES, SCHEMA_VERSION, SIDES, AnswerFolder, Side
from simpo_cli.evaluate.generate.prompts import NUM_PROMPTS, Question, Questions, questions_of_file, questions_of_pairs
from simpo_cli.evaluate.held_out import held_out_of
from simpo_cli.evaluate.targets import Target, baseline_of, find_targets
from simpo_cli.model.source import ModelSource
from simpo_cli.recipe.schema import ModelRecipe, Recipe

MAX_NEW_TOKENS = 512
"""Most tokens of an answer when nobody says how many and the models know so many positions."""

Engine = Literal["transformers", "vllm"]


@dataclass(frozen=True)
class Answering:
    """A model that is to answer, and what files for other tools call it."""

    name: str
    target: Target
    source: ModelSource


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The options of `--generate`.

    Attributes:
        prompts: a file of prompts; None asks those of the held-out pairs.
        num_prompts: how many; None is 100 of held-out pairs and all of a file.
        max_new_tokens: None is 512, or what there is room for.
        temperature: of the sampled answers.
        engine: what runs the models; None is vLLM where it is installed.
        folder: where answers go; None is RUN/answers, or answers/NAME for what is no run.
    """

    prompts: str | None
    num_prompts: int | None
    max_new_tokens: int | None
    temperature: float
    engine: Engine | None
    folder: Path | None


def answer_prompts(
    name: str, overrides: Sequence[str], baseline: str | None, wanted: Wanted, say: Callable[[str], None]
) -> Path:
    """Let a model and its baseline answer, and return the folder that holds the answers.

    Args:
        name: a run, a model, a checkpoint or an adapter.
        overrides: `KEY=VALUE`, as for training; `seed` is also that of the sampled answers.
        baseline: the other model; None is the one that training started from.
        say: called with what is being done, a line at a time.

    Raises:
        UserError: a name means nothing, there is nothing to compare with, or a prompt or a value is refused.
    """
    if wanted.num_prompts is not None and wanted.num_prompts < 1:
        raise UserError(f"--num-prompts is {wanted.num_prompts}, must be at least 1.", "Leave it out for the default.")
    (trained,) = find_targets([name], overrides)
    base = baseline_of(trained, baseline, overrides)
    if base is None:
        raise UserError(
            "answers are compared, and there is nothing to compare with.",
            "Name a run, or the other model with --baseline MODEL.",
        )
    if base.identity == trained.identity:
        raise UserError(f"the baseline {base.name} is the model itself.", "Name another one with --baseline.")
    recipe = trained.recipe
    tokenizer = prepare_tokenizer(recipe)
    if wanted.prompts is not None:
        asked_of = wanted.prompts
        questions = questions_of_file(asked_of, tokenizer, recipe.data, wanted.num_prompts)
    else:
        held_out, most = held_out_of(recipe), wanted.num_prompts or NUM_PROMPTS
        asked_of = held_out.name
        questions = questions_of_pairs(held_out.pairs, held_out.sources, held_out.role, recipe.data, most)
    names = [short_name(base.name), short_name(trained.name)]
    if names[0] == names[1]:
        names = [f"{names[0]}-base", f"{names[1]}-trained"]
    targets = zip(SIDES, names, (base, trained), strict=True)
    models = {side: Answering(name, target, target.source()) for side, name, target in targets}
    require_same_tokens(base.recipe.model, tokenizer, questions.asked)
    decoding = choose_decoding(models.values(), questions.asked, wanted, recipe, tokenizer)
    engine = choose_engine(models.values(), wanted.engine)
    manifest = manifest_of(models, questions, asked_of, decoding, engine, tokenizer, recipe)
    path = wanted.folder
    if path is None:
        run = Path(trained.name).expanduser().parent
        path = run / "answers" if (run / "run.json").is_file() else Path("answers") / short_name(trained.name)
    folder = AnswerFolder.make(path, manifest, questions.asked)
    say(f"{len(folder.questions):,} prompts of {asked_of}, answered by {engine}, into {folder.path}")
    for side in SIDES:
        _let_answer(folder, side, models[side], decoding, engine, say)
    folder.write_formats(time.time())
    base_answers, trained_answers = (folder.in_order(side, "greedy") for side in SIDES)
    write_blind(folder.path, folder.questions, base_answers, trained_answers, decoding.seed)
    return folder.path


def short_name(name: str) -> str:
    """The last part of a path or id, as it can name a file; of what a run wrote also the run."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if len(parts) > 2 and parts[-2] == "checkpoints":
        parts = [f"{parts[-3]}-{parts[-1]}"]
    last = parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1] if parts else "model"
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in last).lstrip(".") or "model"


def require_same_tokens(base: ModelRecipe, tokenizer: TextTokenizer, questions: Sequence[Question]) -> None:
    """Refuse a base model whose tokenizer gives other tokens: both models get the same ones.

    Raises:
        UserError: names a prompt.
    """
    texts = [question.text for question in questions]
    other = load_tokenizer(base.path, revision=base.revision).encode_batch(texts)
    for question, ours, theirs in zip(questions, tokenizer.encode_batch(texts), other, strict=True):
        if ours != theirs:
            raise UserError(
                f"the tokenizer of {base.path} is another one than that of {tokenizer.where}.",
                "Name a baseline of the same family, such as the model that training started from.",
                where=question.where,
            )


def choose_decoding(
    models: Collection[Answering],
    questions: Sequence[Question],
    wanted: Wanted,
    recipe: Recipe,
    tokenizer: TextTokenizer,
) -> Decoding:
    """How answers are drawn; one has to fit in the positions that both models know, and ends as in training.

    Raises:
        UserError: a value is out of its range, or there is no room for an answer.
    """
    if wanted.max_new_tokens is not None and wanted.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {wanted.max_new_tokens}, must be at least 1.", "512 is usual.")
    if not 0 < wanted.temperature <= 10:
        raise UserError(
            f"--temperature is {wanted.temperature:g}, must be above 0 and at most 10.",
            "Greedy answers are made besides.",
        )
    longest = max(len(question.ids) for question in questions)
    known = [(model.source.max_length, model.name) for model in models if model.source.max_length is not None]
    most, name = min(known, default=(None, ""))
    room = MAX_NEW_TOKENS if most is None else most - longest
    length = min(MAX_NEW_TOKENS, room) if wanted.max_new_tokens is None else wanted.max_new_tokens
    if most is not None and not 1 <= length <= room:
        raise UserError(
            f"the longest prompt has {longest:,} tokens, and {name} knows {most:,} positions: no room for answers of "
            f"{max(1, length):,}.",
            f"Set --max-new-tokens {room} or less." if room >= 1 else "Lower data.max_prompt_length.",
        )
    return Decoding(
        max_new_tokens=length,
        temperature=wanted.temperature,
        seed=recipe.seed,
        end_ids=tuple(sorted(Rules.of(recipe.data, tokenizer).ends)),
        to_text=tokenizer.decode,
    )


def choose_engine(models: Collection[Answering], wanted: Engine | None) -> Engine:
    """What is wanted, or vLLM where it is installed and both models are whole folders.

    Raises:
        UserError: vLLM is wanted and not installed, or it would need a model merged first.
    """
    are_whole = all(model.source.adapter_base is None and model.target.checkpoint is None for model in models)
    has_vllm = are_whole and importlib.util.find_spec("vllm") is not None  # not imported to find out
    if wanted == "vllm" and not has_vllm:
        raise UserError(
            "vLLM is not installed, or one of the models is an adapter or a checkpoint, which it would need merged.",
            "Use --engine transformers.",
            exit_code=ExitCode.ENVIRONMENT,
        )
    return wanted or ("vllm" if has_vllm else "transformers")


def manifest_of(
    models: Mapping[Side, Answering],
    questions: Questions,
    asked_of: str,
    decoding: Decoding,
    engine: Engine,
    tokenizer: TextTokenizer,
    recipe: Recipe,
) -> dict[str, Any]:
    """All that answers depend on, as JSON; two equal ones ask the same of the same models."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "answers",
        "tool": f"simpo {__version__}",
        "models": {side: described(model) for side, model in models.items()},
        "engine": engine,
        "engine_version": version(engine),
        "decoding": {"modes": list(MODES), **decoding_as_json(decoding)},
        **asked_as_json(questions, asked_of, decoding, tokenizer, recipe),
    }


def decoding_as_json(decoding: Decoding) -> dict[str, Any]:
    """How answers are drawn."""
    return {
        "max_new_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": 1.0,
        "top_k": None,
        "repetition_penalty": 1.0,
        "seed": decoding.seed,
    }


def asked_as_json(
    questions: Questions, asked_of: str, decoding: Decoding, tokenizer: TextTokenizer, recipe: Recipe
) -> dict[str, Any]:
    """What is asked, and how it becomes tokens."""
    template = tokenizer.template_source
    return {
        "stop_tokens": [{"id": end, "text": tokenizer.decode([end])} for end in decoding.end_ids],
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
        "chat_template_kwargs": recipe.data.chat_template_kwargs,
        "tokenizer_sha256": tokenizer.sha256,
        "prompts": {
            "from": asked_of,
            "count": len(questions.asked),
            "sha256": hashlib.sha256(repr([one.ids for one in questions.asked]).encode()).hexdigest(),
            "left_out": dict(sorted(questions.left_out.items())),
        },
    }


def described(model: Answering) -> dict[str, Any]:
    """Name, commit of a hub id, type, the hash of every file of weights, also under an adapter, and of its code."""
    source, checkpoint = model.source, model.target.checkpoint
    files = {file.name: sha256_of(file) for file in sorted(source.folder.glob("*.safetensors"))}
    if source.adapter_base is not None:
        below = sorted(source.adapter_base.folder.glob("*.safetensors"))
        files |= {f"base/{file.name}": sha256_of(file) for file in below}
    if checkpoint is not None:
        files["checkpoint/manifest.json"] = sha256_of(checkpoint / "manifest.json")
    dtype = "float32" if checkpoint else str(source.stored_dtype).removeprefix("torch.")
    return {
        "name": model.name,
        "path": str(checkpoint or source.name),
        "revision": source.revision,
        "dtype": dtype,
        "sha256": {**files, **source.code},
    }


def _let_answer(
    folder: AnswerFolder, side: Side, model: Answering, decoding: Decoding, engine: Engine, say: Callable[[str], None]
) -> None:
    """Let a model answer what it has not answered yet.

    Raises:
        UserError: its weights do not load.
    """
    asked = folder.still_to_ask(side)
    if not asked:
        return
    done = {mode: len(folder.questions) - len(asked.get(mode, ())) for mode in MODES}
    if engine == "vllm":
        batches = vllm_answers_of(model.source, asked, decoding)
    else:
        load = None if model.target.checkpoint is None else model.target.load_checkpoint
        batches = answers_of(model.source, asked, decoding, load)
    for mode, answers in batches:
        folder.add(side, mode, answers)
        done[mode] += len(answers)
        say(f"{model.name}, {mode}: {done[mode]:,} of {len(folder.questions):,}")
