"""What commands share: options that several have, options listed in groups, what they say to the terminal, and how
they keep libraries quiet, whose progress bars and advice are not ours.
"""

import atexit
import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand

from simpo_cli.errors import UserError
from simpo_cli.model.allocator import has_cards
from simpo_cli.model.remote_code import FLAG
from simpo_cli.stages import stage
from simpo_cli.versions import require_versions

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Values that replace those of the recipe.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Output = Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write the JSON document to this file.")]
TrustRemoteCode = Annotated[
    bool, typer.Option(FLAG, help="Run the Python code that a model brings with it, if it needs that; read it first.")
]


def require_model(asked: bool, *, loads_one: bool, fix: str) -> None:
    """Refuse (UserError) the flag where no model is loaded; the `fix` says how to have the command load one."""
    if asked and not loads_one:
        raise UserError(f"{FLAG} is about the code of a model, and none is loaded.", fix)


def require_here(names: list[str]) -> None:
    """Refuse names that mean nothing, before torch is imported, which takes seconds."""
    from simpo_cli.data.hub import require_obtainable
    from simpo_cli.names import is_hub_id, no_such_target, shipped_recipe

    for name in names:
        if shipped_recipe(name) is not None or name in ("builtin:guide", "none"):
            continue
        if is_hub_id(name):
            require_obtainable(name.partition("@")[0], "model")
        elif not Path(name).expanduser().exists() and not name.endswith((".yaml", ".yml")):
            raise no_such_target(name)


def say(text: str, style: str = "") -> None:
    """A line on stderr, however long."""
    from simpo_cli.report.console import err, printable

    err.print(printable(text, keep_newlines=True), style=style, soft_wrap=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    from simpo_cli.report.page import json_text

    print(json_text(document))


def shows_work(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, with a line on stderr that says what it is doing."""

    @wraps(function)
    def shown(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        from simpo_cli.report.live import working

        with working():
            return function(*args, **kwargs)

    return shown


def quiet_libraries() -> None:
    """Call before transformers, datasets or the hub client are imported; what a person set already stays.

    UserError where they are of versions that will not do.
    """
    require_versions()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")  # some of transformers' bars know of no switch but this
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or its sockets warn of every address and every wait
    # transformers imports torchao where that is installed, and torchao warns of each of its parts that cannot be loaded
    for name in (
        *("transformers", "datasets", "accelerate", "peft", "huggingface_hub"),
        *("bitsandbytes", "torchao", "torch.utils._pytree"),
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|torch)\b.*")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    atexit.register(gc.freeze)  # or Python walks through all that torch made before it ends, for seconds


@contextmanager
def importing() -> Iterator[None]:
    """A block whose imports take seconds, of libraries that are kept quiet; whoever watches is told."""
    with stage("importing torch and transformers"):
        quiet_libraries()
        yield


def num_cards() -> int:
    """Cards that torch sees; on a machine without a driver of any it is not asked."""
    return _count_cards() if has_cards() else 0


@shows_work
def _count_cards() -> int:
    with stage("importing torch"):
        import torch

    return torch.cuda.device_count()


def take_card(number: int) -> None:
    """Let this process see one card alone, before torch looks for them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = visible.split(",") if visible else []
    if visible is None or number < len(cards):
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[number] if cards else str(number)


class GroupedCommand(TyperCommand):
    """A command whose help lists options by their `rich_help_panel`, which typer itself does only with rich markup."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel: str | None = getattr(parameter, "rich_help_panel", None)  # --help has none
                groups.setdefault(panel or usual, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)
