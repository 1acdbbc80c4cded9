"""Signatures, sealed boxes, mask streams, lattice masks, secret sharing, canonical wire format: no torch, no I/O.

Everything that draws randomness draws it from :mod:`fedvlm_secure.primitives.entropy`, and every derivation and
signature carries :data:`SPEC_VERSION` and a purpose, so that no byte string means two things.
"""

SPEC_VERSION = "fedvlm-secure/1"
