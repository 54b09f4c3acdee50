"""Fusion by products: plain (ProductFusion), low-rank (LMF), and bilinear (MUTAN, MLB, MFB)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mmfast import functional
from mmfast.nn.concat_linear import ConcatLinear
from mmfast.nn.fusion import Fusion, Inputs, Sizes, check_size, without_absent
from mmfast.nn.projections import project, projections
from mmfast.ops.fused import check_number

Device = torch.device | str | None


class ProductFusion(Fusion):
    r"""The element-wise product of the modalities (Hadamard product, multiplicative fusion).

    .. math:: y = \prod_m h_m, \qquad h_m = W_m x_m + b_m

    Inputs that have N features already are not projected: there :math:`h_m = x_m`.

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        project: True to project every input; None (default) to project those whose K_m differs
            from N; False to refuse such inputs.
        device, dtype: of the parameters.

    ``projections`` holds an ``nn.Linear`` or ``nn.Identity`` per modality.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. An absent
          modality is left out of the product; a row without any is ones.
        - output: (\*batch, N).

    Raises:
        ValueError: no inputs, a negative size; in ``forward``, what
            :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    Example:
        >>> layer = ProductFusion({"image": 512, "text": 768}, 512)
        >>> layer({"image": torch.randn(8, 512), "text": torch.randn(8, 768)}).shape
        torch.Size([8, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        *,
        project: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.projections = projections(
            self.in_features, out_features, project, device=device, dtype=dtype
        )

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        factors = [x.unsqueeze(-2) for x in project(self.projections, tensors, present)]
        return functional.rank_product(factors, None, present)


class LowRankFusion(Fusion):
    r"""Low-rank multimodal fusion (LMF): tensor fusion whose weight is a sum of ``rank`` products.

    .. math:: y = \sum_{r=1}^{R} w_r \prod_m \left([1, x_m] F_m[r]\right) + b

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        rank: R, at least 1.
        device, dtype: of the parameters.

    ``factors`` holds :math:`F_m` (R, K_m + 1, N), whose row 0 meets the 1; ``fusion_weights`` is
    (1, R) and ``fusion_bias`` (1, N). Shapes, order and initialisation (Xavier normal, bias zero)
    are those of the authors' code and of MultiBench's ``LowRankTensorFusion``: the same seed gives
    the same values.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. An absent
          modality is left out of the product; a row without any is :math:`\sum_r w_r + b`.
        - output: (\*batch, N).

    Raises:
        ValueError: no inputs, a negative size, a rank below 1; in ``forward``, what
            :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    Liu et al., "Efficient Low-rank Multimodal Fusion with Modality-Specific Factors", 2018.

    Example:
        >>> layer = LowRankFusion({"audio": 32, "video": 64, "text": 128}, 16, rank=4)
        >>> layer([torch.randn(8, 32), torch.randn(8, 64), torch.randn(8, 128)]).shape
        torch.Size([8, 16])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        *,
        rank: int,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.rank = check_size("rank", rank, 1)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.factors = nn.ParameterList(
            parameter(rank, size + 1, out_features) for size in self.in_features
        )
        self.fusion_weights = parameter(1, rank)
        self.fusion_bias = parameter(1, out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew, in the order in which they are registered."""
        for factor in self.factors:
            if factor.numel():  # of no elements there is no fan to divide by
                nn.init.xavier_normal_(factor)
        nn.init.xavier_normal_(self.fusion_weights)
        nn.init.zeros_(self.fusion_bias)

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        tensors = without_absent(tensors, present)
        products = [self._product(x, f) for x, f in zip(tensors, self.factors, strict=True)]
        fused = functional.rank_product(products, self.fusion_weights[0], present)
        return fused + self.fusion_bias[0].to(fused.dtype)

    def _product(self, x: Tensor, factor: Tensor) -> Tensor:
        """[1, x] F[r] for every r, (*batch, R, N), as one linear map without the 1."""
        weight = factor[:, 1:].transpose(1, 2).flatten(0, 1)
        return linear(x, weight, factor[:, 0].flatten()).unflatten(-1, factor[:, 0].shape)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, rank={self.rank}"


class Mutan(Fusion):
    r"""MUTAN: a bilinear map, or multilinear with more modalities, as a sum of ``rank`` products.

    .. math::
        y = W_o \sum_{r=1}^{R} \prod_m \left(M_m^r \tilde x_m + c_m^r\right) + b_o, \qquad
        \tilde x_m = \mathrm{act}(W_m x_m + b_m)

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        rank: R, at least 1.
        hidden: features H of the :math:`\tilde x_m` and of the products; None for ``out_features``.
        activation: ``none`` (as in block.bootstrap), ``relu``, ``gelu``, ``gelu_tanh``, ``silu``,
            ``tanh`` (as in the paper) or ``sigmoid``.
        device, dtype: of the parameters.

    ``projections[m]``, H from K_m; ``merges[m]``, R H from H, the H rows of the first rank first;
    and ``output``, N from H, have the weight and bias of an ``nn.Linear``. With two modalities and
    H = ``mm_dim`` they are ``linear0``, ``linear1``, ``merge_linear0``, ``merge_linear1`` and
    ``linear_out`` of block.bootstrap's ``Mutan``, value for value.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. An absent
          modality is left out of the product; in a row without any, each product is 1.
        - output: (\*batch, N).

    Raises:
        ValueError: no inputs, a negative size, a rank below 1, an unknown activation; in
            ``forward``, what :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    Ben-Younes et al., "MUTAN: Multimodal Tucker Fusion for Visual Question Answering", 2017.

    Example:
        >>> layer = Mutan({"image": 2048, "question": 300}, 512, rank=5, hidden=160)
        >>> layer([torch.randn(8, 2048), torch.randn(8, 300)]).shape
        torch.Size([8, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        *,
        rank: int,
        hidden: int | None = None,
        activation: str = "none",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.rank = check_size("rank", rank, 1)
        self.hidden = out_features if hidden is None else check_size("hidden", hidden)
        self.activation = activation
        self.projections = nn.ModuleList(
            ConcatLinear([size], self.hidden, activation=activation, device=device, dtype=dtype)
            for size in self.in_features
        )
        self.merges = nn.ModuleList(
            nn.Linear(self.hidden, rank * self.hidden, device=device, dtype=dtype)
            for _ in self.in_features
        )
        self.output = nn.Linear(self.hidden, out_features, device=device, dtype=dtype)

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        tensors = without_absent(tensors, present)
        layers = zip(self.projections, self.merges, tensors, strict=True)
        factors = [
            merge(projection([x])).unflatten(-1, (self.rank, self.hidden))
            for projection, merge, x in layers
        ]
        return self.output(functional.rank_product(factors, None, present))

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, rank={self.rank}, hidden={self.hidden}"


class MLB(Fusion):
    r"""Multimodal low-rank bilinear attention's product (MLB), for any number of modalities.

    .. math:: y = \mathrm{act}\left(W_o \prod_m \mathrm{act}(W_m x_m + b_m) + b_o\right)

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        hidden: features H of the product; None for ``out_features``.
        activation: ``none``, ``relu`` (as in block.bootstrap), ``gelu``, ``gelu_tanh``, ``silu``,
            ``tanh`` (as in the paper) or ``sigmoid``.
        device, dtype: of the parameters.

    ``projections[m]``, H from K_m, and ``output``, N from H, have the weight and bias of an
    ``nn.Linear``. With two modalities and H = ``mm_dim`` they are ``linear0``, ``linear1`` and
    ``linear_out`` of block.bootstrap's ``MLB``.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. An absent
          modality is left out of the product; in a row without any, the product is 1.
        - output: (\*batch, N).

    Raises:
        ValueError: no inputs, a negative size, an unknown activation; in ``forward``, what
            :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    Kim et al., "Hadamard Product for Low-rank Bilinear Pooling", 2017.

    Example:
        >>> layer = MLB({"image": 2048, "question": 300}, 512, hidden=1200)
        >>> layer([torch.randn(8, 2048), torch.randn(8, 300)]).shape
        torch.Size([8, 512])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        *,
        hidden: int | None = None,
        activation: str = "relu",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.hidden = out_features if hidden is None else check_size("hidden", hidden)

        def layer(size: int, features: int) -> ConcatLinear:
            return ConcatLinear([size], features, activation=activation, device=device, dtype=dtype)

        self.projections = nn.ModuleList(layer(size, self.hidden) for size in self.in_features)
        self.output = layer(self.hidden, out_features)

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        tensors = without_absent(tensors, present)
        layers = zip(self.projections, tensors, strict=True)
        factors = [layer([x]).unsqueeze(-2) for layer, x in layers]
        return self.output([functional.rank_product(factors, None, present)])

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, hidden={self.hidden}"


class MFB(Fusion):
    r"""Multimodal factorized bilinear pooling (MFB), for any number of modalities.

    .. math::
        z = \sum_{i=1}^{k} \prod_m \left(U_m^i x_m + c_m^i\right), \qquad
        s = \frac{z}{\sqrt{|z| + \epsilon}}, \qquad
        y = \frac{s}{\sqrt{\lVert s \rVert^2 + \epsilon}}

    s is the signed square root :math:`\mathrm{sign}(z) \sqrt{|z|}` and y its L2 normalisation, but
    for :math:`\epsilon`, which keeps gradients bounded: the derivative of the root itself grows
    beyond all bounds at z = 0, where that of s is :math:`1 / \sqrt{\epsilon}`, its largest value.
    From :math:`|z| = 100 \epsilon` on, s is within 0.5% of the root.

    Args:
        in_features: the features K_m of each input, in order; a mapping names the inputs.
        out_features: features N of the result.
        factors: k, how many products are added for each feature, at least 1.
        eps: :math:`\epsilon`, greater than 0.
        device, dtype: of the parameters.

    ``projections[m]`` is an ``nn.Linear`` to k N features, laid out as (k, N): the N rows of the
    first factor first, as in :class:`Mutan`. block.bootstrap's ``MFB`` has (N, k) instead: of its
    ``linear0``, ``weight.unflatten(0, (N, k)).transpose(0, 1).flatten(0, 1)`` is the weight here,
    and the bias likewise.

    Shape:
        - inputs: a sequence of tensors (\*batch, K_m), or a mapping from the names given in
          ``in_features``.
        - present: bool (\*batch, M) or None; see :class:`mmfast.nn.fusion.Fusion`. An absent
          modality is left out of the products; in a row without any, z is k throughout, and y is
          :math:`1 / \sqrt{N}` but for :math:`\epsilon`.
        - output: (\*batch, N), of length 1 (or less, where z is near 0).

    Raises:
        ValueError: no inputs, a negative size, ``factors`` below 1, ``eps`` not above 0; in
            ``forward``, what :meth:`mmfast.nn.fusion.Fusion.ordered` raises.

    Yu et al., "Multi-modal Factorized Bilinear Pooling with Co-Attention Learning for Visual
    Question Answering", 2017, without its dropout.

    Example:
        >>> layer = MFB({"image": 2048, "question": 300}, 1000, factors=5)
        >>> layer([torch.randn(8, 2048), torch.randn(8, 300)]).shape
        torch.Size([8, 1000])
    """

    def __init__(
        self,
        in_features: Sizes,
        out_features: int,
        *,
        factors: int = 5,
        eps: float = 1e-6,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self.factors = check_size("factors", factors, 1)
        check_number("eps", eps)
        if not 0 < eps < math.inf:
            raise ValueError(f"eps is {eps!r}; it must be greater than 0, and finite")
        self.eps = eps
        self.projections = projections(
            self.in_features, factors * out_features, True, device=device, dtype=dtype
        )

    def forward(self, inputs: Inputs, present: Tensor | None = None) -> Tensor:
        """Join ``inputs``; see the class for shapes."""
        tensors, present = self.ordered(inputs, present)
        factors = [
            x.unflatten(-1, (self.factors, self.out_features))
            for x in project(self.projections, tensors, present)
        ]
        z = functional.rank_product(factors, None, present)
        root = z * (z.abs() + self.eps).rsqrt()
        return root * (root.square().sum(-1, keepdim=True) + self.eps).rsqrt()

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        return f"{super().extra_repr()}, factors={self.factors}"
