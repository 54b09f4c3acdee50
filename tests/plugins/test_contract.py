"""mmfast.plugins.contract: the spec, and what the protocol asks."""

import dataclasses
import pickle

import pytest
import torch

from mmfast.plugins import Encoder, EncoderSpec, Features

FULL = {
    "api_version": 1,
    "modality": "image",
    "out_dim": 8,
    "output": "tokens",
    "image_size": (32, 48),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.2, 0.2, 1),
    "sample_rate": 16000,
    "max_length": 9,
    "pretrained": "weights",
    "origin": "somewhere",
    "licence": "MIT",
}


def test_json_and_back():
    spec = EncoderSpec(**FULL)
    assert EncoderSpec.from_json(spec.to_json()) == spec
    assert hash(EncoderSpec.from_json(spec.to_json())) == hash(spec)
    assert pickle.loads(pickle.dumps(spec)) == spec
    bare = EncoderSpec(api_version=1, modality="text", out_dim=4)
    assert EncoderSpec.from_json(bare.to_json()) == bare
    assert dataclasses.asdict(spec) == FULL


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        EncoderSpec(**FULL).out_dim = 3


def test_unknown_field():
    text = EncoderSpec(**FULL).to_json().replace('"licence"', '"license"')
    with pytest.raises(ValueError, match="there is no field 'license'"):
        EncoderSpec.from_json(text)


@pytest.mark.parametrize(
    ("field", "value", "error", "said"),
    [
        ("api_version", "1", TypeError, "api_version is '1'; it must be an int"),
        ("out_dim", True, TypeError, "out_dim is True; it must be an int"),
        ("out_dim", 0, ValueError, "out_dim is 0; it must be at least 1"),
        ("sample_rate", -1, ValueError, "sample_rate is -1; it must be at least 1"),
        ("max_length", 2.0, TypeError, r"max_length is 2\.0; it must be an int"),
        ("modality", "smell", ValueError, "modality is 'smell'; it must be one of image, text"),
        ("output", "both", ValueError, "output is 'both'; it must be 'pooled' or 'tokens'"),
        ("image_size", 32, TypeError, "image_size is 32; it must be a tuple of numbers"),
        (
            "image_size",
            (3, 32, 32),
            ValueError,
            r"image_size is \(3, 32, 32\); it must be \(height",
        ),
        ("image_size", (0, 32), ValueError, "a side of image_size is 0; it must be at least 1"),
        ("mean", ("a",), TypeError, "mean holds 'a'; it must hold numbers"),
        ("std", (1.0, 0.0), ValueError, r"std holds 0\.0; it is divided by"),
        ("licence", None, TypeError, "licence is None; it must be a str"),
        ("pretrained", 3, TypeError, "pretrained is 3; it must be a str"),
    ],
)
def test_impossible_values(field, value, error, said):
    with pytest.raises(error, match=said):
        EncoderSpec(**{**FULL, field: value})


def test_present():
    assert Features(torch.ones(2, 3), torch.tensor([True, False])).present.tolist() == [True, False]
    mask = torch.tensor([[True, False], [False, False]])
    assert Features(torch.ones(2, 2, 3), mask).present.tolist() == [True, False]


def test_protocol():
    assert not isinstance(torch.nn.Linear(2, 2), Encoder)
