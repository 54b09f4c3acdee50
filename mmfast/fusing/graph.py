"""The same on the graphs of ``torch.compile``: :func:`inductor`, a backend that wraps Inductor.

Custom backends are the public, documented way into ``torch.compile``; Inductor's custom passes are
options of a private module, and see a graph in which ``linear`` is no longer one operator. Dynamo's
graph is the source's own, with the exact users of every value; the backward pass follows from the
operator's autograd formula.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from mmfast.fusing.layers import ACTIVATION_CALLS, ACTIVATION_METHODS
from mmfast.fusing.leaves import broadcast_convolution
from mmfast.fusing.pieces import CONCATENATIONS
from mmfast.fusing.runtime import DEVICES, SMALL
from mmfast.ops import concat_linear as _operator
from mmfast.ops.library import host

_BARRIERS = ("_set_grad_enabled", "_enter_autocast", "_exit_autocast", "_enter_inference_mode")
_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


def inductor(
    graph: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Inductor, after concatenations that only linear layers take have been replaced.

    ``torch.compile(model, backend=mmfast.inductor)`` compiles a model with mmfast's operators in
    place of ``cat`` and ``linear``, forward and backward, in whatever functions they stand. Where
    the shapes make that slower, by the plan of the operator, the graph stays as it was.

    Args:
        graph: as ``torch.compile`` hands it to a backend.
        example_inputs: as there.
        mode: as in ``torch.compile``.
        options: of Inductor, as in ``torch.compile``.

    Returns:
        The compiled function.

    Example:
        >>> fast = torch.compile(model, backend=mmfast.inductor, fullgraph=True)
    """
    fuse_graph(graph)
    merged = dict(torch._inductor.list_mode_options(mode)) if mode not in (None, "default") else {}
    merged.update(options or {})
    return torch._inductor.compile(graph, example_inputs, options=merged)  # type: ignore


def fuse_graph(module: fx.GraphModule) -> int:
    """Replace what can be replaced in a graph of torch functions, in place; how many were."""
    count = 0
    for node in list(module.graph.nodes):
        if node.op == "call_function" and node.target in CONCATENATIONS:
            count += _fuse(module.graph, node)
    if count:
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
    return count


def _fuse(graph: fx.Graph, cat: fx.Node) -> bool:
    tensors = _argument(cat, 0, "tensors")
    dim = _argument(cat, 1, "dim", cat.kwargs.get("axis", 0))
    value = _value(cat)
    if value is None or not isinstance(dim, int) or not isinstance(tensors, list | tuple):
        return False
    if len(tensors) < 2 or not all(isinstance(t, fx.Node) for t in tensors) or value.dim() == 0:
        return False
    values = [_value(t) for t in tensors]
    if any(not _joinable(v, value) for v in values):
        return False
    ends = _consumers(cat)
    if not ends or _anything_between(graph, cat, [end for end, _ in ends]):
        return False
    dim = dim % value.dim()
    done = 0
    for end, through in ends:
        if end.target is F.linear and dim == value.dim() - 1:
            done += _replace_linear(graph, cat, end, list(tensors), through)
        elif end.target in _CONVOLUTIONS and dim == 1:
            done += _replace_convolution(graph, end, list(tensors))
    return done > 0


def _argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _value(node: Any) -> Tensor | None:
    """The example that Dynamo keeps of a node's result."""
    found = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def _joinable(value: Tensor | None, whole: Tensor) -> bool:
    return (
        value is not None
        and value.dim() == whole.dim()
        and value.dtype == whole.dtype
        and value.dtype in _operator.DTYPES
        and value.device.type in DEVICES
        and value.layout is torch.strided
    )


def _consumers(cat: fx.Node) -> list[tuple[fx.Node, list[fx.Node]]]:
    """The layers that take the value, with dropouts on the way; empty if anything else does."""
    found: list[tuple[fx.Node, list[fx.Node]]] = []
    for user in cat.users:
        through: list[fx.Node] = []
        node, current = cat, user
        while current.target is F.dropout and not _argument(current, 2, "training", True):
            if len(current.users) != 1 or _argument(current, 3, "inplace", False):
                return []
            through.append(current)
            node, current = current, next(iter(current.users))
        takes = current.op == "call_function" and current.args[:1] == (node,)
        given = [*current.args, *current.kwargs.values()]
        once = sum(1 for x in given if x is node) == 1
        if not takes or not once or not (current.target is F.linear or _pointwise(current)):
            return []
        found.append((current, through))
    return found


def _anything_between(graph: fx.Graph, start: fx.Node, ends: list[fx.Node]) -> bool:
    """Whether anything before the last consumer may change a piece or a mode."""
    waiting = set(ends)
    inside = False
    for node in graph.nodes:
        if node is start:
            inside = True
        elif inside:
            waiting.discard(node)
            name = str(getattr(node.target, "__name__", node.target))
            changes = (name.endswith("_") and not name.endswith("__")) or (
                node.target is operator.setitem
                or (name.startswith("i") and getattr(operator, f"__{name}__", None) is node.target)
                or node.kwargs.get("inplace", False)
                or "out" in node.kwargs
            )
            if node.op.startswith("call") and (changes or name.startswith(_BARRIERS)):
                return True
            if not waiting:
                return False
    return True


# --- linear ---------------------------------------------------------------------------------------


def _replace_linear(
    graph: fx.Graph, cat: fx.Node, linear: fx.Node, tensors: list[fx.Node], through: list[fx.Node]
) -> bool:
    weight, bias = _argument(linear, 1, "weight"), _argument(linear, 2, "bias")
    w, out = _value(weight), _value(linear)
    if w is None or out is None or out.dtype not in _operator.DTYPES or w.dim() != 2:
        return False
    if bias is not None and _value(bias) is None:
        return False
    pieces, index = _pieces(cat, tensors, linear)
    if not _worth(pieces, index, out, w):
        return False
    activation, last = _activation(linear)
    with graph.inserting_before(linear):
        cast = [_cast(graph, x, out.dtype) for x in (*pieces, weight, bias)]
        *sources, weight, bias = cast
        picked = [_in_range(graph, i, x) for i, x in zip(index, pieces, strict=True) if i]
        places = [i for i, rows in enumerate(index) if rows is not None]
        arguments = (sources, weight, bias, picked, places, activation, True)
        call = graph.call_function(_operator.traced, arguments)
        result = graph.call_function(operator.getitem, (call, 0))
    result.meta["example_value"] = _value(last)
    last.replace_all_uses_with(result)
    return True


def _cast(graph: fx.Graph, node: fx.Node | None, dtype: torch.dtype) -> fx.Node | None:
    """What autocast did for ``linear``, spelled out: the operator is no part of its lists."""
    value = _value(node)
    if node is None or value is None or value.dtype == dtype:
        return node
    return graph.call_method("to", (node, dtype))


def _in_range(graph: fx.Graph, index: fx.Node, table: fx.Node) -> fx.Node:
    """``x[index]`` counts negative entries from the end; the operator refuses them."""
    if index.meta.get("mmfast_never_negative"):
        return index
    size = graph.call_method("size", (table, 0))
    shifted = graph.call_function(operator.add, (index, size))
    negative = graph.call_function(operator.lt, (index, 0))
    return graph.call_function(torch.where, (negative, shifted, index))


def _pieces(
    cat: fx.Node, tensors: list[fx.Node], before: fx.Node
) -> tuple[list[fx.Node], list[fx.Node | None]]:
    """What to multiply, and by which index to pick: gathers and broadcasts taken apart."""
    pieces: list[fx.Node] = []
    index: list[fx.Node | None] = []
    full = [_broadcast_source(t) is None for t in tensors]
    for node in tensors:
        source, rows = _gather(node, cat)
        if rows is None and any(full):
            source = _broadcast_source(node) or node
        pieces.append(source)
        index.append(rows)
    return pieces, index


def _gather(node: fx.Node, cat: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    if node.op not in ("call_function", "call_method") or set(node.users) != {cat}:
        return node, None
    table, rows = None, None
    if node.target is operator.getitem and len(node.args) == 2:
        table, rows = node.args
    elif node.target in (torch.index_select, "index_select") and len(node.args) == 3:
        table, rows = (node.args[0], node.args[2]) if node.args[1] == 0 else (None, None)
    elif node.target is F.embedding and len(node.args) >= 2:
        plain = all(not x for x in (*node.args[2:], *node.kwargs.values()))
        rows, table = (node.args[0], node.args[1]) if plain else (None, None)
    values = _value(table), _value(rows)
    if not isinstance(table, fx.Node) or not isinstance(rows, fx.Node) or None in values:
        return node, None
    x, i = values
    assert x is not None
    assert i is not None
    if x.dim() != 2 or i.dtype not in (torch.int64, torch.int32) or i.dim() == 0:
        return node, None
    if node.target is not operator.getitem:
        rows.meta["mmfast_never_negative"] = True
    return table, rows


def _broadcast_source(node: fx.Node, features: int = -1) -> fx.Node | None:
    """What ``expand`` or ``repeat`` broadcast, if only sizes of 1 grew, and not the features."""
    if node.op != "call_method" or node.target not in ("expand", "expand_as", "repeat"):
        return None
    source = node.args[0]
    x, y = _value(source), _value(node)
    if x is None or y is None or x.dim() == 0:
        return None
    sizes = zip(reversed(x.shape), reversed(y.shape), strict=False)
    fits = all(_known(a == b) or _known(a == 1) for a, b in sizes)
    if not fits or (features > 0 and x.dim() != y.dim()):
        return None
    return source if _known(x.shape[features] == y.shape[features]) else None  # type: ignore


def _known(condition: Any) -> bool:
    """A comparison of sizes that holds for this graph, without a new guard."""
    if isinstance(condition, bool):
        return condition
    return bool(condition.node.maybe_as_bool()) if hasattr(condition, "node") else False


def _hint(size: Any) -> int:
    """A size, or what it was when the graph was made."""
    if isinstance(size, int):
        return size
    hint = getattr(getattr(size, "node", None), "hint", None)
    return int(hint) if hint is not None else 4096


def _worth(
    pieces: Sequence[fx.Node], index: Sequence[fx.Node | None], out: Tensor, weight: Tensor
) -> bool:
    """What the operator's own plan says to the sizes seen."""
    rows = math.prod(_hint(n) for n in out.shape[:-1])
    widths, distinct = [], []
    for node, picked in zip(pieces, index, strict=True):
        value = _value(node)
        assert value is not None
        own = math.prod(_hint(n) for n in value.shape[:-1])
        widths.append(_hint(value.shape[-1]))
        distinct.append(rows if picked is not None and own > rows // 2 else min(own, rows))
    if 0 in widths or rows * sum(widths) * _hint(weight.shape[0]) <= SMALL:
        return False
    if out.device.type != "cpu":
        return True
    name = str(out.dtype).removeprefix("torch.")
    plan = host.concat_linear_plan(widths, distinct, rows, _hint(weight.shape[0]), name)
    return plan["method"] not in ("empty", "tiny")


def _activation(linear: fx.Node) -> tuple[str, fx.Node]:
    """The activation that is the layer's only user, and the node whose value is the result."""
    if len(linear.users) != 1:
        return "none", linear
    user = next(iter(linear.users))
    if user.args[:1] != (linear,) or len(user.args) != 1:
        return "none", linear
    if user.op == "call_method" and user.target in ACTIVATION_METHODS and not user.kwargs:
        return str(user.target), user
    if user.op != "call_function" or user.target not in ACTIVATION_CALLS:
        return "none", linear
    name = ACTIVATION_CALLS[user.target]
    if name == "gelu" and user.kwargs.get("approximate", "none") == "tanh":
        name = "gelu_tanh"
    return name, user


# --- 1x1 convolutions -----------------------------------------------------------------------------


def _pointwise(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _CONVOLUTIONS:
        return False
    dims = _CONVOLUTIONS[node.target]
    weight, value = _value(_argument(node, 1, "weight")), _value(node)
    if weight is None or value is None or value.dim() != dims + 2:
        return False
    stride, padding = _argument(node, 3, "stride", 1), _argument(node, 4, "padding", 0)
    ones = all(_known(n == 1) for n in weight.shape[2:])
    return (
        ones
        and stride in (1, (1,) * dims, [1] * dims)
        and padding in (0, (0,) * dims, [0] * dims, "valid", "same")
        and _argument(node, 6, "groups", 1) == 1
    )


def _replace_convolution(graph: fx.Graph, node: fx.Node, tensors: list[fx.Node]) -> bool:
    values = [_value(t) for t in tensors]
    weight, bias = _argument(node, 1, "weight"), _argument(node, 2, "bias")
    w, out = _value(weight), _value(node)
    if w is None or out is None or out.dtype != w.dtype or any(v is None for v in values):
        return False
    if any(v.dtype != w.dtype for v in values if v is not None):
        return False
    once = [i for i, t in enumerate(tensors) if _is_vector(t)]
    if once and len(once) < len(tensors) and w.dtype in (torch.float32, torch.float64):
        vectors = [i in once for i in range(len(tensors))]
        with graph.inserting_before(node):
            result = graph.call_function(broadcast_convolution, (tensors, vectors, weight, bias))
        result.meta["example_value"] = out
        node.replace_all_uses_with(result)
        return True
    return False


def _is_vector(node: fx.Node) -> bool:
    """Whether a value is the same at every position."""
    source = _value(_broadcast_source(node, 1))
    return source is not None and all(_known(n == 1) for n in source.shape[2:])
