"""What can go wrong inside one hospital's training."""


class TrainingError(Exception):
    """Local training did not do what it should; the adapter is as it was before the call."""
