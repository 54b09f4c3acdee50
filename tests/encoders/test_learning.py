"""Every encoder learns, from random weights, a problem that asks for what it can do.

Accuracy is that on samples it has not seen; guessing would score a half, or a third.
"""

import math
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmfast.plugins import Waveform, create_encoder, fit_encoder_options


def stripes(count):
    """Which way do they run?"""
    labels = torch.randint(3, (count,))
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    images = []
    for label in labels.tolist():
        across = (x, y, (x + y) / math.sqrt(2))[label]
        wave = torch.sin(across * 1.6 + 6.3 * torch.rand(()))
        noisy = 128 + 60 * wave + 30 * torch.randn(3, 16, 16)
        images.append(noisy.clamp(0, 255).byte())
    return images, labels


def topics(count):
    """Does a word of the one kind occur, or of the other, among others?"""
    labels = torch.randint(2, (count,))
    kinds = ("apple", "pear", "plum", "cherry"), ("hammer", "saw", "drill", "file")
    others = ("the", "of", "a", "red", "big", "small", "we", "have", "it", "on")
    texts = []
    for label in labels.tolist():
        text = [*random.choices(others, k=random.randint(2, 8)), random.choice(kinds[label])]
        random.shuffle(text)
        texts.append(" ".join(text))
    return texts, labels


def order(count):
    """Who bites whom? The words are the same."""
    labels = torch.randint(2, (count,))
    others = ("the", "a", "big", "small", "old", "brown")
    texts = []
    for label in labels.tolist():
        pair = ("dog", "bites", "man") if label else ("man", "bites", "dog")
        fill = [random.choices(others, k=random.randint(0, 2)) for _ in range(4)]
        texts.append(
            " ".join([*fill[0], *(w for p, f in zip(pair, fill[1:], strict=True) for w in (p, *f))])
        )
    return texts, labels


def leading(count):
    """Which of two words is the first? Both are there."""
    labels = torch.randint(2, (count,))
    texts = []
    for label in labels.tolist():
        pair = ("north", "south") if label else ("south", "north")
        texts.append(" ".join([*pair, *random.choices(("of", "the", "town"), k=3)]))
    return texts, labels


def chirps(count):
    """Does the pitch rise or fall?"""
    labels = torch.randint(2, (count,))
    recordings = []
    for label in labels.tolist():
        rate = random.choice((8000, 16000))
        times = torch.arange(round(rate * random.uniform(0.25, 0.4))) / rate
        slope = (1 if label else -1) * random.uniform(2500, 3500)
        start = 1900 - slope * times[-1] / 2 + random.uniform(-200, 200)
        phase = 2 * math.pi * (start * times + slope * times.square() / 2)
        recordings.append(Waveform(torch.sin(phase) + 0.05 * torch.randn(len(times)), rate))
    return recordings, labels


def colours(count):
    """Which colour have most frames?"""
    labels = torch.randint(2, (count,))
    videos = []
    for label in labels.tolist():
        frames = torch.randint(256, (random.choice((3, 5, 7)), 3, 16, 16), dtype=torch.uint8)
        most = len(frames) // 2 + 1
        for place, frame in enumerate(frames):
            frame[0 if (place < most) == bool(label) else 2] //= 4
        videos.append(frames[torch.randperm(len(frames))])
    return videos, labels


def table(count):
    """In one city the young are positive, in the other the old."""
    rows, labels = [], []
    for _ in range(count):
        age, city = random.uniform(20, 80), random.choice(("Rome", "Oslo"))
        rows.append({"age": age, "city": city, "noise": random.random()})
        labels.append(int((age > 50) == (city == "Oslo")))
    return rows, torch.tensor(labels)


def quadrants(count):
    """Are the signs of the first two features equal?"""
    vectors = 7 + 3 * torch.randn(count, 4)
    return list(vectors), ((vectors[:, 0] > 7) == (vectors[:, 1] > 7)).long()


def drifts(count):
    """On which side is the mean of the first feature?"""
    labels = torch.randint(2, (count,))
    sequences = [
        torch.randn(random.randint(5, 20), 3) + torch.tensor([2.0 * label - 1, 0, 5])
        for label in labels
    ]
    return sequences, labels


def first_to_come(count):
    """Which of two events comes first? Their number and values are the same."""
    labels = torch.randint(2, (count,))
    sequences = []
    for label in labels.tolist():
        sequence = 0.1 * torch.randn(random.randint(6, 20), 2)
        first, second = sorted(random.sample(range(len(sequence)), 2))
        sequence[first, label] += 3
        sequence[second, 1 - label] += 3
        sequences.append(sequence)
    return sequences, labels


MEL = {"mels": 24, "window": 0.032, "hop": 0.016}
CASES = [
    ("image_convnet", {"channels": [8, 16], "image_size": 16}, stripes),
    ("image_transformer", {"image_size": 16, "patch": 4, "dim": 32, "depth": 2}, stripes),
    ("text_hashed", {"out_dim": 32, "buckets": 2048, "dim": 32}, topics),
    ("text_bag", {"out_dim": 32, "dim": 32}, topics),
    ("text_flat", {"dim": 16, "max_length": 4}, leading),
    ("text_lstm", {"dim": 16, "hidden": 16}, order),
    ("text_transformer", {"dim": 32, "depth": 2}, order),
    ("audio_convnet", {"channels": [8, 16], "out_dim": 32, "mel": MEL}, chirps),
    ("audio_lstm", {"hidden": 24, "stack": 2, "mel": MEL}, chirps),
    ("audio_autoencoder", {"channels": [8, 16], "out_dim": 32, "mel": MEL}, chirps),
    ("video_frames", {"encoder_options": {"channels": [8, 8], "image_size": 16}}, colours),
    ("tabular_mlp", {"hidden": [32], "out_dim": 16}, table),
    ("features", {"out_dim": 32}, quadrants),
    ("feature_sequence", {}, drifts),
    ("feature_sequence", {"layer": "lstm", "out_dim": 16}, first_to_come),
]
# What a layer or two must learn takes larger steps.
FAST = {"features", "feature_sequence", "tabular_mlp"}


def accuracy(name, options, problem, steps=150, lr=5e-3):
    raws, labels = problem(384)
    encoder = create_encoder(name, **fit_encoder_options(name, raws, **options))
    model = nn.ModuleList([encoder, nn.Linear(encoder.spec.out_dim, 3)])

    def logits(rows):
        batch = encoder.collate([encoder.preprocess(raws[row]) for row in rows])
        return model[1](encoder(batch).values)

    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    train, test = torch.arange(256), torch.arange(256, 384)
    for _ in range(steps):
        rows = train[torch.randint(256, (32,))]
        optimizer.zero_grad()
        F.cross_entropy(logits(rows), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        return (logits(test).argmax(dim=1) == labels[test]).float().mean().item()


@pytest.mark.parametrize(("name", "options", "problem"), CASES)
def test_it_learns(name, options, problem):
    random.seed(0)
    torch.manual_seed(0)
    assert accuracy(name, options, problem, lr=3e-2 if name in FAST else 5e-3) > 0.9
