"""Encoders by name: to list, to look up, to create and to register."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

from torch import nn

from mmfast.plugins.contract import API_VERSION, MODALITIES, EncoderSpec
from mmfast.plugins.discovery import Plugin
from mmfast.plugins.registry import PluginLoadError, Registry

ENCODERS = Registry("mmfast.encoders", "encoder")
METHODS = ("preprocess", "collate", "layer_groups")

F = TypeVar("F", bound=Callable[..., Any])


def list_encoders(modality: str | None = None) -> list[str]:
    """The names that :func:`create_encoder` knows, sorted; imports no plugin.

    Args:
        modality: only encoders that say in their entry point that they are for it, one of
            ``mmfast.plugins.MODALITIES``.

    ``MMFAST_PLUGINS``, a comma-separated list of distributions, hides all others but mmfast's own.

    Raises:
        ValueError: there is no such modality.
    """
    if modality is not None:
        _check_modalities("list_encoders", (modality,))
    return ENCODERS.names(modality)


def encoder_info(name: str) -> Plugin:
    """Where an encoder comes from: target, modalities, distribution, version; imports no plugin.

    Raises:
        ValueError: the name is unknown, or two distributions claim it.
    """
    return ENCODERS.find(name)


def create_encoder(name: str, /, **options: Any) -> Any:
    """The encoder of that name, an ``nn.Module`` that fulfils :class:`mmfast.plugins.Encoder`.

    Args:
        name: one of :func:`list_encoders`; ``distribution:name`` where two distributions claim it.
        options: what its constructor takes. They are checked first: by the pydantic model
            ``Options`` of the class or function if it has one, otherwise by its signature.

    What an encoder learned from the training split is part of the options (see
    :func:`fit_encoder_options`), so a name, options as JSON and a state dict restore it.

    Raises:
        ValueError: the name is unknown, claimed twice, or not allowed by ``MMFAST_PLUGINS``; or an
            option has a value that is not allowed.
        TypeError: an option that does not exist, or one that is needed and missing.
        PluginLoadError: the plugin cannot be loaded, was written for another version of the
            contract, or returns something that is no encoder.

    Example:
        >>> encoder = create_encoder("image_convnet", channels=[16, 32])
        >>> encoder.spec.out_dim
        32
    """
    plugin = ENCODERS.find(name)
    what = f"the encoder {plugin.name!r} of {plugin.source} ({plugin.target})"
    try:
        encoder = ENCODERS.create(plugin, options)
    except TypeError as error:
        if "EncoderSpec" not in str(error):
            raise
        raise PluginLoadError(
            f"{what} {_other_version('a newer', plugin)}: {error}", plugin
        ) from error
    _check_encoder(encoder, plugin, what)
    return encoder


def fit_encoder_options(name: str, samples: Sequence[Any], /, **options: Any) -> dict[str, Any]:
    """The options, completed by what the encoder finds in raw samples of the training split.

    That is a vocabulary, for instance, or the means of columns; options that are given stay.
    Encoders with nothing to find, those without ``fit_options``, get their options back.

    Args:
        name: as for :func:`create_encoder`.
        samples: raw samples; see ``EncoderSpec.modality``.
        options: what is already decided.

    Raises:
        ValueError, TypeError, PluginLoadError: as :func:`create_encoder`.
    """
    factory = ENCODERS.load(ENCODERS.find(name))
    fit = getattr(factory, "fit_options", None)
    return dict(options) if fit is None else fit(samples, **options)


def register_encoder(name: str, modality: str | Sequence[str] = ()) -> Callable[[F], F]:
    """Decorator that makes an encoder known by a name in this process, as in a notebook or a test.

    Args:
        name: what :func:`create_encoder` shall know it by.
        modality: what it is for, so that :func:`list_encoders` can choose by it.

    To make it known wherever it is installed, declare an entry point instead; docs/plugins.md.

    Raises:
        TypeError: ``name`` is no string.
        ValueError: the name is taken, or there is no such modality.

    Example:
        >>> @register_encoder("my_encoder", modality="image")
        ... class MyEncoder(nn.Module): ...
    """
    ENCODERS.check_name(name)
    modalities = (modality,) if isinstance(modality, str) else tuple(modality)
    _check_modalities("register_encoder", modalities)

    def register(factory: F) -> F:
        ENCODERS.register(name, factory, modalities)
        return factory

    return register


def _check_modalities(caller: str, modalities: Sequence[str]) -> None:
    for modality in modalities:
        if modality not in MODALITIES:
            raise ValueError(
                f"{caller}: modality is {modality!r}; it must be one of {', '.join(MODALITIES)}"
            )


def _check_encoder(encoder: object, plugin: Plugin, what: str) -> None:
    """Raise PluginLoadError for what would otherwise fail later, and elsewhere."""
    if not isinstance(encoder, nn.Module):
        made = type(encoder).__name__
        raise PluginLoadError(f"{what} makes a {made}; it must make a torch.nn.Module", plugin)
    spec = getattr(encoder, "spec", None)
    stated = getattr(spec, "api_version", API_VERSION)
    if stated != API_VERSION:
        side = "a newer" if isinstance(stated, int) and stated > API_VERSION else "an older"
        raise PluginLoadError(f"{what} {_other_version(side, plugin)} (it says {stated})", plugin)
    if not isinstance(spec, EncoderSpec):
        raise PluginLoadError(
            f"{what} has the spec {spec!r}; it must be a mmfast.plugins.EncoderSpec", plugin
        )
    lacking = [name for name in METHODS if not callable(getattr(encoder, name, None))]
    if lacking:
        raise PluginLoadError(
            f"{what} has no method {' or '.join(lacking)}; the contract is mmfast.plugins.Encoder",
            plugin,
        )
    if plugin.modalities and spec.modality not in plugin.modalities:
        raise PluginLoadError(
            f"{what} is announced for {', '.join(plugin.modalities)}, but its spec says "
            f"{spec.modality}; the brackets of the entry point must name it",
            plugin,
        )


def _other_version(side: str, plugin: Plugin) -> str:
    upgrade = "mmfast" if side == "a newer" else plugin.distribution
    return (
        f"was written for {side} version of the encoder contract than {API_VERSION}, the version "
        f"that mmfast {version('mmfast')} has; upgrade {upgrade}"
    )
