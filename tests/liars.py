"""Encoders that keep the contract, and some that break one promise each, for tests of the kit."""

import multiprocessing
import os
import random

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from mmfast.plugins import EncoderSpec, Features

PADDING = 256


class Text(nn.Module):
    """Honest: bytes embedded, a batch norm, a linear layer; their mean, or a token for each."""

    def __init__(self, output="pooled", out_dim=6):
        super().__init__()
        self.spec = EncoderSpec(
            api_version=1, modality="text", out_dim=out_dim, output=output, max_length=40
        )
        self.table = nn.Embedding(257, 8, padding_idx=PADDING)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, out_dim)

    def preprocess(self, raw):
        return torch.tensor(list(raw.encode())[: self.spec.max_length], dtype=torch.int64)

    def collate(self, samples):
        empty = torch.empty(0, dtype=torch.int64)
        ids = pad_sequence(
            [empty if s is None else s for s in samples], batch_first=True, padding_value=PADDING
        )
        present = torch.tensor([s is not None for s in samples])
        return {"ids": nn.functional.pad(ids, (0, 1), value=PADDING), "present": present}

    def tokens(self, batch):
        hidden = self.norm(self.table(batch["ids"]).transpose(1, 2)).transpose(1, 2)
        return self.last(hidden).tanh()

    def pooled(self, batch):
        valid = (batch["ids"] != PADDING)[:, :, None]
        return (self.tokens(batch) * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)

    def forward(self, batch):
        present = batch["present"]
        if self.spec.output == "pooled":
            return Features(torch.where(present[:, None], self.pooled(batch), 0), present)
        mask = present[:, None] & (batch["ids"] != PADDING)
        mask[:, 0] |= present  # an empty text has one token, that of its end
        return Features(torch.where(mask[:, :, None], self.tokens(batch), 0), mask)

    def layer_groups(self):
        return [
            list(self.table.parameters()),
            list(self.norm.parameters()),
            list(self.last.parameters()),
        ]


class Tokens(Text):
    def __init__(self):
        super().__init__("tokens")


class Image(nn.Module):
    """Honest: the colours of a coarse raster, a linear layer."""

    def __init__(self):
        super().__init__()
        self.spec = EncoderSpec(api_version=1, modality="image", out_dim=5, image_size=(4, 4))
        self.last = nn.Linear(48, 5)

    def pixels(self, raw):
        if isinstance(raw, torch.Tensor):
            return raw
        return (
            torch.frombuffer(bytearray(raw.tobytes()), dtype=torch.uint8)
            .view(raw.height, raw.width, 3)
            .permute(2, 0, 1)
        )

    def preprocess(self, raw):
        pixels = self.pixels(raw)[None] / 255
        return nn.functional.adaptive_avg_pool2d(pixels, self.spec.image_size).flatten()

    def collate(self, samples):
        rows = [torch.zeros(48) if s is None else s for s in samples]
        return {
            "pixels": torch.stack(rows),
            "present": torch.tensor([s is not None for s in samples]),
        }

    def forward(self, batch):
        values = self.last(batch["pixels"])
        return Features(torch.where(batch["present"][:, None], values, 0), batch["present"])

    def layer_groups(self):
        return [list(self.parameters())]


class Audio(nn.Module):
    """Honest: the loudness of 64 bands of a second, a linear layer."""

    def __init__(self):
        super().__init__()
        self.spec = EncoderSpec(api_version=1, modality="audio", out_dim=5, sample_rate=8000)
        self.last = nn.Linear(64, 5)

    def check(self, raw):
        if raw.sample_rate != self.spec.sample_rate:
            raise ValueError(f"sample_rate is {raw.sample_rate}; it must be 8000")

    def preprocess(self, raw):
        self.check(raw)
        spectrum = torch.fft.rfft(raw.samples, n=8000).abs()
        return nn.functional.adaptive_avg_pool1d(spectrum[None], 64)[0].log1p()

    def collate(self, samples):
        rows = [torch.zeros(64) if s is None else s for s in samples]
        return {
            "bands": torch.stack(rows),
            "present": torch.tensor([s is not None for s in samples]),
        }

    def forward(self, batch):
        values = self.last(batch["bands"])
        return Features(torch.where(batch["present"][:, None], values, 0), batch["present"])

    def layer_groups(self):
        return [list(self.parameters())]


class Vector(nn.Module):
    """Honest: a linear layer."""

    def __init__(self):
        super().__init__()
        self.spec = EncoderSpec(api_version=1, modality="features", out_dim=5)
        self.last = nn.Linear(12, 5)

    def preprocess(self, raw):
        return raw / 2

    def collate(self, samples):
        rows = [torch.zeros(12) if s is None else s for s in samples]
        return {
            "rows": torch.stack(rows),
            "present": torch.tensor([s is not None for s in samples]),
        }

    def forward(self, batch):
        values = self.last(batch["rows"])
        return Features(torch.where(batch["present"][:, None], values, 0), batch["present"])

    def layer_groups(self):
        return [list(self.parameters())]


class NoParameters(Vector):
    """Honest, and with nothing to train."""

    def __init__(self):
        super().__init__()
        self.last = nn.Identity()
        self.spec = EncoderSpec(api_version=1, modality="features", out_dim=12)

    def layer_groups(self):
        return []


class FixedPositions(Text):
    """Honest: a parameter that it fixes itself, and that layer_groups leaves out."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(6), requires_grad=False)

    def pooled(self, batch):
        return super().pooled(batch) + self.shift


HONEST = [Text, Tokens, Image, Audio, Vector, NoParameters, FixedPositions]


# ------------------------------------------------------------------------- one lie each


class OtherVersion(Text):
    def __init__(self):
        super().__init__()
        self.spec = EncoderSpec(api_version=2, modality="text", out_dim=6)


class NoRate(Audio):
    def __init__(self):
        super().__init__()
        self.spec = EncoderSpec(api_version=1, modality="audio", out_dim=5)

    def check(self, raw):
        pass


class WrongDim(Text):
    def forward(self, batch):
        values, mask = super().forward(batch)
        return Features(values.repeat(1, 2), mask)


class TokensForPooled(Text):
    def forward(self, batch):
        mask = batch["present"][:, None] & (batch["ids"] != PADDING)
        mask[:, 0] |= batch["present"]
        return Features(torch.where(mask[:, :, None], self.tokens(batch), 0), mask)


class FloatMask(Text):
    def forward(self, batch):
        values, mask = super().forward(batch)
        return Features(values, mask.float())


class PlainTuple(Text):
    def forward(self, batch):
        return tuple(super().forward(batch))


class TimeFirst(Text):
    def collate(self, samples):
        batch = super().collate(samples)
        return {**batch, "ids": batch["ids"].T}

    def forward(self, batch):
        return super().forward({**batch, "ids": batch["ids"].T})


class LeaksPadding(Text):
    def pooled(self, batch):
        return self.tokens(batch).mean(dim=1)


class LeaksPaddingIntoTokens(Tokens):
    def tokens(self, batch):
        tokens = super().tokens(batch)
        return tokens + tokens.mean(dim=1, keepdim=True)


class CentresBatch(Text):
    def pooled(self, batch):
        values = super().pooled(batch)
        return values - values.mean(dim=0)


class AlwaysDrops(Text):
    def pooled(self, batch):
        return nn.functional.dropout(super().pooled(batch), 0.5, training=True)


class NanForEmpty(Text):
    def pooled(self, batch):
        valid = (batch["ids"] != PADDING)[:, :, None]
        return (self.tokens(batch) * valid).sum(dim=1) / valid.sum(dim=1)


class NanGradient(Text):
    """Zeros in front, NaN in the gradient behind: where() hides 0 / 0, backward does not."""

    def pooled(self, batch):
        valid = (batch["ids"] != PADDING)[:, :, None]
        total = (self.tokens(batch) * valid).sum(dim=1)
        values = total / total.norm(dim=1, keepdim=True)
        empty = ~valid.any(dim=1)
        return torch.where(empty, 0, values)


class LearnsFromMissing(Text):
    def forward(self, batch):
        return Features(self.last(self.pooled_hidden(batch)), batch["present"])

    def pooled_hidden(self, batch):
        valid = (batch["ids"] != PADDING)[:, :, None]
        hidden = self.norm(self.table(batch["ids"]).transpose(1, 2)).transpose(1, 2)
        return (hidden * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)


class MissingIsValid(Text):
    def forward(self, batch):
        values, mask = super().forward(batch)
        return Features(values, torch.ones_like(mask))


class StopsWhenAllMissing(Text):
    def forward(self, batch):
        if not batch["present"].any():
            return Features(torch.zeros(len(batch["present"]), 6), batch["present"])
        return super().forward(batch)


class Unused(Text):
    def __init__(self):
        super().__init__()
        self.forgotten = nn.Linear(2, 2)

    def layer_groups(self):
        return [*super().layer_groups(), list(self.forgotten.parameters())]


class GroupLeftOut(Text):
    def layer_groups(self):
        return super().layer_groups()[1:]


class GroupTwice(Text):
    def layer_groups(self):
        groups = super().layer_groups()
        return [*groups, groups[0]]


class WakesUp(Text):
    def forward(self, batch):
        self.last.weight.requires_grad_(True)
        return super().forward(batch)


class MovingStatistics(Text):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(6))

    def pooled(self, batch):
        values = super().pooled(batch)
        if self.training:
            self.average = 0.9 * self.average + 0.1 * values.detach().mean(dim=0)
        return values


class AllOrNothing(Text):
    """No gradient anywhere as soon as the first layer is frozen."""

    def forward(self, batch):
        with torch.set_grad_enabled(self.table.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(batch)


class NoAutocast(Text):
    """Fills a float32 tensor; under autocast its source is bfloat16."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 6)

    def pooled(self, batch):
        values = torch.zeros(len(batch["ids"]), 6)
        values[batch["present"]] = self.head(super().pooled(batch))[batch["present"]]
        return values

    def layer_groups(self):
        return [*super().layer_groups(), list(self.head.parameters())]


class OtherWhenCompiled(Text):
    def pooled(self, batch):
        values = super().pooled(batch)
        return values * 2 if torch.compiler.is_compiling() else values


class PlainTensor(Text):
    def __init__(self):
        super().__init__()
        self.shift = torch.randn(6)

    def pooled(self, batch):
        return super().pooled(batch) + self.shift


class GrowingVocabulary(Text):
    def __init__(self):
        super().__init__()
        self.words = {}

    def preprocess(self, raw):
        ids = [self.words.setdefault(word, len(self.words)) for word in raw.split()]
        return torch.tensor(ids, dtype=torch.int64)


class Unpicklable(Text):
    def __init__(self):
        super().__init__()
        self.split = lambda raw: list(raw.encode())


class DependsOnProcess(Text):
    def preprocess(self, raw):
        return super().preprocess(f"{os.getpid()} {raw}")


class DiesInWorkers(Text):
    def preprocess(self, raw):
        if multiprocessing.parent_process() is not None:
            os._exit(1)
        return super().preprocess(raw)


class OtherRandom(Text):
    def preprocess(self, raw):
        words = raw.split()
        if self.training:
            random.shuffle(words)
        return super().preprocess(" ".join(words))


class RandomInEvaluation(Vector):
    def preprocess(self, raw):
        return raw + 0.1 * torch.randn_like(raw)


class ChangesInput(Vector):
    def preprocess(self, raw):
        return raw.div_(2)


class SwapsColours(Image):
    def pixels(self, raw):
        pixels = super().pixels(raw)
        return pixels if isinstance(raw, torch.Tensor) else pixels.flip(0)


class AnyRate(Audio):
    def check(self, raw):
        pass
