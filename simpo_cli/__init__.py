"""SimPO: align language models with human preferences, without a reference model.

The library's names (`SimPOConfig`, `SimPOTrainer`, `PreferenceDataset`) are imported when they are first asked for, so
that `import simpo_cli` and `simpo --help` stay free of torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simpo_cli.library import PreferenceDataset, SimPOConfig, SimPOTrainer

__version__ = "0.1.0"
__all__ = ["PreferenceDataset", "SimPOConfig", "SimPOTrainer", "__version__"]

_FROM_LIBRARY = ("PreferenceDataset", "SimPOConfig", "SimPOTrainer")


def __getattr__(name: str) -> Any:
    """Import the library when one of its names is used."""
    if name in _FROM_LIBRARY:
        from simpo_cli.versions import require_versions

        require_versions()
        from simpo_cli import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_FROM_LIBRARY})
