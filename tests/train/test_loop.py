"""The loop learns, repeats itself, and says what is wrong."""

import pytest
import torch
from torch import nn

from mmfast.train import Examples, Recipe, evaluate, fit, seeded


def quadrants(count=256, seed=0):
    """Points of the plane, labelled by their quadrant."""
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    return Examples({"x": x}, (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2, 32), nn.ReLU(), nn.Dropout(0.1), nn.BatchNorm1d(32), nn.Linear(32, 4)
        )

    def forward(self, inputs):
        return self.layers(inputs["x"])


def train(seed, recipe=None, **options):
    with seeded(0):
        model = Net()
    recipe = recipe or Recipe(epochs=3, batch_size=32, lr=1e-2)
    history = fit(model, quadrants(), quadrants(seed=1), recipe, seed=seed, **options)
    return model, history


def test_it_learns():
    model, history = train(0, Recipe(epochs=15, batch_size=32, lr=1e-2))
    assert history.val_accuracy[-1] > 0.93
    assert history.train_loss[-1] < 0.5 * history.train_loss[0]
    assert evaluate(model, quadrants(seed=2)).accuracy > 0.9


def test_same_seed_same_bits():
    (one, first), (other, second) = train(5), train(5)
    assert first == second
    for name, value in one.state_dict().items():
        assert value.equal(other.state_dict()[name]), name


def test_other_seed_other_bits():
    assert train(5)[1] != train(6)[1]


def test_the_outer_random_state_neither_matters_nor_changes():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(5)[1]
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(2)
    assert train(5)[1] == first


def test_history_has_one_entry_per_epoch_and_the_callback_sees_them():
    seen = []
    _, history = train(0, on_epoch=lambda h: seen.append(len(h.val_loss)))
    assert seen == [1, 2, 3]
    assert len(history.train_loss) == len(history.val_accuracy) == 3


def test_an_epoch_visits_every_example_once():
    visited = []

    def record(inputs, generator):
        visited.append(inputs["x"])
        return inputs

    train(0, Recipe(epochs=2, batch_size=100), augment=record)
    assert [len(batch) for batch in visited] == [100, 100, 56] * 2
    first, second = torch.cat(visited[:3]), torch.cat(visited[3:])
    expected = quadrants().inputs["x"][:, 0].sort().values
    assert first[:, 0].sort().values.equal(expected)
    assert second[:, 0].sort().values.equal(expected)
    assert not first.equal(second)


def test_augmentation_reaches_the_model_in_training_alone():
    blind = train(0, Recipe(epochs=5, lr=1e-2), augment=lambda x, g: {"x": 0 * x["x"]})[0]
    assert evaluate(blind, quadrants()).accuracy < 0.6
    seen = train(0, Recipe(epochs=5, lr=1e-2))[0]
    assert evaluate(seen, quadrants()).accuracy > 0.8


def test_fit_trains_in_training_mode_whatever_mode_it_is_given():
    modes = []

    class Watched(Net):
        def forward(self, inputs):
            modes.append(self.training)
            return super().forward(inputs)

    fit(Watched().eval(), quadrants(64), quadrants(64), Recipe(epochs=2, batch_size=32), seed=0)
    assert modes == [True, True, False] * 2


def test_evaluate_counts_exactly_and_keeps_the_mode():
    class Constant(nn.Module):
        def forward(self, inputs):
            assert not self.training
            return torch.tensor([0.0, 1.0, 0.0]).expand(len(inputs["x"]), 3)

    labels = torch.tensor([1, 1, 0, 2, 1])
    model = Constant().train()
    score = evaluate(model, Examples({"x": torch.zeros(5, 1)}, labels), batch_size=2)
    assert score.accuracy == pytest.approx(3 / 5)
    total = torch.tensor([0.0, 1.0, 0.0]).logsumexp(0).item()
    assert score.loss == pytest.approx(total - 3 / 5, rel=1e-6)
    assert model.training


def test_no_examples():
    none = quadrants(0)
    with pytest.raises(ValueError, match="train must hold at least one example"):
        fit(Net(), none, quadrants(), Recipe(epochs=1), seed=0)
    with pytest.raises(ValueError, match="examples must hold at least one example"):
        evaluate(Net(), none)


def test_a_loss_that_is_not_finite_stops_the_run():
    broken = Examples({"x": torch.full((8, 2), float("nan"))}, torch.zeros(8, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="training loss became nan"):
        fit(Net(), broken, broken, Recipe(epochs=1), seed=0)
