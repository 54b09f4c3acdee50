"""The encoders mmfast ships, each registered through the entry points of ``mmfast.encoders``.

``mmfast.create_encoder(name, **options)`` makes one; docs/plugins.md says what an encoder is.
"""

from mmfast.encoders.audio import AudioConvNet, AudioLSTM
from mmfast.encoders.audio_autoencoder import AudioAutoencoder, AudioReconstruction
from mmfast.encoders.features import FeatureSequence, FeatureVector
from mmfast.encoders.image import ImageConvNet
from mmfast.encoders.image_transformer import ImageTransformer
from mmfast.encoders.tabular import TabularMLP
from mmfast.encoders.text import HashedText, TextBag
from mmfast.encoders.text_sequence import FlatText, TextLSTM, TextTransformer
from mmfast.encoders.video import VideoFrames

__all__ = [
    "AudioAutoencoder",
    "AudioConvNet",
    "AudioLSTM",
    "AudioReconstruction",
    "FeatureSequence",
    "FeatureVector",
    "FlatText",
    "HashedText",
    "ImageConvNet",
    "ImageTransformer",
    "TabularMLP",
    "TextBag",
    "TextLSTM",
    "TextTransformer",
    "VideoFrames",
]
