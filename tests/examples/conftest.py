"""Finds torchvision for timm; keeps transformers away from the network."""

import os

from torchvision_apart import find_torchvision

# Before huggingface_hub is first imported: no test reaches for the hub.
os.environ["HF_HUB_OFFLINE"] = "1"
find_torchvision()
