"""What the plan of a GPU says of an input must be what the operator does; no GPU is needed."""

import torch

from mmfast.ops.concat_linear import batch_shape
from mmfast.ops.concat_linear_plan import gpu_plan

H200 = {"capability": (9, 0), "multiprocessors": 132}
A100 = {"capability": (8, 0), "multiprocessors": 108}


def ones(*shape, dtype=torch.bfloat16):
    return (
        torch.ones(1, dtype=dtype).expand(*shape) if 0 in shape else torch.ones(shape, dtype=dtype)
    )


def plan(inputs, cols, index=None, activation="none", gpu=H200):
    index = [None] * len(inputs) if index is None else index
    batch = batch_shape(inputs, index)
    weight = ones(cols, sum(x.shape[-1] for x in inputs), dtype=inputs[0].dtype)
    finishing = activation != "none"
    return gpu_plan(list(zip(inputs, index, strict=True)), batch, weight, finishing, **gpu)


def test_aligned_inputs_go_through_tma():
    found = plan([ones(4096, 768), ones(4096, 768)], 512)
    assert (found["method"], found["tma"]) == ("kernel", True)
    assert found["groups"][0]["inputs"] == [0, 1]
    assert "TMA" in found["why"]


def test_other_gpus_have_no_tma():
    for gpu in (A100, {"capability": (12, 0), "multiprocessors": 170}):
        found = plan([ones(4096, 768), ones(4096, 768)], 512, gpu=gpu)
        assert (found["method"], found["tma"]) == ("kernel", False)


def test_unaligned_inputs_are_copied_only_where_that_pays():
    inputs = [ones(3200, 300), ones(3200, 74), ones(3200, 35)]  # rows of no multiple of 16 bytes
    found = plan(inputs, 128, activation="relu")
    assert (found["method"], found["tma"]) == ("kernel", False)
    assert "aligned" in found["why"]
    assert plan([ones(65536, 2048), ones(65536, 74)], 1024)["tma"]


def test_picked_rows_are_read_where_they_lie():
    rows = torch.zeros(100_000, dtype=torch.long)
    edges = [ones(80_000, 128), ones(100_000, 16)]
    found = plan(edges, 128, index=[rows, None], activation="relu")
    assert (found["method"], found["tma"]) == ("kernel", False)
    assert found["distinct_rows"] == [100_000, 100_000]


def test_repeated_inputs_are_multiplied_once():
    rows = torch.zeros(100_000, dtype=torch.long)
    found = plan([ones(10_000, 128), ones(100_000, 16)], 128, index=[rows, None])
    assert [group["inputs"] for group in found["groups"]] == [[1]]
    assert found["distinct_rows"] == [10_000, 100_000]
    found = plan([ones(32, 128, 768), ones(32, 1, 2048)], 768)
    assert [group["inputs"] for group in found["groups"]] == [[0]]
    assert found["distinct_rows"] == [32 * 128, 32]


def test_no_more_repeated_inputs_than_the_epilogue_adds():
    inputs = [ones(64, 64, 32)] + [ones(64, 1, 32 * (i + 1)) for i in range(5)]
    found = plan(inputs, 64)
    assert found["groups"][0]["inputs"] == [0, 1, 2]  # the widest three save most


def test_one_input_is_what_the_library_is_for():
    assert plan([ones(4096, 768)], 512)["method"] == "library"
    assert plan([ones(4096, 768)], 512, activation="gelu")["method"] == "kernel"


def test_large_products_go_to_the_library_in_blocks():
    found = plan([ones(32768, 4096), ones(32768, 4096)], 16384)
    assert found["method"] == "library"
    assert 0 < found["groups"][0]["block_rows"] < 32768


def test_float32_goes_to_the_library():
    found = plan([ones(4096, 768, dtype=torch.float32), ones(1, 64, dtype=torch.float32)], 512)
    assert found["method"] == "library"
    assert [group["inputs"] for group in found["groups"]] == [[0]]
    narrow = [ones(2048, width, dtype=torch.float32) for width in (512, 64, 64, 512, 64)]
    groups = plan(narrow, 512)["groups"]
    assert [group["inputs"] for group in groups] == [[0], [1, 2], [3], [4]]
    assert [group["block_rows"] > 0 for group in groups] == [False, True, False, False]


def test_nothing_to_multiply():
    assert plan([ones(0, 8), ones(0, 8)], 4)["method"] == "empty"
