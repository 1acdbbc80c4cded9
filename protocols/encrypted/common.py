"""What both protocols have in common (P-1 and P-2), taken over from the pairwise reference implementation.

Its files import one another by their bare names, so their folder has to be on the path.
"""
# ruff: noqa: F401, I001, INP001

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "pairwise"))

from reference import Plan, Refused, blame, envelope, fits, frames, opened, require, ring_bits, unframe
from reference import REQUESTS as PAIRWISE_REQUESTS, largest_sum, noise_tail
from reference_primitives import V, cbor, derive, digest, keypair, merkle_path, merkle_root, path_root, public_of
from reference_primitives import seal, stream, uncbor, unseal

PLAN = PAIRWISE_REQUESTS["keys"]
CHECKS = [1, 0, 0]
