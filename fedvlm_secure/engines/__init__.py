"""Where a round runs."""
