"""What a model's hash covers, and which one follows from a sum, in plain numbers: no model need be loaded to tell."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.encoding.codec import Decoded
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import Digest

MOVED = "moved"  # in the metadata of a kept state: which of its tensors the round has moved, as a JSON list


@dataclass(frozen=True, slots=True)
class Lineage:
    """A model at the start of a round, and what of it the round moves.

    Attributes:
        base: digest of the base model.
        adapter: the adapter's settings, as canonical JSON.
        common: digest of the layout of all that rounds share.
        shared: that, at the start of the round: float32 [d], little-endian.
        places: where in ``shared`` the round's own vector lies: int32, little-endian; empty is all of it, in order.
    """

    base: Digest
    adapter: str
    common: Digest
    shared: bytes
    places: bytes = b""

    @property
    def hash(self) -> bytes:
        """What a client is bound to: base model, tokenizer and processor, adapter settings, and the shared state."""
        return digest("model", self.base, self.adapter, self.common, self.shared)

    def moved(self, decoded: Decoded) -> NDArray[np.float32]:
        """The shared state after a sum, float32 [d]; a round that sums counters only leaves it alone."""
        after = np.frombuffer(self.shared, "<f4").astype(np.float32)
        if decoded.mean.size:
            places = np.frombuffer(self.places, "<i4") if self.places else slice(None)
            after[places] = (after[places] + decoded.mean).astype(np.float32)
        return after

    def following(self, decoded: Decoded) -> bytes:
        """The hash of the model that follows from a sum."""
        after = self.moved(decoded).astype("<f4", copy=False)
        return Lineage(self.base, self.adapter, self.common, after.tobytes(), self.places).hash
