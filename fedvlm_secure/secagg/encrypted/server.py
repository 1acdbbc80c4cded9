"""The server's half of the encrypted protocols: relay a key it cannot open, add ciphertexts, hand the sum back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from fedvlm_secure.errors import MisuseError, RoundAbortedError
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import dealing_digest
from fedvlm_secure.secagg.encrypted.parameters import LARGEST_ROSTER, readings_allowed
from fedvlm_secure.secagg.encrypted.scheme import CiphertextError
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.envelope import NETWORK, Expected, join, seal
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.server import ServerSessionBase
from fedvlm_secure.secagg.session import SERVER, ClientId, SealedSum
from fedvlm_secure.secagg.upload import check_chunks, digests_of


@dataclass(frozen=True, slots=True)
class DealtKey:
    """A dealing as the server relays it: the signed envelope, and the boxes by member's name, sorted."""

    dealer: ClientId
    envelope: bytes
    digest: Digest
    roster: Digest
    parcels: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Carried:
    """What one attempt hands to the next: the epoch, its key if that is still good, and how many sums it has served."""

    epoch: int
    key: DealtKey | None = None
    sums: int = 0


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
    members: tuple[ClientId, ...]
    survivors: tuple[ClientId, ...]
    digests: tuple[Digest, ...]
    total: tuple[bytes, ...]

    def body(self, deliveries: Mapping[ClientId, m.Delivery], member: ClientId) -> m.EncryptedSum:
        """What goes in front of the sum's ciphertexts."""
        return m.EncryptedSum(self.plan, deliveries[member], self.survivors, self.digests)


def relay(bulletin: bytes, identity: Identity, member: ClientId) -> bytes:
    """The message that brings a finished round's sum to ``member``; ``bulletin`` as the session gave it."""
    known = unpack(Bulletin, bulletin, STATE_LIMITS)
    body = known.body(deliveries(known.key, known.members), member)
    return join([seal(identity, m.SUM, known.plan.hash, SERVER, member, body), *known.total])


def deliveries(key: DealtKey, members: Sequence[ClientId]) -> dict[ClientId, m.Delivery]:
    """Every member's box with its path."""
    tree = MerkleTree(key.parcels)
    return {
        member: m.Delivery(key.dealer, key.envelope, parcel, tree.path(place))
        for place, (member, parcel) in enumerate(zip(members, key.parcels, strict=True))
    }


class EncryptedServer(ServerSessionBase):
    """The server's half as a session. It holds parameters and ciphertexts, and no key."""

    phases = m.PHASES
    sums_words = False

    def __init__(self, plan: Plan, identity: Identity | None, roster: Roster, carried: bytes = b"") -> None:
        super().__init__(plan, identity, roster, carried)
        sheet = sheet_of(plan)
        self._scheme, self._chunk_count = sheet.scheme, sheet.chunks
        self._members = tuple(sorted(member.name for member in roster.members))
        if len(self._members) > LARGEST_ROSTER:
            raise MisuseError(f"the roster has {len(self._members)} members; one key is for up to {LARGEST_ROSTER}")
        self._carried = unpack(Carried, carried, STATE_LIMITS) if carried else Carried(1)
        if self._carried.key is not None and self._carried.key.roster != plan.roster:
            self._carried = Carried(self._carried.epoch + 1)  # dealt to other members
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
        """The key for the next attempt; after a failed one, or when it has served enough, the epoch of a new one.

        Half of the readings that clients allow (E-5.6) are left to those that come back and read a sum once more.
        """
        epoch, sums = self._carried.epoch, self._carried.sums + 1
        if not self.done or 2 * (sums + 1) > readings_allowed(len(self._members)):
            return pack(Carried(epoch + 1))
        return pack(replace(self._carried, sums=sums), STATE_LIMITS)

    @staticmethod
    def rotated(carried: bytes) -> bytes:
        """The next epoch, with its key still to be dealt."""
        return pack(Carried(unpack(Carried, carried, STATE_LIMITS).epoch + 1)) if carried else carried

    @property
    def bulletin(self) -> bytes:
        """See :meth:`ServerSessionBase.bulletin`."""
        self._require_done()
        return pack(self._bulletin, STATE_LIMITS)

    @cached_property
    def _bulletin(self) -> Bulletin:
        """Fixed once the phase `input` has ended; not read before."""
        return Bulletin(self._plan, self._key(), self._members, self._who()[0], digests_of(self._sum), self._sum)

    @cached_property
    def _deliveries(self) -> dict[ClientId, m.Delivery]:
        """Fixed once there is a key; not read before."""
        return deliveries(self._key(), self._members)

    def aggregate(self) -> SealedSum:
        """What is known of the sum; see :class:`fedvlm_secure.secagg.session.SealedSum`."""
        self._require_done()
        adopted, _ = self._majority()
        return SealedSum(adopted.model, adopted.published, *self._who())

    def _majority(self) -> tuple[m.Adopted, int]:
        """What most of those who read the sum have signed, and how many did."""
        said = list(self._adopted.values())
        return max(((one, said.count(one)) for one in said), key=lambda counted: counted[1])

    def _key(self) -> DealtKey:
        assert self._carried.key is not None  # there is one from the end of the phase `keys`
        return self._carried.key

    def _request(self, client: ClientId) -> object:
        if self._phase == m.KEYS:
            return m.KeysRequest(self._plan, self._carried.epoch)
        if self._phase == m.INPUT:
            return m.Assignment(self._plan, self._deliveries[client])
        return self._bulletin.body(self._deliveries, client)

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
        key = DealtKey(client, envelope, dealing_digest(client, dealing), dealing.roster, parcels)
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
            if self._uploaded:
                for number, chunk in enumerate(chunks[:added]):
                    self._scheme.subtract(self._running_sum[number], self._scheme.load(chunk))
            else:
                self._running_sum.clear()
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
                detail = "did not deal a key; the next attempt asks another client"
                dealer, place = self._asked[0], self._plan.place
                raise RoundAbortedError("E-3.1", party=dealer, phase=m.KEYS, detail=detail, round=place)
            return self._plan.cohort
        if self._phase == m.INPUT:
            self._require(len(self._uploaded), self._plan.min_survivors, "E-4.5")
            self._sum = tuple(self._scheme.dump(ciphertext) for ciphertext in self._running_sum)
            self._running_sum.clear()
            return self._who()[0]
        # More than half of those in the sum: a single client decides neither on the model nor on what was published.
        self._require(self._majority()[1] if self._adopted else 0, len(self._uploaded) // 2 + 1, "E-6.1")
        return ()

    def _unprotected(self) -> Any:
        raise NotImplementedError  # nothing here can remove the protection

    def _own(self) -> bytes:
        total = self._sum or tuple(self._scheme.dump(ciphertext) for ciphertext in self._running_sum)
        return pack(EncryptedRecord(self._carried, total, dict(self._adopted)), STATE_LIMITS)

    def _restore_own(self, own: bytes) -> None:
        record = unpack(EncryptedRecord, own, STATE_LIMITS)
        self._carried, self._adopted = record.carried, dict(record.adopted)
        if self._phase not in (m.KEYS, m.INPUT):
            self._sum = record.total
            return
        try:
            self._running_sum = [self._scheme.load(chunk) for chunk in record.total]
        except CiphertextError as error:
            raise WireError(f"the saved session's sum is damaged: {error}") from None
