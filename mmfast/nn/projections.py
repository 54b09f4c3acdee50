"""Linear layers, one per modality, that bring inputs of different widths to one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmfast.nn.fusion import without_absent
from mmfast.ops.fused import check_flag


def projections(
    in_features: Sequence[int],
    out_features: int,
    project: bool | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.ModuleList:
    """A layer per modality that maps its features to ``out_features``.

    Args:
        in_features: the features K_m of each modality.
        out_features: the features N that all of them get.
        project: True for an ``nn.Linear`` each; None for one where K_m differs from N and
            ``nn.Identity`` elsewhere; False for none at all.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        TypeError: ``project`` is neither a bool nor None.
        ValueError: ``project`` is False and a K_m differs from N.
    """
    if project is not None:
        check_flag("project", project)
    if project is False and any(size != out_features for size in in_features):
        raise ValueError(
            f"in_features holds {list(in_features)} but out_features is {out_features}; with "
            "project=False they must be equal (leave project out to map those that differ)"
        )
    return nn.ModuleList(
        nn.Linear(size, out_features, device=device, dtype=dtype)
        if project or size != out_features
        else nn.Identity()
        for size in in_features
    )


def project(
    layers: nn.ModuleList, inputs: Sequence[Tensor], present: Tensor | None
) -> list[Tensor]:
    """Each input through its layer; what an absent modality holds reaches no parameter.

    The projection of an absent modality is that of zeros. An input that is not projected is passed
    on as it is: the operators pass over absent content without the copy that zeros would cost.
    """
    projected = []
    for i, (layer, x) in enumerate(zip(layers, inputs, strict=True)):
        if not isinstance(layer, nn.Identity):
            # A zero gradient for the result is not enough: times NaN it is NaN in the weight's.
            [x] = without_absent([x], None if present is None else present[..., i : i + 1])
            x = layer(x)
        projected.append(x)
    return projected
