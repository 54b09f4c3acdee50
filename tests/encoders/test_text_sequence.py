"""The text encoders that read words in order, beyond the contract."""

import pytest
import torch

from mmfast.encoders import FlatText, TextLSTM, TextTransformer
from mmfast.encoders.vocabulary import UNKNOWN

WORDS = ["man", "bites", "dog"]
SMALL = {
    TextLSTM: {"dim": 8, "hidden": 4},
    TextTransformer: {"dim": 8, "heads": 2, "depth": 1},
}


def encode(encoder, *texts):
    return encoder(encoder.collate([encoder.preprocess(text) for text in texts]))


@pytest.mark.parametrize("kind", SMALL)
def test_order_matters(kind):
    encoder = kind(WORDS, **SMALL[kind]).eval()
    values = encode(encoder, "man bites dog", "dog bites man").values
    assert (values[0] - values[1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", SMALL)
def test_what_follows_max_length_is_not_read(kind):
    encoder = kind(WORDS, max_length=2, **SMALL[kind]).eval()
    values = encode(encoder, "man bites", "man bites dog dog").values
    torch.testing.assert_close(values[0], values[1])
    assert encoder.spec.max_length == 2


@pytest.mark.parametrize("kind", SMALL)
def test_tokens_are_one_per_word(kind):
    encoder = kind(WORDS, output="tokens", **SMALL[kind]).eval()
    features = encode(encoder, "man bites dog", "dog")
    assert features.values.shape == (2, 3, 8)
    assert features.mask.tolist() == [[True] * 3, [True, False, False]]


def test_the_pooled_transformer_is_the_mean_of_its_tokens():
    pooled, tokens = (
        TextTransformer(WORDS, output=output, **SMALL[TextTransformer]).eval()
        for output in ("pooled", "tokens")
    )
    tokens.load_state_dict(pooled.state_dict())
    texts = "man bites dog", "dog"
    words = encode(tokens, *texts).values
    expected = torch.stack([words[0].mean(0), words[1, 0]])
    torch.testing.assert_close(encode(pooled, *texts).values, expected)


def test_flat_text_is_the_embeddings_of_its_words_side_by_side():
    encoder = FlatText(WORDS, dim=4, max_length=3).eval()
    features = encode(encoder, "dog man", "man bites dog dog")
    man, bites, dog = encoder.words.table.weight[2:]
    expected = [torch.cat([dog, man, torch.zeros(4)]), torch.cat([man, bites, dog])]
    torch.testing.assert_close(features.values, torch.stack(expected))
    assert encoder.spec.out_dim == 12
    assert encoder.spec.max_length == 3


def test_flat_text_ends_in_zeros_in_training_too():
    encoder = FlatText(WORDS, dim=4, max_length=3, word_dropout=0.9)
    for _ in range(4):
        assert encode(encoder, "dog").values[0, 4:].eq(0).all()


@pytest.mark.parametrize("kind", SMALL)
def test_word_dropout_trains_the_unknown_word(kind):
    encoder = kind(WORDS, word_dropout=0.5, **SMALL[kind])
    for _ in range(4):
        encode(encoder, "man bites dog", "dog").values.square().sum().backward()
    gradient = encoder.words.table.weight.grad
    assert gradient[UNKNOWN].ne(0).any()
    assert gradient[0].eq(0).all()
    encoder.eval()
    batch = encoder.collate([encoder.preprocess("man bites dog")])
    assert encoder(batch).values.equal(encoder(batch).values)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (TextLSTM, {"pooling": "max"}, "pooling is 'max'; it must be one of last, mean"),
        (TextLSTM, {"word_dropout": 1}, "word_dropout is 1"),
        (TextLSTM, {"output": "token"}, "output is 'token'"),
        (TextTransformer, {"max_length": 0}, "max_length is 0"),
        (FlatText, {"max_length": 0}, "max_length is 0"),
        (TextTransformer, {"dim": 0}, "dim is 0"),
    ],
)
def test_wrong_options_are_named(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(WORDS, **options)
