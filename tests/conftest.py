"""Fixtures for every test: a fixed seed, instruction sets by name, distributions with plugins."""

import sys

import pytest
import torch
from distributions import write_distribution

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


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes distributions (see distributions.py) that are found as installed ones are.

    Of other plugins only mmfast's own are seen, whatever else this environment holds.
    """
    seen: list[str] = []

    def make(name, entry_points, *arguments, group="mmfast.encoders", **options):
        site = tmp_path / f"site{len(seen)}"
        module = write_distribution(site, name, {group: entry_points}, *arguments, **options)
        seen.append(name)
        monkeypatch.setenv("MMFAST_PLUGINS", ",".join(seen))
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)
        return site

    monkeypatch.setenv("MMFAST_PLUGINS", "")
    before = set(sys.modules)
    yield make
    for module in set(sys.modules) - before:
        if module.endswith("_module"):
            del sys.modules[module]
