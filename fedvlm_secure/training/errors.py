"""What can go wrong inside one hospital's training."""

from fedvlm_secure.errors import MisuseError


class TrainingError(MisuseError):
    """Local training did not do what it should; the adapter is as it was before the call."""
