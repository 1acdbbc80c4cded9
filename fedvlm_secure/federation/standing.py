"""What a hospital keeps between rounds, on disk: its personal tensors, and an update that waits to be aggregated."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.vault import Vault
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.training import Evaluation

_UPDATE = "update"
_PERSONAL = "personal."
_SHARED = "shared"
_PENDING = "pending"  # what a vault for updates is for

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Standing:
    """Where a hospital stands after ``round`` rounds.

    Attributes:
        personal: the adapter tensors that stay, by canonical name.
        validation: the model's counts on the validation split, as it stands.
        shared: float32 [d], this hospital's own copy of the shared state, where the server has none.
    """

    round: int
    personal: Tensors
    validation: Evaluation
    shared: NDArray[np.float32] | None = None

    def save(self, path: Path) -> None:
        """Write the standing, whole or not at all."""
        header = {"round": self.round, **_counts(self.validation)}
        tensors = {_PERSONAL + name: tensor for name, tensor in self.personal.items()}
        if self.shared is not None:
            tensors[_SHARED] = torch.from_numpy(np.ascontiguousarray(self.shared))
        write(path, safetensors.torch.save(_contiguous(tensors), _metadata(header)), PRIVATE)

    @classmethod
    def load(cls, path: Path) -> "Standing":
        """Read what :meth:`save` wrote; raises :class:`MisuseError`."""
        tensors, header = _load(path)
        shared = tensors.pop(_SHARED).numpy() if _SHARED in tensors else None
        validation = Evaluation(header["correct"], header["asked"], header["loss_sum"])
        return cls(header["round"], _personal(tensors), validation, shared)


@dataclass(frozen=True)
class Pending:
    """One round's trained update, not yet aggregated.

    Attributes:
        tries: how often this round was trained; a retry after an answered ``unmask`` trains anew.
        personal: the personal tensors after this training.
    """

    round: int
    tries: int
    update: Update
    personal: Tensors

    def save(self, path: Path, owner: Identity) -> None:
        """Write the update, sealed for its owner, whole or not at all."""
        header = {"round": self.round, "tries": self.tries, "counters": dict(self.update.counters)}
        tensors = {_PERSONAL + name: tensor for name, tensor in self.personal.items()}
        tensors[_UPDATE] = torch.from_numpy(np.ascontiguousarray(self.update.values))
        write(
            path, Vault(owner, _PENDING).seal(safetensors.torch.save(_contiguous(tensors), _metadata(header))), PRIVATE
        )

    @classmethod
    def load(cls, path: Path, owner: Identity) -> "Pending":
        """Read what :meth:`save` wrote; raises :class:`MisuseError`."""
        tensors, header = _load(path, Vault(owner, _PENDING))
        update = Update(tensors.pop(_UPDATE).numpy(), header["counters"])
        return cls(header["round"], header["tries"], update, _personal(tensors))


def _personal(tensors: Tensors) -> Tensors:
    return {name.removeprefix(_PERSONAL): tensor for name, tensor in tensors.items()}


def _counts(evaluation: Evaluation) -> dict[str, float]:
    return {"correct": evaluation.correct, "asked": evaluation.asked, "loss_sum": evaluation.loss_sum}


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _metadata(header: Mapping[str, object]) -> dict[str, str]:
    return {"fedvlm-secure": json.dumps(header)}


def _load(path: Path, vault: Vault | None = None) -> tuple[Tensors, dict[str, Any]]:
    try:
        content = path.read_bytes()
        content = content if vault is None else vault.open(content)
        return safetensors.torch.load(content), json.loads(_metadata_of(content)["fedvlm-secure"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise MisuseError(f"{path} cannot be read: {error}") from None


def _metadata_of(content: bytes) -> dict[str, str]:
    """A safetensors file begins with the length of its header, 8 bytes little-endian, and the header in JSON."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])["__metadata__"]
