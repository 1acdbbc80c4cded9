"""CKKS's slots: the weighted coordinates as floats, a slot for every client of the cohort, and approximate tags.

A ciphertext holds 4,096 reals: an indicator for each client, :data:`TAGS` tags, and data. A client sets its own
indicator to a value from [1/2, 1) that follows from key, plan, client and ciphertext, and leaves the others zero, so
that a sum in which anybody is missing, repeated, scaled, or of another round or chunk shows it, and whom (E-5.4).
A tag is ⟨α, x⟩ over all slots but the tags, α secret and uniform in [-1, 1): it shows a change of the data that leaves
the indicators alone. CKKS computes with noise, so both hold up to a tolerance; SPEC says what can hide below it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.rotation import Floats
from fedvlm_secure.primitives.kdf import derive
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import MaskStream
from fedvlm_secure.secagg.encrypted.parameters import CKKS, DEGREE, LIMB_BITS, NOISE_DEVIATION, SLOTS, scale_bits
from fedvlm_secure.secagg.encrypted.scheme import IntegrityError, Scheme
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import ClientId

TAGS = 4
DEVIATIONS = 10  # of noise that a check tolerates; normal noise goes beyond with a chance of 2^-75 a slot


class CkksSheet:
    """One round's vector as sheets of slots, one a ciphertext."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._clients, layout = plan, len(plan.cohort), plan.layout
        self._data = SLOTS - self._clients - TAGS
        bounds = [counter.bound for counter in layout.counters] + [1, 1, 1]
        self._limbs = [-(-bound.bit_length() // LIMB_BITS) for bound in bounds]
        self._size = layout.update + sum(self._limbs)
        self._range = float(layout.weight_max * layout.levels)
        self.chunks = -(-self._size // self._data)
        self.scheme = Scheme(CKKS, scale_bits(self._clients))

    def fill(self, update: Update, secret: Secret, client: ClientId) -> Iterator[Floats]:
        """The client's sheets, in order."""
        values = self._flatten(*self._plan.codec.weigh(update))
        indicators, me = self._indicators(secret, client), self._plan.cohort.index(client)
        for chunk, alpha in enumerate(self._coefficients(secret)):
            sheet = np.zeros(SLOTS)
            part = values[chunk * self._data : (chunk + 1) * self._data]
            sheet[: len(part)] = part
            sheet[self._data + me] = indicators[chunk]
            sheet[-TAGS:] = alpha @ sheet[:-TAGS]
            yield sheet

    def read(self, sums: Iterable[Floats], secret: Secret, survivors: Sequence[ClientId]) -> Floats:
        """The sum [layout.size], counters whole; raises :class:`IntegrityError` naming clients."""
        values = np.empty(self.chunks * self._data)
        expected = np.zeros((self.chunks, self._clients))
        for client in survivors:
            expected[:, self._plan.cohort.index(client)] = self._indicators(secret, client)
        tolerance, tag_tolerance = self._tolerances(len(survivors))
        near, tagged = np.ones(self._clients, bool), np.ones(self.chunks, bool)
        for chunk, (sheet, alpha) in enumerate(zip(sums, self._coefficients(secret), strict=True)):
            near &= np.abs(sheet[self._data : -TAGS] - expected[chunk]) <= tolerance
            tagged[chunk] = (np.abs(alpha @ sheet[:-TAGS] - sheet[-TAGS:]) <= tag_tolerance).all()
            values[chunk * self._data : (chunk + 1) * self._data] = sheet[: self._data]
        if not (near.all() and tagged.all()):  # only now, so that the time taken does not tell where
            odd = ", ".join(name for name, fits in zip(self._plan.cohort, near, strict=True) if not fits)
            raise IntegrityError(
                f"the part of {odd or 'nobody'} is not what the list says; tags of {np.count_nonzero(~tagged)} of "
                f"{self.chunks} ciphertexts do not fit"
            )
        return self._unflatten(values)

    def _flatten(self, scaled: Floats, tail: Sequence[int]) -> Floats:
        """Update in units of the range, then every counter and check in limbs of 8 bits: exact in spite of noise."""
        limbs = [
            ((value >> (LIMB_BITS * place)) & ((1 << LIMB_BITS) - 1)) / (1 << LIMB_BITS)
            for value, count in zip(tail, self._limbs, strict=True)
            for place in range(count)
        ]
        return np.concatenate([scaled / self._range, limbs])

    def _unflatten(self, values: Floats) -> Floats:
        update, sums = self._plan.layout.update, []
        limbs = [round(limb * (1 << LIMB_BITS)) for limb in values[update : self._size].tolist()]
        for count in self._limbs:
            sums.append(sum(limb << (LIMB_BITS * place) for place, limb in enumerate(limbs[:count])))
            del limbs[:count]
        return np.concatenate([values[:update] * self._range, np.array(sums, np.float64)])

    def _tolerances(self, survivors: int) -> tuple[float, float]:
        """For a slot and for a tag: ten deviations of the noise of that many fresh ciphertexts."""
        # Rounding to integers adds a deviation of 1/√12 a coefficient to the error's; a slot adds up DEGREE of them
        # with factors of absolute value 1, of which the real and the imaginary part take half the variance each.
        slot = math.sqrt(DEGREE / 2 * (NOISE_DEVIATION**2 + 1 / 12) * survivors) / self.scheme.scale
        return DEVIATIONS * slot, DEVIATIONS * slot * math.sqrt(1 + SLOTS / 3)

    def _indicators(self, secret: Secret, client: ClientId) -> Floats:
        """The client's value for every ciphertext, in [1/2, 1)."""
        words = np.empty(self.chunks, np.dtype("<u4"))
        MaskStream(derive(secret, "he-indicators", self._plan.hash, client)).fill(words)
        return 0.5 + words.astype(np.float64) * 2.0**-33

    def _coefficients(self, secret: Secret) -> Iterator[Floats]:
        """α for one ciphertext after the other: float64 [TAGS, 4092] in [-1, 1)."""
        stream = MaskStream(derive(secret, "he-tag-coefficients", self._plan.hash))
        words = np.empty((TAGS, SLOTS - TAGS), np.dtype("<u4"))
        for _ in range(self.chunks):
            stream.fill(words.reshape(-1))
            yield words.astype(np.float64) * 2.0**-31 - 1.0
