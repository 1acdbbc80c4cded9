"""The layout of what a client protects: update ‖ counters ‖ checks, and the ring that holds n clients' sum of it."""

from dataclasses import dataclass

from fedvlm_secure.errors import MisuseError

CHECKS = 3  # one participation coordinate, always 1, and two that are always 0

MAX_VALUE_BITS = 24
MAX_COORDINATES = 1 << 31


@dataclass(frozen=True, slots=True)
class Counter:
    """An exact non-negative integer of at most ``bound`` a client, summed beside the update and never rotated."""

    name: str
    bound: int


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """``update`` encoded floats, then one coordinate a counter, then :data:`CHECKS` checks.

    Attributes:
        update: d, the number of floats.
        counters: the first is always ``weight``: the update is multiplied by it before it is summed.
        value_bits: a coordinate is quantised to M = 2^(value_bits - 1) steps either side of zero, before weighting.
        weight_max: the largest weight a client may give its update.
    """

    update: int
    counters: tuple[Counter, ...]
    value_bits: int = 20
    weight_max: int = 4096

    def __post_init__(self) -> None:
        if not 0 <= self.update <= MAX_COORDINATES:
            raise MisuseError(f"an update of {self.update} coordinates; it must have 0 to {MAX_COORDINATES}")
        if not 2 <= self.value_bits <= MAX_VALUE_BITS:
            raise MisuseError(f"value_bits is {self.value_bits}; it must be 2 to {MAX_VALUE_BITS}")
        if not 1 <= self.weight_max < 1 << 32:
            raise MisuseError(f"weight_max is {self.weight_max}; it must be 1 to 2^32 - 1")
        names = [counter.name for counter in self.counters]
        if len(set(names)) != len(names) or names[:1] != ["weight"] or self.counters[0].bound != self.weight_max:
            raise MisuseError("counters need distinct names, and the first must be 'weight', bounded by weight_max")

    @property
    def size(self) -> int:
        """Coordinates altogether."""
        return self.update + len(self.counters) + CHECKS

    @property
    def levels(self) -> int:
        """M, the largest magnitude of a quantised coordinate before weighting."""
        return 1 << (self.value_bits - 1)

    def largest_sum(self, clients: int, tail: int = 0) -> int:
        """The largest magnitude of a coordinate in a sum over ``clients``, and their noise of up to ``tail`` together.

        A weighted coordinate is at most weight_max·M in magnitude, plus one for rounding.
        """
        counted = max(counter.bound for counter in self.counters)
        return max(clients * (self.weight_max * self.levels + 1) + tail, clients * counted)

    def ring_bits(self, clients: int, tail: int = 0) -> int:
        """The ring in which no such sum wraps: a whole number of bytes, computed and never configured.

        Args:
            tail: how large the sum of all noise may become, see :func:`~fedvlm_secure.encoding.noisy.noise_tail`.

        Raises:
            MisuseError: no ring of 64 bits or fewer is large enough.
        """
        bits = 8 * -(-(self.largest_sum(clients, tail).bit_length() + 1) // 8)  # one bit more is the sign
        if bits > 64:
            raise MisuseError(
                f"{clients} clients need a ring of {bits} bits; lower value_bits, weight_max or the bounds"
            )
        return bits
