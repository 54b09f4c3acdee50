"""Fusion modules. Each joins several modalities and drops into models that already exist."""

from mmfast.nn.attention_pool import AttentionFusion, AttentionPool
from mmfast.nn.concat_linear import ConcatLinear
from mmfast.nn.film import FiLM
from mmfast.nn.fusion import Fusion
from mmfast.nn.gated_sum import GatedFusion
from mmfast.nn.late import LateFusion
from mmfast.nn.modality_dropout import ModalityDropout
from mmfast.nn.multi_source_attention import BottleneckFusion, CrossAttentionFusion, SequenceFusion
from mmfast.nn.rank_product import MFB, MLB, LowRankFusion, Mutan, ProductFusion
from mmfast.nn.registry import create_fusion, list_fusions, register_fusion
from mmfast.nn.tensor_fusion import TensorFusion
from mmfast.nn.weighted_sum import WeightedSum

__all__ = [
    "MFB",
    "MLB",
    "AttentionFusion",
    "AttentionPool",
    "BottleneckFusion",
    "ConcatLinear",
    "CrossAttentionFusion",
    "FiLM",
    "Fusion",
    "GatedFusion",
    "LateFusion",
    "LowRankFusion",
    "ModalityDropout",
    "Mutan",
    "ProductFusion",
    "SequenceFusion",
    "TensorFusion",
    "WeightedSum",
    "create_fusion",
    "list_fusions",
    "register_fusion",
]
