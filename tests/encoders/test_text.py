"""The text encoders without word order, and the vocabulary."""

import subprocess
import sys

import pytest
import torch

from mmfast.encoders import HashedText, TextBag, TextLSTM, TextTransformer
from mmfast.encoders.vocabulary import UNKNOWN, Vocabulary, words


def batch_of(encoder, texts):
    return encoder.collate([None if text is None else encoder.preprocess(text) for text in texts])


def test_words():
    assert words("It's RED, isn\u2019t it?") == ["it's", "red", ",", "isn\u2019t", "it", "?"]
    assert words(" ... ") == [".", ".", "."]
    assert words("Ünïcode 日本 42") == ["ünïcode", "日本", "42"]
    with pytest.raises(TypeError, match="text is a bytes; it must be a str"):
        words(b"bytes")


def test_fit_options_counts_the_training_texts():
    texts = ["b a", "a c", None, "a B d"]
    assert TextBag.fit_options(texts)["vocabulary"] == ["a", "b", "c", "d"]
    assert TextBag.fit_options(texts, max_words=2)["vocabulary"] == ["a", "b"]
    found = TextLSTM.fit_options(iter(texts), min_count=2, hidden=3)
    assert found == {"hidden": 3, "vocabulary": ["a", "b"]}
    given = TextTransformer.fit_options(texts, vocabulary=["x"])
    assert given["vocabulary"] == ["x"]


def test_encode():
    vocabulary = Vocabulary(["red", "apple"])
    assert len(vocabulary) == 4
    assert vocabulary.encode("Apple red pie").tolist() == [3, 2, UNKNOWN]
    assert vocabulary.encode("Apple red pie", 2).tolist() == [3, 2]
    assert vocabulary.encode("").tolist() == [UNKNOWN]


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [(["a", "b", "a"], "holds 'a' twice"), ("abc", "must be a list of words"), ([1], "of words")],
)
def test_what_is_no_vocabulary_is_told(vocabulary, message):
    with pytest.raises(ValueError, match=message):
        TextBag(vocabulary)


def test_an_empty_vocabulary_works():
    encoder = TextBag([], out_dim=4, dim=4).eval()
    assert encoder(batch_of(encoder, ["any", None])).values.isfinite().all()


def test_the_bag_is_its_formula_and_ignores_order():
    encoder = TextBag(["a", "b", "c"], out_dim=5, dim=4).eval()
    found = encoder(batch_of(encoder, ["a c c", "c a c", "b"])).values
    table, project = encoder.bag.table.weight, encoder.bag.project
    mean = (table[2] + 2 * table[4]) / 3
    torch.testing.assert_close(found[0], torch.relu(project.weight @ mean + project.bias))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], torch.relu(project.weight @ table[3] + project.bias))


def test_hashed_features():
    encoder = HashedText(out_dim=12)
    batch = batch_of(encoder, ["red apple", "sun"])
    # "red": the word, 3 trigrams, 2 four-grams, 1 five-gram; "apple": the word, 5, 4 and 3.
    assert batch["ids"].shape == (2, 7 + 13)
    assert batch["mask"].sum(dim=1).tolist() == [20, 7]
    assert 0 < batch["ids"][0].min() <= batch["ids"].max() < encoder.buckets
    assert encoder(batch).values.shape == (2, 12)


def test_case_and_punctuation_do_not_count_when_hashed():
    encoder = HashedText()
    assert encoder.preprocess("Red, apple!").equal(encoder.preprocess("red apple"))


def test_related_words_share_features():
    encoder = HashedText()
    one, other, stranger = (set(encoder.preprocess(w).tolist()) for w in ("run", "runner", "fog"))
    assert one & other
    assert not one & stranger


def test_a_text_without_features_is_the_bias():
    encoder = HashedText(out_dim=4)
    features = encoder(batch_of(encoder, ["...", None]))
    assert features.values[0].equal(torch.relu(encoder.bag.project.bias))
    assert features.values[1].eq(0).all()
    assert features.mask.tolist() == [True, False]


def test_hashed_features_are_the_same_in_every_process():
    code = (
        "from mmfast.encoders import HashedText as H; print(H().preprocess('red apple').tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(HashedText().preprocess("red apple").tolist())


def test_dropout_leaves_out_features_in_training_alone():
    encoder = HashedText(dropout=0.5)
    batch = batch_of(encoder, ["some longer text about an apple"])
    assert not encoder(batch).values.equal(encoder(batch).values)
    encoder.eval()
    assert encoder(batch).values.equal(encoder(batch).values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": 1}, "buckets is 1; it must be an int of at least 2"),
        ({"grams": [4, 3]}, "grams is"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"out_dim": 0}, "out_dim is 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        HashedText(**options)
