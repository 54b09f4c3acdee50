"""What an encoder is and returns: its spec, shapes, padding, and samples that are missing."""

from __future__ import annotations

import json
from unittest import SkipTest

import torch

from mmfast.plugins import API_VERSION, EncoderSpec, Features, create_encoder, layer_groups
from mmfast.testing.compare import (
    distance,
    promise,
    require,
    require_finite,
    require_row,
    require_same,
    row,
)
from mmfast.testing.kit import Kit
from mmfast.testing.samples import varied


class OutputChecks(Kit):
    """The spec and what forward returns."""

    @promise
    def test_spec(self) -> None:
        """`spec` is an EncoderSpec of this API version, and survives JSON.

        A pipeline sizes its fusion by it before the encoder ever runs; a checkpoint keeps it.
        """
        spec = self._encoder().spec
        require(isinstance(spec, EncoderSpec), f"spec is {spec!r}")
        require(spec.api_version == API_VERSION, f"api_version is {spec.api_version}")
        require(
            EncoderSpec.from_json(spec.to_json()) == spec, f"from JSON comes another than {spec}"
        )
        require(
            spec.modality != "audio" or spec.sample_rate,
            "the encoder is for audio and its spec states no sample_rate",
        )

    @promise
    def test_options(self) -> None:
        """The options, with what fit_options adds to them, are JSON.

        A config file and a checkpoint hold them, beside the state dict, and nothing else.
        """
        if not self.name:
            raise SkipTest("made without create_encoder: it has no options to keep")
        options = self.complete_options()
        text = json.dumps(options)
        other = create_encoder(self.name, **json.loads(text))
        other.load_state_dict(create_encoder(self.name, **options).state_dict())

    @promise
    def test_layer_groups(self) -> None:
        """layer_groups() holds every trainable parameter once, from input to output.

        Freezing and learning rates by depth reach what is in it, and only that.
        """
        layer_groups(self._encoder())

    @promise
    def test_output(self) -> None:
        """What forward returns is Features(values, mask), of the shapes that the spec states.

        Values are floating, (B, out_dim) for pooled, (B, T, out_dim) for tokens; mask is bool, (B,)
        or (B, T), True = valid. The fusion behind it was built from the spec and takes them as they
        are.
        """
        encoder, raws = self._samples()
        spec = encoder.spec
        batch = self._batch(encoder, raws)
        require(isinstance(batch, dict), f"collate returns a {type(batch).__name__}, not a dict")
        for key, tensor in batch.items():
            is_batch = isinstance(tensor, torch.Tensor) and tensor.shape[:1] == (len(raws),)
            require(
                is_batch, f"collate's {key!r} is no tensor whose first dimension is the batch's"
            )
        features = self._run(encoder, raws)
        require(isinstance(features, Features), f"forward returns a {type(features).__name__}")
        values, mask = features
        size = (len(raws),) if spec.output == "pooled" else (len(raws), *values.shape[1:2])
        shape = tuple(values.shape)
        require(
            values.dim() == len(size) + 1,
            f"values are {shape}; the spec says {spec.output}",
        )
        require(
            shape == (*size, spec.out_dim),
            f"values are {shape}; the spec says out_dim {spec.out_dim}",
        )
        require(values.is_floating_point(), f"values are {values.dtype}")
        require(mask.dtype == torch.bool, f"mask is {mask.dtype}")
        require(tuple(mask.shape) == size, f"mask is {tuple(mask.shape)}; it must be {size}")
        require_finite(values, "values")
        require(features.present.all(), "mask says that a sample is missing which is there")

    @promise
    def test_padding(self) -> None:
        """A sample's features do not depend on the length of what it is batched with.

        Padding is masked, or a prediction changes with the neighbours that chance gives a sample.
        """
        encoder, raws = self._samples()
        together = self._run(encoder, raws)
        for i, raw in enumerate(raws):
            alone = self._run(encoder, [raw])
            require_row(together, i, alone, 0, "batched with samples of other lengths")

    @promise
    def test_batch_of_one(self) -> None:
        """In evaluation mode a sample's features are the same alone and beside another.

        And the same at every call: no statistics of the batch, no dropout. A service embeds one by
            one
        what was trained in batches.
        """
        encoder, raws = self._samples()
        pair = [raws[0], varied(raws[0], encoder.spec.modality)]
        alone, again = self._run(encoder, pair[:1]), self._run(encoder, pair[:1])
        require_same(again, alone, "the second of two calls")
        require_row(self._run(encoder, pair), 0, alone, 0, "batched with another of its length")

    @promise
    def test_empty_text(self) -> None:
        """A text without words has finite features, and is no reason for others to change.

        Real tables hold empty strings.
        """
        encoder, raws = self._samples()
        if encoder.spec.modality != "text":
            raise SkipTest("only for text")
        together = self._run(encoder, ["", raws[0]])
        require_finite(together.values, "values beside an empty text")
        require_row(together, 0, self._run(encoder, [""]), 0, "batched with a text")

    @promise
    def test_missing(self) -> None:
        """A missing sample, None for collate, is masked, finite, and nothing learns from it.

        The mask is False throughout its row, the other rows stay as they are, and no gradient flows
        from it: one missing picture must not turn a run into NaN, nor train the encoder on filler.
        """
        encoder, raws = self._samples()
        with_gap = self._run(encoder, [raws[0], None, raws[1]])
        without = self._run(encoder, [raws[0], raws[1]])
        require_finite(with_gap.values, "values beside a missing sample")
        found = with_gap.present.tolist()
        require(found == [True, False, True], f"of [there, missing, there] the mask says {found}")
        for i, j in ((0, 0), (2, 1)):
            require_row(with_gap, i, without, j, "beside a missing sample")
        if not without.values.requires_grad:
            raise SkipTest("it has no trainable parameters: there are no gradients to look at")
        expected = self._gradients(encoder, [row(without, 0), row(without, 1)])
        got = self._gradients(encoder, [row(with_gap, 0), with_gap.values[1], row(with_gap, 2)])
        largest = max((float(g.abs().max()) for g in expected.values() if g is not None), default=0)
        for name, gradient in got.items():
            if gradient is None:
                continue
            require_finite(gradient, f"the gradient of {name} with a missing sample")
            other = expected[name]
            change = gradient if other is None else gradient - other
            far = float(change.abs().max()) if change.numel() else 0.0
            require(
                far <= 1e-4 * largest,
                f"a missing sample changes the gradient of {name} by {far:.1e}, where the largest "
                f"gradient is {largest:.1e}",
            )

    @promise
    def test_all_missing(self) -> None:
        """A batch without any sample works: finite, mask False, every gradient there and zero.

        Under DDP one worker meets such a batch while the others wait for its gradients.
        """
        encoder, _ = self._samples()
        features = self._run(encoder, [None, None])
        require_finite(features.values, "values where every sample is missing")
        require(not features.mask.any(), "mask says valid where every sample is missing")
        if not any(p.requires_grad for p in encoder.parameters()):
            raise SkipTest("it has no trainable parameters: there are no gradients to look at")
        require(features.values.requires_grad, "values where every sample is missing have no graph")
        for name, gradient in self._gradients(encoder, list(features.values)).items():
            require(gradient is not None, f"{name} gets no gradient where every sample is missing")
            assert gradient is not None
            require(not gradient.any(), f"{name} gets a gradient other than zero, or NaN")

    @promise
    def test_cuda(self) -> None:
        """On a GPU it gives what it gives on the CPU.

        All tensors that it makes are made on the device of its input.
        """
        if not torch.cuda.is_available():
            raise SkipTest("there is no CUDA device")
        encoder, raws = self._samples()
        raws = [*raws, None]
        expected, batch = self._run(encoder, raws), self._batch(encoder, raws)
        values, mask = encoder.cuda()({key: tensor.cuda() for key, tensor in batch.items()})
        require(values.is_cuda and mask.is_cuda, "values or mask are not on the device")
        require(torch.equal(mask.cpu(), expected.mask), "the mask differs from the CPU's")
        for i in range(len(raws)):
            far = distance(row(Features(values.cpu(), mask.cpu()), i), row(expected, i))
            require(far < 1e-2, f"values differ by {far:.1e} of the largest (TF32 explains 1e-2)")
