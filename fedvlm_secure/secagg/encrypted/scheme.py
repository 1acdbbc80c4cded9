"""CKKS and BFV, as far as the protocol needs them: SEAL through ``tenseal.sealapi``.

That is TenSEAL's own door to SEAL. Its vector types are not used: they know no seeded ciphertexts (half the bytes), no
complex slots (half the ciphertexts under CKKS) and no way to derive a key.

SEAL reads and writes files only; what passes through one here is ciphertext. Encryption draws from SEAL's generator,
which it seeds from the operating system.
"""

import os
import tempfile
import weakref
from typing import Any

import numpy as np
import tenseal.sealapi as seal
from numpy.typing import NDArray

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted.parameters import BFV, COEFFICIENT_BITS, DEGREE, PLAIN_MODULUS

SEED_BYTES = 64
_HEADER_BYTES = 16
_SIZE_FIELD = slice(8, 16)  # of SEAL's header: the size of the whole
_MOST_BYTES = 2 * 8 * DEGREE + 1024  # two polynomials of 64-bit words, incompressible, and headers

Slots = NDArray[np.int64] | NDArray[np.float64]


class CiphertextError(ValueError):
    """The bytes are no ciphertext of the protocol's parameters."""


class IntegrityError(ValueError):
    """What was decrypted is not the sum of the listed clients' ciphertexts."""


class Scheme:
    """One of the two schemes with the protocol's parameters, and no key.

    Args:
        kind: ``"bfv"`` or ``"ckks"``.
        scale_bits: CKKS's scale, 0 for BFV.
    """

    def __init__(self, kind: str, scale_bits: int = 0) -> None:
        self.kind = kind
        self.scale = 2.0**scale_bits if scale_bits else 1.0
        self.context = _context(kind)
        self._evaluator = seal.Evaluator(self.context)
        self._file = _File()

    def key(self, seed: Secret) -> "Key":
        """The secret key that follows from a seed of 64 bytes; the same one everywhere."""
        return Key(self, seed)

    def load(self, data: bytes | memoryview) -> Any:
        """A ciphertext fit to be added; raises :class:`CiphertextError`."""
        if not _HEADER_BYTES < len(data) <= _MOST_BYTES or int.from_bytes(data[_SIZE_FIELD], "little") != len(data):
            raise CiphertextError("not a ciphertext, or not as long as it says")
        ciphertext = seal.Ciphertext(self.context)
        path = self._file.write(data)
        try:
            ciphertext.load(self.context, path)
        except Exception as error:  # noqa: BLE001  # pybind maps SEAL's exceptions to many types; all mean the same here
            raise CiphertextError(f"not a ciphertext of these parameters: {str(error)[:80]}") from None
        ntt = self.kind != BFV
        if ciphertext.size() != 2 or ciphertext.is_ntt_form() != ntt or ciphertext.scale != self.scale:
            raise CiphertextError("a ciphertext of another size, form or scale")
        if ciphertext.parms_id() != self.context.first_parms_id() or ciphertext.is_transparent():
            raise CiphertextError("a ciphertext of other parameters, or one that hides nothing")
        return ciphertext

    def dump(self, ciphertext: Any) -> bytes:
        """The bytes of a ciphertext; a freshly encrypted one is its first polynomial and the seed of the second."""
        ciphertext.save(self._file.write(b""))  # SEAL cuts the file to what it writes
        return self._file.read()

    def add(self, total: Any, ciphertext: Any) -> None:
        """Add to ``total``, in place.

        Raises:
            CiphertextError: the sum would hide nothing (its second polynomial is zero), which SEAL refuses to hold;
                ``total`` is as before. Only whoever copies another's ciphertext gets there.
        """
        try:
            self._evaluator.add_inplace(total, ciphertext)
        except RuntimeError as error:  # raised after the addition
            self._evaluator.sub_inplace(total, ciphertext)
            raise CiphertextError(f"cancels the sum: {error}") from None

    def subtract(self, total: Any, ciphertext: Any) -> None:
        """The exact inverse of :meth:`add`."""
        self._evaluator.sub_inplace(total, ciphertext)


class Key:
    """A secret key: what clients hold and the server does not."""

    def __init__(self, scheme: Scheme, seed: Secret) -> None:
        words = np.frombuffer(seed.reveal(), "<u8").tolist()
        if len(words) * 8 != SEED_BYTES:
            raise MisuseError(f"a key's seed has {SEED_BYTES} bytes")
        self._scheme = scheme
        self._secret = seal.KeyGenerator(_context(scheme.kind, words)).secret_key()
        self._encryptor = seal.Encryptor(scheme.context, self._secret)
        self._decryptor = seal.Decryptor(scheme.context, self._secret)
        is_bfv = scheme.kind == BFV
        self._encoder: Any = seal.BatchEncoder(scheme.context) if is_bfv else seal.CKKSEncoder(scheme.context)

    def check(self) -> bytes:
        """A commitment to the key's coefficients, to notice a SEAL that derives another key from the seed."""
        coefficients = self._secret.data()
        words = [coefficients.data(index) for index in range(DEGREE)]
        return digest("he-key-check", np.array(words, "<u8").tobytes())

    def encrypt(self, slots: Slots) -> bytes:
        """Ciphertext of ``slots``: int64 [4096] in (-t/2, t/2) for BFV, float64 [4096] for CKKS."""
        plain = seal.Plaintext()
        if self._scheme.kind == BFV:
            self._encoder.encode(slots.tolist(), plain)
        else:
            # Two coordinates a slot: sums never leave the real or the imaginary part.
            self._encoder.encode(slots.view(np.complex128).tolist(), self._scheme.scale, plain)
        return self._scheme.dump(self._encryptor.encrypt_symmetric(plain))

    def decrypt(self, ciphertext: Any) -> Slots:
        """The slots of a ciphertext, [4096] as :meth:`encrypt` takes them."""
        plain = seal.Plaintext()
        self._decryptor.decrypt(ciphertext, plain)
        if self._scheme.kind == BFV:
            return np.array(self._encoder.decode_int64(plain), np.int64)
        return np.array(self._encoder.decode_complex(plain), np.complex128).view(np.float64)


def _context(kind: str, seed: list[int] | None = None) -> Any:
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV if kind == BFV else seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(DEGREE)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [COEFFICIENT_BITS]))
    if kind == BFV:
        parameters.set_plain_modulus(PLAIN_MODULUS)
    if seed is not None:
        parameters.set_random_generator(seal.Blake2xbPRNGFactory(seed))
    return seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)


class _File:
    """Where SEAL writes to and reads from: in memory on Linux, else a private file. Each process has its own."""

    def __init__(self) -> None:
        self._open()

    def write(self, data: bytes | memoryview) -> str:
        """The path of a file that begins with ``data``; SEAL reads no further than it says it is long."""
        if os.getpid() != self._process:
            self._open()  # after a fork, parent and child would write to one file
        if os.pwrite(self._number, data, 0) != len(data):
            raise OSError(f"no room for a ciphertext of {len(data)} bytes")
        return self._path

    def read(self) -> bytes:
        """What SEAL wrote."""
        return os.pread(self._number, _MOST_BYTES, 0)

    def _open(self) -> None:
        self._process = os.getpid()
        if hasattr(os, "memfd_create"):
            self._number = os.memfd_create("fedvlm-secure")
            self._path = f"/proc/self/fd/{self._number}"  # by number: a file without a name cannot be taken away
            weakref.finalize(self, os.close, self._number)
        else:
            named = tempfile.NamedTemporaryFile(prefix="fedvlm-secure-")  # noqa: SIM115
            self._number, self._path = named.fileno(), named.name
            weakref.finalize(self, named.close)
