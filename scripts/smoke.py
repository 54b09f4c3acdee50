"""Whether an installed mmfast works at all: run where no source tree is, it needs nothing else.

The library loads, an operator agrees with PyTorch forward and backward, plugins are found.
"""

import torch

import mmfast
from mmfast.ops.library import host


def main() -> None:
    """Raise unless it works; print what it is."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 48, requires_grad=True), torch.randn(64, 80, requires_grad=True)
    layer = torch.nn.Linear(128, 32)
    fused = mmfast.nn.ConcatLinear.from_linear(layer, [48, 80])
    expected, found = layer(torch.cat([x, y], -1)), fused([x, y])
    torch.testing.assert_close(found, expected)
    wanted = torch.autograd.grad(expected.square().sum(), [x, y, *layer.parameters()])
    got = torch.autograd.grad(found.square().sum(), [x, y, *fused.parameters()])
    torch.testing.assert_close(got, wanted)
    assert "image_convnet" in mmfast.list_encoders()
    gated = mmfast.nn.create_fusion("gated", in_features={"x": 48, "y": 80}, out_features=16)
    assert gated({"x": x, "y": y}).shape == (64, 16)
    built = host.build_info()
    print(
        f"mmfast {mmfast.__version__} works: torch {torch.__version__}, CUDA kernels "
        f"{'in' if built['cuda'] else 'left out'}, {host.cpu_isa()}, {mmfast.__file__}"
    )


if __name__ == "__main__":
    main()
