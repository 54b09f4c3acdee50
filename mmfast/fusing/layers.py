"""Which modules do no more than their class's ``forward`` says, and what torch's own layers are."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mmfast.fusing import runtime
from mmfast.fusing.names import SkipError

ACTIVATION_CALLS = {
    F.relu: "relu",
    torch.relu: "relu",
    F.gelu: "gelu",
    F.silu: "silu",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
}
ACTIVATION_METHODS = ("relu", "tanh", "sigmoid")
ACTIVATION_MODULES = {
    nn.ReLU: "relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
}
DROPOUTS = (nn.Dropout,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def activation_call(function: Any) -> str:
    """The name of the activation that a function of torch is, or ``none``."""
    return next((name for known, name in ACTIVATION_CALLS.items() if known is function), "none")


def check_module(module: nn.Module, layer: bool = True) -> None:
    """Refuse a module whose call is more than its class's ``forward``.

    Raises:
        SkipError: with the reason.
    """
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise SkipError(f"it is given to {name}, which is compiled by torch.jit")
    if hasattr(module, "parametrizations"):
        raise SkipError(f"it is given to {name}, which computes its weight by a parametrization")
    if type(module).__call__ is not nn.Module.__call__ or module._compiled_call_impl is not None:
        raise SkipError(f"it is given to {name}, whose __call__ is not torch's")
    if runtime.heard(module):
        raise SkipError(f"it is given to {name}, which has hooks that may see its input")
    replaced = vars(module).get("forward")
    if replaced is not None and not runtime.is_ours(replaced) and not is_original(replaced, module):
        raise SkipError(f"it is given to {name}, whose forward was replaced on the instance")
    if layer and type(module).__module__.startswith(("torch.ao.", "torchao.")):
        raise SkipError(f"it is given to {name}, a quantised layer")
    weight = module._parameters.get("weight")
    # Shards are put together by the time forward reads them; if not, the call itself will see.
    sharded = type(weight).__module__.startswith("torch.distributed.")
    plain = type(weight) is nn.Parameter or sharded
    if weight is not None and (not plain or not weight.is_floating_point()):
        raise SkipError(f"it is given to {name}, whose weight is no plain floating tensor")


def is_original(method: Any, module: nn.Module) -> bool:
    """Whether a bound method is what the class has: pickle leaves one in place of ours."""
    function = inspect.getattr_static(type(module), getattr(method, "__name__", ""), None)
    return getattr(method, "__self__", None) is module and method.__func__ is function


def is_pointwise(module: Any) -> bool:
    """Whether a convolution is a linear map of every position's features."""
    ones = (1,) * len(module.kernel_size)
    zeros = (0,) * len(ones)
    return (
        module.kernel_size == ones
        and module.stride == ones
        and module.groups == 1
        and (module.padding == zeros or module.padding in ("same", "valid"))
    )


def activation_of(module: nn.Module) -> str:
    name = ACTIVATION_MODULES.get(type(module), "none")
    try:
        check_module(module)
    except SkipError:
        return "none"
    if name == "gelu" and module.approximate == "tanh":
        return "gelu_tanh"
    return name


def is_plain_tree(module: nn.Module) -> bool:
    return all(type(m).__module__.startswith("torch.nn.modules.") for m in module.modules())
