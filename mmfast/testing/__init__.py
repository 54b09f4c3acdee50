"""The kit that authors of plugins test with: subclass :class:`EncoderContract` in a pytest file.

``mmfast encoders check NAME`` runs the same checks from the command line, without pytest.
"""

from mmfast.testing.compare import ContractError
from mmfast.testing.contract import EncoderContract
from mmfast.testing.run import Check, check_encoder, run_checks
from mmfast.testing.samples import default_samples

__all__ = [
    "Check",
    "ContractError",
    "EncoderContract",
    "check_encoder",
    "default_samples",
    "run_checks",
]
