"""ProductFusion, LowRankFusion, Mutan, MLB and MFB against their formulas and their peers'."""

import math

import pytest
import reference
import torch
import torch.nn.functional as F
from fusion_checks import WAYS, check_formula, draw, draw_present, projected, randomise

from mmfast.nn.rank_product import MFB, MLB, LowRankFusion, Mutan, ProductFusion

WIDTHS = [[3, 5], [4, 4], [4, 2, 6]]


def product(factors):
    return math.prod(factors, start=torch.ones((), dtype=torch.float64))


def plain(p, row):
    return product(projected(p, m, x) for m, x in row.items()).expand(4)


def low_rank(p, row):
    y = p["fusion_bias"][0]
    for r, weight in enumerate(p["fusion_weights"][0]):
        one = torch.ones(1, dtype=torch.float64)
        factors = [torch.cat([one, x]) @ p[f"factors.{m}"][r] for m, x in row.items()]
        y = y + weight * product(factors)
    return y


def mutan(rank, hidden, activation):
    act = reference.ACTIVATIONS[activation]

    def formula(p, row):
        z = torch.zeros(hidden, dtype=torch.float64)
        x = {m: act(projected(p, m, x)) for m, x in row.items()}
        for r in range(rank):
            rows = slice(r * hidden, (r + 1) * hidden)
            factors = [
                p[f"merges.{m}.weight"][rows] @ x[m] + p[f"merges.{m}.bias"][rows] for m in row
            ]
            z = z + product(factors)
        return p["output.weight"] @ z + p["output.bias"]

    return formula


def mlb(hidden, activation):
    act = reference.ACTIVATIONS[activation]

    def formula(p, row):
        z = product(act(projected(p, m, x)) for m, x in row.items()).expand(hidden)
        return act(p["output.weight"] @ z + p["output.bias"])

    return formula


def mfb(factors, features, eps):
    def formula(p, row):
        h = [projected(p, m, x) for m, x in row.items()]
        z = torch.stack(
            [
                sum(product(x[i * features + n] for x in h) for i in range(factors))
                for n in range(features)
            ]
        )
        s = z / (z.abs() + eps) ** 0.5
        return s / ((s * s).sum() + eps) ** 0.5

    return formula


# Per name: the module for given widths, and its formula.
MODULES = {
    "product": (lambda widths: ProductFusion(widths, 4), plain),
    "low rank": (lambda widths: LowRankFusion(widths, 4, rank=3), low_rank),
    "low rank 1": (lambda widths: LowRankFusion(widths, 4, rank=1), low_rank),
    "mutan": (lambda widths: Mutan(widths, 4, rank=3, hidden=2), mutan(3, 2, "none")),
    "mutan tanh": (lambda widths: Mutan(widths, 4, rank=2, activation="tanh"), mutan(2, 4, "tanh")),
    "mlb": (lambda widths: MLB(widths, 4, hidden=6), mlb(6, "relu")),
    "mlb tanh": (lambda widths: MLB(widths, 4, activation="tanh"), mlb(4, "tanh")),
    "mfb": (lambda widths: MFB(widths, 4, factors=3), mfb(3, 4, 1e-6)),
    "mfb eps": (lambda widths: MFB(widths, 4, factors=1, eps=0.1), mfb(1, 4, 0.1)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_formula(name, widths, way):
    make, formula = MODULES[name]
    present = draw_present((2, 4), len(widths), way)
    check_formula(randomise(make(widths)), formula, draw(widths, (2, 4)), present)


# ------------------------------------------------------------------------------------------- peers


def test_multibench():
    """The numbers of MultiBench's tests/test_fusion.py for LowRankTensorFusion((10, 10), 2, 1)."""
    torch.manual_seed(0)
    for norm in (0.6151207089424133, 8.852971076965332):
        layer = LowRankFusion((10, 10), 2, rank=1)
        found = layer([torch.randn(10, 10) for _ in range(2)])
        assert found.norm().item() == pytest.approx(norm, rel=1e-5)


def test_low_rank_parameters_are_trained_and_saved():
    layer = LowRankFusion([3, 5], 4, rank=2)
    shapes = {name: tuple(x.shape) for name, x in layer.state_dict().items()}
    assert shapes == {
        "fusion_weights": (1, 2),
        "fusion_bias": (1, 4),
        "factors.0": (2, 4, 4),
        "factors.1": (2, 6, 4),
    }
    assert len(list(layer.parameters())) == 4


def test_low_rank_of_no_features():
    """Xavier's fan of such a factor is 0."""
    assert LowRankFusion([0, 3], 0, rank=2)([torch.ones(5, 0), torch.ones(5, 3)]).shape == (5, 0)
    assert LowRankFusion([0], 4, rank=1)([torch.ones(5, 0)]).isfinite().all()


def block_layers(widths, features, merged=None):
    """linear0, linear1 (and merge_linear0, merge_linear1) of block.bootstrap, with a batch."""
    layers = [torch.nn.Linear(width, features).double() for width in widths]
    if merged:
        layers += [torch.nn.Linear(features, merged).double() for _ in widths]
    return layers, draw(widths, (7,))


def test_block_bootstrap_mutan():
    """Its view(-1, rank, mm_dim): value for value the parameters of ours."""
    (linear0, linear1, merge0, merge1), (x, y) = block_layers([3, 5], 6, 12)
    out = torch.nn.Linear(6, 4).double()
    z = (merge0(linear0(x)) * merge1(linear1(y))).view(-1, 2, 6).sum(1)
    layer = Mutan([3, 5], 4, rank=2, hidden=6).double()
    theirs = {"projections.0": linear0, "projections.1": linear1, "merges.0": merge0}
    theirs |= {"merges.1": merge1, "output": out}
    layer.load_state_dict(
        {
            f"{name}.{key}": value
            for name, linear in theirs.items()
            for key, value in linear.state_dict().items()
        }
    )
    torch.testing.assert_close(layer([x, y]), out(z), rtol=1e-10, atol=1e-10)


def test_block_bootstrap_mlb():
    (linear0, linear1), (x, y) = block_layers([3, 5], 6)
    out = torch.nn.Linear(6, 4).double()
    layer = MLB([3, 5], 4, hidden=6).double()
    for ours, linear in zip(
        [*layer.projections, layer.output], [linear0, linear1, out], strict=True
    ):
        ours.load_state_dict(linear.state_dict())
    expected = F.relu(out(F.relu(linear0(x)) * F.relu(linear1(y))))
    torch.testing.assert_close(layer([x, y]), expected, rtol=1e-10, atol=1e-10)


def test_block_bootstrap_mfb():
    """Its view(-1, mm_dim, factor): the layout that the docstring converts."""
    (linear0, linear1), (x, y) = block_layers([3, 5], 4 * 3)
    z = (linear0(x) * linear1(y)).view(-1, 4, 3).sum(2)
    expected = F.normalize(torch.sqrt(F.relu(z)) - torch.sqrt(F.relu(-z)), p=2)
    layer = MFB([3, 5], 4, factors=3, eps=1e-14).double()
    for ours, linear in zip(layer.projections, (linear0, linear1), strict=True):
        ours.load_state_dict(
            {
                key: value.unflatten(0, (4, 3)).transpose(0, 1).flatten(0, 1)
                for key, value in linear.state_dict().items()
            }
        )
    torch.testing.assert_close(layer([x, y]), expected, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------------------------- MFB


def test_mfb_gradient_is_bounded_at_zero():
    """Where a product is zero the signed square root has no derivative; ours has 1/sqrt(eps)."""
    layer = MFB([2, 2], 3, factors=1, eps=1e-4).double()
    weight = torch.tensor([[1.0, 0], [0, 1], [1, 1]], dtype=torch.float64)
    for projection in layer.projections:
        projection.load_state_dict({"weight": weight, "bias": torch.zeros(3).double()})
    x = torch.tensor([[0.0, 2.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    y = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    result = layer([x, y])
    assert result[0, 0] == 0
    assert torch.equal(result[1], torch.zeros(3).double())
    jacobian = torch.autograd.functional.jacobian(lambda x: layer([x, y]), x)
    assert jacobian.isfinite().all()
    # Row 0: z = (0, 2, 4), so s has length sqrt(6) but for eps, and x_00 enters z_0 once.
    torch.testing.assert_close(
        jacobian[0, 0, 0, 0].item(), 1 / math.sqrt(1e-4) / math.sqrt(6), rtol=1e-3, atol=0
    )
    # Row 1: all of s is zero, and so are both roots' arguments but for eps.
    torch.testing.assert_close(jacobian[1, 0, 1, 0].item(), 1e4)


def test_mfb_is_near_the_signed_square_root():
    layer = randomise(MFB([3, 5], 6, factors=2))
    inputs = draw([3, 5], (20,))
    a, b = (p(x).view(-1, 2, 6) for p, x in zip(layer.projections, inputs, strict=True))
    z = (a * b).sum(1)
    expected = F.normalize(z.sign() * z.abs().sqrt(), dim=-1)
    torch.testing.assert_close(layer(inputs), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        layer(inputs).norm(dim=-1), torch.ones(20).double(), atol=1e-5, rtol=0
    )


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ProductFusion([3, 4], 4, project=False), r"\[3, 4\] but out_features is 4"),
        (lambda: LowRankFusion([3, 5], 4, rank=0), "rank is 0; it must be an int of at least 1"),
        (lambda: Mutan([3, 5], 4, rank=1.5), "rank is 1.5; it must be an int of at least 1"),
        (lambda: Mutan([3, 5], 4, rank=2, hidden=-1), "hidden is -1; it must be an int"),
        (lambda: Mutan([3, 5], 4, rank=2, activation="swish"), "activation is 'swish'"),
        (lambda: MLB([3, 5], 4, activation="swish"), "activation is 'swish'"),
        (lambda: MLB([3, 5], 4, hidden=True), "hidden is True; it must be an int"),
        (lambda: MFB([3, 5], 4, factors=0), "factors is 0; it must be an int of at least 1"),
        (lambda: MFB([3, 5], 4, eps=0.0), "eps is 0.0; it must be greater than 0"),
        (lambda: MFB([3, 5], 4, eps=math.inf), "eps is inf; it must be greater than 0, and finite"),
    ],
)
def test_constructor_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_hidden_defaults_to_the_result_size():
    assert Mutan([3, 5], 4, rank=2).hidden == MLB([3, 5], 4).hidden == 4


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (lambda: LowRankFusion([3, 5], 4, rank=2), "rank=2"),
        (lambda: Mutan([3, 5], 4, rank=2), "rank=2, hidden=4"),
        (lambda: MLB([3, 5], 4, hidden=7), "hidden=7"),
        (lambda: MFB([3, 5], 4), "factors=5"),
    ],
)
def test_repr(layer, options):
    assert layer().extra_repr() == f"in_features=[3, 5], out_features=4, {options}"
