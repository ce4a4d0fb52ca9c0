"""Commands that take a while show what they are doing; libraries speak only when something is wrong:
their progress bars and advice are not ours.
"""

import atexit
import gc
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from simpo_cli.stages import stage
from simpo_cli.versions import require_versions

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


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

    Raises:
        UserError: they are of versions that will not do.
    """
    require_versions()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("transformers", "datasets", "accelerate", "peft", "huggingface_hub"):
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
