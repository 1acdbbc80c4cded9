import numpy as np

from fedvlm_secure.encoding.codec import Codec, Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.encoding.rotation import unrotate


def test_the_owner_is_told_what_encoding_did() -> None:
    """A vector that rotates to one single coordinate leaves the range there, and only there."""
    size, seed = 256, bytes(32)
    codec = Codec(VectorLayout(size, (Counter("weight", 4096),)), 1.0, seed)
    spike = np.zeros(size)
    spike[7] = 2.0
    update = Update(unrotate(spike, seed), {"weight": 3})
    encoded = codec.encode(update)
    assert codec.saturation(update) == (encoded.saturated, encoded.clipped) == (1, True)
    assert encoded.integers[7] == 3 * codec.layout.levels
    small = Update(np.full(size, 1e-3), {"weight": 3})
    assert codec.saturation(small) == (0, False)
