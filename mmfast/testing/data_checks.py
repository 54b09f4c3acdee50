"""How samples come into an encoder, and how it is kept and sent to workers."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from unittest import SkipTest

import torch

from mmfast.testing.compare import distance, promise, require, require_same, same
from mmfast.testing.kit import Kit
from mmfast.testing.samples import tones
from mmfast.testing.workers import batch_of_forked_worker, batch_of_spawned_worker


class DataChecks(Kit):
    """Preprocessing, workers, and restoring from a checkpoint."""

    @promise
    def test_state_dict(self) -> None:
        """Name, options and state dict restore the encoder, its preprocessing included.

        A checkpoint holds nothing else, and in the state dict nothing but tensors.
        """
        encoder, raws = self._samples()
        with torch.no_grad():  # as if it had been trained
            for tensor in encoder.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.01 * torch.rand_like(tensor) * (1 + tensor.abs()))
        file = io.BytesIO()
        torch.save(encoder.state_dict(), file)
        file.seek(0)
        prepared = [encoder.preprocess(raw) for raw in raws]
        torch.manual_seed(1)
        other = self.make_encoder().eval()
        other.load_state_dict(torch.load(file, weights_only=True))
        kept = other.state_dict()
        for key, value in encoder.state_dict().items():
            require(torch.equal(kept[key], value), f"a restored encoder has another {key}")
        # In another order, for what an encoder may have collected while it saw the samples.
        found = [other.preprocess(raw) for raw in reversed(raws)]
        require(same(prepared, found[::-1]), "a restored encoder preprocesses otherwise")
        require_same(self._run(other, raws), self._run(encoder, raws), "a restored encoder")

    @promise
    def test_fork_worker(self) -> None:
        """Both preprocess and collate run in a forked worker of a DataLoader.

        And give there what they give here: that is where they run in training.
        """
        if "fork" not in multiprocessing.get_all_start_methods():
            raise SkipTest("this system has no fork")
        encoder, raws = self._samples()
        batch = batch_of_forked_worker(encoder, raws)
        require(same(batch, self._batch(encoder, raws)), "a forked worker makes another batch")

    @promise
    def test_spawn_worker(self) -> None:
        """The encoder pickles into a spawned worker of a DataLoader.

        And gives there what it gives here: no lambdas, open files or classes inside functions.
            Elsewhere
        than on Linux, and with CUDA, workers are spawned.
        """
        encoder, raws = self._samples()
        expected = self._run(encoder, raws)
        loaded = pickle.loads(pickle.dumps(encoder))
        require_same(self._run(loaded, raws), expected, "a pickled encoder")
        batch = batch_of_spawned_worker(encoder, raws)
        require(same(batch, self._batch(encoder, raws)), "a spawned worker makes another batch")

    @promise
    def test_preprocess_seed(self) -> None:
        """Preprocessing repeats itself: always in evaluation mode, by torch's seed in training.

        Each worker seeds torch's generator; randomness from elsewhere makes a run that nobody can
        repeat.
        """
        encoder, raws = self._samples()
        for raw in raws:
            first, second = encoder.preprocess(raw), encoder.preprocess(raw)
            require(same(first, second), "two calls in evaluation mode differ")
        encoder.train()
        for raw in raws:
            torch.manual_seed(3)
            first = encoder.preprocess(raw)
            torch.manual_seed(3)
            require(same(first, encoder.preprocess(raw)), "two calls after one torch seed differ")

    @promise
    def test_preprocess_input(self) -> None:
        """Preprocessing leaves its argument as it is.

        Data sets keep samples in memory and hand out the same one every epoch.
        """
        encoder, raws = self._samples()
        for raw in raws:
            before = copy.deepcopy(raw)
            encoder.train().preprocess(raw)
            require(same(raw, before), "preprocess changes the raw sample")

    @promise
    def test_pil_and_tensor(self) -> None:
        """A PIL image and the uint8 tensor (3, H, W) of its pixels preprocess to the same.

        A data set may give either.
        """
        encoder, raws = self._samples()
        if encoder.spec.modality != "image":
            raise SkipTest("only for images")
        try:
            from PIL import Image
        except ModuleNotFoundError:
            raise SkipTest("Pillow is not installed") from None
        image = Image.fromarray(raws[0].permute(1, 2, 0).numpy())
        require(
            same(encoder.preprocess(image), encoder.preprocess(raws[0])),
            "the PIL image and the tensor of one picture preprocess to different things",
        )

    @promise
    def test_sample_rate(self) -> None:
        """A recording at another rate than the spec's is resampled, or refused by ValueError.

        Taken as it is, speech is heard an octave off, and nothing says so.
        """
        encoder, _ = self._samples()
        if encoder.spec.modality != "audio":
            raise SkipTest("only for audio")
        rate = encoder.spec.sample_rate
        native = self._summary(encoder, tones(rate, 1.0, rate / 10), rate)
        for other in (rate * 2, rate // 2):
            wave = tones(other, 1.0, rate / 10)
            try:
                resampled = self._summary(encoder, wave, other)
            except ValueError:
                continue
            ignored = self._summary(encoder, wave, rate)
            right, wrong = distance(resampled, native), distance(ignored, native)
            require(
                right <= 0.25 * wrong + 1e-3,
                f"a recording at {other} Hz is {right:.2g} away from the same one at {rate} Hz; "
                f"taken for one at {rate} Hz it is {wrong:.2g} away",
            )
