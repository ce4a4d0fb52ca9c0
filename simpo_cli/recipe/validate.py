"""From the merged tree to the frozen dataclasses by pydantic; each of its errors gets its place and a cure.

A key that a recipe does not have is answered with the one that was probably meant, never ignored.
"""

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from simpo_cli.errors import UserError
from simpo_cli.recipe.fields import (
    Schema,
    accepts,
    all_keys,
    bounds,
    choices,
    describe,
    fix_of,
    forms,
    nearest_section,
    root,
    schema_at,
    section_of,
)
from simpo_cli.recipe.schema import LossType, Recipe
from simpo_cli.recipe.tree import Node, Path, changed, lookup, node_of, unflat
from simpo_cli.recipe.values import FieldError
from simpo_cli.recipe.yaml_text import scalar_of

_RECIPE = TypeAdapter(Recipe)
_OUT_OF_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number")
_LARGEST_EXACT = 2**53  # whole numbers above this change when they become a float
_EXAMPLES = {
    "name": "name: my-run",
    "model.path": "model: {path: builtin:guide}",
    "data.train": "data: {train: prefs.jsonl}",
}

_STEP = "It counts the pairs of a whole step, over all devices; micro-batches are cut to the memory."
_DEVICE = (
    "The device is found by itself. In front of the command CUDA_VISIBLE_DEVICES=0 chooses a card, "
    "ACCELERATE_USE_CPU=true the CPU."
)

# Keys that people write by habit, from recipes of other tools, by what they are called here; "" if there is none.
_CALLED: list[tuple[str, str, str]] = [
    ("lr", "train.learning_rate", ""),
    ("batch_size global_batch_size train_batch_size per_device_train_batch_size", "train.pairs_per_step", _STEP),
    ("gradient_accumulation_steps", "train.pairs_per_step", _STEP),
    ("micro_batch_size", "train.tokens_per_microbatch", ""),
    ("epochs num_train_epochs", "train.num_epochs", ""),
    ("lr_scheduler_type scheduler", "train.lr_scheduler", ""),
    ("warmup", "train.warmup_ratio", ""),
    ("optim", "train.optimizer", ""),
    ("max_norm", "train.max_grad_norm", ""),
    ("bf16 mixed_precision pure_bf16", "train.precision", "It is auto, bf16 or fp32."),
    ("fp16", "train.precision", "It is auto, bf16 or fp32: in fp16 small gradients would be lost."),
    ("model_name_or_path model_name base_model", "model.path", ""),
    ("torch_dtype dtype", "model.weights_dtype", ""),
    ("attn_implementation flash_attn", "model.attention", "The kernel is chosen by the device."),
    ("lora_r r", "model.lora.rank", ""),
    ("lora_alpha", "model.lora.alpha", ""),
    ("lora_dropout", "model.lora.dropout", ""),
    ("lora_target", "model.lora.target_modules", ""),
    ("finetuning_type", "model.lora", "With it adapters are trained, without it all weights."),
    ("dataset train_file dataset_name dataset_path", "data.train", ""),
    ("eval_dataset", "data.eval", ""),
    ("max_seq_length max_completion_length", "data.max_length", "It counts prompt and response together."),
    ("cutoff_len", "data.max_length", ""),
    ("template", "data.chat_template", ""),
    ("loss_type pref_loss", "loss.type", f"The objective is SimPO: its loss is {' or '.join(get_args(LossType))}."),
    ("simpo_gamma", "loss.gamma", ""),
    ("gamma_ratio", "loss.gamma_beta_ratio", ""),
    ("pref_beta", "loss.beta", ""),
    ("cpo_alpha", "loss.sft_weight", "It weighs the likelihood of the chosen responses, which SimPO leaves at 0."),
    ("sft_alpha", "loss.sft_weight", ""),
    ("eval_steps eval_strategy evaluation_strategy", "eval.every", ""),
    ("save_steps save_strategy", "checkpoint.every", ""),
    ("save_total_limit", "checkpoint.keep", ""),
    ("load_best_model_at_end", "checkpoint.best", ""),
    ("logging_steps", "tracking.log_every", ""),
    ("run_name", "name", ""),
    ("device use_cpu no_cuda device_map", "", _DEVICE),
    ("ref_model reference_model ref_model_path reference_free", "", "SimPO has no reference model: leave it out."),
    ("stage do_train do_eval", "", "There is one method here, and it trains and evaluates: leave it out."),
    ("trust_remote_code", "", "Code of a model is allowed on the command line: --trust-remote-code"),
    ("resume_from_checkpoint", "", "A run is resumed on the command line: simpo train RECIPE --resume"),
    ("overwrite_output_dir", "", "An existing run is set aside on the command line: simpo train RECIPE --fresh"),
    ("push_to_hub", "", "A finished run is sent to the hub by: simpo export RUN --push ORG/NAME"),
    ("packing", "", "Pairs are packed by themselves: leave it out."),
    ("remove_unused_columns", "", "Fields that are not used are named on the first screen: leave it out."),
]
HABITS = {name: (key, note) for names, key, note in _CALLED for name in names.split()}
"""Names of keys elsewhere: what each is called here, if there is such a key, and what to know about it."""


class MissingKeyError(UserError):
    """A required key is not given."""


def without_unknown(tree: Node) -> tuple[Node, list[UserError]]:
    """The tree without the keys that a recipe does not have, and an error for each of them."""
    problems: dict[Path, UserError] = {}
    for detail in _validated(tree)[1]:
        path = _path(tree, detail)
        node = lookup(tree, path)
        if node is not None and detail["loc"][-1:] == ("[key]",):
            above = schema_at(path[:-1]) or {}
            names = next(form["propertyNames"] for form in forms(above) if "propertyNames" in form)
            problems[path] = unknown_part(path, choices(names), node)
        elif node is not None and detail["type"] == "unexpected_keyword_argument":
            problems[path] = unknown_key(path, node)

    def without(node: Node, path: Path) -> Node:
        if not isinstance(node.value, dict):
            return node
        return Node({key: item for key, item in node.value.items() if (*path, key) not in problems}, node.origin)

    return changed(tree, without), list(problems.values())


def fill_defaults(node: Node, section: Schema | None = None) -> Node:
    """The tree with every default written out, so that ${...} can refer to it and it is shown."""
    section = section or root()
    if isinstance(node.value, list):
        return replace(node, value=[fill_defaults(item, section) for item in node.value])
    if not isinstance(node.value, dict):
        return node
    items: dict[str, Node] = {}
    for key, field in section["properties"].items():
        item, below = node.value.get(key), section_of(field)
        if item is None and "default" in field:
            item = node_of(field["default"])
        elif item is None and (key not in section.get("required", ()) or "properties" in field):
            item = node_of([] if accepts(field, "array") else {})
        if item is not None:
            items[key] = fill_defaults(item, below) if below else item
    return Node(items, node.origin)


def to_recipe(tree: Node, display: str) -> tuple[Recipe | None, list[UserError]]:
    """The typed recipe, or None and every problem that keeps the tree from being one."""
    recipe, details = _validated(tree)
    found: dict[Path, ErrorDetails] = {}
    for detail in details:
        found.setdefault(_path(tree, detail), detail)  # of a value with several forms the first complains
    deepest = [path for path in found if not any(other[: len(path)] == path != other for other in found)]
    return recipe, [_problem(path, found[path], tree, display) for path in deepest]


def refused_value(*, loss: Mapping[str, Any], data: Mapping[str, Any], train: Mapping[str, Any]) -> UserError | None:
    """The error of the first value that a recipe would refuse in these sections; None if it takes them all."""
    values = {"name": "any", "model": {"path": "any"}, "data": {"train": "any", **data}, "loss": loss, "train": train}
    return next(iter(to_recipe(node_of(values), "")[1]), None)


def recipe_of(values: Mapping[str, Any], name: str = "recipe") -> Recipe:
    """The recipe that gives values by their dotted keys, and defaults for all others.

    Raises:
        UserError: a value is refused.
    """
    recipe, problems = to_recipe(unflat({"name": name, **values}), "")
    if recipe is None:
        raise problems[0]
    return recipe


def _validated(tree: Node) -> tuple[Recipe | None, list[ErrorDetails]]:
    try:  # as JSON: what is strict takes no mapping of Python for a section
        return _RECIPE.validate_json(json.dumps(_plain(tree, ()), default=float)), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _plain(node: Node, path: Path) -> Any:
    """The values of a tree; what is still to be filled in (???) is left out."""
    if isinstance(node.value, dict):
        return {key: _plain(item, (*path, key)) for key, item in node.value.items() if not item.is_open}
    if isinstance(node.value, list):
        return [_plain(item, (*path, key)) for key, item in node.below()]
    schema = schema_at(path) or {}
    value = _fitted(node.value, schema) if node.interpolated else node.value
    is_inexact = isinstance(value, int) and abs(value) > _LARGEST_EXACT and accepts(schema, "number")
    return str(value) if is_inexact else value  # no number: it would become another one


def _fitted(value: Any, schema: Schema) -> Any:
    """A computed value in the type of its key: environment variables are text, names may be built of numbers."""
    if not schema:
        return value
    if isinstance(value, str) and not accepts(schema, "string") and value not in choices(schema):
        return scalar_of(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and accepts(schema, "string") and not accepts(schema, "null"):
        return str(value)
    return value


def _path(tree: Node, detail: ErrorDetails) -> Path:
    """Where in the tree an error lies: pydantic names the forms of a value, such as `list[str]`, as well."""
    path: Path = ()
    node = tree
    for part in map(str, detail["loc"]):
        below = lookup(node, (part,))
        if below is not None:
            path, node = (*path, part), below
        elif detail["type"] == "missing":
            path = (*path, part)
    return path


def _problem(path: Path, detail: ErrorDetails, tree: Node, display: str) -> UserError:
    key, node, cause = ".".join(path), lookup(tree, path), detail.get("ctx", {}).get("error")
    if node is None or detail["type"] == "missing":
        near = lookup(tree, path[:-1])
        where = near.origin.where if near is not None and len(path) > 1 else ""
        example = _EXAMPLES.get(key, f"{path[-1]}: prefs.jsonl")
        return MissingKeyError(f"{key} is missing.", f"Give it, for example {example}", where=where or display, key=key)
    if isinstance(cause, FieldError):
        keys = [tuple(name.split(".")) for name in (cause.key, *cause.related)]
        nodes = [below for name in keys if (below := lookup(node, name)) is not None]
        key = ".".join((*path, *keys[0]))
        problem, fix, where = _unexpanded(cause.problem, nodes), cause.fix, node.origin.where or display
        if written := [below.origin for below in nodes if not below.origin.is_default]:
            # where to look first: the last override among these, else this file, else the first that was written
            where = max(written, key=lambda origin: (origin.override or 0, origin.file == display)).where
        return UserError(f"{key} {problem}.", fix, where=where, key=key)
    schema = schema_at(path) or {}
    fix = fix_of(schema)
    if cause is not None:
        problem = _unexpanded(str(cause), [node])
    elif detail["type"] == "too_short":
        problem = "is empty"
    elif detail["type"] in _OUT_OF_BOUNDS and node.is_scalar:
        value = detail["input"]
        shown = node.expression or (float(value) if not accepts(schema, "integer") else value)
        problem = f"is {shown}, {bounds(schema)}"
    else:
        problem = f"is {_shown(node)}; wanted: {describe(schema)}"
        fix = _fix(node, schema, path) or f"See: simpo recipe schema {nearest_section(path)}".rstrip()
    return UserError(f"{key} {problem}.", fix, where=node.origin.where or display, key=key)


def _unexpanded(problem: str, nodes: list[Node]) -> str:
    """What is wrong with a value, without the value where it is of the environment."""
    for node in nodes:
        if node.expression:
            spelled = {repr(node.value), str(node.value), str(scalar_of(str(node.value)))}
            values = "|".join(map(re.escape, sorted(spelled, key=len, reverse=True)))
            expression = node.expression.replace("\\", r"\\")
            problem = re.sub(rf"(?<![\w.])(?:{values})(?:\.0)?(?![\w.])", expression, problem)
    return problem


def _shown(node: Node) -> str:
    """How the value was written, and what it was read as."""
    if not node.is_scalar:
        return "a list" if isinstance(node.value, list) else "a mapping"
    if node.expression:
        return f"{node.expression} from the environment"
    if isinstance(node.value, str):
        return repr(node.value) if len(node.value) <= 40 else repr(node.value[:40]) + "..."
    text = node.text if node.plain and node.text else str(node.value)
    text = text if len(text) <= 40 else text[:40] + "..."
    if node.value is None:
        return f"{text}, which is null" if text not in ("", "None", "null") else "null"
    if isinstance(node.value, bool):
        plain = str(node.value).lower()
        return plain if text.lower() == plain else f"{text}, which YAML reads as {plain}"
    return f"{text}, a number"


def _fix(node: Node, schema: Schema, path: Path) -> str:
    last = path[-1]
    match node.value:
        case dict() if section_of(schema) and accepts(schema, "array"):
            return f"Write a list with one item: put a dash before the first key below {last}."
        case dict() | list():
            return ""
        case None:
            return f"Give a value, or delete the line to use the default of {'.'.join(path)}."
        case str():
            return _fix_of_text(node, schema, last)
        case int() as value if abs(value) > _LARGEST_EXACT and accepts(schema, "number"):
            return "Write fewer digits; 1e6 is a million."
        case float() as value if value.is_integer() and accepts(schema, "integer"):
            return f"Write {int(value)}."
    return (
        f"For text put it in quotes: {last}: '{node.text}'" if accepts(schema, "string") and not last.isdigit() else ""
    )


def _fix_of_text(node: Node, schema: Schema, last: str) -> str:
    text = node.expression or str(node.value)
    words = choices(schema)
    if words and (close := difflib.get_close_matches(text.lower(), words, n=1)):
        return f"Did you mean {close[0]}?"
    is_number = accepts(schema, "integer", "number", "boolean") and not isinstance(scalar_of(text), str)
    if is_number and not node.plain:
        return f"Take the quotes away: {last}: {text}"
    if section_of(schema) and last.isdigit():
        return f"Write the source as {{path: {text}}}."
    items: Schema = next((form["items"] for form in forms(schema) if "items" in form), {})
    if accepts(items, "string") or text in choices(items):
        return f"Write a list: {last}: [{text}]"
    return ""


def with_values(node: Node, value: Any) -> Node:
    """The tree with the values of the typed recipe: 1 is 1.0 where a fraction is possible, a computed '8' is 8."""
    if isinstance(node.value, dict):
        of = value if isinstance(value, dict) else vars(value)
        return replace(node, value={key: with_values(item, of[key]) for key, item in node.value.items()})
    if isinstance(node.value, list):
        return replace(node, value=[with_values(item, value[index]) for index, item in enumerate(node.value)])
    return node if isinstance(value, list) else replace(node, value=value)  # one source is named by its path alone


def unknown_key(path: tuple[str, ...], node: Node) -> UserError:
    """The error for a key that its section does not have, with the key that was probably meant."""
    *above, key = path
    prefix, full = ".".join(above), ".".join(path)
    section = section_of(schema_at(tuple(above))) or {}
    known = list(section["properties"])
    listing = f"All keys: simpo recipe schema {nearest_section(tuple(above))}".rstrip()
    problem = f"{_shown_key(full)} is not a key of {prefix or 'a recipe'}"
    flat = key.replace("-", "_").lower()
    if flat not in HABITS and (meant := _nearest(key, known)):
        fix = f"Did you mean {meant}? {listing}"
    elif path[0] == "data" and key in (section_of(schema_at(("data", "train"))) or {})["properties"]:
        fix = f"It belongs to a source: data.train: [{{path: ..., {key}: ...}}]"
    else:
        same = " or ".join(name for name in all_keys() if name.rpartition(".")[2] == flat)
        called, note = HABITS.get(flat, (same, ""))
        if called:
            fix = " ".join(filter(None, (f"Did you mean {called}?", note, listing)))
        else:
            fix = note or listing
            problem += "" if note else f"; it has {', '.join(known)}"
    return node.origin.error(f"{problem}.", fix, key=full)


def unknown_part(path: tuple[str, ...], known: list[str], node: Node) -> UserError:
    """The error for a key that a mapping such as `columns` does not have."""
    *above, key = path
    meant = _nearest(key, known)
    fix = f"Did you mean {meant}?" if meant else f"It has {', '.join(known)}."
    return node.origin.error(f"{'.'.join(above)} has no part {_shown_key(key)}.", fix, key=".".join(path))


def _shown_key(key: str) -> str:
    return key if key.isprintable() and len(key) <= 80 else repr(key)[:80]


def _nearest(key: str, known: list[str]) -> str:
    flat = key.replace("-", "_").replace(" ", "_").lower()
    return next(iter([flat] if flat in known else difflib.get_close_matches(flat, known, n=1, cutoff=0.7)), "")
