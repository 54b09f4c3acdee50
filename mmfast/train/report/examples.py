"""The rows that a run gets most wrong, each a card with what the row holds.

What a card may weigh is bounded: pictures are scaled down, recordings cut, texts shortened, and
when the cards together reach ``MOST_MEDIA`` bytes, those after show no more media.
"""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmfast.data import CellError, ColumnSpec, Table, read_cell
from mmfast.data.files import named
from mmfast.data.table import need
from mmfast.plugins import Waveform
from mmfast.train.predictions import Predictions
from mmfast.train.report.page import facts, tag, text
from mmfast.train.scores import Scores, losses

MOST_MEDIA = 4_000_000
"""Bytes of all pictures and sounds of a page together, before they become text (4/3 of it)."""
SIDE = 280
SECONDS = 8.0
LETTERS = 400
FRAMES = 4
_RATES = (16000, 22050, 24000, 32000, 44100, 48000)


@dataclass
class Budget:
    """Bytes that media may still take."""

    left: int

    def spend(self, data: bytes) -> bool:
        """Whether there was room; then it is taken."""
        fits = len(data) <= self.left
        self.left -= len(data) if fits else 0
        return fits


def most_wrong(
    found: Predictions,
    scores: Scores,
    table: Table,
    specs: Mapping[str, ColumnSpec],
    count: int,
) -> str:
    """Cards of the rows with the largest losses, the worst first."""
    order = np.argsort(-losses(scores), kind="stable")
    note = _NOTES[found.about.kind]
    if found.groups is not None:
        _, first = np.unique(found.groups.numpy()[order], return_index=True)
        order = order[np.sort(first)]
        note += f" The worst of each {found.about.group}."
    budget = Budget(MOST_MEDIA)
    cards = [_card(found, scores, table, specs, place, budget) for place in order[:count].tolist()]
    return tag("p", text(note), class_="soft") + tag("div", *cards, class_="cards")


_NOTES = {
    "binary": "Test rows whose true class was given the lowest probability.",
    "multiclass": "Test rows whose true class was given the lowest probability.",
    "multilabel": "Test rows whose labels were given the lowest probabilities, on average.",
    "regression": "Test rows with the largest errors.",
    "retrieval": "Test rows whose two halves find each other worst.",
}


def _card(
    found: Predictions,
    scores: Scores,
    table: Table,
    specs: Mapping[str, ColumnSpec],
    place: int,
    budget: Budget,
) -> str:
    row = int(found.rows[place])
    parts = [
        _modality(table, row, spec, bool(found.present[place, column]), name, budget)
        for column, (name, spec) in enumerate(specs.items())
    ]
    parts += [tag("p", said) for said in _said(scores, place)]
    return tag("div", *parts, tag("p", text(table.where(row), 200), class_="soft"), class_="card")


def _said(scores: Scores, place: int) -> Iterator[str]:
    """What is true and what the model says, as HTML."""
    about = scores.about
    if about.kind == "retrieval":
        first, second = about.modalities
        for name, ranks in zip((first, second), scores.ranks, strict=True):
            yield text(f"by its {name}: rank {ranks[place] + 1} of {scores.count}")
    elif about.kind == "regression":
        yield text(f"true {scores.true[place]:.4g}, predicted {scores.predicted[place]:.4g}")
    elif about.kind == "multilabel":
        for what, chosen in (("true", scores.true), ("said", scores.chosen)):
            names = [c for c, yes in zip(about.classes, chosen[place], strict=True) if yes]
            yield text(f"{what}: {', '.join(names) or 'none'}", LETTERS)
    else:
        yield from _class_said(scores, place)


def _class_said(scores: Scores, place: int) -> Iterator[str]:
    chances = scores.scores[place]
    if scores.about.kind == "binary":
        chances = np.array([1 - chances[0], chances[0]])
        true, said = int(scores.true[place, 0]), int(scores.chosen[place, 0])
    else:
        true, said = int(scores.true[place].argmax()), int(scores.chosen[place].argmax())
    for what, c in (("true", true), ("said", said)):
        name = text(scores.about.classes[c], 80)
        yield f"{what}: <b>{name}</b> ({100 * chances[c]:.2g} %)"


def _modality(
    table: Table, row: int, spec: ColumnSpec, present: bool, name: str, budget: Budget
) -> str:
    """One modality of a row as HTML; a cell that cannot be shown says why."""
    try:
        cell = read_cell(table, row, spec) if present else None
        if cell is None:
            return tag("p", text(f"{name}: missing"), class_="soft")
        shown = _SHOWN[spec.modality](cell, name, budget)
    except (CellError, ImportError, OSError, ValueError, RuntimeError) as error:
        return tag("p", text(f"{name}: not shown: {error}", LETTERS), class_="soft")
    path = (
        named(table.cell(row, spec.column)) if spec.modality in ("image", "audio", "video") else ""
    )
    return shown + (tag("p", text(path, 200), class_="soft") if path else "")


def _image(cell: Any, name: str, budget: Budget) -> str:
    data, kind, small = picture(cell)
    return _picture(data, kind, name, budget, "small" if small else "")


def _video(cell: Any, name: str, budget: Budget) -> str:
    places = np.unique(np.linspace(0, len(cell) - 1, FRAMES).astype(int)).tolist()
    frames = [picture(cell[place], SIDE // 2) for place in places]
    return "".join(_picture(data, kind, name, budget, "strip") for data, kind, _ in frames)


def _picture(data: bytes, kind: str, name: str, budget: Budget, class_: str) -> str:
    if not budget.spend(data):
        return _no_room(name)
    address = f"data:image/{kind};base64,{b64encode(data).decode()}"
    return f'<img class="{class_}" alt="{text(name)}" src="{address}">'


def _text(cell: str, name: str, budget: Budget) -> str:
    return tag("p", text(cell, LETTERS))


def _audio(cell: Waveform, name: str, budget: Budget) -> str:
    data, kind = sound(cell)
    if not budget.spend(data):
        return _no_room(name)
    address = f"data:audio/{kind};base64,{b64encode(data).decode()}"
    length = cell.samples.shape[-1] / cell.sample_rate
    cut = f", the first {SECONDS:g}" if length > SECONDS else ""
    player = f'<audio controls preload="metadata" src="{address}"></audio>'
    return player + tag("p", text(f"{name}: {length:.3g} s{cut}"), class_="soft")


def _tabular(cell: Mapping[str, Any], name: str, budget: Budget) -> str:
    return facts((key, "missing" if v is None else v) for key, v in list(cell.items())[:20])


def _features(cell: Any, name: str, budget: Budget) -> str:
    sizes = " x ".join(map(str, np.shape(cell)))
    return tag("p", text(f"{name}: {sizes} numbers"), class_="soft")


_SHOWN: dict[str, Callable[[Any, str, Budget], str]] = {
    "image": _image,
    "text": _text,
    "audio": _audio,
    "video": _video,
    "tabular": _tabular,
    "features": _features,
}


def _no_room(name: str) -> str:
    return tag("p", text(f"{name}: left out, the page is large enough"), class_="soft")


def picture(cell: Any, side: int = SIDE) -> tuple[bytes, str, bool]:
    """An image as the bytes of a small file, its kind, and whether its pixels are few.

    Args:
        cell: a PIL image, or a tensor (3, H, W) of bytes or of floats in 0..1.
        side: largest width and height of the result.
    """
    image = _pil(cell) if isinstance(cell, Tensor) else cell.convert("RGB")
    small = max(image.size) <= 64
    file = io.BytesIO()
    if small:
        image.save(file, "PNG", optimize=True)
        return file.getvalue(), "png", True
    image.thumbnail((side, side))
    image.save(file, "JPEG", quality=80)
    return file.getvalue(), "jpeg", False


def _pil(cell: Tensor) -> Image.Image:
    if cell.dtype.is_floating_point:
        cell = (cell.clamp(0, 1) * 255).round()
    return Image.fromarray(cell.to(torch.uint8).permute(1, 2, 0).contiguous().numpy(), "RGB")


def sound(wave: Waveform) -> tuple[bytes, str]:
    """The beginning of a recording in one channel, as the bytes of an MP3 or WAV file.

    Browsers play MP3 everywhere; where libsndfile cannot write it, WAV is larger and as good.
    """
    soundfile = need("soundfile")
    samples = wave.samples.float()
    samples = samples.mean(0) if samples.dim() == 2 else samples
    samples = samples[: int(SECONDS * wave.sample_rate)]
    rate = wave.sample_rate
    if rate not in _RATES:  # those of MPEG-1 and 2 that players expect
        target = max((r for r in _RATES if r <= rate), default=_RATES[0])
        length = max(1, round(len(samples) * target / rate))
        places = torch.linspace(0, len(samples) - 1, length).numpy()
        samples = torch.from_numpy(np.interp(places, np.arange(len(samples)), samples.numpy()))
        rate = target
    data = np.clip(samples.numpy(), -1, 1)
    file = io.BytesIO()
    if "MP3" in soundfile.available_formats():
        soundfile.write(file, data, rate, format="MP3", compression_level=0.7)
        return file.getvalue(), "mpeg"
    soundfile.write(file, data, rate, format="WAV", subtype="PCM_16")
    return file.getvalue(), "wav"
