"""Fixtures for every test: a fixed seed, devices, instruction sets, distributions with plugins."""

import sys
from pathlib import Path

import pytest
import torch
from distributions import write_distribution

from mmfast.ops.library import host

HERE = Path(__file__).parent
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() and host.build_info()["cuda"] else ("cpu",)
# Folders whose tests run on every device; those marked cpu_only do not.
ON_DEVICES = ("ops", "functional", "nn")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """On a GPU too, but there only once for all instruction sets of the CPU."""
    folder = metafunc.definition.path.relative_to(HERE).parts[0]
    if folder not in ON_DEVICES:
        return
    on_cuda = "cuda" in DEVICES and not metafunc.definition.get_closest_marker("cpu_only")
    if "isa" in metafunc.fixturenames:
        isas = host.cpu_isas()
        if on_cuda:
            both = [*(("cpu", isa) for isa in isas), ("cuda", isas[-1])]
            metafunc.parametrize(("device", "isa"), both, indirect=True)
        else:
            metafunc.parametrize("isa", isas, indirect=True)
    elif on_cuda:
        metafunc.parametrize("device", DEVICES, indirect=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Where tensors are made unless a test says otherwise, and the test file's own ones lie."""
    name = getattr(request, "param", "cpu")
    if name == "cpu":
        yield name
        return
    for constant, value in list(vars(request.module).items()):
        if isinstance(value, torch.Tensor):
            monkeypatch.setattr(request.module, constant, value.to(name))
    with torch.device(name):
        yield name


@pytest.fixture
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
