"""How an encoder trains: gradients, freezing, autocast, torch.compile, DDP."""

from __future__ import annotations

from unittest import SkipTest

import torch

from mmfast.plugins import Features, freeze, layer_groups, unfreeze
from mmfast.testing.compare import promise, require, require_finite, require_row, same
from mmfast.testing.ddp import train_under_ddp
from mmfast.testing.kit import Kit


class TrainingChecks(Kit):
    """Gradients, and what the tools around a model do with it."""

    @promise
    def test_backward(self) -> None:
        """In training mode every trainable parameter gets a finite gradient.

        One that is never used stops DDP with an error, or is a layer that was forgotten.
        """
        encoder, raws = self._trainable()
        features = self._run(encoder.train(), [*raws, None])
        require_finite(features.values, "values in training mode")
        for name, gradient in self._gradients(encoder, list(features.values)).items():
            require(gradient is not None, f"{name} is not used: it gets no gradient")
            assert gradient is not None
            require_finite(gradient, f"the gradient of {name}")

    @promise
    def test_ddp(self) -> None:
        """It trains under DistributedDataParallel, where samples are missing too.

        With DDP's defaults, so without unused parameters.
        """
        encoder, raws = self._trainable()
        missing = [None] * len(raws)
        batches = [self._batch(encoder, some) for some in (raws, [*raws, None], missing, raws)]
        train_under_ddp(encoder.train(), batches)

    @promise
    def test_frozen(self) -> None:
        """After mmfast.plugins.freeze nothing of it trains; after unfreeze it is as it was.

        No gradient, and no running statistic that follows the data: frozen features can be cached.
        """
        encoder, raws = self._trainable()
        trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
        freeze(encoder).train()
        buffers = {name: b.clone() for name, b in encoder.named_buffers()}
        values = self._run(encoder, raws).values
        awake = [name for name, p in encoder.named_parameters() if p.requires_grad]
        require(not awake, f"{', '.join(awake)} trains although it is frozen")
        require(not values.requires_grad, "values require gradients although all is frozen")
        for name, buffer in encoder.named_buffers():
            kept = name in buffers and same(buffer, buffers[name])
            require(kept, f"forward in training mode changes {name}, although all is frozen")
        unfreeze(encoder)
        after = {name for name, p in encoder.named_parameters() if p.requires_grad}
        require(
            after == trained, f"unfreeze leaves {sorted(after ^ trained)} otherwise than before"
        )

    @promise
    def test_partly_frozen(self) -> None:
        """With only the last layer group unfrozen, that group trains and nothing else.

        This is how a pretrained encoder is fine-tuned on little data.
        """
        encoder, raws = self._trainable()
        groups = layer_groups(encoder)
        if len(groups) < 2:
            raise SkipTest("it has one layer group")
        unfreeze(freeze(encoder), groups=1).train()
        last = {id(p) for p in groups[-1]}
        got = self._gradients(encoder, list(self._run(encoder, raws).values))
        for name, parameter in encoder.named_parameters():
            if id(parameter) in last:
                require(got.get(name) is not None, f"{name} is unfrozen and gets no gradient")
            else:
                require(parameter.grad is None, f"{name} is frozen and gets a gradient")

    @promise
    def test_autocast(self) -> None:
        """Forward and backward run under bfloat16 autocast, and stay finite.

        That is how most training runs today.
        """
        encoder, raws = self._samples()
        batch = self._batch(encoder, [*raws, None])
        with torch.autocast("cpu", torch.bfloat16):
            values = encoder(batch).values
        require(values.is_floating_point(), f"values are {values.dtype}")
        require_finite(values, "values under autocast")
        if values.requires_grad:
            for name, gradient in self._gradients(encoder, list(values.float())).items():
                if gradient is not None:
                    require_finite(gradient, f"the gradient of {name} under autocast")

    @promise
    def test_compile(self) -> None:
        """torch.compile(encoder) gives what the encoder gives, for batches of several sizes.

        And it can train: it is what a user does next.
        """
        encoder, raws = self._samples()
        torch.compiler.reset()
        try:
            # Traced, differentiated and decomposed as by default; only the generated code is left
            # out, which would take a minute and is torch's business.
            compiled = torch.compile(encoder, backend="aot_eager_decomp_partition")
            for some in (raws, raws[:2]):
                expected, batch = self._run(encoder, some), self._batch(encoder, some)
                features = Features(*compiled(batch))
                for i in range(len(some)):
                    require_row(features, i, expected, i, "under torch.compile")
            if features.values.requires_grad:
                self._gradients(encoder, list(features.values))
        finally:
            torch.compiler.reset()
