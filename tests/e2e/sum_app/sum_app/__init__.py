"""Vectors that are known beforehand, summed over real SuperNodes."""
