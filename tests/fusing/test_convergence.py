"""Training a fused model is training the model."""

import copy

import torch
from torch import nn

import mmfast


class TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(192, 96), nn.Linear(128, 160)
        self.fusion = nn.Sequential(nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 10))

    def forward(self, image, text):
        joined = torch.cat([self.image(image).relu(), self.text(text).relu()], dim=-1)
        return self.fusion(joined)


class Reordered(TwoTower):
    """The same sums in another order: features of the concatenation turned round."""

    def forward(self, image, text):
        joined = torch.cat([self.image(image).relu(), self.text(text).relu()], dim=-1)
        first = self.fusion[0]
        hidden = nn.functional.linear(joined.flip(-1), first.weight.flip(-1), first.bias)
        return self.fusion[2](self.fusion[1](hidden))


def losses(model: nn.Module, steps: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    teacher = torch.randn(320, 10, generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    found = []
    for _ in range(steps):
        image = torch.randn(64, 192, generator=generator)
        text = torch.randn(64, 128, generator=generator)
        target = (torch.cat([image, text], 1) @ teacher).argmax(1)
        loss = nn.functional.cross_entropy(model(image, text), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.detach().double())
    return torch.stack(found)


def test_loss_curves_agree_as_those_of_reordered_sums_do():
    plain = TwoTower()
    fused, reordered = copy.deepcopy(plain), Reordered()
    reordered.load_state_dict(plain.state_dict())
    assert len(mmfast.fuse(fused, strict=True).fused) == 1
    expected = losses(plain)
    assert expected[-20:].mean() < 0.8 * expected[:20].mean()  # it learns
    spread = (losses(reordered) - expected).abs()
    difference = (losses(fused) - expected).abs()
    assert 0 < spread.max() < 1e-3  # and the order of sums is seen
    assert difference.mean() <= 2 * spread.mean()
    assert difference.max() <= 2 * spread.max()
