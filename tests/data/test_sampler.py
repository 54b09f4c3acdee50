"""The order of rows: complete, repeatable, resumable, divided among ranks."""

import pickle
from collections import Counter

import pytest
import torch

from mmfast.data import BatchSampler, Draw, derived_seed, inverse_frequency


def epoch(sampler, number=0, start=0):
    sampler.set_epoch(number, start)
    return [list(batch) for batch in sampler]


def positions(batches):
    return [draw.position for batch in batches for draw in batch]


def test_every_row_once_in_an_order_of_its_own():
    sampler = BatchSampler(103, 10, seed=5)
    first, second = epoch(sampler, 0), epoch(sampler, 1)
    assert [len(batch) for batch in first] == [10] * 10 + [3]
    assert len(sampler) == len(first)
    assert sorted(positions(first)) == sorted(positions(second)) == list(range(103))
    assert positions(first) != positions(second)
    assert {draw.epoch for batch in second for draw in batch} == {1}
    assert positions(first) != positions(epoch(BatchSampler(103, 10, seed=6)))


def test_an_order_does_not_depend_on_the_global_generator():
    before = torch.get_rng_state()
    first = epoch(BatchSampler(50, 7, seed=1), 3)
    assert torch.get_rng_state().equal(before)
    torch.rand(5)
    assert epoch(BatchSampler(50, 7, seed=1), 3) == first


def test_starting_at_any_batch():
    sampler = BatchSampler(103, 10, seed=5)
    whole = epoch(sampler, 2)
    for start in (0, 4, 11):
        assert epoch(sampler, 2, start) == whole[start:]
        assert len(sampler) == 11 - start


def test_the_draws_of_a_batch():
    sampler = BatchSampler(20, 6, seed=2)
    sampler.set_epoch(3)
    batch = next(iter(sampler))
    assert list(batch) == [batch[place] for place in range(6)]
    assert list(batch[2:4]) == list(batch)[2:4]
    assert list(pickle.loads(pickle.dumps(batch))) == list(batch)


def test_in_order():
    assert positions(BatchSampler(5, 2, shuffle=False)) == [0, 1, 2, 3, 4]


def test_without_the_last_batch():
    sampler = BatchSampler(103, 10, drop_last=True)
    assert [len(batch) for batch in sampler] == [10] * 10
    assert len(sampler) == 10


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("length", [1, 7, 96, 97, 103])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_every_batch_of_one(length, world, shuffle):
    options = {"seed": 3, "shuffle": shuffle}
    alone = epoch(BatchSampler(length, 4 * world, **options))
    samplers = [
        BatchSampler(length, 4, rank=rank, world_size=world, **options) for rank in range(world)
    ]
    for number, batches in enumerate(zip(*map(epoch, samplers), strict=True)):
        own = [
            batch
            for sampler, batch in zip(samplers, batches, strict=True)
            if not sampler.is_filler(number)
        ]
        assert sorted(positions(own)) == sorted(positions([alone[number]]))
        assert max(map(len, own)) - min(map(len, own)) <= 1
        fillers = [batch for batch in batches if batch not in own]
        assert all(len(batch) == 1 and batch[0] in alone[number] for batch in fillers)
        assert len(own) == world or number == len(alone) - 1
    assert number == len(alone) - 1


def test_ranks_without_the_last_batch():
    ranks = [BatchSampler(103, 4, rank=r, world_size=3, drop_last=True) for r in range(3)]
    assert [[len(batch) for batch in rank] for rank in ranks] == [[4] * 8] * 3


def test_rare_classes_are_drawn_as_often():
    labels = torch.tensor([0] * 990 + [1] * 10)
    weights = inverse_frequency(labels)
    torch.testing.assert_close(weights[[0, 990]], torch.tensor([1 / 990, 1 / 10]).double())
    drawn = positions(epoch(BatchSampler(1000, 32, seed=1, weights=weights)))
    assert len(drawn) == 1000
    assert abs(int(labels[drawn].sum()) - 500) < 60
    assert set(drawn) & set(range(990, 1000)) == set(range(990, 1000))


def test_a_weight_of_zero_is_never_drawn():
    weights = torch.tensor([0.0, 1.0, 0.0, 2.0, 0.0])
    sampler = BatchSampler(5, 5, weights=weights)
    drawn = Counter(
        position for number in range(600) for position in positions(epoch(sampler, number))
    )
    assert set(drawn) == {1, 3}
    assert abs(drawn[3] / drawn[1] - 2) < 0.2


def test_copies_are_counted():
    sampler = BatchSampler(20, 6, seed=2, weights=torch.rand(20))
    seen = Counter()
    for batch in epoch(sampler):
        for draw in batch:
            assert draw.copy == seen[draw.position]
            seen[draw.position] += 1
    assert max(seen.values()) > 1


def test_samplers_travel():
    sampler = BatchSampler(20, 6, seed=2)
    sampler.set_epoch(3, 1)
    again = pickle.loads(pickle.dumps(sampler))
    assert list(map(list, again)) == list(map(list, sampler))
    assert len(again) == 3


def test_derived_seeds():
    seeds = {derived_seed(a, b) for a in range(30) for b in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert derived_seed(1, "order", 2) == derived_seed(1, "order", 2)
    assert Draw(4) == Draw(4, 0, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length and batch_size must be at least 1, got 0 and 2"),
        ({"batch_size": 0}, "got 4 and 0"),
        ({"rank": 2, "world_size": 2}, "rank must be at least 0 and below world_size, got 2 of 2"),
        ({"weights": torch.ones(3)}, r"weights must be 4 numbers .* got shape \(3,\)"),
        ({"weights": torch.zeros(4)}, "not all 0"),
        ({"weights": torch.tensor([1.0, -1, 1, 1])}, "at least 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        BatchSampler(**{"length": 4, "batch_size": 2, **arguments})


def test_a_start_beyond_the_end():
    with pytest.raises(ValueError, match=r"start in 0\.\.2, got 0, 3"):
        BatchSampler(4, 2).set_epoch(0, 3)
