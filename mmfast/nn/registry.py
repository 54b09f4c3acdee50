"""Fusions by name: mmfast's own, those registered in the process, and those of plugins.

Configurations hold names. Listing them reads the metadata of installed distributions and imports
nothing; only what is asked for is imported.
"""

import difflib
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from torch import nn

from mmfast.nn.fusion import Sizes

GROUP = "mmfast.fusions"

Factory = Callable[..., nn.Module]
F = TypeVar("F", bound=Factory)

_OWN: Mapping[str, str] = {
    "concat": "concat_linear:ConcatLinear",
    "weighted_sum": "weighted_sum:WeightedSum",
    "product": "rank_product:ProductFusion",
    "gated": "gated_sum:GatedFusion",
    "low_rank": "rank_product:LowRankFusion",
    "tensor": "tensor_fusion:TensorFusion",
    "mutan": "rank_product:Mutan",
    "mlb": "rank_product:MLB",
    "mfb": "rank_product:MFB",
    "attention": "attention_pool:AttentionFusion",
    "attention_pool": "attention_pool:AttentionPool",
    "cross_attention": "multi_source_attention:CrossAttentionFusion",
    "sequence": "multi_source_attention:SequenceFusion",
    "bottleneck": "multi_source_attention:BottleneckFusion",
    "film": "film:FiLM",
    "late": "late:LateFusion",
}
_registered: dict[str, Factory] = {}


class FusionLoadError(RuntimeError):
    """A plugin's fusion could not be loaded; its cause is chained."""


def create_fusion(name: str, in_features: Sizes, out_features: int, **options: Any) -> nn.Module:
    """The fusion module of that name.

    Args:
        name: one of :func:`list_fusions`.
        in_features: the features of each input, in order; a mapping names the inputs.
        out_features: features of the result.
        options: what else the module's constructor takes.

    Own names are mmfast's and cannot be taken. Others come from :func:`register_fusion` or from the
    entry-point group ``mmfast.fusions``, where each entry point names a class or function that is
    called with ``in_features``, ``out_features`` and the options, and returns a module.

    Raises:
        ValueError: the name is unknown, or two distributions claim it.
        TypeError: an option that the fusion does not take, or one that it needs is missing.
        FusionLoadError: a plugin fails to load.

    Example:
        >>> create_fusion("concat", in_features=[2048, 768], out_features=512, activation="relu")
        ConcatLinear(in_features=[2048, 768], out_features=512, bias=True, activation='relu')
    """
    factory = _find(name)
    arguments = {"in_features": in_features, "out_features": out_features, **options}
    _check_options(name, factory, arguments)
    return factory(**arguments)


def list_fusions() -> list[str]:
    """The names that :func:`create_fusion` knows, sorted; imports nothing."""
    return sorted({*_OWN, *_registered, *(entry.name for entry in _plugins())})


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
    if not isinstance(name, str):  # the decorator without its parentheses
        raise TypeError(f"name must be a str, got {name!r}; write @register_fusion('my_fusion')")

    def register(factory: F) -> F:
        if name in _OWN:
            raise ValueError(f"the fusion name {name!r} is mmfast's own; choose another")
        if name in _registered:
            raise ValueError(f"the fusion name {name!r} is taken by {_path(_registered[name])}")
        _registered[name] = factory
        return factory

    return register


def _find(name: str) -> Factory:
    if name in _OWN:
        module, attribute = _OWN[name].split(":")
        factory: Factory = getattr(import_module(f"mmfast.nn.{module}"), attribute)
        return factory
    plugins = [entry for entry in _plugins() if entry.name == name]
    claims = [_source(entry) for entry in plugins]
    if name in _registered:
        path = _path(_registered[name])
        if all(entry.value == path for entry in plugins):  # a plugin may register itself too
            return _registered[name]
        claims.append(f"register_fusion of {path}")
    if len(claims) > 1:
        raise ValueError(
            f"the fusion name {name!r} is claimed by {' and '.join(sorted(claims))}; "
            "uninstall one of them"
        )
    if plugins:
        return _load(plugins[0])
    known = list_fusions()
    near = difflib.get_close_matches(str(name), known)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    raise ValueError(f"no fusion is named {name!r}{hint}; the names are {', '.join(known)}")


def _plugins() -> list[EntryPoint]:
    # One distribution may be found twice, in its source tree and as installed.
    entries = entry_points(group=GROUP)
    return list({(entry.name, entry.value, _source(entry)): entry for entry in entries}.values())


def _source(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def _load(entry: EntryPoint) -> Factory:
    what = f"the fusion {entry.name!r} of {_source(entry)} ({entry.value})"
    try:
        factory = entry.load()
    except Exception as error:
        raise FusionLoadError(f"{what} could not be loaded: {_said(error)}") from error
    if not callable(factory):
        raise FusionLoadError(
            f"{what} is a {type(factory).__name__}; it must be a class or function that returns "
            "a module"
        )
    return factory


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _path(factory: Factory) -> str:
    return f"{factory.__module__}:{getattr(factory, '__qualname__', type(factory).__qualname__)}"


def _check_options(name: str, factory: Factory, arguments: Mapping[str, Any]) -> None:
    """Raise TypeError unless ``factory`` can be called with ``arguments``."""
    parameters = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    options = [key for key in parameters if key not in ("in_features", "out_features")]
    takes = f"it takes {', '.join(options)}" if options else "it takes none"
    for key in arguments:
        if key not in parameters:
            near = difflib.get_close_matches(key, options, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TypeError(f"the fusion {name!r} has no option {key!r}{hint}; {takes}")
    for key, parameter in parameters.items():
        positional = parameter.kind is not parameter.VAR_POSITIONAL
        if key not in arguments and parameter.default is parameter.empty and positional:
            raise TypeError(f"the fusion {name!r} needs the option {key!r}; {takes}")
