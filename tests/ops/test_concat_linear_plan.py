"""The plan in words: what it says of an input must be what the operator does with it."""

import pytest
import torch

from mmfast.functional import concat_linear, explain_concat_linear

pytestmark = pytest.mark.cpu_only  # the CPU's plan


def ones(*shape):
    return torch.ones(shape)


def test_broadcast_input_is_added():
    plan = explain_concat_linear([ones(32, 128, 768), ones(32, 1, 2048)], ones(64, 2816))
    assert plan.groups == ((0,),)
    assert plan.repeated == (1,)
    assert (plan.rows, plan.distinct_rows) == (32 * 128, (32 * 128, 32))
    assert "inputs[1]: 32 distinct rows" in str(plan)


def test_expanded_input_counts_as_broadcast():
    plan = explain_concat_linear([ones(4096, 768), ones(1, 64).expand(4096, 64)], ones(64, 832))
    assert plan.repeated == (1,)
    assert plan.distinct_rows[1] == 1


def test_inputs_without_features_keep_their_neighbours_positions():
    plan = explain_concat_linear([ones(4096, 0), ones(4096, 256), ones(4096, 256)], ones(64, 512))
    assert sorted(sum(plan.groups, ())) == [1, 2]


@pytest.mark.parametrize(("entries", "repeated"), [(1000, (0,)), (100, ())])
def test_index_picks_after_the_product_only_where_that_is_less(entries, repeated):
    rows = torch.zeros(entries, dtype=torch.long)
    plan = explain_concat_linear(
        [ones(100, 256), ones(entries, 256)], ones(64, 512), index=[rows, None]
    )
    assert plan.repeated == repeated


def test_says_the_instruction_set(isa):
    plan = explain_concat_linear([ones(4096, 256), ones(4096, 256)], ones(64, 512))
    assert plan.isa == isa
    assert plan.method == ("kernel" if isa.startswith(("avx512", "amx")) else "library")
    few = explain_concat_linear([ones(64, 256), ones(64, 256)], ones(64, 512))
    assert ("few rows" in few.why) == (few.method == "kernel")


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_small_problems(rows):
    method = explain_concat_linear([ones(rows, 4), ones(rows, 5)], ones(2, 9)).method
    assert method == ("empty" if rows == 0 else "tiny")


def test_wrong_arguments_are_refused_as_by_the_operator():
    for call in (concat_linear, explain_concat_linear):
        with pytest.raises(ValueError, match="weight has 8 columns"):
            call([ones(4, 3), ones(4, 6)], ones(2, 8))
