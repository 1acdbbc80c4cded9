"""What the server of a VLM run tells hospitals besides the protocol's messages: settings, and what they start from."""

from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.federation.rounds import SealedResult
from fedvlm_secure.secagg.envelope import NETWORK

_RECORD, _ARRAYS = "fedvlm-secure.job", "fedvlm-secure.start"


@dataclass(frozen=True)
class Job:
    """One hospital's task in a round.

    Attributes:
        settings: of the run, as TOML. What of them is a hospital's own affair, it takes from its own file.
        kind: ``"training"`` or ``"evaluation"``.
        round: the last one that is over.
        shared: float32 [d], the shared state after it; None where only hospitals know it.
        last: there: the last round's sum, and the hash of the model after it as the hospitals have signed that.
    """

    settings: str
    kind: str
    round: int
    shared: NDArray[np.float32] | None = None
    last: SealedResult | None = None

    def put(self) -> RecordDict:
        """As a Flower message's content."""
        record = ConfigRecord({"settings": self.settings, "kind": self.kind, "round": self.round})
        arrays = {}
        if self.shared is not None:
            arrays["shared"] = _bytes(self.shared.astype("<f4", copy=False).tobytes())
        if self.last is not None:
            arrays |= {"model": _bytes(self.last.model), "sum": _bytes(self.last.message)}
        return RecordDict({_RECORD: record, _ARRAYS: ArrayRecord(arrays)})

    @classmethod
    def take(cls, content: RecordDict) -> "Job":
        """From a Flower message's content; raises :class:`ProtocolError`."""
        try:
            record, arrays = content[_RECORD], content[_ARRAYS]
            assert isinstance(record, ConfigRecord)
            assert isinstance(arrays, ArrayRecord)
            shared = np.frombuffer(arrays["shared"].data, "<f4").astype(np.float32) if "shared" in arrays else None
            last = SealedResult(arrays["model"].data, arrays["sum"].data) if "sum" in arrays else None
            settings, kind, number = record["settings"], record["kind"], record["round"]
            assert isinstance(settings, str)
            assert isinstance(kind, str)
            assert isinstance(number, int)
        except (KeyError, ValueError, AssertionError) as error:
            detail = f"a message without a proper job: {error}"
            raise ProtocolError("P-1.1", party=NETWORK, phase="transport", detail=detail) from None
        return cls(settings, kind, number, shared, last)


def _bytes(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype="fedvlm-secure", data=data)
