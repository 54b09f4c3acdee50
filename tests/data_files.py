"""Real files for the tests of mmfast.data, and two small encoders that fulfil the contract."""

import csv
import io
import tarfile
import wave

import numpy as np
import torch
from PIL import Image
from torch import nn

from mmfast.plugins import EncoderSpec, Features


def png(colour=(255, 0, 0), size=(5, 4), kind="PNG", **options) -> bytes:
    """An image file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind, **options)
    return buffer.getvalue()


def noisy(size=(64, 48), kind="PNG", seed=0) -> bytes:
    """An image file of noise, which no codec makes short."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def wav(samples, rate=8000, channels=1) -> bytes:
    """A 16-bit WAV by the standard library; samples in -1..1, channels in turns."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.asarray(samples) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def write_csv(path, header, rows):
    """A CSV file as the standard library writes it; returns its path."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_tar(path, members, mode="w"):
    """A tar file of (name, bytes); returns its path."""
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class Colour(nn.Module):
    """Image encoder: the mean colour, brightened by chance while training."""

    def __init__(self, width=3):
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.spec = EncoderSpec(api_version=1, modality="image", out_dim=width)
        self.calls = 0

    def preprocess(self, raw):
        pixels = raw if isinstance(raw, torch.Tensor) else torch.tensor(np.array(raw))
        if not isinstance(raw, torch.Tensor):
            pixels = pixels.permute(2, 0, 1)
        colour = pixels.float().mean((1, 2)) / 255
        return colour + torch.rand(()) if self.training else colour

    def collate(self, samples):
        values = [torch.zeros(3) if sample is None else sample for sample in samples]
        present = torch.tensor([sample is not None for sample in samples])
        return {"image": torch.stack(values), "present": present}

    def forward(self, batch):
        self.calls += len(batch["image"])
        return Features(self.linear(batch["image"]), batch["present"])

    def layer_groups(self):
        return [list(self.parameters())]


class Letters(nn.Module):
    """Text encoder: a token for each letter; texts of more than 99 letters are refused."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(256, 4)
        self.spec = EncoderSpec(api_version=1, modality="text", out_dim=4, output="tokens")

    def preprocess(self, raw):
        if len(raw) > 99:
            raise ValueError("the text has more than 99 letters")
        return torch.tensor(list(raw.encode()))

    def collate(self, samples):
        longest = max([1, *(len(sample) for sample in samples if sample is not None)])
        ids = torch.zeros(len(samples), longest, dtype=torch.int64)
        mask = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            if sample is not None:
                ids[row, : len(sample)], mask[row, : len(sample)] = sample, True
        return {"ids": ids, "mask": mask}

    def forward(self, batch):
        return Features(self.table(batch["ids"]) * batch["mask"][..., None], batch["mask"])

    def layer_groups(self):
        return [list(self.parameters())]
