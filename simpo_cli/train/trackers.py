"""Trackers through accelerate: none unless the recipe names them."""

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from simpo_cli.errors import ExitCode, UserError
from simpo_cli.recipe.schema import Recipe
from simpo_cli.redaction import redacted


def require_trackers(names: list[str]) -> None:
    """Refuse a tracker that accelerate does not know or whose package is not installed.

    Raises:
        UserError: an unknown name (exit code 2), or a package that is missing (exit code 4).
    """
    known = sorted(LOGGER_TYPE_TO_CLASS)
    installed = {getattr(name, "value", name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(
                f"tracking.report_to names {name!r}, which is no tracker.", f"accelerate knows {', '.join(known)}."
            )
        if name not in installed:
            raise UserError(
                f"tracking.report_to names {name}, which is not installed.",
                f"Install it: pip install {name.replace('_', '-')}.",
                exit_code=ExitCode.ENVIRONMENT,
            )


def open_trackers(accelerator: Accelerator, recipe: Recipe) -> None:
    """Start the trackers that the recipe names, with the numbers that people compare runs by."""
    if not recipe.tracking.report_to:
        return
    accelerator.init_trackers(
        "simpo",
        config={
            "name": redacted(recipe.name),
            "model": redacted(recipe.model.path),
            "beta": recipe.loss.beta,
            "gamma": recipe.loss.margin,
            "learning_rate": recipe.train.learning_rate,
            "pairs_per_step": recipe.train.pairs_per_step,
            "seed": recipe.seed,
        },
    )
