"""Fixtures for every test: a fixed seed, and instruction sets by name."""

import pytest
import torch

from mmfast.ops.library import host


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=host.cpu_isas())
def isa(request: pytest.FixtureRequest):
    """Every instruction set that this machine has, forced in turn."""
    host.force_cpu_isa(request.param)
    yield request.param
    host.force_cpu_isa("")
