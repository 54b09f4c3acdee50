"""The compiled library: how it was built, and that it keeps to the stable ABI."""

import re
import shutil
import subprocess

import pytest
import torch

from mmfast.ops.library import host

pytestmark = pytest.mark.cpu_only  # about the library, not a device


def test_build_info():
    info = host.build_info()
    assert info["oldest_torch"] == "2.10.0"
    assert info["cuda"] in (True, False)  # a CUDA build runs under a torch without CUDA too
    assert "-march" not in info["flags"]


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils' nm is not installed")
def test_only_the_stable_abi():
    """One wheel for every torch: no symbol of at:: or c10::, none of torch's C++.

    Anywhere in the name: a type's typeinfo or vtable, or a template of it, is a use of it too.
    """
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", host.__file__],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    symbols = [line.split(maxsplit=1)[1] for line in listing.splitlines()]
    assert any(symbol.startswith("aoti_torch_cpu_addmm_out") for symbol in symbols)
    unstable = [s for s in symbols if re.search(r"\b(at|c10|torch|caffe2)::", s)]
    assert unstable == []


@pytest.mark.skipif(shutil.which("objdump") is None, reason="binutils' objdump is not installed")
@pytest.mark.skipif("avx2" not in host.cpu_isas(), reason="this build has no x86 instruction sets")
def test_wide_registers_stay_in_their_namespaces():
    """A function for every machine that uses a wide register would crash the older ones."""
    listing = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", host.__file__],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    functions = re.split(r"^[0-9a-f]+ <(.*)>:$", listing, flags=re.MULTILINE)
    wide = {"zmm": set(), "ymm": set()}
    for name, code in zip(functions[1::2], functions[2::2], strict=True):
        for register, users in wide.items():
            if f"%{register}" in code:
                users.add(name)
    at_home = {"zmm": r"::isa_avx512(_bf16)?::", "ymm": r"::isa_avx(2|512|512_bf16)::"}
    for register, users in wide.items():
        assert users  # the listing is read as it is meant to be
        assert [name for name in users if not re.search(at_home[register], name)] == []


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
    try:
        for isa in host.cpu_isas():
            host.force_cpu_isa(isa)
            results[isa] = torch.ops.mmfast.concat_linear.default(
                [x], weight, None, [], [], "none", False
            )[0]
    finally:
        host.force_cpu_isa("")
    assert not torch.equal(results["baseline"], results["avx2"])


def plan(widths, distinct, rows, cols, dtype="float64"):
    """float64 has no kernel of its own, so that every machine plans the library's products."""
    return host.concat_linear_plan(widths, distinct, rows, cols, dtype)


def test_plan():
    """The ways that the operator can take, each chosen where it should be."""
    assert plan([3, 5], [4, 4], 4, 6)["method"] == "tiny"
    assert plan([3, 5], [0, 0], 0, 6)["method"] == "empty"
    wide = plan([512, 300], [1000, 1000], 1000, 64)
    assert wide["method"] == "library"
    assert [(g["inputs"], g["block_rows"]) for g in wide["groups"]] == [([0], 0), ([1], 0)]
    narrow = plan([512, 64, 64, 64], [1000] * 4, 1000, 64)
    assert [g["inputs"] for g in narrow["groups"]] == [[0], [1, 2, 3]]
    assert narrow["groups"][1]["block_rows"] > 0
    half = plan([512, 300, 64], [1000] * 3, 1000, 64, "float16")
    assert [g["inputs"] for g in half["groups"]] == [[0, 1, 2]]
    assert "16-bit" in half["why"]
    broadcast = plan([512, 300], [1000, 10], 1000, 64)
    assert [g["inputs"] for g in broadcast["groups"]] == [[0]]
    assert plan([512, 300], [10, 20], 200, 64)["groups"] == []
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be float32"):
        plan([3], [3], 3, 3, "int8")


@pytest.mark.parametrize(
    ("dtype", "isas"),
    [
        ("float32", {"avx512", "avx512_bf16", "amx"}),
        ("bfloat16", {"avx512_bf16"}),
        ("float16", set()),
        ("float64", set()),
    ],
)
def test_plan_by_instruction_set(isa, dtype, isas):
    """Own products where this instruction set has them, the library's elsewhere."""
    found = plan([512, 300], [1000, 1000], 1000, 64, dtype)
    assert found["method"] == ("kernel" if isa in isas else "library")
    assert found["why"]


def test_plan_bounds_scratch():
    for widths in ([64] * 26, [2048, 768], [100] * 900, [200_000, 3]):
        for dtype, size in (("float16", 2), ("float64", 8)):
            for group in plan(widths, [10**6] * len(widths), 10**6, 64, dtype)["groups"]:
                assert group["block_rows"] * group["width"] * size <= 4 << 20
