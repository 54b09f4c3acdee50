"""The text encoder."""

import subprocess
import sys

import pytest
import torch

from mmfast.encoders import HashedText


def test_shapes_and_padding():
    encoder = HashedText(out_dim=12)
    ids = encoder.preprocess(["red apple", "sun"])
    assert ids.dtype == torch.int64
    # "red": the word, 3 trigrams, 2 four-grams, 1 five-gram; "apple": the word, 5, 4 and 3.
    assert ids.shape == (2, 7 + 13)
    assert ids[1].ne(0).sum() == 7
    assert ids.max() < encoder.buckets
    assert encoder(ids).shape == (2, 12)


def test_padding_changes_nothing():
    encoder = HashedText().eval()
    alone = encoder(encoder.preprocess(["sun"]))
    padded = encoder(encoder.preprocess(["sun", "a much longer text than that"]))
    torch.testing.assert_close(padded[:1], alone)


def test_case_and_punctuation_do_not_count():
    encoder = HashedText()
    assert encoder.preprocess(["Red, apple!"]).equal(encoder.preprocess(["red apple"]))


def test_related_words_share_features():
    encoder = HashedText()
    one, other, stranger = (
        set(encoder.preprocess([w])[0].tolist()) for w in ("run", "runner", "fog")
    )
    assert one & other
    assert not one & stranger


def test_empty_texts_and_no_texts():
    encoder = HashedText(out_dim=4)
    assert encoder(encoder.preprocess(["", "sun"])).isfinite().all()
    nothing = encoder(encoder.preprocess([""]))
    assert nothing.equal(torch.relu(encoder.project.bias)[None])
    assert encoder.preprocess([]).shape == (0, 1)


def test_features_are_the_same_in_every_process():
    code = (
        "from mmfast.encoders import HashedText as H; print(H().preprocess(['red apple']).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(HashedText().preprocess(["red apple"]).tolist())


def test_dropout_acts_in_training_alone():
    encoder = HashedText(dropout=0.5)
    ids = encoder.preprocess(["some longer text about an apple"])
    assert not encoder(ids).equal(encoder(ids))
    encoder.eval()
    assert encoder(ids).equal(encoder(ids))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"buckets": 1}, "buckets"), ({"grams": (4, 3)}, "grams"), ({"dropout": 1.0}, "dropout")],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        HashedText(**arguments)
