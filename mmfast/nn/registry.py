"""Fusions by name: mmfast's own, those registered in the process, and those of other people.

Configurations hold names. All are found through the entry-point group ``mmfast.fusions``, mmfast's
own included; see :mod:`mmfast.plugins`.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from mmfast.nn.fusion import Sizes
from mmfast.plugins.registry import Registry

FUSIONS = Registry("mmfast.fusions", "fusion")

F = TypeVar("F", bound=Callable[..., nn.Module])


def create_fusion(name: str, in_features: Sizes, out_features: int, **options: Any) -> nn.Module:
    """The fusion module of that name.

    Args:
        name: one of :func:`list_fusions`; ``distribution:name`` where two distributions claim it.
        in_features: the features of each input, in order; a mapping names the inputs.
        out_features: features of the result.
        options: what else the module's constructor takes.

    Other people's fusions come from :func:`register_fusion` or from the entry-point group
    ``mmfast.fusions``, where each entry point names a class or function that is called with
    ``in_features``, ``out_features`` and the options, and returns a module.

    Raises:
        ValueError: the name is unknown, two distributions claim it, or ``MMFAST_PLUGINS`` does not
            allow it.
        TypeError: an option that the fusion does not take or that is of the wrong type, or one that
            it needs is missing.
        mmfast.plugins.PluginLoadError: a plugin cannot be loaded.

    Example:
        >>> create_fusion("concat", in_features=[2048, 768], out_features=512, activation="relu")
        ConcatLinear(in_features=[2048, 768], out_features=512, bias=True, activation='relu')
    """
    given = {"in_features": in_features, "out_features": out_features}
    module: nn.Module = FUSIONS.create(FUSIONS.find(name), options, given)
    return module


def list_fusions() -> list[str]:
    """The names that :func:`create_fusion` knows, sorted; imports no plugin."""
    return FUSIONS.names()


def register_fusion(name: str) -> Callable[[F], F]:
    """Decorator that makes a class, or a function that returns a module, known by a name.

    Raises:
        TypeError: ``name`` is no string.
        ValueError: the name is taken.

    Example:
        >>> @register_fusion("my_fusion")
        ... class MyFusion(mmfast.nn.ConcatLinear):
        ...     pass
    """
    FUSIONS.check_name(name)

    def register(factory: F) -> F:
        FUSIONS.register(name, factory)
        return factory

    return register
