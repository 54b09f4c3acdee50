"""What an encoder is: facts about it (`EncoderSpec`), what it returns, and its few methods.

The contract is data and duck typing: no parent class of mmfast's has to be inherited, and nothing
    here
imports more than torch, so that a plugin costs its own imports only. docs/plugins.md explains it
with a complete example; `mmfast.testing.EncoderContract` tests it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch

API_VERSION = 1

Modality = Literal["image", "text", "audio", "video", "tabular", "features"]
MODALITIES: tuple[str, ...] = get_args(Modality)

Batch = dict[str, torch.Tensor]


class Waveform(NamedTuple):
    """A recording: float32 samples (T,) or (channels, T) in -1..1, and their rate in Hz."""

    samples: torch.Tensor
    sample_rate: int


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The facts that a pipeline needs before it runs an encoder; JSON in and out.

    Attributes:
        api_version: the version of this contract that the encoder was written for, a literal
            number: mmfast refuses an encoder of another version instead of guessing.
        modality: what it encodes, one of ``MODALITIES``. It decides what ``preprocess`` takes:
            image: a PIL image, or a uint8 tensor (3, H, W), RGB in 0..255; text: a str; audio: a
            :class:`Waveform`; video: a sequence of images; tabular: a mapping from column to
            number, str or None; features: a float tensor (D,), or (T, D) for a sequence.
        out_dim: features of each vector that it returns.
        output: ``"pooled"``, one vector (B, D) a sample, or ``"tokens"``, a sequence (B, T, D).
        image_size: height and width in pixels that ``preprocess`` makes of an image; None: as it
            comes.
        mean: of each channel, on the 0..1 scale, subtracted by ``preprocess``.
        std: of each channel, on the 0..1 scale, divided by.
        sample_rate: of the audio it works on, in Hz. ``preprocess`` resamples, or raises
            ValueError.
        max_length: most tokens, frames or words it looks at; None: no limit.
        pretrained: name of its weights; None: it starts from random ones.
        origin: where architecture and weights come from.
        licence: of the weights (of the code where there are none), as an SPDX identifier.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: a field with an impossible value.
    """

    api_version: int
    modality: Modality
    out_dim: int
    output: Literal["pooled", "tokens"] = "pooled"
    image_size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    sample_rate: int | None = None
    max_length: int | None = None
    pretrained: str | None = None
    origin: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        for name in ("api_version", "out_dim"):
            _check_int(name, getattr(self, name))
        for name in ("sample_rate", "max_length"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name))
        if self.modality not in MODALITIES:
            raise ValueError(
                f"EncoderSpec: modality is {self.modality!r}; it must be one of "
                f"{', '.join(MODALITIES)}"
            )
        if self.output not in ("pooled", "tokens"):
            raise ValueError(
                f"EncoderSpec: output is {self.output!r}; it must be 'pooled' or 'tokens'"
            )
        for name in ("pretrained", "origin", "licence"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "pretrained" and value is None):
                raise TypeError(f"EncoderSpec: {name} is {value!r}; it must be a str")
        for name in ("image_size", "mean", "std"):
            value = getattr(self, name)
            if value is not None:
                _check_numbers(name, value)
                # Lists, as JSON has them, become tuples: a spec is hashable.
                object.__setattr__(self, name, tuple(value))

    def to_json(self) -> str:
        """The spec as one JSON object."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> EncoderSpec:
        """The spec that :meth:`to_json` wrote; ValueError for fields that it does not know."""
        facts = json.loads(text)
        unknown = sorted(set(facts) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"EncoderSpec: there is no field {', '.join(map(repr, unknown))}")
        return cls(**facts)


class Features(NamedTuple):
    """What an encoder returns.

    Attributes:
        values: (B, D) if its spec says pooled, (B, T, D) if it says tokens.
        mask: bool, True = valid: (B,) for pooled, (B, T) for tokens. A sample that was missing is
            invalid throughout; its values are finite and no gradient flows from them.
    """

    values: torch.Tensor
    mask: torch.Tensor

    @property
    def present(self) -> torch.Tensor:
        """Bool (B,): which samples were there; what the fusion modules take as ``present``."""
        return self.mask if self.mask.dim() == 1 else self.mask.any(dim=1)


@runtime_checkable
class Encoder(Protocol):
    """An ``nn.Module`` that mmfast can train with: five things beside what every module has.

    ``preprocess`` runs in the workers of a DataLoader, so encoders pickle, and its random choices
    (there are some only while the module is in training mode) come from torch's global generator,
    which each worker seeds. What an encoder learns from the training split before training, such as
    a vocabulary or means, is part of its options: an optional class method ``fit_options(samples,
    **options)`` takes an iterable of raw samples and returns the options completed by what it
    found, ready for JSON and the constructor; what the caller gave stays. An encoder that can learn
    to rebuild its input has an optional method ``pretrainer()``: a new module that shares the
    encoder and whose ``forward(batch)`` is the loss, for stages of objective reconstruction.
    """

    spec: EncoderSpec

    def preprocess(self, raw: Any) -> Any:
        """One raw sample (see ``EncoderSpec.modality``) to what ``collate`` takes; on the CPU.

        The sample itself is not changed. ValueError or TypeError says what is wrong with it.
        """
        ...

    def collate(self, samples: Sequence[Any]) -> Batch:
        """B preprocessed samples, None for one that is missing, to tensors of first dimension B."""
        ...

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> Features:
        """What ``collate`` returned, moved to the module's device, to features."""
        ...

    def layer_groups(self) -> list[list[torch.nn.Parameter]]:
        """Every trainable parameter exactly once, in groups from the input to the output.

        Parameters that the encoder fixes itself when it is made, such as sinusoidal positions, are
        left out, so that ``unfreeze`` does not wake them. The groups stay the same when frozen.
        """
        ...


def _check_numbers(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"EncoderSpec: {name} is {value!r}; it must be a tuple of numbers")
    if name == "image_size":
        if len(value) != 2:
            raise ValueError(f"EncoderSpec: image_size is {value}; it must be (height, width)")
        for side in value:
            _check_int("a side of image_size", side)
        return
    for number in value:
        if not isinstance(number, (int, float)) or isinstance(number, bool):
            raise TypeError(f"EncoderSpec: {name} holds {number!r}; it must hold numbers")
        if name == "std" and not number > 0:
            raise ValueError(f"EncoderSpec: std holds {number}; it is divided by, so positive")


def _check_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"EncoderSpec: {name} is {value!r}; it must be an int")
    if value < 1:
        raise ValueError(f"EncoderSpec: {name} is {value}; it must be at least 1")
