"""A type for key material: it does not print, pickle or compare in variable time.

Python cannot promise to wipe memory; what this type prevents is a secret in a log, a traceback or a pickle.
"""

import hmac
from typing import Any, NoReturn

from fedvlm_secure.primitives import entropy

SECRET_BYTES = 32


class Secret:
    """Immutable key material. :meth:`reveal` is the only way to the bytes, so that uses can be searched for."""

    __slots__ = ("_value",)
    _value: bytes

    def __init__(self, value: bytes) -> None:
        # Through a memoryview, since bytes(32) would be a key of 32 zeros.
        object.__setattr__(self, "_value", bytes(memoryview(value)))

    @classmethod
    def generate(cls, count: int = SECRET_BYTES) -> "Secret":
        """``count`` fresh bytes from the operating system."""
        return cls(entropy.random_bytes(count))

    def reveal(self) -> bytes:
        """The bytes themselves."""
        return self._value

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    __hash__ = None  # type: ignore[assignment]  # a hash table would compare in variable time

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __repr__(self) -> str:
        return f"Secret(<{len(self._value)} bytes>)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is never pickled")
