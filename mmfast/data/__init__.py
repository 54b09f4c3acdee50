"""Tables of examples: reading, checking, dividing, and drawing from them; and the emoji set.

Needs the extra ``mmfast[train]``.
"""

from mmfast.data.cache import cache_features
from mmfast.data.cached import CachedFeatures
from mmfast.data.check import Checked, DataError, check_rows
from mmfast.data.content import content_of
from mmfast.data.dataset import (
    MultimodalBatch,
    MultimodalDataset,
    Sample,
    collate,
    detached_preprocess,
)
from mmfast.data.emoji import EmojiSet, emoji_splits, emoji_table, load_emoji
from mmfast.data.labels import LabelError, Labels, fit_labels
from mmfast.data.read import CellError, ColumnSpec, read_cell
from mmfast.data.sampler import BatchSampler, Draw, derived_seed, inverse_frequency
from mmfast.data.split import (
    Split,
    column_split,
    group_numbers,
    grouped_split,
    kfold,
    random_split,
    stratified_split,
)
from mmfast.data.table import Table, TableError, read_table

__all__ = [
    "BatchSampler",
    "CachedFeatures",
    "CellError",
    "Checked",
    "ColumnSpec",
    "DataError",
    "Draw",
    "EmojiSet",
    "LabelError",
    "Labels",
    "MultimodalBatch",
    "MultimodalDataset",
    "Sample",
    "Split",
    "Table",
    "TableError",
    "cache_features",
    "check_rows",
    "collate",
    "column_split",
    "content_of",
    "derived_seed",
    "detached_preprocess",
    "emoji_splits",
    "emoji_table",
    "fit_labels",
    "group_numbers",
    "grouped_split",
    "inverse_frequency",
    "kfold",
    "load_emoji",
    "random_split",
    "read_cell",
    "read_table",
    "stratified_split",
]
