"""What the server of a VLM run sends hospitals beside the protocol's messages: what the last round has brought."""

from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from fedvlm_secure.engines.flower.wire import raw
from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.federation.rounds import SealedResult
from fedvlm_secure.secagg.envelope import NETWORK

_ARRAYS = "fedvlm-secure.start"


@dataclass(frozen=True)
class Start:
    """What a round starts from. Nothing of it is trusted: a hospital holds it against the hash in the signed plan.

    Attributes:
        shared: float32 [d], the shared state; None where only hospitals know it.
        last: there: the last round's sum, and the hash of the model after it.
    """

    shared: NDArray[np.float32] | None = None
    last: SealedResult | None = None

    def put(self) -> RecordDict:
        """As a Flower message's content."""
        arrays = {}
        if self.shared is not None:
            arrays["shared"] = raw(self.shared.astype("<f4", copy=False).tobytes())
        if self.last is not None:
            arrays |= {"model": raw(self.last.model), "sum": raw(self.last.message)}
        return RecordDict({_ARRAYS: ArrayRecord(arrays)})

    @classmethod
    def take(cls, content: RecordDict) -> "Start":
        """From a Flower message's content; raises :class:`ProtocolError`."""
        arrays = content.get(_ARRAYS)
        try:
            if not isinstance(arrays, ArrayRecord):
                raise ValueError("there is no record of arrays")  # one kind of fault
            shared = np.frombuffer(arrays["shared"].data, "<f4").astype(np.float32) if "shared" in arrays else None
            last = SealedResult(arrays["model"].data, arrays["sum"].data) if "sum" in arrays else None
        except (KeyError, ValueError) as error:
            detail = f"does not say what the round starts from: {error}"
            raise ProtocolError("P-1.1", party=NETWORK, phase="transport", detail=detail) from None
        return cls(shared, last)
