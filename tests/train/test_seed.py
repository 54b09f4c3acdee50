"""Seeds and threads are fixed within a block and restored after it."""

import pytest
import torch

from mmfast.train.seed import seeded, threads


def test_equal_seeds_draw_equally():
    with seeded(3) as generator:
        first = torch.rand(4), torch.rand(4, generator=generator)
    with seeded(3) as generator:
        second = torch.rand(4), torch.rand(4, generator=generator)
    with seeded(4):
        other = torch.rand(4)
    assert first[0].equal(second[0])
    assert first[1].equal(second[1])
    assert not first[0].equal(other)


def test_everything_is_put_back_even_after_an_error():
    before = torch.get_rng_state()

    def fail():
        with seeded(0):
            torch.rand(3)
            assert torch.are_deterministic_algorithms_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_rng_state().equal(before)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory


def test_threads():
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
