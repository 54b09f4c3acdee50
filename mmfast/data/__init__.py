"""Data sets and the ways to divide them. Needs the extra ``mmfast[train]``."""

from mmfast.data.augment import random_shift
from mmfast.data.emoji import EmojiSet, emoji_splits, load_emoji
from mmfast.data.split import Split, grouped_split

__all__ = ["EmojiSet", "Split", "emoji_splits", "grouped_split", "load_emoji", "random_shift"]
