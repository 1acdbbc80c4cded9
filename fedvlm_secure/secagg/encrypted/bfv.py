"""BFV's slots: the very integers that ``encoding`` makes, several a slot where they fit, and a linear tag.

The last slot of every ciphertext holds ⟨α, x⟩ + pad mod t over the other slots x (E-5.4). α and the clients' pads
follow from the key, so the server, which knows neither, can make a sum whose tag fits only by adding exactly the listed
clients' ciphertexts of this attempt and chunk, up to a chance of (1 + 2^-26)/t: whatever else it adds, scales, repeats,
masks or leaves out changes one side of the equation by a value it cannot predict.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.primitives.kdf import derive
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import MaskStream
from fedvlm_secure.secagg.encrypted.parameters import (
    BFV,
    HALF_MODULUS,
    PLAIN_MODULUS,
    SLOTS,
    packing,
    tail_size,
)
from fedvlm_secure.secagg.encrypted.scheme import IntegrityError, Scheme
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import ClientId

DATA_SLOTS = SLOTS - 1
_DIGIT = 19  # a slot in two digits: products of digits summed over 4,095 slots stay below 2^53, exact in a double


class BfvSheet:
    """One round's vector as sheets of slots, one a ciphertext."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._packing = packing(plan.layout, len(plan.cohort), plan.noise_tail)
        self._packed = -(-plan.layout.update // self._packing.per_slot)
        self._slots = self._packed + tail_size(plan.layout)
        self.chunks = -(-self._slots // DATA_SLOTS)
        self.scheme = Scheme(BFV)

    def fill(self, update: Update, secret: Secret, client: ClientId) -> Iterator[NDArray[np.int64]]:
        """The client's sheets, in order."""
        packed = self._pack(self._plan.codec.encode(update).integers)
        pads, alphas = self._pads(secret, client), self._coefficients(secret)
        for chunk, alpha in enumerate(alphas):
            sheet = np.zeros(SLOTS, np.int64)
            part = packed[chunk * DATA_SLOTS : (chunk + 1) * DATA_SLOTS]
            sheet[: len(part)] = part
            sheet[DATA_SLOTS] = _centred(_inner(sheet[:DATA_SLOTS], alpha) + int(pads[chunk]))
            yield sheet

    def read(
        self, sums: Iterable[NDArray[np.int64]], secret: Secret, survivors: Sequence[ClientId]
    ) -> NDArray[np.int64]:
        """The sum's signed integers [layout.size]; raises :class:`IntegrityError`."""
        packed, fits = np.empty(self.chunks * DATA_SLOTS, np.int64), np.ones(self.chunks, bool)
        pads = np.zeros(self.chunks, object)
        for client in survivors:
            pads += self._pads(secret, client)
        for chunk, (sheet, alpha) in enumerate(zip(sums, self._coefficients(secret), strict=True)):
            fits[chunk] = _centred(_inner(sheet[:DATA_SLOTS], alpha) + int(pads[chunk])) == int(sheet[DATA_SLOTS])
            packed[chunk * DATA_SLOTS : (chunk + 1) * DATA_SLOTS] = sheet[:DATA_SLOTS]
        if not fits.all():  # only now, so that the time taken does not tell which
            raise IntegrityError(f"the tags of {np.count_nonzero(~fits)} of {self.chunks} ciphertexts do not fit")
        return self._unpack(packed[: self._slots])

    def _pack(self, integers: NDArray[np.int64]) -> NDArray[np.int64]:
        size, per_slot = self._plan.layout.update, self._packing.per_slot
        if per_slot == 1:
            return _reduced(integers) if self._plan.noise_multiplier else integers
        digits = np.zeros(self._packed * per_slot, np.int64)
        digits[:size] = integers[:size]
        weights = 1 << (self._packing.width * np.arange(per_slot, dtype=np.int64))
        return np.concatenate([digits.reshape(-1, per_slot) @ weights, integers[size:]])

    def _unpack(self, packed: NDArray[np.int64]) -> NDArray[np.int64]:
        size, per_slot, width = self._plan.layout.update, self._packing.per_slot, self._packing.width
        if per_slot == 1:
            return packed.copy()
        rest, half = packed[: self._packed].copy(), 1 << (width - 1)
        digits = np.empty((self._packed, per_slot), np.int64)
        for place in range(per_slot):
            # The lowest digit is the remainder nearest to zero, since no digit's sum reaches half of 2^width.
            digits[:, place] = ((rest + half) & ((1 << width) - 1)) - half
            rest = (rest - digits[:, place]) >> width
        return np.concatenate([digits.reshape(-1)[:size], packed[self._packed :]])

    def _pads(self, secret: Secret, client: ClientId) -> NDArray[np.uint64]:
        """One pad a ciphertext; a 64-bit word mod t is uniform up to 2^-26."""
        words = np.empty(self.chunks, np.dtype("<u8"))
        MaskStream(derive(secret, "he-tag-pads", self._plan.hash, client)).fill(words)
        return words % PLAIN_MODULUS

    def _coefficients(self, secret: Secret) -> Iterator[NDArray[np.float64]]:
        """α for one ciphertext after the other, in two digits: float64 [2, 4095]."""
        stream = MaskStream(derive(secret, "he-tag-coefficients", self._plan.hash))
        words = np.empty(DATA_SLOTS, np.dtype("<u8"))
        for _ in range(self.chunks):
            stream.fill(words)
            yield _digits((words % PLAIN_MODULUS).astype(np.int64))


def _digits(values: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.stack([values & ((1 << _DIGIT) - 1), values >> _DIGIT]).astype(np.float64)


def _inner(values: NDArray[np.int64], alpha: NDArray[np.float64]) -> int:
    """⟨α, values⟩, exact."""
    products = _digits(values) @ alpha.T
    low, middle, high = int(products[0, 0]), int(products[0, 1]) + int(products[1, 0]), int(products[1, 1])
    return low + (middle << _DIGIT) + (high << (2 * _DIGIT))


def _reduced(integers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Modulo t, nearest to zero. The ciphertexts' sum is one modulo t too, so that no wrap of noise ever shows."""
    return (integers + HALF_MODULUS) % PLAIN_MODULUS - HALF_MODULUS


def _centred(value: int) -> int:
    """The representative mod t nearest to zero."""
    return (value + HALF_MODULUS) % PLAIN_MODULUS - HALF_MODULUS
