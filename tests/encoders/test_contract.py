"""Every encoder keeps the contract, by the same kit that authors of plugins run."""

from typing import ClassVar

from mmfast.plugins import list_encoders
from mmfast.testing import EncoderContract

SMALL_MEL = {"mels": 16, "window": 0.032}


class TestImageConvNet(EncoderContract):
    name = "image_convnet"
    options: ClassVar = {"channels": [4, 8], "image_size": 16, "dropout": 0.1}


class TestImageConvNetTokens(EncoderContract):
    name = "image_convnet"
    options: ClassVar = {"channels": [4, 8], "image_size": [16, 12], "output": "tokens"}


class TestImageTransformer(EncoderContract):
    name = "image_transformer"
    options: ClassVar = {"image_size": 16, "dim": 8, "depth": 2, "heads": 2, "dropout": 0.1}


class TestImageTransformerTokens(EncoderContract):
    name = "image_transformer"
    options: ClassVar = {
        "image_size": [16, 24],
        "patch": [8, 4],
        "dim": 8,
        "depth": 1,
        "heads": 2,
        "positions": "learned",
        "output": "tokens",
    }


class TestHashedText(EncoderContract):
    name = "text_hashed"
    options: ClassVar = {"out_dim": 8, "buckets": 512, "dim": 8, "dropout": 0.2}


class TestTextBag(EncoderContract):
    name = "text_bag"
    options: ClassVar = {"out_dim": 8, "dim": 8, "dropout": 0.2}


class TestFlatText(EncoderContract):
    name = "text_flat"
    options: ClassVar = {"dim": 4, "max_length": 6, "dropout": 0.1}


class TestTextLSTM(EncoderContract):
    name = "text_lstm"
    options: ClassVar = {"dim": 8, "hidden": 6, "layers": 2, "dropout": 0.1}


class TestTextLSTMTokens(EncoderContract):
    name = "text_lstm"
    options: ClassVar = {"dim": 8, "hidden": 6, "bidirectional": False, "output": "tokens"}


class TestTextTransformer(EncoderContract):
    name = "text_transformer"
    options: ClassVar = {"dim": 8, "heads": 2, "max_length": 16, "dropout": 0.1}


class TestTextTransformerTokens(EncoderContract):
    name = "text_transformer"
    options: ClassVar = {
        "dim": 8,
        "heads": 2,
        "depth": 1,
        "positions": "sinusoidal",
        "output": "tokens",
    }


class TestAudioConvNet(EncoderContract):
    name = "audio_convnet"
    options: ClassVar = {"channels": [4, 8], "out_dim": 8, "mel": SMALL_MEL}


class TestAudioConvNetTokens(EncoderContract):
    name = "audio_convnet"
    options: ClassVar = {"channels": [4, 8], "out_dim": 8, "output": "tokens", "mel": SMALL_MEL}


class TestAudioLSTM(EncoderContract):
    name = "audio_lstm"
    options: ClassVar = {"hidden": 6, "layers": 2, "mel": SMALL_MEL}


class TestAudioLSTMTokens(EncoderContract):
    name = "audio_lstm"
    options: ClassVar = {"hidden": 6, "stack": 3, "output": "tokens", "mel": SMALL_MEL}


class TestAudioAutoencoder(EncoderContract):
    name = "audio_autoencoder"
    options: ClassVar = {"channels": [4, 8], "out_dim": 8, "mel": SMALL_MEL}


class TestAudioAutoencoderTokens(EncoderContract):
    name = "audio_autoencoder"
    options: ClassVar = {"channels": [4], "out_dim": 8, "output": "tokens", "mel": SMALL_MEL}


class TestVideoFrames(EncoderContract):
    name = "video_frames"
    options: ClassVar = {
        "encoder_options": {"channels": [4, 8], "image_size": 16},
        "max_frames": 4,
    }


class TestVideoFramesTokens(EncoderContract):
    name = "video_frames"
    options: ClassVar = {
        "encoder": "image_transformer",
        "encoder_options": {"image_size": 16, "dim": 8, "depth": 1, "heads": 2},
        "output": "tokens",
    }


class TestTabularMLP(EncoderContract):
    name = "tabular_mlp"
    options: ClassVar = {"hidden": [8, 6], "out_dim": 5, "embedding_dim": 4, "dropout": 0.1}


class TestFeatureVector(EncoderContract):
    name = "features"


class TestFeatureVectorProjected(EncoderContract):
    name = "features"
    options: ClassVar = {"out_dim": 6, "dropout": 0.1}


class TestFeatureSequence(EncoderContract):
    name = "feature_sequence"


class TestFeatureSequenceLSTM(EncoderContract):
    name = "feature_sequence"
    options: ClassVar = {"layer": "lstm", "out_dim": 6, "layers": 2, "pooling": "last"}


class TestFeatureSequenceTokens(EncoderContract):
    name = "feature_sequence"
    options: ClassVar = {"layer": "linear", "out_dim": 6, "output": "tokens", "max_length": 5}


def test_every_encoder_of_mmfast_is_here_or_beside():
    here = {case.name for case in EncoderContract.__subclasses__()}
    assert set(list_encoders()) - {"hf", "timm"} <= here
