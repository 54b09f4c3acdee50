"""The functions users call, one file per operator.

Each has modules in :mod:`mmfast.nn` that own the parameters.
"""

from mmfast.functional.attention_pool import attention_pool
from mmfast.functional.concat_linear import concat_linear, explain_concat_linear
from mmfast.functional.gated_sum import gated_sum
from mmfast.functional.rank_product import rank_product
from mmfast.functional.weighted_sum import weighted_sum
from mmfast.ops.concat_linear import ACTIVATIONS

__all__ = [
    "ACTIVATIONS",
    "attention_pool",
    "concat_linear",
    "explain_concat_linear",
    "gated_sum",
    "rank_product",
    "weighted_sum",
]
