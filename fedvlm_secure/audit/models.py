"""The models that a server has kept, and whether each plan names the one that was due (A-10)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import safetensors
from numpy.typing import NDArray
from safetensors import SafetensorError

from fedvlm_secure.audit.encrypted import adopted
from fedvlm_secure.audit.messages import Messages
from fedvlm_secure.audit.records import Records, json_of
from fedvlm_secure.audit.verdict import Checklist
from fedvlm_secure.errors import one_line
from fedvlm_secure.federation.lineage import MOVED, Lineage
from fedvlm_secure.primitives.wire import WireError

ENCRYPTED = ("ckks", "bfv")


def check_models(
    records: Records, said: Sequence[Messages], summed: set[tuple[int, int]], found: Checklist
) -> bytes | None:
    """A plan's model is the one kept of the round before, or that clients said follows (A-10).

    Returns:
        The model after the last round, None where that is not known.
    """
    named, followed = named_by(records), None
    if named is None:
        found.unchecked("A-10", "there is no lineage.json that says what a model's hash covers")
    for messages in said:
        attempt = messages.attempt
        before = _hash(records, named, attempt.place[0] - 1, found)
        if before is not None:
            detail = "its plan names another model than the server has kept of the round before"
            found.require("A-10", attempt.plan.model == before, attempt.where, detail)
        elif followed is not None:
            detail = "its plan names another model than clients have said follows from the sum before"
            found.require("A-10", attempt.plan.model == followed, attempt.where, detail)
        elif named is not None:
            found.unchecked("A-10", f"nothing tells the model that {attempt.where} begins with")
        if attempt.plan.protocol in ENCRYPTED and attempt.place in summed:
            followed = adopted(messages)
    if followed is not None or not said:
        return followed
    return _hash(records, named, said[-1].attempt.place[0], found)


def named_by(records: Records) -> Lineage | None:
    """What models are named by in this run, without any round's shared state; None if that is not known."""
    said = json_of(records.folder.coordinator.path / "lineage.json")
    try:
        adapter = str(said["adapter"])
        adapter.encode()  # JSON can hold what UTF-8 cannot
        return Lineage(bytes.fromhex(said["base"]), adapter, bytes.fromhex(said["common"]), b"")
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Kept:
    """What the server has kept of a round.

    Attributes:
        shared: the state after it, float32 [d].
        places: where in ``shared`` the tensors lie that it says the round has moved, int32; None if it says nothing.
    """

    shared: NDArray[np.float32]
    places: NDArray[np.int32] | None


def kept_of(records: Records, round_index: int, found: Checklist) -> Kept | None:
    """What the server has kept of a round; None if it keeps nothing of it, or nothing that reads."""
    path = records.folder.coordinator.path / "global" / f"round-{round_index:04d}.safetensors"
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            moved = json.loads((file.metadata() or {}).get(MOVED, "null"))
        if any(tensor.dtype != np.float32 for tensor in tensors.values()):
            raise ValueError("holds something else than float32")
        shared = np.concatenate([tensor.ravel() for tensor in tensors.values()] or [np.zeros(0, np.float32)])
        return Kept(shared, None if moved is None else _places(tensors, moved))
    except (OSError, TypeError, ValueError, KeyError, AttributeError, RecursionError, SafetensorError) as error:
        found.require("A-10", holds=False, where=path.name, detail=f"cannot be read: {one_line(error)}")
        return None


def _places(tensors: Mapping[str, NDArray[np.float32]], moved: Sequence[str]) -> NDArray[np.int32]:
    starts, start = {}, 0
    for name, tensor in tensors.items():
        starts[name] = start
        start += tensor.size
    each = [np.arange(starts[name], starts[name] + tensors[name].size, dtype=np.int32) for name in moved]
    return np.concatenate(each or [np.zeros(0, np.int32)])


def _hash(records: Records, named: Lineage | None, round_index: int, found: Checklist) -> bytes | None:
    if named is None or (kept := kept_of(records, round_index, found)) is None:
        return None
    try:
        return replace(named, shared=kept.shared.astype("<f4").tobytes()).hash
    except WireError as error:
        found.require("A-10", holds=False, where="lineage.json", detail=f"names no model: {error}")
        return None
