"""Swap a concatenation and its linear layer in an existing model for ConcatLinear, and back."""

import torch
from torch import Tensor, nn

from mmfast.nn import ConcatLinear


class TwoTower(nn.Module):
    """A model as it stands in many code bases."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Linear(2048, 512)
        self.text = nn.Linear(768, 256)
        self.fusion = nn.Linear(512 + 256, 128)
        self.head = nn.Linear(128, 10)

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        joined = torch.cat([self.image(image), self.text(text)], dim=-1)
        return self.head(torch.relu(self.fusion(joined)))


class FusedTwoTower(TwoTower):
    """The same model without the concatenation: same parameters, same state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = ConcatLinear([512, 256], 128, activation="relu")

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return self.head(self.fusion([self.image(image), self.text(text)]))


def main() -> None:
    """Load a checkpoint of the one model into the other, both ways, and compare."""
    before, after = TwoTower(), FusedTwoTower()
    after.load_state_dict(before.state_dict())
    image, text = torch.randn(32, 2048), torch.randn(32, 768)
    difference = (after(image, text) - before(image, text)).abs().max().item()
    before.load_state_dict(after.state_dict())
    print(f"largest difference of the two models' results: {difference:.1e}")
    print(after.fusion)


if __name__ == "__main__":
    main()
