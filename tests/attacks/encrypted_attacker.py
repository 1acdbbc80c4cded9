"""A server that lies about a sum it cannot read: what it can make of ciphertexts without the key, and how it says so.

It has the server's true signing key, every upload, and SEAL. What it lacks is the key that clients share.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from encrypted_kit import EncryptedFederation, EncryptedTable, opened, pin_of, says
from secagg_kit import refused

from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.secagg.client import fingerprint
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted import reading
from fedvlm_secure.secagg.encrypted.bfv import DATA_SLOTS, BfvSheet
from fedvlm_secure.secagg.encrypted.ckks import CkksSheet
from fedvlm_secure.secagg.encrypted.parameters import BFV, DEGREE
from fedvlm_secure.secagg.encrypted.scheme import Scheme
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.upload import digests_of

VICTIM, READER = "c01", "c00"
SPOILING = ("E-5.3", "E-5.4", "E-5.5")  # a sum that was none: nothing more is encrypted under its key
Chunks = list[bytes]


@dataclass
class LyingServer:
    """At the start of the phase `sum`, with everyone's ciphertexts; ``earlier`` is the same a round before."""

    table: EncryptedTable
    uploads: dict[str, Chunks]
    earlier: "LyingServer | None" = None

    def copy(self) -> "LyingServer":
        """The same once more, with clients that have heard nothing of what was said to these."""
        federation, clients = self.federation, self.table.clients
        again = {
            name: type(client).from_bytes(client.to_bytes(), client._party, federation.updates[name])
            for name, client in clients.items()
        }
        return LyingServer(replace(self.table, clients=again), self.uploads, self.earlier)

    @property
    def federation(self) -> EncryptedFederation:
        return self.table.federation

    @property
    def scheme(self) -> Scheme:
        return self.table.server._scheme

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.uploads))

    def sum_of(self, names: Iterable[str], others: Iterable[Chunks] = ()) -> Chunks:
        """The sum of these clients' ciphertexts, a name as often as it comes; and of other ciphertexts."""
        parts = [*(self.uploads[name] for name in names), *others]
        return [self.added([part[chunk] for part in parts]) for chunk in range(len(parts[0]))]

    def added(self, ciphertexts: Sequence[bytes]) -> bytes:
        total = self.scheme.load(ciphertexts[0])
        for ciphertext in ciphertexts[1:]:
            self.scheme.add(total, self.scheme.load(ciphertext))
        return self.scheme.dump(total)

    def honest_sum(self) -> Chunks:
        return list(self.table.server._sum)

    def changed(self, chunks: Chunks, change: Callable[[Any], None], which: Iterable[int] | None = None) -> Chunks:
        """``change`` applied in place to the ciphertexts numbered ``which``, all if None."""
        numbers = range(len(chunks)) if which is None else which
        return [self._changed(chunk, change) if number in numbers else chunk for number, chunk in enumerate(chunks)]

    def _changed(self, chunk: bytes, change: Callable[[Any], None]) -> bytes:
        ciphertext = self.scheme.load(chunk)
        change(ciphertext)
        return self.scheme.dump(ciphertext)

    @property
    def evaluator(self) -> Any:
        return self.scheme._evaluator

    def plaintext(self, slots: np.ndarray, scale: float | None = None) -> Any:
        """A public plaintext with these slots; encoders need no key."""
        plain = seal.Plaintext()
        if self.scheme.kind == BFV:
            seal.BatchEncoder(self.scheme.context).encode(slots.tolist(), plain)
        else:
            values = slots.view(np.complex128).tolist()
            seal.CKKSEncoder(self.scheme.context).encode(values, self.scheme.scale if scale is None else scale, plain)
        return plain

    def message(self, reader: str, chunks: Chunks, survivors: Sequence[str] | None = None, **changes: Any) -> bytes:
        """The sum as the server would send it, around other ciphertexts or another list."""
        body, _ = self.table.truth(reader, m.EncryptedSum)
        listed = body.survivors if survivors is None else tuple(survivors)
        lie = replace(body, survivors=listed, digests=digests_of(chunks), **changes)
        return says(self.federation, m.SUM, reader, lie, chunks)

    def taken(self, message: bytes, reader: str = READER) -> np.ndarray:
        """What ``reader`` takes the message for."""
        client = self.table.clients[reader]
        client.reply(message)
        assert client.sum is not None
        return client.sum.total

    def refuses(self, message: bytes, clause: str, reader: str = READER) -> ProtocolError:
        """``reader`` refuses the message, and is done with this session, this key and this update."""
        client, truth = self.table.clients[reader], self.table.request(reader)
        before = pin_of(client)
        assert before is not None
        assert not before.spoiled
        error = refused(lambda: client.reply(message), clause, SERVER)
        assert (error.phase, error.round) == (m.SUM, self.federation.plan.place)
        spoilt = replace(before, readings=before.readings + 1, spoiled=True) if clause in SPOILING else before
        assert pin_of(client) == spoilt, "E-5.6"
        assert fingerprint(self.federation.updates[reader]) in client.memory.answered, "E-4.4"
        assert client.sum is None
        for late in (truth, message):
            with pytest.raises(MisuseError):
                client.reply(late)
        return error


def lying_server(protocol: str, clients: int = 5, **settings: Any) -> LyingServer:
    """After everyone's upload in a second round, under the key of the first."""
    federation = EncryptedFederation(clients=clients, protocol=protocol, **settings)
    first = at_the_sum(federation.table())
    before = first.copy()
    sealed = first.table.finish_rightly()
    second = at_the_sum(federation.after(first.table, round=federation.round + 1, model=sealed.model).table())
    assert second.table.server._key() == before.table.server._key()
    return replace(second, earlier=before)


def at_the_sum(table: EncryptedTable) -> LyingServer:
    """The attacker where ``table`` is, once every client has uploaded."""
    table.play_until(m.SUM)
    return LyingServer(
        table, {name: opened(reply, m.EncryptedUpload)[1] for name, reply in table.replies[m.INPUT].items()}
    )


def without_tags(monkeypatch: pytest.MonkeyPatch, count: bool = True) -> None:
    """Clients that look at no tag and no indicator (E-5.4), and unless ``count`` at no participation count (E-5.5)."""

    def trusting(plan: Plan) -> Any:
        sheet = sheet_of(plan)
        read = _read_bfv if isinstance(sheet, BfvSheet) else _read_ckks

        def read_anything(sums: Iterable[Any], secret: object, survivors: Sequence[str]) -> np.ndarray:
            total = read(sheet, sums)
            if not count:
                total[plan.layout.update] = len(survivors)  # a weight that any count allows
                total[-3:] = len(survivors), 0, 0
            return total

        sheet.read = read_anything
        return sheet

    monkeypatch.setattr(reading, "sheet_of", trusting)


def _read_bfv(sheet: BfvSheet, sums: Iterable[np.ndarray]) -> np.ndarray:
    packed = np.concatenate([slots[:DATA_SLOTS] for slots in sums])
    return sheet._unpack(packed[: sheet._slots])


def _read_ckks(sheet: CkksSheet, sums: Iterable[np.ndarray]) -> np.ndarray:
    return sheet._unflatten(np.concatenate([slots[: sheet._data] for slots in sums]))


def forged(scheme: Scheme, first: Sequence[int], second: Sequence[int], **fields: int) -> bytes:
    """A serialised ciphertext with these polynomials, written by hand as SEAL reads it.

    Args:
        first, second: their 4,096 coefficients each, or values at the roots of unity in NTT form.
        fields: other values for ``size``, ``degree``, ``primes``, ``ntt``.
    """
    words = np.array([*first, *second], np.uint64)
    told = {"ntt": scheme.kind != BFV, "size": 2, "degree": DEGREE, "primes": 1} | fields
    body = struct.pack("<4Q", *scheme.context.first_parms_id())
    body += struct.pack("<?3QdQ", told["ntt"], told["size"], told["degree"], told["primes"], scheme.scale, 1)
    inner = struct.pack("<Q", len(words)) + words.tobytes()
    return _with_header(body + _with_header(inner))


def _with_header(data: bytes) -> bytes:
    """SEAL's header: magic, its own length, version 4.3, no compression, the size of the whole."""
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 0, 0, 16 + len(data)) + data
