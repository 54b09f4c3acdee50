"""Seeds, deterministic algorithms and threads, each put back as it was."""

import random

import numpy as np
import pytest
import torch

from mmfast.train.seed import deterministic, seed_all, threads


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_a_seed_repeats_every_generator():
    seed_all(3)
    first = draws()
    seed_all(3)
    assert draws() == first
    seed_all(4)
    assert not any(a == b for a, b in zip(draws(), first, strict=True))
    seed_all(2**63 - 1)  # numpy takes 32 bits only


def test_only_algorithms_that_repeat():
    assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
    with pytest.raises(ZeroDivisionError), deterministic(True):
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_threads():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
        with threads(None):
            assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
