"""`simpo eval --generate`: from a name to a folder of answers, of the model and of the one that it is compared with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from simpo_cli.assess.checkpoints import loader_of
from simpo_cli.assess.held_out import held_out_of
from simpo_cli.assess.targets import Target, find_baseline, find_targets
from simpo_cli.data.prepare import prepare_tokenizer
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import ExitCode, UserError
from simpo_cli.evaluate.generation.folder import AnswerFolder, Side
from simpo_cli.evaluate.generation.prompts import NUM_PROMPTS, Questions, questions_of_file, questions_of_pairs
from simpo_cli.evaluate.generation.run import (
    Answering,
    Engine,
    choose_engine,
    generate,
    manifest_of,
    names_of,
    require_same_tokens,
    settle_decoding,
    short_name,
)
from simpo_cli.model.load import find_model
from simpo_cli.recipe.schema import Recipe


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What `--generate` is asked for.

    Attributes:
        prompts: a file of prompts; None asks those of the held-out pairs.
        num_prompts: how many; None is 100 of held-out pairs and all of a file.
        max_new_tokens, temperature: see `settle_decoding`.
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
    """Let a model and its baseline answer, and return the folder that holds what they said.

    Args:
        name: a run, a model, a checkpoint or an adapter.
        overrides: `KEY=VALUE`, as for training; `seed` is also that of the sampled answers.
        baseline: the other model; None is the one that training started from.
        wanted: what is asked, and how.
        say: told what is going on, a line at a time.

    Raises:
        UserError: a name means nothing, there is nothing to compare with, or a prompt or a value is refused.
    """
    if wanted.num_prompts is not None and wanted.num_prompts < 1:
        raise UserError(f"--num-prompts is {wanted.num_prompts}, must be at least 1.", "Leave it out for the default.")
    (trained,) = find_targets([name], overrides)
    base = _base_of(trained, baseline, overrides)
    recipe = trained.recipe
    tokenizer = prepare_tokenizer(recipe)
    questions, asked_of = _questions(recipe, tokenizer, wanted)
    names = names_of(base.name, trained.name)
    models: dict[Side, Answering] = {
        "base": _answering(names["base"], base),
        "trained": _answering(names["trained"], trained),
    }
    require_same_tokens(base.recipe.model, tokenizer, questions.asked)
    decoding = settle_decoding(
        models,
        questions.asked,
        tokenizer,
        recipe.data,
        max_new_tokens=wanted.max_new_tokens,
        temperature=wanted.temperature,
        seed=recipe.seed,
    )
    engine = choose_engine(models) if wanted.engine is None else wanted.engine
    _require_engine(engine, models)
    manifest = manifest_of(models, questions, asked_of, decoding, engine, tokenizer, recipe.data)
    folder = AnswerFolder.make(wanted.folder or _default_folder(trained), manifest, questions.asked)
    say(f"{len(folder.questions):,} prompts of {asked_of}, answered by {engine}, into {folder.path}")
    generate(
        folder,
        models,
        decoding,
        engine,
        tokenizer,
        lambda side, mode, done, all_of_them: say(f"{names[side]}, {mode}: {done:,} of {all_of_them:,}"),
    )
    return folder.path


def _base_of(trained: Target, baseline: str | None, overrides: Sequence[str]) -> Target:
    if baseline == "none" or (baseline is None and trained.start is None):
        raise UserError(
            "answers are compared, and there is nothing to compare with.",
            "Name a run, or the other model with --baseline MODEL.",
        )
    if baseline is None:
        assert trained.start is not None
        return Target(trained.start.path, replace(trained.recipe, model=trained.start))
    base = find_baseline(baseline, overrides, trained.recipe)
    if base.identity == trained.identity:
        raise UserError(f"the baseline {base.name} is the model itself.", "Name another one with --baseline.")
    return base


def _answering(name: str, target: Target) -> Answering:
    source = find_model(target.recipe.model.path, target.recipe.model.revision)
    load = None if target.checkpoint is None else loader_of(target.checkpoint, target.recipe)
    return Answering(name, source, target.checkpoint, load)


def _questions(recipe: Recipe, tokenizer: TextTokenizer, wanted: Wanted) -> tuple[Questions, str]:
    if wanted.prompts is not None:
        return questions_of_file(wanted.prompts, tokenizer, recipe.data, wanted.num_prompts), wanted.prompts
    held_out = held_out_of(recipe)
    most = wanted.num_prompts or NUM_PROMPTS
    return questions_of_pairs(held_out.pairs, held_out.sources, held_out.role, recipe.data, most), held_out.name


def _require_engine(engine: Engine, models: dict[Side, Answering]) -> None:
    if engine == "vllm" and choose_engine(models) != "vllm":
        raise UserError(
            "vLLM is not installed, or one of the models is an adapter or a checkpoint, which it would need merged.",
            "Use --engine transformers.",
            exit_code=ExitCode.ENVIRONMENT,
        )


def _default_folder(trained: Target) -> Path:
    model = Path(trained.name).expanduser()
    if (model.parent / "run.json").is_file():
        return model.parent / "answers"
    return Path("answers") / short_name(trained.name)
