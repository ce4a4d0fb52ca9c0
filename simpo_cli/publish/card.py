"""The card of a model folder: what hubs read of it, and what a stranger has to know before using it.

It travels with the model, so it names nothing of the machine: models and data sets by their hub ids, files by a hash.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import simpo_cli
from simpo_cli.data.encode import AS_TRANSCRIPT
from simpo_cli.data.prepare import PreparedData
from simpo_cli.data.store import EncodedSource
from simpo_cli.evaluate.tables import checked_in_words, gain_in_words, outcome_table, rules_table
from simpo_cli.files import disk_faults, replacing
from simpo_cli.formatting import Cell, border_in_words, few_prompts
from simpo_cli.model.source import ModelSource
from simpo_cli.publish.serve import can_be_gguf, serve_commands, served_name
from simpo_cli.recipe.schema import Recipe, loss_terms
from simpo_cli.redaction import redacted
from simpo_cli.table import Row, Table

CARD = "README.md"
_QUANTISED = {
    "nf4": 'load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True',
    "int8": "load_in_8bit=True",
}
_LICENCE = ("license", "license_name", "license_link")
_SHA256_DIGITS = 64


@dataclass(frozen=True, slots=True)
class Trained:
    """What a card is about."""

    recipe: Recipe
    start: ModelSource  # the model that training began with
    data: PreparedData
    steps: int
    dtype: str  # of the weights in the folder, such as bfloat16
    merged: str = ""  # for adapters merged into the model under them, how that was checked, in a sentence

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds adapters and not a whole model."""
        return self.recipe.model.lora is not None and not self.merged

    @property
    def num_pairs(self) -> int:
        """Pairs that were trained on: all, unless train.max_steps came first."""
        return min(len(self.data.train), self.steps * self.recipe.train.pairs_per_step)

    @property
    def hub_model(self) -> str | None:
        """The id on the hub of the start model, of an adapter that of its base; None for what is not there."""
        return None if self.start.whole.revision is None else self.start.whole.name


def model_card(trained: Trained, outcome: Mapping[str, Any]) -> str:
    """The card as Markdown with its metadata in front, from the outcome in run.json."""
    parts = [_introduction(trained), *_results(outcome), _loading(trained), _serving(trained), _training(trained)]
    return f"---\n{_metadata(trained)}\n---\n\n" + "\n\n".join(parts) + "\n"


def write_card(folder: Path, card: str) -> None:
    """Put a card in the place of the one that is there.

    It is written beside the folder, so that a process killed in it leaves nothing in the model that others load.

    Raises:
        UserError: the disk did not take it (exit code 4); the old card is as it was.
    """
    file, then = folder / CARD, ", and run the same command with --resume"
    what = f"the card of the model cannot be written to {file}"
    with disk_faults(what, then), replacing(file, written_in=folder.parent) as stream:
        stream.write(redacted(card))


def inherited_licence(start: ModelSource) -> dict[str, str]:
    """The licence that the start model's card states, in the hub's words; empty where there is no such card."""
    from huggingface_hub import metadata_load

    try:
        stated: Mapping[str, Any] = metadata_load(start.folder / CARD) or {}
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one that is damaged
        return {}
    licence = {key: str(stated[key]) for key in _LICENCE if isinstance(stated.get(key), str)}
    link = licence.get("license_link", "")
    if link and "://" not in link:  # a file beside the start model, which is not copied
        del licence["license_link"]
        if start.revision is not None:
            licence["license_link"] = f"https://huggingface.co/{start.name}/blob/main/{link}"
    return licence if "license" in licence else {}


def _metadata(trained: Trained) -> str:
    from huggingface_hub import ModelCardData

    tags = ["simpo", "preference-alignment", "preference-optimization"]
    tags += ["custom_code"] if trained.start.code else []  # the hub's word for it
    files = [file for source in trained.data.sources for file in source.account.files]
    datasets = list(dict.fromkeys(path for path, identity, _ in files if _is_of_hub(identity)))
    return ModelCardData(
        base_model=trained.hub_model,
        base_model_relation=None if trained.hub_model is None else "adapter" if trained.is_adapter else "finetune",
        datasets=datasets or None,
        library_name="peft" if trained.is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[*tags, "lora"] if trained.is_adapter else tags,
        **inherited_licence(trained.start),  # type: ignore[arg-type]  # texts, each under its own name
    ).to_yaml()


def _introduction(trained: Trained) -> str:
    what = "Adapters merged into" if trained.merged else "A tuning of"
    if trained.is_adapter:
        what = "Adapters (LoRA) for"
    beside = f", trained beside a base in {trained.start.quantization}" if trained.start.quantization else ""
    text = (
        f"# {' '.join(trained.recipe.name.split())}\n\n{what} {_named(trained)} by "
        f"[SimPO](https://arxiv.org/abs/2405.14734), from {trained.num_pairs:,} preference pairs (prompt, chosen and "
        "rejected response) and without a reward model. "
        f"Weights are {trained.dtype}{beside}. Made with simpo {simpo_cli.__version__}."
    )
    return f"{text}\n\n{trained.merged}" if trained.merged else text


def _named(trained: Trained) -> str:
    if trained.hub_model is not None:
        return f"[{trained.hub_model}](https://huggingface.co/{trained.hub_model})"
    if trained.start.name == "builtin:guide":
        return "the small model that simpo carries with it (`builtin:guide`)"
    return f"a {trained.start.config.model_type} model that is not on the hub"


def _results(outcome: Mapping[str, Any]) -> list[str]:
    heading = "## How it did"
    if "not_measured" in outcome:
        why = outcome["not_measured"]
        return [f"{heading}\n\nNot measured: {why}. Nothing says whether it got better than its start."]
    if "before" not in outcome:
        return [f"{heading}\n\nNo held-out pairs were scored, so nothing says whether it got better than its start."]
    after, difference = outcome["after"], outcome["difference"]
    rules = "; ".join(f"{row.label} {row.cells[0]}" for row in rules_table(after["baselines"]).rows)
    gain = f"{gain_in_words(outcome)} One seed. Brackets hold 95 % intervals."
    border = border_in_words(difference["accuracy"], difference["p_value"])
    return [
        f"{heading}\n\n{markdown(outcome_table(outcome))}",
        " ".join(filter(None, (gain, few_prompts(after), border, checked_in_words(outcome)))),
        f"To beat on the same pairs: {rules}.",
        "Accuracy is the share of pairs in which the model finds the chosen response the likelier one, per token. "
        "It says whether the model agrees with these pairs, and not whether its own answers are better, true or safe.",
    ]


def markdown(table: Table) -> str:
    """The rows of a table, for the card."""
    heading = [(table.title, *table.columns), ("---",) * (1 + len(table.columns))]
    rows = [*heading, *((row.label.strip(), *map(str, row.cells)) for row in table.rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _loading(trained: Trained) -> str:
    name, imports = "AutoModelForCausalLM", ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    if trained.is_adapter:
        name = "AutoPeftModelForCausalLM"
        imports = [f"from peft import {name}", "from transformers import AutoTokenizer"]
    if trained.data.tokenizer.template_source:
        asked = [
            'messages = [{"role": "user", "content": "What is preference alignment?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    else:
        asked = ['inputs = tokenizer("What is preference alignment?", return_tensors="pt")']
    trust = ", trust_remote_code=True" if trained.start.code else ""
    quantised, settings = "", ""
    if trained.is_adapter and trained.start.quantization is not None and not trained.start.is_stored_quantised:
        imports.append("from transformers import BitsAndBytesConfig")
        settings = _QUANTISED[trained.start.quantization]
        quantised = ", quantization_config=as_trained"
    code = [
        *imports,
        "",
        *([f"as_trained = BitsAndBytesConfig({settings})  # leave it out for the whole base"] if settings else []),
        'path = "."  # this folder, or its name on the hub',
        f"tokenizer = AutoTokenizer.from_pretrained(path{trust})",
        f"model = {name}.from_pretrained(path{trust}{quantised})",
        *asked,
        "answer = model.generate(**inputs, max_new_tokens=200)",
        'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    text = "## How to load it\n\n```python\n" + "\n".join(code) + "\n```"
    if not trained.start.code:
        return text
    where = "that comes with the model under it" if trained.is_adapter else "in this folder"
    files = ", ".join(f"`{file}`" for file in trained.start.code)
    return f"{text}\n\nThis runs Python code {where} ({files}): read it before you load the model."


def _serving(trained: Trained) -> str:
    """How servers are started on the folder of the card."""
    recipe = trained.recipe.model if trained.is_adapter else replace(trained.recipe.model, lora=None, quantization=None)
    name, base = served_name(trained.recipe.name), trained.hub_model or "START-MODEL"
    commands = serve_commands(name, ".", base, recipe, has_code=bool(trained.start.code))
    lines = [command for command, _ in commands]
    text = "In this folder:" if lines else "Adapters with DoRA are merged before they are served."
    if lines:
        text += "\n\n```shell\n" + "\n".join(lines) + "\n```"
    if recipe.quantization is not None and lines:
        text += (
            f"\n\nvLLM has the base whole, where the numbers above were measured beside one in {recipe.quantization}."
        )
    if can_be_gguf(trained.start):
        text += "\n\nWhoever has the run makes one file of it for Ollama and llama.cpp: `simpo export RUN --gguf q8_0`."
    return f"## How to serve it\n\n{text}"


def _training(trained: Trained) -> str:
    recipe, train = trained.recipe, trained.recipe.train
    epochs = "" if train.max_steps else ", 1 epoch" if train.num_epochs == 1 else f", {train.num_epochs} epochs"
    schedule = (
        f"{trained.steps:,} steps of {train.pairs_per_step} pairs{epochs}; learning rate {train.learning_rate:g}, "
        f"{train.lr_scheduler}, warm-up {train.warmup_ratio:g}; {train.optimizer}"
    )
    rows = [("objective", loss_terms(recipe.loss))]
    if (lora := recipe.model.lora) is not None:
        targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
        kinds = {"rsLoRA": lora.use_rslora, "DoRA": lora.use_dora, "PiSSA": lora.init == "pissa"}
        named = "".join(f", {kind}" for kind, is_used in kinds.items() if is_used)
        rows.append(("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}, {targets}{named}"))
    rows += [
        ("schedule", schedule),
        ("lengths", f"{recipe.data.max_length:,} tokens, of which {recipe.data.max_prompt_length:,} of the prompt"),
        *_data_rows(trained),
    ]
    if any(source.account.counts[AS_TRANSCRIPT] for source in trained.data.sources):  # its users have to know
        rows.append(("form", "no chat template: conversations were trained as `Human:` / `Assistant:` text"))
    rows.append(("seed", str(recipe.seed)))
    if trained.hub_model is not None:
        adapter = "" if trained.start.adapter is None else ", with an adapter that was trained before"
        rows.append(("start model", f"{trained.hub_model} at {trained.start.whole.revision}{adapter}"))
    table = Table(("",), [Row(label, (Cell(text),)) for label, text in rows])
    return f"## How it was trained\n\n{markdown(table)}"


def _data_rows(trained: Trained) -> list[tuple[str, str]]:
    data = trained.data
    pairs = f"{len(data.train):,} pairs"
    if trained.num_pairs < len(data.train):
        pairs += f", of which {trained.num_pairs:,} were reached"
    if data.eval_source is None:
        shares = f"{pairs}, and {len(data.held_out):,} held out of the same by prompt{trained.recipe.eval.half}"
        return [("data", f"{_origin(data.train_source)}: {shares}")]
    shared = f"; {data.shared_prompts:,} training pairs have a prompt of these" if data.shared_prompts else ""
    return [
        ("data", f"{_origin(data.train_source)}: {pairs}"),
        ("held out", f"{_origin(data.eval_source)}: {len(data.held_out):,} pairs{trained.recipe.eval.half}{shared}"),
    ]


def _origin(source: EncodedSource) -> str:
    """Hub data sets with their commits; of files, whose names are nobody's business, the hashes."""
    named = [
        f"[{path}](https://huggingface.co/datasets/{path}) at {identity}"
        for path, identity, _ in source.account.files
        if _is_of_hub(identity)
    ]
    hashes = [identity[:12] for _, identity, _ in source.account.files if not _is_of_hub(identity)]
    if hashes:
        shown = ", ".join(hashes[:5]) + (f" and {len(hashes) - 5:,} more" if len(hashes) > 5 else "")
        named.append(f"{len(hashes):,} {'file' if len(hashes) == 1 else 'files'} (sha256 {shown})")
    return ", ".join(named)


def _is_of_hub(identity: str) -> bool:
    """What is read of a file is known by its sha256, what is read of the hub by its commit."""
    return len(identity) != _SHA256_DIGITS
