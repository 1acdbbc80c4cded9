"""The server's half of the encrypted protocols: relay a key it cannot open, add ciphertexts, hand the sum back."""

from dataclasses import dataclass, replace
from typing import Any

from fedvlm_secure.errors import RoundAbortedError
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import dealing_digest
from fedvlm_secure.secagg.encrypted.scheme import CiphertextError
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.envelope import NETWORK, Expected, join, seal
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.server import THE_COHORT, ServerSessionBase
from fedvlm_secure.secagg.session import SERVER, ClientId, SealedSum
from fedvlm_secure.secagg.upload import check_chunks, digests_of


@dataclass(frozen=True, slots=True)
class DealtKey:
    """A dealing as the server relays it: the signed envelope, and the boxes by member's name, sorted."""

    dealer: ClientId
    envelope: bytes
    digest: Digest
    parcels: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Carried:
    """What one attempt hands to the next: the epoch, and its key if that is still good."""

    epoch: int
    key: DealtKey | None


@dataclass(frozen=True, slots=True)
class EncryptedRecord:
    """What the encrypted server keeps besides names and envelopes."""

    carried: Carried
    total: tuple[bytes, ...]
    adopted: dict[str, m.Adopted]


@dataclass(frozen=True, slots=True)
class Bulletin:
    """The sum of a round, and what any member needs to read it."""

    plan: Plan
    key: DealtKey
    roster: tuple[ClientId, ...]
    survivors: tuple[ClientId, ...]
    total: tuple[bytes, ...]

    def body(self, member: ClientId) -> m.EncryptedSum:
        """What goes in front of the sum's ciphertexts."""
        delivery = _delivery(self.key, self.roster, member)
        return m.EncryptedSum(self.plan, delivery, self.survivors, digests_of(self.total))


def relay(bulletin: bytes, identity: Identity, member: ClientId) -> bytes:
    """The message that brings a finished round's sum to ``member``; ``bulletin`` as the session gave it."""
    known = unpack(Bulletin, bulletin, STATE_LIMITS)
    return join([seal(identity, m.SUM, known.plan.hash, SERVER, member, known.body(member)), *known.total])


class EncryptedServer(ServerSessionBase):
    """The server's half as a session. It holds parameters and ciphertexts, and no key."""

    phases = m.PHASES
    sums_words = False

    def __init__(self, plan: Plan, identity: Identity, roster: Roster, carried: bytes = b"") -> None:
        super().__init__(plan, identity, roster, carried)
        sheet = sheet_of(plan)
        self._scheme, self._chunk_count = sheet.scheme, sheet.chunks
        self._members = tuple(sorted(member.name for member in roster.members))
        self._carried = unpack(Carried, carried) if carried else Carried(1, None)
        self._running_sum: list[Any] = []  # ciphertexts, in the phase that adds them
        self._sum: tuple[bytes, ...] = ()  # their bytes, from then on
        self._adopted: dict[ClientId, m.Adopted] = {}
        if self._carried.key is None:
            # Another client's turn in every epoch: one that will not deal cannot hold up the run.
            self._asked = (plan.cohort[(self._carried.epoch - 1) % len(plan.cohort)],)
        else:
            self._phase = m.INPUT

    @property
    def carried(self) -> bytes:
        """The key for the next attempt, or after a failed one the epoch in which a new key is due."""
        return pack(self._carried if self.done else Carried(self._carried.epoch + 1, None))

    @staticmethod
    def rotated(carried: bytes) -> bytes:
        """The next epoch, with its key still to be dealt."""
        return pack(Carried(unpack(Carried, carried).epoch + 1, None)) if carried else carried

    @property
    def bulletin(self) -> bytes:
        """See :meth:`ServerSessionBase.bulletin`."""
        self._require_done()
        return pack(self._bulletin(), STATE_LIMITS)

    def _bulletin(self) -> Bulletin:
        return Bulletin(self._plan, self._key(), self._members, self._who()[0], self._sum)

    def aggregate(self) -> SealedSum:
        """What is known of the sum; see :class:`fedvlm_secure.secagg.session.SealedSum`."""
        self._require_done()
        adopted = next(iter(self._adopted.values()))
        return SealedSum(adopted.model, adopted.published, *self._who())

    def _key(self) -> DealtKey:
        assert self._carried.key is not None  # there is one from the end of the phase `keys`
        return self._carried.key

    def _request(self, client: ClientId) -> object:
        if self._phase == m.KEYS:
            return m.KeysRequest(self._plan, self._carried.epoch)
        if self._phase == m.INPUT:
            return m.Assignment(self._plan, _delivery(self._key(), self._members, client))
        return self._bulletin().body(client)

    def _chunks(self) -> tuple[bytes, ...]:
        return self._sum if self._phase == m.SUM else ()

    def _take(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        takers = {m.KEYS: self._take_dealing, m.INPUT: self._take_upload, m.SUM: self._take_adopted}
        takers[self._phase](expected, client, frames)

    def _take_dealing(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        envelope, parcels = bytes(frames[0]), tuple(bytes(frame) for frame in frames[1:])
        dealing = expected.open(envelope, m.Dealing)
        due = (self._plan.run, self._carried.epoch, self._plan.protocol, self._plan.roster)
        if (dealing.run, dealing.epoch, dealing.protocol, dealing.roster) != due:
            raise expected.fault("E-3.2", "dealt for another run, epoch, protocol or roster")
        if len(parcels) != len(self._members):
            raise expected.fault("E-3.2", f"{len(parcels)} boxes for {len(self._members)} members", NETWORK)
        if MerkleTree(parcels).root != dealing.parcels:
            raise expected.fault("E-3.2", "the boxes are not those of the signed dealing", NETWORK)
        if {len(parcel) for parcel in parcels} != {m.PARCEL_BYTES}:
            raise expected.fault("E-3.2", "a box of another length")
        key = DealtKey(client, envelope, dealing_digest(client, dealing), parcels)
        self._carried = replace(self._carried, key=key)

    def _take_upload(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        upload, chunks = expected.open(frames[0], m.EncryptedUpload), frames[1:]
        if upload.dealing != self._key().digest:
            raise expected.fault("E-4.1", "encrypted under another key than it was sent")
        check_chunks(expected, "E-4.2", chunks, upload.digests, self._chunk_count)
        added = 0
        try:
            for added, chunk in enumerate(chunks):
                self._add(added, chunk)
        except CiphertextError as error:
            # One ciphertext in memory at a time, so the earlier ones are in the sum; modular subtraction is exact.
            for number, chunk in enumerate(chunks[:added]):
                self._scheme.subtract(self._running_sum[number], self._scheme.load(chunk))
            raise expected.fault("E-4.3", f"chunk {added + 1}: {error}") from None
        self._uploaded.add(client)

    def _add(self, number: int, chunk: memoryview) -> None:
        ciphertext = self._scheme.load(chunk)
        if number == len(self._running_sum):
            self._running_sum.append(ciphertext)
        else:
            self._scheme.add(self._running_sum[number], ciphertext)

    def _take_adopted(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        if len(frames) != 1:
            raise expected.fault("P-1.1", f"{len(frames)} frames where one is expected", NETWORK)
        adopted = expected.open(frames[0], m.Adopted)
        bounds = {counter.name: counter.bound for counter in self._plan.layout.counters}
        for name, value in adopted.published.items():
            if value > bounds.get(name, -1) * len(self._uploaded):
                raise expected.fault("E-6.2", f"publishes {name[:40]!r} as {value}")
        self._adopted[client] = adopted

    def _ended(self) -> tuple[ClientId, ...]:
        if self._phase == m.KEYS:
            if self._carried.key is None:
                raise self._aborted("E-3.1", self._asked[0], "did not deal a key; the next attempt asks another client")
            return self._plan.cohort
        if self._phase == m.INPUT:
            self._require(len(self._uploaded), self._plan.min_survivors, "E-4.5")
            self._sum = tuple(self._scheme.dump(ciphertext) for ciphertext in self._running_sum)
            self._running_sum.clear()
            return self._who()[0]
        self._require(len(self._adopted), 1, "E-6.1")
        if len({adopted.model for adopted in self._adopted.values()}) > 1:
            raise self._aborted("E-6.1", THE_COHORT, "clients read different models off one sum")
        return ()

    def _aborted(self, clause: str, party: str, detail: str) -> RoundAbortedError:
        return RoundAbortedError(clause, party=party, phase=self._phase, detail=detail, round=self._plan.place)

    def _unprotected(self) -> Any:
        raise NotImplementedError  # nothing here can remove the protection

    def _own(self) -> bytes:
        total = self._sum or tuple(self._scheme.dump(ciphertext) for ciphertext in self._running_sum)
        return pack(EncryptedRecord(self._carried, total, dict(self._adopted)), STATE_LIMITS)

    def _restore_own(self, own: bytes) -> None:
        record = unpack(EncryptedRecord, own, STATE_LIMITS)
        self._carried, self._adopted = record.carried, dict(record.adopted)
        if self._phase in (m.KEYS, m.INPUT):
            self._running_sum = [self._scheme.load(chunk) for chunk in record.total]
        else:
            self._sum = record.total


def _delivery(key: DealtKey, members: tuple[ClientId, ...], member: ClientId) -> m.Delivery:
    place = members.index(member)
    return m.Delivery(key.dealer, key.envelope, key.parcels[place], MerkleTree(key.parcels).path(place))
