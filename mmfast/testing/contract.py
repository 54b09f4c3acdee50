"""The contract of encoders as tests: subclass :class:`EncoderContract` and run pytest."""

from mmfast.testing.data_checks import DataChecks
from mmfast.testing.output_checks import OutputChecks
from mmfast.testing.training_checks import TrainingChecks


class EncoderContract(OutputChecks, TrainingChecks, DataChecks):
    """Checks that an encoder does what a pipeline relies on; pytest runs each as a test.

    Attributes:
        name: of the encoder, as :func:`mmfast.create_encoder` knows it.
        options: its options, in the form that JSON has. Where the encoder has ``fit_options``, they
            are completed from the samples.

    Override ``make_encoder`` for an encoder without a name, and ``samples`` where the made-up ones
    of :func:`mmfast.testing.default_samples` do not suit it.

    Every failure is a :class:`mmfast.testing.ContractError`: what was found, then what the contract
    wants and why. A check that has no meaning for the encoder is skipped, with the reason.

    Example:
        >>> class TestMyEncoder(EncoderContract):
        ...     name = "my-distribution/my_encoder"
        ...     options = {"size": 64}
    """
