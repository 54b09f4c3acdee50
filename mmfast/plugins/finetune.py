"""What fine-tuning does with an encoder's layer groups: freezing, and learning rates by depth."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def freeze(encoder: M, groups: int | None = None) -> M:
    """Stop the training of the first ``groups`` layer groups, counted from the input.

    Args:
        encoder: a module with ``layer_groups``.
        groups: how many; None for all.

    The parameters no longer require gradients. Layers with running statistics (batch norm) whose
    parameters are all frozen stay in evaluation mode from now on, whatever ``train()`` says: their
    statistics belong to the frozen weights. Dropout keeps following ``train()``.

    Returns:
        The encoder.

    Raises:
        ValueError: there are not so many groups, or they do not hold every trainable parameter
            once.
    """
    found = layer_groups(encoder)
    for group in found[: _count(groups, len(found))]:
        for parameter in group:
            parameter.requires_grad_(False)
    _settle(encoder, False, encoder.training)
    return encoder


def unfreeze(encoder: M, groups: int | None = None) -> M:
    """Train the last ``groups`` layer groups (again), counted from the output.

    Args:
        encoder: a module with ``layer_groups``.
        groups: how many; None for all.

    Returns:
        The encoder.

    Raises:
        ValueError: there are not so many groups, or they do not hold every trainable parameter
            once.

    Example:
        >>> unfreeze(freeze(encoder), groups=2)  # trains the two groups next to the output
    """
    found = layer_groups(encoder)
    for group in found[len(found) - _count(groups, len(found)) :]:
        for parameter in group:
            parameter.requires_grad_(True)
    _settle(encoder, False, encoder.training)
    return encoder


def parameter_groups(
    encoder: nn.Module, lr: float, layer_decay: float = 1.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer, with a lower learning rate the nearer a layer is to the input.

    Args:
        encoder: a module with ``layer_groups``.
        lr: the learning rate of the group at the output.
        layer_decay: what the rate is multiplied by for each group further from it, in (0, 1]. The
            scheme is that of ULMFiT's discriminative fine-tuning (Howard and Ruder, 2018) and of
            the layer-wise decay of BEiT (Bao et al., 2021).
        weight_decay: for parameters of two and more dimensions; biases and the weights of
            normalisation, which have one, get none.

    Frozen parameters are included, so that the optimizer need not be made anew when they are
    unfrozen; optimizers pass over parameters without gradient.

    Returns:
        Mappings with ``params``, ``lr``, ``weight_decay`` and ``name``, from input to output.

    Raises:
        ValueError: a rate or decay out of its range; the groups do not hold every trainable
            parameter once.
    """
    if not lr > 0:
        raise ValueError(f"parameter_groups: lr is {lr}; it must be positive")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"parameter_groups: layer_decay is {layer_decay}; it must be in (0, 1]")
    if not weight_decay >= 0:
        raise ValueError(
            f"parameter_groups: weight_decay is {weight_decay}; it must not be negative"
        )
    result = []
    found = layer_groups(encoder)
    for i, group in enumerate(found):
        rate = lr * layer_decay ** (len(found) - 1 - i)
        for decays in (True, False):
            params = [p for p in group if (p.dim() > 1) == decays]
            if params:
                name = f"layer group {i}" + ("" if decays else ", no weight decay")
                decay = weight_decay if decays else 0.0
                result.append({"params": params, "lr": rate, "weight_decay": decay, "name": name})
    return result


def layer_groups(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """The encoder's groups, once they are seen to hold every trainable parameter exactly once.

    Raises:
        ValueError: they do not.
    """
    groups = [list(group) for group in encoder.layer_groups()]  # type: ignore[operator]
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    seen: set[int] = set()
    for parameter in (parameter for group in groups for parameter in group):
        name = names.get(id(parameter))
        if name is None:
            raise ValueError(
                f"layer_groups() of {type(encoder).__name__} holds a tensor of shape "
                f"{tuple(parameter.shape)} that is no parameter of it"
            )
        if id(parameter) in seen:
            raise ValueError(
                f"layer_groups() of {type(encoder).__name__} holds {name} twice; every parameter "
                "belongs to one group"
            )
        seen.add(id(parameter))
    missing = [names[id(p)] for p in encoder.parameters() if p.requires_grad and id(p) not in seen]
    if missing:
        raise ValueError(
            f"layer_groups() of {type(encoder).__name__} leaves out {', '.join(missing)}; every "
            "trainable parameter belongs to one group"
        )
    return groups


def _count(groups: int | None, available: int) -> int:
    if groups is None:
        return available
    if not 0 <= groups <= available:
        raise ValueError(f"groups is {groups}; the encoder has {available}, so 0 to {available}")
    return groups


def _settle(module: nn.Module, frozen_outside: bool, training: bool) -> None:
    """Pin layers with running statistics to evaluation mode where frozen; let go of the others.

    A layer without parameters of its own is as frozen as what is around it.
    """
    own = list(module.parameters())
    frozen = not any(p.requires_grad for p in own) if own else frozen_outside
    if getattr(module, "running_mean", None) is not None:
        if frozen:
            # An attribute of the instance: train() of every module around this one calls it, it
            # survives pickling and deepcopy, and the class, the forward and the state dict stay as
            # they are.
            module.train = functools.partial(_train_frozen, module)  # type: ignore[method-assign]
        else:
            module.__dict__.pop("train", None)
        module.train(training)
    for child in module.children():
        _settle(child, frozen, training)


def _train_frozen(module: nn.Module, mode: bool = True) -> nn.Module:
    return type(module).train(module, False)
