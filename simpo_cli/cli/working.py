"""Commands that take a while show what they are doing; what shows it is imported when a command runs."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def shows_work(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, with a line on stderr that says what it is doing."""

    @wraps(function)
    def shown(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        from simpo_cli.report.working import working

        with working():
            return function(*args, **kwargs)

    return shown
