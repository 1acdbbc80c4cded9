"""The shared part of an adapter as one flat float32 vector, and back, bit for bit."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fedvlm_secure.errors import MisuseError


@dataclass(frozen=True, slots=True)
class SharedLayout:
    """Where each shared tensor lies in the vector that leaves the hospital.

    Attributes:
        entries: (name, shape) in vector order; tensors lie one after the other, row-major.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The shared tensors in vector order."""
        return tuple(name for name, _ in self.entries)

    @property
    def size(self) -> int:
        """d, the number of float32 coordinates; 0 where nothing is shared."""
        return sum(math.prod(shape) for _, shape in self.entries)

    def flatten(self, state: Mapping[str, torch.Tensor]) -> np.ndarray:
        """The shared tensors of ``state`` as one new float32 array of shape [d].

        Tensors that are not shared may be in ``state`` and are ignored.

        Raises:
            MisuseError: a shared tensor is missing, or has another shape or dtype.
        """
        vector = np.empty(self.size, dtype=np.float32)
        start = 0
        for name, shape in self.entries:
            tensor = check_tensor(name, state.get(name), shape)
            end = start + math.prod(shape)
            vector[start:end] = tensor.detach().cpu().numpy().reshape(-1)
            start = end
        return vector

    def unflatten(self, vector: np.ndarray) -> dict[str, torch.Tensor]:
        """The inverse of :meth:`flatten`: new float32 tensors on the CPU.

        Raises:
            MisuseError: ``vector`` is not float32 of shape [d].
        """
        if vector.dtype != np.float32 or vector.shape != (self.size,):
            raise MisuseError(
                f"the shared part is float32 of shape ({self.size},), not {vector.dtype} of shape {vector.shape}"
            )
        state = {}
        start = 0
        for name, shape in self.entries:
            end = start + math.prod(shape)
            state[name] = torch.from_numpy(vector[start:end].copy()).reshape(shape)
            start = end
        return state

    def places_in(self, common: "SharedLayout") -> np.ndarray:
        """Where this layout's coordinates lie in a vector of ``common``, int32 [d]; KeyError if one is not there."""
        starts, start = {}, 0
        for name, shape in common.entries:
            starts[name] = start
            start += math.prod(shape)
        each = [np.arange(starts[name], starts[name] + math.prod(shape)) for name, shape in self.entries]
        return np.concatenate(each).astype(np.int32) if each else np.zeros(0, np.int32)

    def digest(self) -> bytes:
        """SHA-256 over names and shapes in order (32 bytes), for a plan to bind."""
        described = json.dumps([[name, list(shape)] for name, shape in self.entries], separators=(",", ":"))
        return hashlib.sha256(b"fedvlm-secure shared layout 1\n" + described.encode()).digest()


def check_tensor(name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """``tensor`` itself, if it is float32 of ``shape``.

    Raises:
        MisuseError: naming the tensor and what is wrong with it.
    """
    if tensor is None:
        raise MisuseError(f"adapter tensor {name} is missing")
    if tuple(tensor.shape) != shape:
        raise MisuseError(f"adapter tensor {name} has shape {tuple(tensor.shape)}, expected {shape}")
    if tensor.dtype != torch.float32:
        raise MisuseError(f"adapter tensor {name} is {tensor.dtype}, expected torch.float32")
    return tensor
