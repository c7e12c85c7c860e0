"""rethink_jax: many-trial sweeps for the experiments on memorization and generalization."""

from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "UserError": "rethink_jax.schema",
    "default_config": "rethink_jax.config",
    "load_data": "rethink_jax.trial_data",
    "load_measures_along": "rethink_jax.records",
    "load_results": "rethink_jax.records",
    "load_trial": "rethink_jax.checkpoint",
    "network": "rethink_jax.config",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    # Lazy, so that reading results does not import jax and commands can set up devices first.
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
