"""Losses of multimodal training: contrastive in linear memory, hinge, focal, class-balanced.

The contrastive loss is code of its own because its plain form needs the (N, N) matrix of all pairs,
several times over; the others are a few lines over ``torch.nn.functional``. What makes the file
long is that each says what is wrong with its arguments, which PyTorch says in terms of its own.
"""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmfast.functional.concat_linear import concat_linear
from mmfast.ops.concat_linear import check_dense
from mmfast.ops.fused import check_device, check_floating, check_like, check_number

__all__ = [
    "ContrastiveLoss",
    "class_balanced_weights",
    "contrastive_loss",
    "focal_loss",
    "hinge_loss",
]

LARGEST_SCALE = 100.0


def contrastive_loss(
    a: Tensor, b: Tensor, logit_scale: Tensor | float, *, chunk_rows: int = 512
) -> Tensor:
    r"""Symmetric contrastive loss of N pairs, without the (N, N) matrix of their similarities.

    .. math::
        L = \frac{1}{2N} \sum_i \Big(
            \log \sum_j e^{s \hat a_i \cdot \hat b_j} + \log \sum_j e^{s \hat a_j \cdot \hat b_i}
            - 2 s \hat a_i \cdot \hat b_i \Big)

    where :math:`\hat x = x / |x|` and s is ``logit_scale``: which of the N rows of ``b`` belongs to
    a row of ``a``, and the other way round? The loss of CLIP (Radford et al., "Learning
    Transferable Visual Models From Natural Language Supervision", 2021); also called InfoNCE (van
    den Oord et al., 2018) and NT-Xent. The values are those of the cross entropies of the matrix's
    rows and columns, averaged.

    ``chunk_rows`` rows of the matrix exist at a time, and backward computes them again.

    Args:
        a: (N, D), the features of one modality; they are normalised here.
        b: (N, D), those of the other; row i belongs to row i of ``a``.
        logit_scale: what multiplies the cosines, 1 / temperature: a tensor of one element or a
            number. CLIP's parameter is its logarithm: give ``parameter.exp()``, or use
            :class:`ContrastiveLoss`.
        chunk_rows: rows of the matrix computed at a time; memory is about 3 ``chunk_rows`` N
            elements, beside a few copies of ``a`` and ``b``.

    16-bit features, and all under ``torch.autocast``, are computed in float32.

    Returns:
        0-d tensor; 0 where N is 0.

    Raises:
        TypeError: ``a`` or ``b`` is no floating tensor.
        ValueError: shapes, dtypes or devices do not fit, or ``chunk_rows`` is not positive.
        RuntimeError: in backward with ``create_graph=True``; there is no second derivative.

    Example:
        >>> image, text = torch.randn(8, 64), torch.randn(8, 64)
        >>> contrastive_loss(image, text, 1 / 0.07).shape
        torch.Size([])
    """
    _check_pairs(a, b, chunk_rows)
    with torch.autocast(a.device.type, enabled=False):
        dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
        if not isinstance(logit_scale, (Tensor, numbers.Real)):
            raise TypeError(
                f"logit_scale must be a tensor or a number, got {type(logit_scale).__name__}"
            )
        if isinstance(logit_scale, Tensor):
            check_dense("logit_scale", logit_scale)
            if logit_scale.is_meta:
                check_device("logit_scale", logit_scale, "a", a.device)
        scale = torch.as_tensor(logit_scale, dtype=dtype, device=a.device)
        if scale.numel() != 1:
            raise ValueError(
                f"logit_scale has shape {tuple(scale.shape)}; it must hold one element"
            )
        left, right = F.normalize(a.to(dtype), dim=-1), F.normalize(b.to(dtype), dim=-1)
        loss: Tensor = _Contrastive.apply(left, right, scale.reshape(()), chunk_rows)
        return loss


class _Contrastive(torch.autograd.Function):
    """:func:`contrastive_loss` of features that are normalised; backward recomputes each chunk."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor, chunk_rows: int) -> Tensor:
        count = len(a)
        rows = a.new_empty(count)
        columns = a.new_full((count,), -math.inf)
        for start in range(0, count, chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = _product(a[chunk] * scale, b)
            rows[chunk] = logits.logsumexp(1)
            columns = torch.logaddexp(columns, logits.logsumexp(0))
        ctx.save_for_backward(a, b, scale, rows, columns)
        ctx.chunk_rows = chunk_rows
        pairs = (a * b).sum(1)
        return ((rows + columns) / 2 - scale * pairs).sum() / max(count, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Not once_differentiable: that lets a second derivative pass where `grad` is a constant, as
        # it is here as a rule, and the part of it that comes from normalising would be returned.
        if torch.is_grad_enabled():
            raise RuntimeError(
                "contrastive_loss cannot be differentiated twice (create_graph=True): its backward "
                "works chunk by chunk, outside the graph; take F.cross_entropy of the similarities"
            )
        a, b, scale, rows, columns = ctx.saved_tensors
        need_a, need_b, need_scale, _ = ctx.needs_input_grad
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
        b_transposed = b.t().contiguous()
        with torch.autocast(a.device.type, enabled=False):
            for start in range(0, len(a), ctx.chunk_rows):
                chunk = slice(start, start + ctx.chunk_rows)
                logits = _product(a[chunk] * scale, b)
                slope = (logits - rows[chunk, None]).exp_()
                slope += logits.sub_(columns).exp_()
                slope.diagonal(start).sub_(2)  # the pairs themselves
                if need_a or need_scale:
                    grad_a[chunk] = _product(slope, b_transposed)
                if need_b:
                    grad_b += _product(slope.t(), a[chunk].t())
        factor = grad / (2 * max(len(a), 1))
        return (
            grad_a * (factor * scale) if need_a else None,
            grad_b * (factor * scale) if need_b else None,
            factor * (grad_a * a).sum() if need_scale else None,
            None,
        )


def _product(x: Tensor, y: Tensor) -> Tensor:
    """``x @ y.t()``; on the CPU mmfast's own kernel is about twice as fast as the library."""
    return concat_linear([x], y) if x.device.type == "cpu" else F.linear(x, y)


def _check_pairs(a: Tensor, b: Tensor, chunk_rows: int) -> None:
    for name, x in (("a", a), ("b", b)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"{name} has dtype {x.dtype}; it must be a floating one")
        check_dense(name, x)
    if a.dim() != 2 or a.shape != b.shape:
        raise ValueError(
            f"a has shape {tuple(a.shape)} and b {tuple(b.shape)}; both must be (pairs, features)"
        )
    if (torch.float64 in (a.dtype, b.dtype) and a.dtype != b.dtype) or a.device != b.device:
        raise ValueError(
            f"a is {a.dtype} on {a.device} and b {b.dtype} on {b.device}; they must share both"
        )
    _check_chunk(chunk_rows)


def _check_chunk(chunk_rows: int) -> None:
    if isinstance(chunk_rows, bool) or not isinstance(chunk_rows, int) or chunk_rows < 1:
        raise ValueError(f"chunk_rows is {chunk_rows!r}; it must be an int of at least 1")


class ContrastiveLoss(nn.Module):
    r""":func:`contrastive_loss` with a learned temperature, as in CLIP.

    Args:
        temperature: the initial one; CLIP's is 0.07.
        chunk_rows: as in :func:`contrastive_loss`.
        device, dtype: of the parameter.

    ``logit_scale``, 0-d, is the logarithm of 1 / temperature, CLIP's parameter of that name. In
    training it is held at log(100) or less before each use, so the scale never exceeds 100 and the
    parameter can come back.

    Shape:
        - a, b: (N, D), row i of one belongs to row i of the other.
        - output: 0-d.

    Raises:
        TypeError: ``temperature`` is no number.
        ValueError: ``temperature`` is below 1 / 100 or infinite, or ``chunk_rows`` not positive.

    Example:
        >>> loss = ContrastiveLoss()
        >>> loss(torch.randn(8, 64), torch.randn(8, 64)).shape
        torch.Size([])
    """

    def __init__(
        self,
        temperature: float = 0.07,
        chunk_rows: int = 512,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_number("temperature", temperature)
        if not 1 / LARGEST_SCALE <= temperature < math.inf:
            raise ValueError(
                f"temperature is {temperature!r}; it must be finite, at least {1 / LARGEST_SCALE}"
            )
        _check_chunk(chunk_rows)
        self.chunk_rows = chunk_rows
        start = torch.tensor(-math.log(temperature), device=device, dtype=dtype)
        self.logit_scale = nn.Parameter(start)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The loss of the pairs; see the class for shapes."""
        if self.training:
            # Clamping in the graph instead would leave a parameter beyond the bound without a
            # gradient, and there for ever. `data`: the loss may be used twice before backward.
            self.logit_scale.data.clamp_(max=math.log(LARGEST_SCALE))
        scale = self.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()
        return contrastive_loss(a, b, scale, chunk_rows=self.chunk_rows)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"chunk_rows={self.chunk_rows}"


def hinge_loss(
    logits: Tensor,
    target: Tensor,
    *,
    margin: float = 1.0,
    p: int = 1,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Multi-class hinge loss: with it a linear layer is a support vector machine.

    .. math:: L = \frac{1}{C} \sum_{j \ne y} w_y \max(0, \mathrm{margin} - z_y + z_j)^p

    Weston and Watkins, "Support Vector Machines for Multi-Class Pattern Recognition", 1999; weight
    decay of the layer is its penalty. It is ``F.multi_margin_loss`` by the field's name.

    Args:
        logits: (N, C).
        target: (N,), the class of each row, int64.
        margin: by how much the right class must win.
        p: 1, or 2 for the squared hinge.
        weight: (C,), a weight per class, or None.
        reduction: ``mean``, ``sum`` or ``none``.

    Returns:
        0-d tensor, or (N,) with ``reduction="none"``.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: shapes, dtypes or devices do not fit, ``target`` holds no class of ``logits``,
            ``margin`` is not finite, or ``p`` or ``reduction`` unknown.
    """
    check_number("margin", margin)
    if not abs(margin) < math.inf:
        raise ValueError(f"margin is {margin!r}; it must be finite")
    if isinstance(p, bool) or not isinstance(p, int) or p not in (1, 2):
        raise ValueError(f"p is {p!r}; it must be 1 or 2")
    _check_classes(logits, target, weight, reduction)
    if logits.dim() != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits has shape {tuple(logits.shape)}; it must be (rows, classes)")
    try:
        loss = F.multi_margin_loss(
            logits, target, p=p, margin=margin, weight=weight, reduction="none"
        )
    except NotImplementedError as error:
        raise TypeError(
            f"logits has dtype {logits.dtype}, for which there is no hinge loss on "
            f"{logits.device}; convert it, or run under torch.autocast"
        ) from error
    except RuntimeError:
        _check_range(target, logits.shape[1])
        raise
    # Not by its own reduction, whose mean of no rows is memory that nobody wrote to.
    return {"none": loss, "sum": loss.sum(), "mean": loss.mean()}[reduction]


def focal_loss(
    logits: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    r"""Cross entropy in which what is already classified well counts little.

    .. math:: L = (1 - p_y)^\gamma \, \mathrm{CE}(z, y), \qquad p = \mathrm{softmax}(z)

    Lin et al., "Focal Loss for Dense Object Detection", 2017, for classes that exclude each other;
    their :math:`\alpha` is ``weight``. With gamma = 0 it is ``F.cross_entropy``.

    Args:
        logits: (N, C, \*rest), as ``F.cross_entropy`` takes them.
        target: (N, \*rest), the class of each, int64.
        gamma: the focusing exponent, at least 0.
        weight: (C,), a weight per class, or None; the mean is divided by the weights of the
            targets, as in ``F.cross_entropy``.
        label_smoothing: 0 to 1, of the cross entropy; p_y stays the probability of the target.
        ignore_index: a target that does not count.
        reduction: ``mean``, ``sum`` or ``none``.

    Returns:
        0-d tensor, or of the shape of ``target`` with ``reduction="none"``.

    Raises:
        TypeError: an argument is of the wrong type or dtype, such as ``target`` with probabilities
            instead of classes.
        ValueError: shapes, dtypes or devices do not fit, ``target`` holds no class of ``logits``,
            ``gamma`` is negative, ``label_smoothing`` out of range, or ``reduction`` unknown.
    """
    check_number("gamma", gamma)
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma is {gamma!r}; it must be at least 0, and finite")
    check_number("label_smoothing", label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing!r}; it must be 0 to 1")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int, got {type(ignore_index).__name__}")
    _check_classes(logits, target, weight, reduction)
    options: dict[str, Any] = {"reduction": "none", "ignore_index": ignore_index}
    try:
        nll = F.cross_entropy(logits, target, **options)
    except (IndexError, RuntimeError):
        _check_range(target, logits.shape[1], ignore_index)
        raise
    loss = nll
    if weight is not None or label_smoothing:
        options.update(weight=weight, label_smoothing=label_smoothing)
        loss = F.cross_entropy(logits, target, **options)
    missing = 1 - torch.exp(-nll)
    # At 0 a gamma below 1 has an infinite slope: the bound keeps that out of a loss that is 0.
    loss = loss * missing.clamp_min(torch.finfo(missing.dtype).tiny).pow(gamma)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    counts = (target != ignore_index).to(loss.dtype)
    if weight is not None:
        counts = counts * weight[target.where(counts.bool(), 0)]
    return loss.sum() / counts.sum()


def _check_classes(logits: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> None:
    check_floating("logits", logits)
    if logits.dim() < 2:
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}; it must have rows and classes, (N, C, *rest)"
        )
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be a tensor, got {type(target).__name__}")
    if target.dtype != torch.int64:
        raise TypeError(f"target has dtype {target.dtype}; it must hold classes, torch.int64")
    check_dense("target", target)
    wanted = (logits.shape[0], *logits.shape[2:])
    if tuple(target.shape) != wanted:
        raise ValueError(
            f"target has shape {tuple(target.shape)}; beside logits of {tuple(logits.shape)} it "
            f"must be {wanted}, a class per row"
        )
    check_device("target", target, "logits", logits.device)
    if weight is not None:
        check_floating("weight", weight)
        if logits.is_meta or not torch.is_autocast_enabled(logits.device.type):
            check_like("weight", weight, "logits", logits)
        if tuple(weight.shape) != (logits.shape[1],):
            raise ValueError(
                f"weight has shape {tuple(weight.shape)}; it must be ({logits.shape[1]},), a value "
                "per class"
            )
    if not isinstance(reduction, str) or reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is {reduction!r}; it must be 'mean', 'sum' or 'none'")


def _check_range(target: Tensor, classes: int, ignore: int | None = None) -> None:
    """Called once something failed: looking at the values makes a GPU wait."""
    wrong = target[((target < 0) | (target >= classes)) & (target != ignore)]
    if wrong.numel():
        raise ValueError(
            f"target holds {wrong[0].item()}; it must hold classes, 0 .. {classes - 1}"
        )


def class_balanced_weights(
    counts: Tensor | Sequence[int], beta: float = 0.9999, dtype: torch.dtype | None = None
) -> Tensor:
    r"""Weights per class from the effective number of its examples.

    .. math:: w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}, \qquad \sum_c w_c = C

    Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019: between none
    (beta = 0) and inverse frequency (beta to 1). For the ``weight`` of :func:`focal_loss`,
    :func:`hinge_loss` or ``F.cross_entropy``.

    Args:
        counts: (C,), the examples n_c of each class.
        beta: 0 or more, below 1.
        dtype: of the result; default torch's default dtype.

    Returns:
        Tensor (C,). A class without examples gets 0 and is left out of the sum C.

    Raises:
        TypeError: ``counts`` holds no numbers, ``beta`` is none, or ``dtype`` is not floating.
        ValueError: ``counts`` is not one-dimensional or holds what is negative, infinite or NaN, or
            ``beta`` is out of range.

    Example:
        >>> class_balanced_weights([900, 100], beta=0.9)
        tensor([1.0000, 1.0000])
    """
    if not isinstance(dtype, (torch.dtype, type(None))) or (dtype and not dtype.is_floating_point):
        raise TypeError(f"dtype is {dtype!r}; it must be a floating torch.dtype or None")
    numbers = _numbers("counts", counts)
    if numbers.dim() != 1 or not bool(((numbers >= 0) & (numbers < math.inf)).all()):
        raise ValueError(f"counts is {counts!r}; it must hold one number per class, at least 0")
    check_number("beta", beta)
    if not 0 <= beta < 1:
        raise ValueError(f"beta is {beta!r}; it must be at least 0 and below 1")
    found = numbers > 0
    # 1 - beta^n, without the cancellation that beta near 1 brings.
    effective = -torch.expm1(numbers * math.log(beta)) if beta else torch.ones_like(numbers)
    weights = (1 / effective).where(found, 0)
    weights = weights * (found.sum() / weights.sum().clamp_min(torch.finfo(torch.float64).tiny))
    return weights.to(device=numbers.device, dtype=dtype or torch.get_default_dtype())


def _numbers(name: str, values: Any) -> Tensor:
    """What ``torch.as_tensor`` makes of real numbers, as float64."""
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} is {values!r}; it must hold numbers ({error})") from error
    if found.is_complex() or found.is_meta:
        what = f"is {'on meta' if found.is_meta else found.dtype}"
        raise TypeError(f"{name} {what}; it must hold real numbers")
    check_dense(name, found)
    return found.to(torch.float64)
