"""mmfast.nn.FiLM against its formula."""

import pytest
import torch
from fusion_checks import WAYS, check_formula, draw, draw_present, randomise
from torch import nn

from mmfast.nn.film import FiLM

WIDTHS = [4, 3, 2]


def formula(modulated, out):
    def modulate(p, row):
        others = [m for m in range(3) if m != modulated]
        zeros = [torch.zeros(width, dtype=torch.float64) for width in WIDTHS]
        c = torch.cat([row.get(m, zeros[m]) for m in others])
        change = p["film.weight"] @ c + p["film.bias"]
        x = row.get(modulated, zeros[modulated])
        if "projection.weight" in p:
            x = p["projection.weight"] @ x
        return (1 + change[:out]) * x + change[out:]

    return modulate


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("out", [4, 5])
@pytest.mark.parametrize(("condition", "modulated"), [(None, 0), ([0, 2], 1), ([1, 0], 2)])
def test_formula(condition, modulated, out, way):
    layer = randomise(FiLM(WIDTHS, out, condition=condition))
    inputs, present = draw(WIDTHS, (2, 3)), draw_present((2, 3), 3, way)
    check_formula(layer, formula(modulated, out), inputs, present)


def test_projects_only_where_sizes_differ():
    assert isinstance(FiLM([4, 3], 4).projection, nn.Identity)
    assert isinstance(FiLM([4, 3], 5).projection, nn.Linear)
    assert isinstance(FiLM([4, 3], 4, condition=0).projection, nn.Linear)


@pytest.mark.parametrize("way", WAYS)
def test_tokens_and_maps_are_modulated_by_vectors(way):
    layer = randomise(FiLM(WIDTHS, 5))
    maps, vector, whole = draw([4], (2, 3, 2))[0], draw([3], (2, 1, 1))[0], draw([2], ())[0]
    present = draw_present((2, 1, 1) if way == "some absent" else (2, 3, 2), 3, way)
    check_formula(layer, formula(0, 5), [maps, vector, whole], present)
    tokens, present = (
        maps[:, :, 0],
        None if present is None else present.expand(2, 3, 2, 3)[:, :, 0],
    )
    check_formula(layer, formula(0, 5), [tokens, vector[:, 0], whole], present)


def test_fresh_layer_without_conditions_changes_nothing():
    layer, x = FiLM([4, 3], 4), torch.randn(6, 4)
    found = layer([x, torch.full((6, 3), torch.nan)], torch.tensor([True, False]))
    assert torch.equal(found, x)
    assert not torch.equal(layer([x, torch.randn(6, 3)]), x)


def test_absent_input_leaves_the_shift():
    layer = randomise(FiLM([3, 2], 5))
    x, c = draw([3, 2], (6,))
    found = layer([x * torch.nan, c], torch.tensor([False, True]))
    torch.testing.assert_close(found, layer.film([c])[..., 5:])


def test_names():
    layer = FiLM({"image": 4, "text": 3, "audio": 2}, 4, condition=["audio", "image"])
    assert layer.modulated == 1
    assert repr(layer).startswith(
        "FiLM(\n  in_features={'image': 4, 'text': 3, 'audio': 2}, out_features=4, condition=[0, 2]"
    )
    inputs = {"audio": torch.randn(6, 2), "text": torch.randn(6, 3), "image": torch.randn(6, 4)}
    assert torch.equal(layer(inputs), layer([inputs[name] for name in ("image", "text", "audio")]))
    one = FiLM({"image": 4, "text": 3}, 4, condition="text")
    assert (one.modulated, one.condition) == (0, (1,))


def test_reset_parameters():
    layer = FiLM([4, 3], 5)
    torch.manual_seed(1)
    layer.reset_parameters()
    first = [p.clone() for p in layer.parameters()]
    assert layer.film.bias.count_nonzero() == 0
    randomise(layer)
    torch.manual_seed(1)
    layer.float().reset_parameters()
    for a, b in zip(first, layer.parameters(), strict=True):
        assert torch.equal(a, b)


def test_device_and_dtype():
    layer = FiLM([4, 3], 5, device="meta", dtype=torch.bfloat16)
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in layer.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([4], 4), "it must hold two inputs or more"),
        (([4, 3], -1), "out_features is -1"),
        (([4, 3], 4, 2), "condition holds 2; the inputs are 0, 1"),
        (([4, 3], 4, -1), "condition holds -1"),
        (([4, 3], 4, True), "condition holds True"),
        (([4, 3], 4, torch.ones(2, 2)), "condition holds tensor"),
        (({"a": 4, "b": 3}, 4, "c"), "condition holds 'c'; the inputs are 'a', 'b'"),
        (([4, 3], 4, [0, 1]), r"condition is \[0, 1\]; it must leave one of the inputs"),
        (([4, 3], 4, [1, 1, 0]), "must leave one"),
        (([4, 3, 2], 4, 1), "condition is 1; it must leave one of the inputs 0, 1, 2"),
        (([4, 3, 2], 4, []), "must leave one"),
    ],
    ids=str,
)
def test_constructor_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        FiLM(*arguments)


def test_forward_refuses():
    layer = FiLM([4, 3], 4)
    with pytest.raises(ValueError, match="batch shapes of inputs do not broadcast"):
        layer([torch.ones(2, 5, 4), torch.ones(2, 3)])
    with pytest.raises(ValueError, match=r"last sizes \[3, 4\]"):
        layer([torch.ones(2, 3), torch.ones(2, 4)])
    with pytest.raises(TypeError, match="present has dtype"):
        layer([torch.ones(2, 4), torch.ones(2, 3)], torch.ones(2, 2))
