"""The only source of randomness of the trusted core: the operating system.

Tests and vectors replace :func:`random_bytes`; nothing above this module takes randomness as an argument.
"""

import os


def random_bytes(count: int) -> bytes:
    """``count`` bytes from the operating system's generator."""
    return os.urandom(count)
