"""Random shifts move images and nothing else."""

import torch

from mmfast.data import random_shift


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_each_image_is_moved_whole():
    images = torch.zeros(64, 3, 9, 9)
    images[:, :, 4, 4] = torch.tensor([1.0, 2.0, 3.0])
    moved = random_shift(images, 2, generator())
    assert moved.shape == images.shape
    assert moved.sum((2, 3)).equal(torch.tensor([[1.0, 2.0, 3.0]]).expand(64, 3))
    places = moved[:, 0].flatten(1).argmax(dim=1)
    rows, columns = places // 9, places % 9
    assert set(rows.tolist()) == set(columns.tolist()) == {2, 3, 4, 5, 6}
    assert not rows.equal(columns)


def test_the_border_repeats():
    images = torch.ones(16, 1, 5, 5)
    assert random_shift(images, 2, generator()).equal(images)


def test_zero_pixels_change_nothing():
    images = torch.rand(4, 3, 6, 7)
    assert random_shift(images, 0, generator()).equal(images)


def test_shifts_come_from_the_generator():
    images = torch.rand(8, 3, 8, 8)
    assert random_shift(images, 2, generator()).equal(random_shift(images, 2, generator()))
    assert not random_shift(images, 2, generator()).equal(random_shift(images, 2, generator(1)))
