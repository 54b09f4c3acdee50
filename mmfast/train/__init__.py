"""The training pipeline: from a configuration to a trained model. Needs ``mmfast[train]``.

    config = load_config("emoji.yaml", ["train.epochs=5"])
    run = fit(config)
    run.evaluate()

The names load what they need when they are first used: a configuration is checked without
torchmetrics and accelerate.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmfast.train.checkpoint import CheckpointError
    from mmfast.train.config import Config, load_config
    from mmfast.train.parts import Listener, TrainingError
    from mmfast.train.run import Run, fit
    from mmfast.train.yaml_source import ConfigError

_HOMES = {
    "CheckpointError": "checkpoint",
    "Config": "config",
    "ConfigError": "yaml_source",
    "Listener": "parts",
    "Run": "run",
    "TrainingError": "parts",
    "fit": "run",
    "load_config": "config",
}

__all__ = [
    "CheckpointError",
    "Config",
    "ConfigError",
    "Listener",
    "Run",
    "TrainingError",
    "fit",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmfast.train' has no attribute {name!r}")
    return getattr(import_module(f"mmfast.train.{_HOMES[name]}"), name)
