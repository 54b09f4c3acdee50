"""Raw samples to the inputs of a Hugging Face model, by that model's own tokenizer or processor.

One class for each modality, each with ``preprocess``, ``collate`` and ``facts`` for the spec.
Where a sample is missing ``collate`` repeats another one of the batch: the model then meets values
it can work with, and the encoder throws away what it makes of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoFeatureExtractor, AutoImageProcessor, AutoTokenizer

from mmfast.encoders import common
from mmfast.encoders.hf_model import from_source
from mmfast.encoders.mel import read_waveform
from mmfast.plugins.contract import Batch, Waveform


class TextProcessor:
    """Texts to token ids, padded at the end.

    Args:
        source: folder or name on the hub of the tokenizer.
        revision: on the hub.
        max_length: most tokens of a text, special ones included; None: what the model takes.
        positions: most tokens that the model takes, None if it has no limit.
    """

    def __init__(
        self, source: str, revision: str | None, max_length: int | None, positions: int | None
    ) -> None:
        self.tokenizer = from_source(
            AutoTokenizer, source, "tokenizer.json", revision=revision, padding_side="right"
        )
        if len(self.tokenizer) <= len(self.tokenizer.all_special_tokens):
            # transformers makes an empty one, which reads every word as unknown, of missing files.
            raise FileNotFoundError(
                f"hf: the tokenizer of {source!r} has no vocabulary, such as tokenizer.json"
            )
        # transformers writes "no limit" as 1e30.
        limits = [positions or 1 << 40, self.tokenizer.model_max_length]
        limit = min(limits)
        if max_length is not None and max_length > limit:
            raise ValueError(f"hf: max_length is {max_length}; the model takes at most {limit}")
        self.max_length = max_length or (limit if limit < 1 << 30 else None)
        pad = self.tokenizer.pad_token_id
        self.padding = self.tokenizer.eos_token_id or 0 if pad is None else pad
        self.facts = {"max_length": self.max_length}

    def preprocess(self, raw: Any) -> Tensor:
        """A str to int64 (L,), L at least 1."""
        if not isinstance(raw, str):
            raise TypeError(f"text is a {type(raw).__name__}; it must be a str")
        ids = self.tokenizer(
            raw, truncation=self.max_length is not None, max_length=self.max_length
        )["input_ids"]
        return torch.tensor(ids or [self.padding])

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """``input_ids`` and ``attention_mask`` int64 (B, L), ``present`` bool (B,)."""
        filled, present = _fill(samples, lambda: self.preprocess(""))
        ids, mask = common.pad(filled, dtype=torch.int64)
        ids = ids.masked_fill(~mask, self.padding)
        return {"input_ids": ids, "attention_mask": mask.long(), "present": present}


class ImageProcessor:
    """Images to pixels, by the image processor's PIL version, which needs no torchvision.

    Args:
        source: folder or name on the hub of the image processor, or a mapping of its options.
        revision: on the hub.
        config: of the model; says which image processor takes the options.
    """

    def __init__(self, source: str | Mapping[str, Any], revision: str | None, config: Any) -> None:
        self.processor = _processor(
            AutoImageProcessor, source, config, revision=revision, backend="pil"
        )
        shape = self.preprocess(torch.zeros(3, 48, 64, dtype=torch.uint8)).shape
        self.shape = tuple(shape)
        self.facts: dict[str, Any] = {"image_size": tuple(shape[1:])}
        for fact, name in (("mean", "image_mean"), ("std", "image_std")):
            self.facts[fact] = getattr(self.processor, name, None)

    def preprocess(self, raw: Any) -> Tensor:
        """A PIL image, or uint8 (3, H, W), to float32 (3, \\*image_size)."""
        pixels = common.rgb(raw)
        # Last-axis channels: transformers guesses the layout, and would guess wrong for 3 rows.
        inputs = self.processor(
            images=pixels.permute(1, 2, 0).numpy(),
            input_data_format="channels_last",
            return_tensors="pt",
        )
        return inputs["pixel_values"][0]

    def collate(self, samples: Sequence[Tensor | None]) -> Batch:
        """``pixel_values`` (B, 3, \\*image_size), ``present`` bool (B,)."""
        filled, present = _fill(samples, lambda: torch.zeros(self.shape))
        return {"pixel_values": _stack(filled, self.shape), "present": present}


class AudioProcessor:
    """Recordings to samples, or to a spectrogram, by the model's feature extractor.

    Args:
        source: folder or name on the hub of the feature extractor, or a mapping of its options.
        revision: on the hub.
        config: of the model.
        max_length: most samples of a recording, at the extractor's rate; None: all of it.
    """

    def __init__(
        self,
        source: str | Mapping[str, Any],
        revision: str | None,
        config: Any,
        max_length: int | None,
    ) -> None:
        self.extractor = _processor(AutoFeatureExtractor, source, config, revision=revision)
        self.rate = int(self.extractor.sampling_rate)
        self.max_length = max_length
        self.padding = float(getattr(self.extractor, "padding_value", 0.0))
        # The shortest recording of which a stack of convolutions without padding leaves one frame.
        self.least = 1
        if hasattr(config, "conv_kernel") and hasattr(config, "conv_stride"):
            for kernel, stride in zip(
                reversed(config.conv_kernel), reversed(config.conv_stride), strict=True
            ):
                self.least = (self.least - 1) * stride + kernel
        self.facts = {"sample_rate": self.rate, "max_length": max_length}

    def preprocess(self, raw: Any) -> dict[str, Tensor]:
        """A :class:`Waveform` to what the extractor makes: (T,) or a spectrogram, and a mask."""
        samples = read_waveform(raw, self.rate)[: self.max_length]
        if len(samples) < self.least:
            samples = torch.nn.functional.pad(samples, (0, self.least - len(samples)))
        inputs = self.extractor(
            samples.numpy(),
            sampling_rate=self.rate,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return {name: value[0] for name, value in inputs.items()}

    def collate(self, samples: Sequence[dict[str, Tensor] | None]) -> Batch:
        """The model's inputs, padded at the end, ``attention_mask``, ``present`` bool (B,)."""
        silence = Waveform(torch.zeros(max(self.least, self.rate // 10)), self.rate)
        filled, present = _fill(samples, lambda: self.preprocess(silence))
        batch: Batch = {"present": present}
        for name, value in filled[0].items():
            rows = [row[name] for row in filled]
            if name == "attention_mask" or value.dim() == 1:
                values, mask = common.pad(rows, dtype=value.dtype)
                padding = 0 if name == "attention_mask" else self.padding
                batch[name] = values.masked_fill(~mask, padding)
            else:
                batch[name] = _stack(rows, value.shape)
        return batch


def _fill(samples: Sequence[Any], default: Any) -> tuple[list[Any], Tensor]:
    """The samples, each None replaced by another or ``default()``; bool (B,): who is there."""
    if not samples:
        raise ValueError("hf: a batch of no samples; the models of transformers need at least one")
    present = torch.tensor([sample is not None for sample in samples], dtype=torch.bool)
    if not present.all():
        stand_in = next((sample for sample in samples if sample is not None), None)
        stand_in = default() if stand_in is None else stand_in
        samples = [stand_in if sample is None else sample for sample in samples]
    return list(samples), present


def _stack(rows: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    for row in rows:
        if row.shape != torch.Size(shape):
            raise ValueError(
                f"hf: the model's processor made {tuple(row.shape)} of one sample and "
                f"{tuple(shape)} of others; one batch needs one shape: give the processor a fixed "
                "size (option processor={'size': {'height': ..., 'width': ...}})"
            )
    return torch.stack(list(rows))


def _processor(factory: Any, source: str | Mapping[str, Any], config: Any, **options: Any) -> Any:
    """A processor from a folder, from the hub, or from its options."""
    if isinstance(source, str):
        return from_source(factory, source, "preprocessor_config.json", **options)
    # transformers has one public way to the processor of a model: its files.
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        Path(folder, "preprocessor_config.json").write_text(json.dumps(dict(source)))
        try:
            return factory.from_pretrained(folder, **options)
        except ValueError as error:
            key = (
                "image_processor_type"
                if factory is AutoImageProcessor
                else "feature_extractor_type"
            )
            raise ValueError(
                f"hf: transformers knows no processor of {config.model_type!r} by itself: name its "
                f"class in the option processor, as {{{key!r}: ...}}"
            ) from error
