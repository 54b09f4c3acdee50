"""What the checks of an encoder stand on: the encoder, samples for it, and ways to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any
from unittest import SkipTest

import torch
from torch import nn

from mmfast.plugins import Features, Waveform, create_encoder, encoder_info, fit_encoder_options
from mmfast.testing.compare import gradients, require, row, weights_like
from mmfast.testing.samples import default_samples


class Kit:
    """The parts of :class:`mmfast.testing.EncoderContract` that are no checks."""

    name: str = ""
    options: Mapping[str, Any] = MappingProxyType({})

    def make_encoder(self) -> Any:
        """A new encoder; every call makes one of the same options, its weights drawn anew."""
        if not self.name:
            raise NotImplementedError("give the test class a name = ..., or override make_encoder")
        return create_encoder(self.name, **self.complete_options())

    def samples(self, encoder: Any) -> Sequence[Any]:
        """Three raw samples or more, of different lengths where the modality has lengths."""
        errors = []
        for raws in default_samples(encoder.spec.modality, encoder.spec):
            try:
                for raw in raws:
                    encoder.preprocess(raw)
            except (LookupError, TypeError, ValueError) as error:
                errors.append(f"{type(error).__name__}: {error}")
            else:
                return raws
        raise AssertionError(
            f"preprocess refuses the made-up samples ({'; '.join(errors)}); if they do not suit "
            "the encoder, override samples() in the test class"
        )

    def complete_options(self) -> dict[str, Any]:
        """``options`` with what the encoder finds in samples."""
        options = dict(self.options)
        modality = options.get("modality") or (*encoder_info(self.name).modalities, "")[0]
        if not modality:  # nothing to make samples for
            return options
        errors = []
        for raws in default_samples(modality):
            try:
                return fit_encoder_options(self.name, raws, **options)
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    def _encoder(self) -> Any:
        torch.manual_seed(0)
        return self.make_encoder().eval()

    def _samples(self) -> tuple[Any, list[Any]]:
        encoder = self._encoder()
        raws = list(self.samples(encoder))
        require(len(raws) >= 3, f"samples() gives {len(raws)}; it must give three or more")
        return encoder, raws

    def _trainable(self) -> tuple[Any, list[Any]]:
        encoder, raws = self._samples()
        if not any(p.requires_grad for p in encoder.parameters()):
            raise SkipTest("it has no trainable parameters")
        return encoder, raws

    @staticmethod
    def _batch(encoder: Any, raws: Sequence[Any]) -> Any:
        return encoder.collate([None if raw is None else encoder.preprocess(raw) for raw in raws])

    def _run(self, encoder: Any, raws: Sequence[Any]) -> Features:
        return encoder(self._batch(encoder, raws))

    def _summary(self, encoder: Any, wave: torch.Tensor, rate: int) -> torch.Tensor:
        valid = row(self._run(encoder, [Waveform(wave, rate)]), 0)
        return valid.reshape(-1, encoder.spec.out_dim).mean(dim=0)

    @staticmethod
    def _gradients(encoder: nn.Module, rows: list[torch.Tensor]) -> dict[str, torch.Tensor | None]:
        encoder.zero_grad(set_to_none=True)
        torch.stack([(part * weights_like(part)).sum() for part in rows]).sum().backward()
        return gradients(encoder)
