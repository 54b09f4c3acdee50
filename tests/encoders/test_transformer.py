"""The transformer against its formula, written out in float64."""

import math

import pytest
import torch

from mmfast.encoders.transformer import Block, Positions, Transformer, sinusoids


def layer_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return (
        centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
        + norm.bias
    )


def formula(block, x, valid):
    """One block on one sequence (T, D) of which the first `valid` tokens may be looked at."""
    h = layer_norm(x, block.attention_norm)
    query, key, value = (h @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
    size = x.shape[1] // block.heads
    heads = []
    for start in range(0, x.shape[1], size):
        part = slice(start, start + size)
        scores = (query[:, part] @ key[:valid, part].T / math.sqrt(size)).exp()
        heads.append(scores / scores.sum(-1, keepdim=True) @ value[:valid, part])
    x = x + torch.cat(heads, -1) @ block.attention_out.weight.T + block.attention_out.bias
    up, _, down = block.network
    h = layer_norm(x, block.network_norm) @ up.weight.T + up.bias
    h = h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    return x + h @ down.weight.T + down.bias


def test_a_block_is_its_formula():
    block = Block(12, 3, 0.0).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    lengths = torch.tensor([5, 3])
    found = block(x, (torch.arange(5) < lengths[:, None])[:, None, None])
    for row, length, expected in zip(found, lengths.tolist(), x, strict=True):
        torch.testing.assert_close(row[:length], formula(block, expected, length)[:length])


def test_padding_does_not_matter_and_empty_rows_are_finite():
    model = Transformer(8, 2, 2)
    x = torch.randn(3, 4, 8, requires_grad=True)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    found = model(x, mask)
    torch.testing.assert_close(found[1, :2], model(x[1:2, :2])[0])
    torch.testing.assert_close(found[0], model(x[:1])[0])
    assert found.isfinite().all()
    found[mask].sum().backward()
    assert x.grad.isfinite().all()
    assert x.grad[~mask].eq(0).all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_sinusoids():
    table = sinusoids(torch.arange(50), 16)
    for t, i in ((0, 0), (7, 0), (49, 3), (13, 7)):
        angle = t / 10000 ** (2 * i / 16)
        assert table[t, i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[t, 8 + i].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_a_grid_has_rows_in_one_half_and_columns_in_the_other():
    grid = Positions((3, 5), 8, "sinusoidal")
    assert not list(grid.parameters())
    assert not grid.state_dict()
    table = grid(torch.zeros(1, 15, 8))[0].view(3, 5, 8)
    for row in range(3):
        for column in range(5):
            torch.testing.assert_close(table[row, column, :4], sinusoids(torch.tensor([row]), 4)[0])
            torch.testing.assert_close(
                table[row, column, 4:], sinusoids(torch.tensor([column]), 4)[0]
            )


def test_shorter_sequences_get_the_first_positions():
    positions = Positions((6,), 4, "learned")
    assert positions(torch.zeros(2, 3, 4))[1].equal(positions.table[:3])
