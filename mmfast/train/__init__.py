"""Training of multimodal models: loop, seeds, reports. Needs the extra ``mmfast[train]``."""

from mmfast.train.loop import Examples, History, Recipe, Score, evaluate, fit
from mmfast.train.model import MultimodalClassifier
from mmfast.train.seed import seeded

__all__ = [
    "Examples",
    "History",
    "MultimodalClassifier",
    "Recipe",
    "Score",
    "evaluate",
    "fit",
    "seeded",
]
