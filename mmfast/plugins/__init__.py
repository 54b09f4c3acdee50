"""Encoders, fusions and data sets of other people, found through entry points.

Nothing here imports more than torch; a plugin is imported when it is asked for by name.
"""

from mmfast.plugins.contract import (
    API_VERSION,
    MODALITIES,
    Batch,
    Encoder,
    EncoderSpec,
    Features,
    Modality,
    Waveform,
)
from mmfast.plugins.discovery import Plugin
from mmfast.plugins.encoders import (
    create_encoder,
    encoder_info,
    fit_encoder_options,
    list_encoders,
    register_encoder,
)
from mmfast.plugins.finetune import freeze, layer_groups, parameter_groups, unfreeze
from mmfast.plugins.registry import PluginLoadError, Registry
from mmfast.plugins.weights import weights_follow

DATASETS = Registry("mmfast.datasets", "dataset")

__all__ = [
    "API_VERSION",
    "DATASETS",
    "MODALITIES",
    "Batch",
    "Encoder",
    "EncoderSpec",
    "Features",
    "Modality",
    "Plugin",
    "PluginLoadError",
    "Registry",
    "Waveform",
    "create_encoder",
    "encoder_info",
    "fit_encoder_options",
    "freeze",
    "layer_groups",
    "list_encoders",
    "parameter_groups",
    "register_encoder",
    "unfreeze",
    "weights_follow",
]
