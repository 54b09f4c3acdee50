"""Precomputed vectors and sequences, beyond the contract."""

import json

import pytest
import torch

from mmfast.encoders import FeatureSequence, FeatureVector


def encode(encoder, *raws):
    prepared = [None if raw is None else encoder.preprocess(raw) for raw in raws]
    return encoder(encoder.collate(prepared))


def test_fit_options_find_size_mean_and_deviation():
    rows = torch.randn(6, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.0]) + 2
    expected_mean, expected_std = rows.mean(0), rows.std(0, correction=0)
    rows = rows.float()
    for kind, samples in ((FeatureVector, rows), (FeatureSequence, rows.split([1, 2, 3]))):
        options = kind.fit_options([None, *samples], dropout=0.1)
        assert options["in_dim"] == 3
        assert options["dropout"] == 0.1
        assert options["mean"] == pytest.approx(expected_mean.tolist(), abs=1e-5)
        assert options["std"] == pytest.approx([*expected_std.tolist()[:2], 1.0], abs=1e-5)
        encoder = kind(**json.loads(json.dumps(options))).eval()
        assert kind.fit_options(samples, standardise=False) == {"in_dim": 3}
        shaped = rows[0] if kind is FeatureVector else rows[:1]
        values = encode(encoder, shaped).values[0]
        z = (rows[0] - expected_mean.float())[:2] / expected_std[:2].float()
        torch.testing.assert_close(values[:2], z, atol=1e-4, rtol=1e-4)


def test_values_that_are_not_finite_count_as_the_mean():
    inf, nan = float("inf"), float("nan")
    samples = [torch.tensor([1.0, -inf]), torch.tensor([3.0, 4.0]), torch.tensor([nan, 6.0])]
    options = FeatureVector.fit_options(samples)
    assert options["mean"] == [2.0, 5.0]
    assert options["std"] == [1.0, 1.0]
    encoder = FeatureVector(**options)
    assert encode(encoder, *samples).values.tolist() == [[-1, 0], [1, -1], [0, 1]]


def test_given_options_stay():
    options = FeatureVector.fit_options([torch.randn(2)], mean=[0.0, 0.0])
    assert options["mean"] == [0.0, 0.0]


def test_a_vector_goes_through_its_layer():
    encoder = FeatureVector(3, out_dim=5).eval()
    x = torch.randn(3)
    layer = encoder.project[0]
    torch.testing.assert_close(
        encode(encoder, x).values[0], torch.relu(layer.weight @ x + layer.bias)
    )
    assert encoder.spec.out_dim == 5
    assert FeatureVector(3).layer_groups() == []


def test_a_sequence_is_its_mean_or_its_tokens():
    sequences = torch.randn(2, 3), None, torch.randn(4, 3)
    pooled = encode(FeatureSequence(3), *sequences)
    torch.testing.assert_close(pooled.values[0], sequences[0].mean(0))
    torch.testing.assert_close(pooled.values[2], sequences[2].mean(0))
    assert pooled.mask.tolist() == [True, False, True]
    tokens = encode(FeatureSequence(3, output="tokens", max_length=3), *sequences)
    assert tokens.values.shape == (3, 3, 3)
    assert tokens.values[2].equal(sequences[2][:3])
    assert tokens.mask.sum(dim=1).tolist() == [2, 0, 3]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_lstm_has_the_width_that_is_asked_for(bidirectional):
    for output in ("pooled", "tokens"):
        encoder = FeatureSequence(
            3, layer="lstm", out_dim=6, bidirectional=bidirectional, output=output
        )
        assert encode(encoder, torch.randn(4, 3)).values.shape[-1] == encoder.spec.out_dim == 6


def test_an_empty_sequence_is_there_and_is_the_mean():
    features = encode(FeatureSequence(3, output="tokens"), torch.zeros(0, 3), None)
    assert features.present.tolist() == [True, False]
    assert features.values.eq(0).all()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (FeatureVector, {"in_dim": 0}, "in_dim is 0"),
        (FeatureVector, {"in_dim": 2, "mean": [1.0]}, "mean has 1 values; in_dim is 2"),
        (FeatureVector, {"in_dim": 2, "std": [1.0, 0.0]}, "not above 0"),
        (FeatureSequence, {"in_dim": 2, "layer": "gru"}, "layer is 'gru'"),
        (FeatureSequence, {"in_dim": 2, "pooling": "last"}, "only 'lstm' has a last state"),
        (FeatureSequence, {"in_dim": 2, "out_dim": 3}, "out_dim is 3 but layer is 'none'"),
        (FeatureSequence, {"in_dim": 2, "layer": "lstm", "out_dim": 3}, "it must be even"),
        (FeatureSequence, {"in_dim": 2, "max_length": 0}, "max_length is 0"),
    ],
)
def test_wrong_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


@pytest.mark.parametrize(
    ("kind", "raw", "error", "message"),
    [
        (FeatureVector, torch.zeros(4), ValueError, r"shape \(4,\); it must be \(3,\)"),
        (FeatureVector, torch.zeros(1, 3), ValueError, r"shape \(1, 3\)"),
        (FeatureVector, [0.0] * 3, TypeError, "features are list"),
        (FeatureSequence, torch.zeros(3), ValueError, r"it must be \(T, 3\)"),
        (FeatureSequence, torch.zeros(2, 3).int(), TypeError, "features are torch.int32"),
    ],
)
def test_what_is_no_feature_is_told(kind, raw, error, message):
    with pytest.raises(error, match=message):
        kind(3).preprocess(raw)


def test_samples_of_different_sizes_are_told():
    with pytest.raises(ValueError, match=r"samples have last sizes \[2, 3\]"):
        FeatureVector.fit_options([torch.zeros(2), torch.zeros(3)])
