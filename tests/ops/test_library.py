"""The compiled library: how it was built, and that it keeps to the stable ABI."""

import shutil
import subprocess

import pytest
import torch

from mmfast.ops.library import host


def test_build_info():
    info = host.build_info()
    assert info["oldest_torch"] == "2.10.0"
    assert info["cuda"] is False or torch.version.cuda is not None
    assert "-march" not in info["flags"]


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils' nm is not installed")
def test_only_the_stable_abi():
    """One wheel for every torch: no symbol of at:: or c10::, none of torch's C++."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", host.__file__],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    symbols = [line.split(maxsplit=1)[1] for line in listing.splitlines()]
    assert any(symbol.startswith("aoti_torch_cpu_addmm_out") for symbol in symbols)
    unstable = [s for s in symbols if s.startswith(("at::", "c10::", "torch::", "caffe2::"))]
    assert unstable == []


def test_force_isa():
    widest = host.cpu_isas()[-1]
    assert host.cpu_isas()[0] == "baseline"
    assert host.cpu_isa() == widest
    host.force_cpu_isa("baseline")
    try:
        assert host.cpu_isa() == "baseline"
        with pytest.raises(ValueError, match=r"'sse9' is not available here; available: baseline"):
            host.force_cpu_isa("sse9")
        assert host.cpu_isa() == "baseline"
    finally:
        host.force_cpu_isa("")
    assert host.cpu_isa() == widest


def test_isa_changes_the_kernel():
    """Fused multiply-add rounds once: forcing the instruction set must be visible in the bits."""
    if host.cpu_isas() == ["baseline"]:
        pytest.skip("this machine has one instruction set only")
    x, weight = torch.randn(8, 60), torch.randn(8, 60)
    results = {}
    for isa in host.cpu_isas():
        host.force_cpu_isa(isa)
        results[isa] = torch.ops.mmfast.concat_linear.default([x], weight, None, "none", False)[0]
    host.force_cpu_isa("")
    assert not torch.equal(results["baseline"], results["avx2"])


def plan(widths, distinct, rows, cols, size=4):
    return host.concat_linear_plan(widths, distinct, rows, cols, size)


def test_plan():
    """The ways that the operator can take, each chosen where it should be."""
    assert plan([3, 5], [4, 4], 4, 6)["method"] == "tiny"
    assert plan([3, 5], [0, 0], 0, 6)["method"] == "empty"
    wide = plan([512, 300], [1000, 1000], 1000, 64)
    assert wide["method"] == "blocks"
    assert [(g["inputs"], g["block_rows"]) for g in wide["groups"]] == [([0], 0), ([1], 0)]
    narrow = plan([512, 64, 64, 64], [1000] * 4, 1000, 64)
    assert [g["inputs"] for g in narrow["groups"]] == [[0], [1, 2, 3]]
    assert narrow["groups"][1]["block_rows"] > 0
    half = plan([512, 300, 64], [1000] * 3, 1000, 64, size=2)
    assert [g["inputs"] for g in half["groups"]] == [[0, 1, 2]]
    assert "16-bit" in half["why"]
    broadcast = plan([512, 300], [1000, 10], 1000, 64)
    assert [g["inputs"] for g in broadcast["groups"]] == [[0]]
    assert plan([512, 300], [10, 20], 200, 64)["groups"] == []


def test_plan_bounds_scratch():
    for widths in ([64] * 26, [2048, 768], [100] * 900, [200_000, 3]):
        for size in (2, 4, 8):
            for group in plan(widths, [10**6] * len(widths), 10**6, 64, size)["groups"]:
                assert group["block_rows"] * group["width"] * size <= 4 << 20
