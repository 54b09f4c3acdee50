"""Parameters of other people's models that a result does not depend on.

A mask token used in pretraining only, a pooler that nobody asks for: DistributedDataParallel waits
for their gradients in vain, and an optimizer decays them. Here they become buffers: still in the
state dict and on the right device, no longer parameters.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def reached(result: Tensor) -> set[int]:
    """The ``id`` of every leaf that ``result`` depends on; its graph is read, nothing computed."""
    found, seen, todo = set(), set(), [result.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad: a leaf
            found.add(id(node.variable))
        todo += [parent for parent, _ in node.next_functions]
    return found


def unused_to_buffers(
    model: nn.Module, result: Tensor, keep: Callable[[str], bool] = lambda name: False
) -> tuple[str, ...]:
    """Turns the parameters of ``model`` that ``result`` does not depend on into buffers.

    Args:
        model: the model that computed ``result``, with gradients enabled.
        result: a tensor.
        keep: says of a name whether that parameter stays one all the same.

    Returns:
        the names of those that changed.
    """
    used = reached(result)
    names = tuple(
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter.requires_grad and id(parameter) not in used and not keep(name)
    )
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        value = getattr(owner, leaf).detach()
        delattr(owner, leaf)
        owner.register_buffer(leaf, value)
    return names
