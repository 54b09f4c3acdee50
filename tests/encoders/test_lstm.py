"""The masked LSTM against nn.LSTM over packed sequences."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from mmfast.encoders.lstm import MaskedLSTM

LENGTHS = torch.tensor([3, 7, 1, 5])


def by_name(model):
    """The parameters by the names that nn.LSTM gives them."""
    for suffix, stack in (("", model.forwards), ("_reverse", model.backwards)):
        for number, layer in enumerate(stack):
            for name, parameter in layer.named_parameters():
                yield name.replace("_l0", f"_l{number}{suffix}"), parameter


def twin(model, in_features, hidden):
    """An nn.LSTM of the same weights."""
    layers, both = len(model.forwards), len(model.backwards) > 0
    other = nn.LSTM(in_features, hidden, layers, batch_first=True, bidirectional=both)
    other.load_state_dict(dict(by_name(model)))
    return other


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_it_is_the_packed_lstm(layers, bidirectional):
    model = MaskedLSTM(4, 5, layers=layers, bidirectional=bidirectional).double()
    other = twin(model, 4, 5).double()
    x = torch.randn(4, 7, 4, dtype=torch.float64)
    mask = torch.arange(7) < LENGTHS[:, None]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    tokens, last = model(ours, mask)
    packed = pack_padded_sequence(theirs, LENGTHS, batch_first=True, enforce_sorted=False)
    out, (state, _) = other(packed)
    expected = pad_packed_sequence(out, batch_first=True)[0]
    torch.testing.assert_close(tokens[mask], expected[mask])
    final = torch.cat(list(state[-(1 + bidirectional) :]), dim=-1)
    torch.testing.assert_close(last, final)
    (tokens[mask].sin().sum() + last.cos().sum()).backward()
    (expected[mask].sin().sum() + final.cos().sum()).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name, parameter in by_name(model):
        torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_padding_does_not_matter_and_empty_rows_are_zero(pooling):
    model = MaskedLSTM(4, 5)
    x = torch.randn(2, 6, 4)
    mask = torch.tensor([[True] * 2 + [False] * 4, [False] * 6])
    padded = model.features(x, mask, "pooled", pooling)
    alone = model.features(x[:1, :2], mask[:1, :2], "pooled", pooling)
    torch.testing.assert_close(padded.values[:1], alone.values)
    assert padded.values[1].eq(0).all()
    assert padded.mask.tolist() == [True, False]
    assert model.features(x, mask, "tokens", pooling).values[~mask].eq(0).all()


def test_the_forget_gate_starts_open():
    model = MaskedLSTM(4, 5, layers=2)
    for layer in [*model.forwards, *model.backwards]:
        assert layer.bias_ih_l0[5:10].eq(1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": 0}, "hidden is 0"),
        ({"hidden": 4, "layers": 0}, "layers is 0"),
        ({"hidden": 4, "dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedLSTM(4, **options)
