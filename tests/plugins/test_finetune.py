"""mmfast.plugins.finetune: freezing, and parameter groups."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mmfast.plugins import freeze, layer_groups, parameter_groups, unfreeze


class Encoder(nn.Module):
    """Three groups; batch norms with parameters, without, and one inside a block."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False))
        self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.last = nn.Linear(4, 2)
        self.constant = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x):
        return self.last(self.block(self.first(x))) + self.constant

    def layer_groups(self):
        return [list(part.parameters()) for part in (self.first, self.block, self.last)]


def trained(encoder):
    return {name for name, p in encoder.named_parameters() if p.requires_grad}


def moved(encoder):
    """Names of the running statistics that a pass in training mode changes."""
    encoder.train()
    before = {name: b.clone() for name, b in encoder.named_buffers()}
    encoder(torch.randn(8, 3) + 5)
    after = dict(encoder.named_buffers())
    return {
        name.rpartition(".")[0] for name in before if not torch.equal(before[name], after[name])
    }


def test_freeze_all():
    encoder = Encoder()
    assert freeze(encoder) is encoder
    assert trained(encoder) == set()
    assert moved(encoder) == set()
    assert encoder.training
    assert encoder.block[2].training  # dropout follows train()
    assert not encoder.block[1].training


def test_freeze_from_the_input():
    encoder = freeze(Encoder(), groups=1)
    assert {name.partition(".")[0] for name in trained(encoder)} == {"block", "last"}
    assert "first.0.weight" not in trained(encoder)
    assert moved(encoder) == {"block.1"}
    assert moved(freeze(encoder, groups=2)) == set()
    assert moved(freeze(Encoder(), groups=0)) == {"first.1", "block.1"}


def test_unfreeze_from_the_output():
    encoder = unfreeze(freeze(Encoder()), groups=1)
    assert trained(encoder) == {"last.weight", "last.bias"}
    assert moved(encoder) == set()
    assert moved(unfreeze(encoder, groups=2)) == {"block.1"}
    unfreeze(encoder)
    assert trained(encoder) == trained(Encoder())  # what the encoder fixed itself stays fixed
    assert moved(encoder) == {"first.1", "block.1"}
    assert "train" not in vars(encoder.block[1])


def test_mode_is_kept():
    encoder = Encoder().eval()
    assert not freeze(encoder).block[1].training
    assert not unfreeze(encoder).block[1].training
    encoder.train()
    assert unfreeze(freeze(encoder)).block[1].training


def test_frozen_survives_copies_and_a_parent():
    encoder = freeze(Encoder())
    for copied in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert moved(nn.ModuleList([copied])[0]) == set()
        assert not copied.block[1].training
        moved(unfreeze(encoder))  # the copy's batch norm is its own
        assert not copied.block[1].training
        freeze(encoder)
    assert encoder.state_dict().keys() == Encoder().state_dict().keys()
    parent = nn.Sequential(encoder).train()
    assert not parent[0].block[1].training


def test_counts():
    for call in (freeze, unfreeze):
        for groups in (-1, 4):
            with pytest.raises(
                ValueError, match=f"groups is {groups}; the encoder has 3, so 0 to 3"
            ):
                call(Encoder(), groups)


def test_groups_must_be_right():
    encoder = Encoder()
    encoder.layer_groups = lambda: [list(encoder.block.parameters())]
    with pytest.raises(
        ValueError, match=r"Encoder leaves out first\.0\.weight, first\.0\.bias, last"
    ):
        layer_groups(encoder)
    encoder.layer_groups = lambda: [[encoder.last.weight], [encoder.last.weight]]
    with pytest.raises(ValueError, match=r"holds last\.weight twice"):
        freeze(encoder)
    encoder.layer_groups = lambda: [[torch.ones(2, 3)]]
    with pytest.raises(ValueError, match=r"tensor of shape \(2, 3\) that is no parameter of it"):
        unfreeze(encoder)


def test_parameter_groups():
    encoder = Encoder()
    groups = parameter_groups(encoder, lr=0.1, layer_decay=0.5, weight_decay=0.01)
    facts = [(g["name"], len(g["params"]), g["lr"], g["weight_decay"]) for g in groups]
    assert facts == [
        ("layer group 0", 1, 0.025, 0.01),
        ("layer group 0, no weight decay", 1, 0.025, 0.0),
        ("layer group 1", 1, 0.05, 0.01),
        ("layer group 1, no weight decay", 3, 0.05, 0.0),
        ("layer group 2", 1, 0.1, 0.01),
        ("layer group 2, no weight decay", 1, 0.1, 0.0),
    ]
    assert all((p.dim() > 1) == bool(g["weight_decay"]) for g in groups for p in g["params"])
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in encoder.parameters() if p.requires_grad)


def test_parameter_groups_of_a_frozen_encoder():
    """The optimizer leaves frozen parameters alone, and trains them once they are unfrozen."""
    encoder = freeze(Encoder(), groups=2).train()
    optimizer = torch.optim.AdamW(parameter_groups(encoder, lr=0.1, weight_decay=0.1))
    first, last = encoder.first[0].weight, encoder.last.weight
    for change in (False, True):
        before = first.detach().clone(), last.detach().clone()
        optimizer.zero_grad()
        encoder(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        assert torch.equal(first, before[0]) != change
        assert not torch.equal(last, before[1])
        unfreeze(encoder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.0}, "lr is 0.0; it must be positive"),
        ({"lr": 0.1, "layer_decay": 1.5}, r"layer_decay is 1\.5; it must be in \(0, 1\]"),
        ({"lr": 0.1, "weight_decay": -1.0}, r"weight_decay is -1\.0; it must not be negative"),
    ],
)
def test_parameter_groups_refuse(options, said):
    with pytest.raises(ValueError, match=said):
        parameter_groups(Encoder(), **options)
