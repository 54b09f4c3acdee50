"""Models as people write them, one per pattern."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (96, 160)
OUT = 128
ROWS = 192


def data(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


class Base(nn.Module):
    def __init__(self, widths: tuple[int, ...] = WIDTHS, out: int = OUT) -> None:
        super().__init__()
        self.fc = nn.Linear(sum(widths), out)
        self.other = nn.Linear(out, 8)

    @staticmethod
    def inputs() -> list[Tensor]:
        return data((ROWS, WIDTHS[0]), (ROWS, WIDTHS[1]))


class Nested(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.other(self.fc(torch.cat([x, y], dim=-1)))


class Named(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        joined = torch.cat((x, y), 1)
        out = self.fc(joined)
        return self.other(out)


class Reassigned(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = torch.concat([x, y], axis=-1)
        x = self.fc(x)
        x = F.relu(x, inplace=True)
        return self.other(x)


class Functional(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.gelu(
            F.linear(torch.concatenate([x, y], -1), self.fc.weight, self.fc.bias),
            approximate="tanh",
        )


class Method(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.cat([x, y], dim=-1)).tanh()

    def head(self, z: Tensor) -> Tensor:
        if z is None:
            return None
        return self.fc(z).sigmoid()


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.lin = nn.Linear(sum(WIDTHS), OUT)
        self.act = nn.SiLU()

    def forward(self, hidden: Tensor, scale: float = 1.0) -> Tensor:
        hidden = self.drop(hidden)
        return self.act(self.lin(hidden)) * scale


class Child(Base):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.block(torch.cat([x, y], dim=-1), 2.0)


class Sequence(Base):
    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Identity(), nn.Linear(sum(WIDTHS), OUT), nn.ReLU(inplace=True))
        self.mlp = nn.Sequential(nn.Dropout(0.25), inner, nn.Linear(OUT, 8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, y], dim=-1))


class Several(Base):
    """Two layers take the concatenation, and nothing else does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(sum(WIDTHS), OUT) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        z = torch.cat([x, y], dim=-1)
        return [layer(z) for layer in self.layers]


class Branches(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.sum() > 1e9:
            z = self.other.weight.new_zeros(x.shape[0], sum(WIDTHS))
        else:
            z = torch.cat([x, y], dim=-1)
        out = self.fc(z)
        for _ in range(2):
            out = out + 1
        return {"out": out}


class Broadcast(Base):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        n = x.shape[1]
        return torch.relu(self.fc(torch.cat([x, y.unsqueeze(1).expand(-1, n, -1)], dim=-1)))

    @staticmethod
    def inputs() -> list[Tensor]:
        return data((4, 64, WIDTHS[0]), (4, WIDTHS[1]))


class Repeated(Broadcast):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        n = x.shape[1]
        y = y[:, None].repeat(1, n, 1)
        return torch.relu(self.fc(torch.cat([x, y], dim=-1)))


class Gathered(Base):
    def __init__(self) -> None:
        super().__init__((96, 96, 160, 160))

    def forward(self, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        source = x[i]
        e = y.index_select(0, j)
        f = y.repeat_interleave(i.numel() // y.shape[0], dim=0)
        return self.fc(torch.cat([source, F.embedding(j, x), e, f], dim=-1))

    @staticmethod
    def inputs() -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        i = torch.randint(-40, 40, (512,), generator=generator)
        j = torch.randint(0, 32, (512,), generator=generator)
        return [*data((40, 96), (32, 160)), i, j]


class Channels(nn.Module):
    """A skip of a U-Net, and global features joined to every point."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(96, 64, 1)
        self.act = nn.ReLU(inplace=True)
        self.point = nn.Conv1d(64 + 128, 96, kernel_size=1, bias=False)

    def forward(self, x: Tensor, skip: Tensor, points: Tensor, vector: Tensor) -> list[Tensor]:
        y = self.act(self.conv(torch.cat([x, skip], dim=1)))
        n = points.shape[2]
        z = self.point(torch.cat([points, vector.unsqueeze(2).expand(-1, -1, n)], 1))
        return [y, z]

    @staticmethod
    def inputs() -> list[Tensor]:
        x, skip, points, vector = data((2, 64, 16, 16), (2, 32, 16, 16), (2, 64, 100), (2, 128))
        last = torch.channels_last
        return [x.to(memory_format=last), skip.to(memory_format=last), points, vector]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(128, 1)
        self.weights = nn.Parameter(torch.randn(3))

    def forward(self, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.stack([a, b, c], dim=1)
        w = torch.softmax(self.score(z), dim=1)
        s = torch.stack((a, b, c))
        v = torch.softmax(self.weights, 0)
        return (z * w).sum(dim=1), torch.sum(v[:, None, None] * s, 0)

    @staticmethod
    def inputs() -> list[Tensor]:
        return data((256, 128), (256, 128), (256, 128))


PATTERNS: dict[type[nn.Module], int] = {
    Nested: 1,
    Named: 1,
    Reassigned: 1,
    Functional: 1,
    Method: 1,
    Child: 1,
    Sequence: 1,
    Several: 1,
    Branches: 1,
    Broadcast: 1,
    Repeated: 1,
    Gathered: 1,
    Channels: 2,
    Attention: 2,
}
