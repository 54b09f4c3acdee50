"""mmfast.nn.GatedFusion against the formulas of the gated multimodal unit."""

import pytest
import torch
from fusion_checks import WAYS, check_formula, draw, draw_present, projected, randomise

from mmfast.nn.gated_sum import GatedFusion

FEATURES = 4


def joint(p, row, widths):
    """W_z [x_1; ...; x_M] with zeros for what is absent."""
    parts = [row.get(m, torch.zeros(k, dtype=torch.float64)) for m, k in enumerate(widths)]
    return p["gates.weight"] @ torch.cat(parts)


def two(widths):
    def gmu(p, row):
        z = 1 / (1 + torch.exp(-joint(p, row, widths)))
        h = {m: torch.tanh(projected(p, m, x)) for m, x in row.items()}
        if len(row) == 2:
            return z * h[0] + (1 - z) * h[1]
        return sum(h.values(), torch.zeros(FEATURES, dtype=torch.float64))

    return gmu


def many(widths):
    def gmu(p, row):
        gates = joint(p, row, widths).view(len(widths), FEATURES).exp()
        total = sum(gates[m] for m in row)
        y = torch.zeros(FEATURES, dtype=torch.float64)
        for m, x in row.items():
            y = y + gates[m] / total * torch.tanh(projected(p, m, x))
        return y

    return gmu


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("widths", [[3, 5], [4, 4], [3, 5, 2], [4, 2, 6, 1, 3]], ids=str)
def test_formula(widths, way):
    layer = randomise(GatedFusion(widths, FEATURES))
    formula = two(widths) if len(widths) == 2 else many(widths)
    present = draw_present((2, 5), len(widths), way)
    check_formula(layer, formula, draw(widths, (2, 5)), present)


def test_one_absent_is_the_other():
    layer = randomise(GatedFusion([3, 5], FEATURES))
    x, y = draw([3, 5], (6,))
    found = layer([x, y.fill_(torch.nan)], torch.tensor([True, False]))
    torch.testing.assert_close(found, torch.tanh(layer.projections[0](x)))


def test_parameters():
    for widths, rows in (([3, 5], 4), ([3, 5, 2], 12)):
        layer = GatedFusion(widths, FEATURES)
        assert layer.gates.weight.shape == (rows, sum(widths))
        assert layer.gates.bias is None
        assert [p.weight.shape for p in layer.projections] == [(4, width) for width in widths]


def test_one_input_is_refused():
    with pytest.raises(ValueError, match=r"in_features gives 1 input; .* at least two"):
        GatedFusion([3], FEATURES)
