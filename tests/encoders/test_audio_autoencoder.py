"""Learning to reconstruct: the loss, what counts in it, and what it teaches."""

import pytest
import torch

from mmfast.encoders import AudioAutoencoder
from mmfast.plugins import Waveform

MEL = {"mels": 12, "window": 0.032}


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return AudioAutoencoder([4, 8], out_dim=6, mel=MEL)


def noise(*seconds):
    return [None if s is None else Waveform(torch.randn(round(16000 * s)), 16000) for s in seconds]


def batch_of(encoder, raws):
    return encoder.collate([None if raw is None else encoder.preprocess(raw) for raw in raws])


def test_the_loss_is_the_mean_of_squared_errors_of_what_is_there(encoder):
    learner = encoder.pretrainer()
    batch = batch_of(encoder, noise(0.13, None, 0.31))
    made = learner.reconstruct(batch)
    assert made.shape == batch["frames"].shape
    assert made[~batch["mask"]].eq(0).all()
    errors = [
        (made[row, :count] - batch["frames"][row, :count]).square().mean()
        for row, count in ((0, 14), (2, 32))
    ]
    torch.testing.assert_close(learner(batch), sum(errors) / 2)


def test_a_recording_is_reconstructed_alike_alone_and_in_a_batch(encoder):
    learner = encoder.pretrainer()
    raws = noise(0.13, 0.41)
    together = learner.reconstruct(batch_of(encoder, raws))
    for row, raw in enumerate(raws):
        alone = learner.reconstruct(batch_of(encoder, [raw]))[0]
        torch.testing.assert_close(together[row, : len(alone)], alone)


def test_every_parameter_learns_even_when_all_are_missing(encoder):
    learner = encoder.pretrainer()
    learner(batch_of(encoder, noise(0.2, 0.3))).backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad.ne(0).any(), name
    learner.zero_grad()
    loss = learner(batch_of(encoder, [None, None]))
    loss.backward()
    assert loss == 0
    assert all(parameter.grad.eq(0).all() for parameter in learner.parameters())


def test_the_encoder_is_shared_and_keeps_no_decoder(encoder):
    names = list(encoder.state_dict())
    learner = encoder.pretrainer()
    assert learner.encoder is encoder
    assert list(encoder.state_dict()) == names
    fresh = AudioAutoencoder([4, 8], out_dim=6, mel=MEL)
    fresh.load_state_dict(encoder.state_dict())


def test_pretraining_learns_to_reconstruct():
    """Three spectra, switched on and off: far better than their mean, on data not seen before."""
    torch.manual_seed(0)
    encoder = AudioAutoencoder([8, 16], out_dim=8, output="tokens", mel=MEL)
    shapes = torch.randn(3, 1, 12)

    def batch(count):
        gate = (torch.rand(count, 24, 1) < 0.5).float()
        frames = gate * shapes[torch.randint(3, (count,))]
        return encoder.collate(list(frames))

    learner = encoder.pretrainer()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        learner(batch(32)).backward()
        optimizer.step()
    test = batch(64)
    learner.eval()
    with torch.no_grad():
        assert learner(test) < 0.15 * test["frames"].var()
