"""Sections 2 to 4 of SPEC.md: keys, ciphertexts, slots and tags of the reference implementation.

Ciphertexts are SEAL's, through `tenseal.sealapi`; everything else is Python's own integers and floats.
"""
# ruff: noqa: INP001, D102, D103

import struct
import tempfile
from math import fsum, sqrt
from pathlib import Path

import tenseal.sealapi as seal

from protocols.encrypted.common import CHECKS, Plan, derive, digest, largest_sum, noise_tail, stream

N = 4096
Q = 18014398509309953
T = 274877816833
HALF = (T - 1) // 2
TAGS = 4
LIMB = 8


class Scheme:
    """SEAL with the parameters of section 3; `scale` is 1 for BFV."""

    def __init__(self, kind: str, scale: int = 1):
        self.kind, self.scale, self.context = kind, float(scale), context(kind)
        encoder = seal.BatchEncoder if kind == "bfv" else seal.CKKSEncoder
        self.encoder, self.evaluator = encoder(self.context), seal.Evaluator(self.context)

    def key(self, seed: bytes):
        """The secret key that follows from a seed of 64 bytes."""
        return seal.KeyGenerator(context(self.kind, seed)).secret_key()

    def encrypt(self, key, slots: list, seed: bytes | None = None) -> bytes:
        """A fresh ciphertext. `seed` fixes its randomness, for vectors: no two ciphertexts may ever share one."""
        plain = seal.Plaintext()
        if self.kind == "bfv":
            self.encoder.encode(slots, plain)
        else:
            pairs = zip(slots[::2], slots[1::2], strict=True)
            self.encoder.encode([complex(x, y) for x, y in pairs], self.scale, plain)
        return saved(seal.Encryptor(context(self.kind, seed), key).encrypt_symmetric(plain))

    def decrypt(self, key, ciphertext) -> list:
        plain = seal.Plaintext()
        seal.Decryptor(self.context, key).decrypt(ciphertext, plain)
        if self.kind == "bfv":
            return list(self.encoder.decode_int64(plain))
        return [part for z in self.encoder.decode_complex(plain) for part in (z.real, z.imag)]

    def load(self, data: bytes):
        """A ciphertext (E-4.3); ValueError if it is none."""
        if len(data) > 16 * N + 1024 or int.from_bytes(data[8:16], "little") != len(data):
            raise ValueError("too long, cut short, or with bytes left over")
        ciphertext = seal.Ciphertext(self.context)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ciphertext"
            path.write_bytes(data)
            try:
                ciphertext.load(self.context, str(path))
            except Exception as error:  # noqa: BLE001  # SEAL's exceptions come as several types
                raise ValueError(f"SEAL: {error}") from None
        form = (ciphertext.size(), ciphertext.is_ntt_form(), ciphertext.scale)
        known = ciphertext.parms_id() == self.context.first_parms_id() and not ciphertext.is_transparent()
        if form != (2, self.kind == "ckks", self.scale) or not known:
            raise ValueError("of another size, form, scale or level, or it hides nothing")
        return ciphertext

    def total(self, ciphertexts: list[bytes]) -> bytes:
        total = self.load(ciphertexts[0])
        for data in ciphertexts[1:]:
            self.evaluator.add_inplace(total, self.load(data))
        return saved(total)


def context(kind: str, seed: bytes | None = None):
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV if kind == "bfv" else seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(N)
    parameters.set_coeff_modulus([seal.Modulus(Q)])
    if kind == "bfv":
        parameters.set_plain_modulus(T)
    if seed is not None:
        parameters.set_random_generator(seal.Blake2xbPRNGFactory(list(struct.unpack("<8Q", seed))))
    return seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC256)


def saved(ciphertext) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ciphertext"
        ciphertext.save(str(path))
        return path.read_bytes()


def coefficients(ciphertext) -> list[int]:
    """Both polynomials: equal ones may be different bytes, as they are compressed."""
    words = ciphertext.dyn_array()
    return [words.at(i) for i in range(2 * N)]


def key_check(key) -> bytes:
    return digest("he-key-check", struct.pack(f"<{N}Q", *(key.data().data(i) for i in range(N))))


# ---- Section 4: slots ------------------------------------------------------------------------------------------------


def centred(integers: list[int]) -> list[int]:
    """Modulo t, nearest to zero: with noise, nobody sees how often an integer went around."""
    return [(x + HALF) % T - HALF for x in integers]


class Bfv:
    """A plan's vector as sheets of 4,096 integers."""

    def __init__(self, plan: Plan):
        self.plan, n, layout = plan, len(plan.cohort), plan.layout
        tail, most = noise_tail(plan.body) or 0, n * (layout["weight_max"] * 2 ** (layout["value_bits"] - 1) + 1)
        self.noisy, self.holds = tail > 0, n <= 1024 and largest_sum(layout, n, tail) <= HALF
        self.width = most.bit_length() + 1
        self.per_slot = 1
        while not self.noisy and most * sum(2 ** (self.width * i) for i in range(self.per_slot + 1)) <= HALF:
            self.per_slot += 1
        self.packed = -(-layout["update"] // self.per_slot)
        self.used = self.packed + len(layout["counters"]) + len(CHECKS)
        self.chunks = -(-self.used // (N - 1))
        self.scheme = Scheme("bfv")

    def fill(self, vector: list[int], secret: bytes, client: str) -> list[list[int]]:
        slots, sheets = self.pack(vector), []
        for alpha, pad in zip(self.alphas(secret), self.pads(secret, client), strict=True):
            data, slots = slots[: N - 1], slots[N - 1 :]
            data += [0] * (N - 1 - len(data))
            sheets.append([*data, self.tag(alpha, data, pad)])
        return sheets

    def read(self, sheets: list[list[int]], secret: bytes, survivors: list[str]) -> list[int]:
        """The sum; ValueError if a tag does not fit (E-5.4)."""
        pads = [sum(column) for column in zip(*(self.pads(secret, u) for u in survivors), strict=True)]
        for number, (alpha, pad, sheet) in enumerate(zip(self.alphas(secret), pads, sheets, strict=True)):
            if self.tag(alpha, sheet[:-1], pad) != sheet[-1]:
                raise ValueError(f"the tag of ciphertext {number + 1} does not fit")
        return self.unpack([x for sheet in sheets for x in sheet[:-1]][: self.used])

    def pack(self, vector: list[int]) -> list[int]:
        size, k = self.plan.layout["update"], self.per_slot
        vector = centred(vector) if self.noisy else vector
        update = vector[:size] + [0] * (self.packed * k - size)
        groups = (update[at : at + k] for at in range(0, len(update), k))
        return [sum(x << (self.width * i) for i, x in enumerate(group)) for group in groups] + vector[size:]

    def unpack(self, slots: list[int]) -> list[int]:
        update, half = [], 1 << (self.width - 1)
        for slot in slots[: self.packed]:
            rest = slot
            for _ in range(self.per_slot):
                digit = (rest + half) % (2 * half) - half if self.per_slot > 1 else rest
                update.append(digit)
                rest = (rest - digit) >> self.width
        return update[: self.plan.layout["update"]] + slots[self.packed :]

    def pads(self, secret: bytes, client: str) -> list[int]:
        return [x % T for x in stream(derive(secret, "he-tag-pads", self.plan.hash, client), self.chunks, 64)]

    def alphas(self, secret: bytes) -> list[list[int]]:
        words = stream(derive(secret, "he-tag-coefficients", self.plan.hash), self.chunks * (N - 1), 64)
        return [[x % T for x in words[at : at + N - 1]] for at in range(0, len(words), N - 1)]

    def tag(self, alpha: list[int], data: list[int], pad: int) -> int:
        return (sum(a * x for a, x in zip(alpha, data, strict=True)) + pad + HALF) % T - HALF


class Ckks:
    """A plan's vector as sheets of 4,096 reals: data, an indicator for each client of the cohort, tags."""

    def __init__(self, plan: Plan):
        self.plan, self.n, layout = plan, len(plan.cohort), plan.layout
        self.data = N - self.n - TAGS
        bounds = [counter["bound"] for counter in layout["counters"]] + [1] * len(CHECKS)
        self.holds = self.n <= 1000 and layout["weight_max"] <= 2**16 and self.n * max(bounds) <= 2**53
        self.limbs = [-(-bound.bit_length() // LIMB) for bound in bounds]
        self.range = layout["weight_max"] * 2 ** (layout["value_bits"] - 1)
        self.used = layout["update"] + sum(self.limbs)
        self.chunks = -(-self.used // self.data)
        self.scheme = Scheme("ckks", 2 ** (49 - self.n.bit_length()))

    def fill(self, vector: list, secret: bytes, client: str) -> list[list[float]]:
        d, me = self.plan.layout["update"], self.plan.cohort.index(client)
        values = [x / self.range for x in vector[:d]]
        for number, limbs in zip(vector[d:], self.limbs, strict=True):
            values += [(number >> (LIMB * i)) % 2**LIMB / 2**LIMB for i in range(limbs)]
        sheets = []
        for alpha, indicator in zip(self.alphas(secret), self.indicators(secret, client), strict=True):
            data, values = values[: self.data], values[self.data :]
            sheet = data + [0.0] * (self.data - len(data) + self.n)
            sheet[self.data + me] = indicator
            sheets.append(sheet + self.tags(alpha, sheet))
        return sheets

    def read(self, sheets: list[list[float]], secret: bytes, survivors: list[str]) -> list:
        """The sum; ValueError if an indicator or a tag is off (E-5.4)."""
        shown = {u: self.indicators(secret, u) for u in survivors}
        for number, (alpha, sheet) in enumerate(zip(self.alphas(secret), sheets, strict=True)):
            for u, found in zip(self.plan.cohort, sheet[self.data : -TAGS], strict=True):
                expected = shown[u][number] if u in shown else 0.0
                if not abs(found - expected) <= self.tolerance(len(survivors)):
                    raise ValueError(f"{u}'s indicator in ciphertext {number + 1} is off")
            tags = zip(self.tags(alpha, sheet[:-TAGS]), sheet[-TAGS:], strict=True)
            if not all(abs(tag - found) <= self.tag_tolerance(len(survivors)) for tag, found in tags):
                raise ValueError(f"the tags of ciphertext {number + 1} do not fit")
        values, d = [x for sheet in sheets for x in sheet[: self.data]], self.plan.layout["update"]
        sums, limbs = [x * self.range for x in values[:d]], [round(x * 2**LIMB) for x in values[d : self.used]]
        for count in self.limbs:
            sums.append(sum(limb << (LIMB * i) for i, limb in enumerate(limbs[:count])))
            limbs = limbs[count:]
        return sums

    def deviation(self, survivors: int) -> float:
        """Of the noise in a slot of a sum."""
        return sqrt(N / 2 * (3.24**2 + 1 / 12) * survivors) / self.scheme.scale

    def tolerance(self, survivors: int) -> float:
        return 10 * self.deviation(survivors)

    def tag_tolerance(self, survivors: int) -> float:
        return self.tolerance(survivors) * sqrt(1 + N / 3)

    def indicators(self, secret: bytes, client: str) -> list[float]:
        words = stream(derive(secret, "he-indicators", self.plan.hash, client), self.chunks, 32)
        return [0.5 + x / 2**33 for x in words]

    def alphas(self, secret: bytes) -> list[list[list[float]]]:
        """TAGS rows for each ciphertext."""
        each = N - TAGS
        words = stream(derive(secret, "he-tag-coefficients", self.plan.hash), self.chunks * TAGS * each, 32)
        rows = [[x / 2**31 - 1 for x in words[at : at + each]] for at in range(0, len(words), each)]
        return [rows[at : at + TAGS] for at in range(0, len(rows), TAGS)]

    def tags(self, alpha: list[list[float]], rest: list[float]) -> list[float]:
        return [fsum(a * x for a, x in zip(row, rest, strict=True)) for row in alpha]


def sheets_of(plan: Plan) -> Bfv | Ckks:
    return {"bfv": Bfv, "ckks": Ckks}[plan.body["protocol"]](plan)
