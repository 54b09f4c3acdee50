"""The functions users call, one file per operator.

Each has modules in :mod:`mmfast.nn` that own the parameters.
"""

from mmfast.functional.attention_pool import attention_pool
from mmfast.functional.concat_linear import concat_linear, explain_concat_linear
from mmfast.functional.gated_sum import gated_sum
from mmfast.functional.multi_source_attention import multi_source_attention
from mmfast.functional.rank_product import rank_product
from mmfast.functional.tensor_fusion import tensor_fusion
from mmfast.functional.weighted_sum import weighted_sum
from mmfast.ops.concat_linear import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "attention_pool",
    "concat_linear",
    "explain_concat_linear",
    "gated_sum",
    "multi_source_attention",
    "rank_product",
    "tensor_fusion",
    "weighted_sum",
]
