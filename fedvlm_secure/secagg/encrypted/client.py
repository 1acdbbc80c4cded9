"""The client's half of the encrypted protocols: deal if asked to, encrypt and upload, read the sum."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedvlm_secure.encoding.codec import GarbageSumError, Update
from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.secagg.client import Answer, ClientSessionBase, Finished, Ready, Step, Turn
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import Held, deal, dealing_digest, open_delivery
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS
from fedvlm_secure.secagg.encrypted.scheme import CiphertextError, IntegrityError, Key, Scheme
from fedvlm_secure.secagg.encrypted.sheets import Sheet, sheet_of
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party, check_plan
from fedvlm_secure.secagg.session import SERVER, KeyPin, Memory, RingSum
from fedvlm_secure.secagg.upload import check_chunks, digests_of

# A sum that was not what its list says: under this key the server has played, so it is not used again (E-5.6).
_SPOILING = ("E-5.2", "E-5.3", "E-5.4", "E-5.5")


@dataclass(frozen=True, slots=True)
class Dealt:
    """We are the dealer: the run's new key is on its way to everyone."""

    pin: KeyPin


@dataclass(frozen=True, slots=True)
class Uploaded:
    """The ciphertexts are on their way; the update is never sent again (E-4.4)."""

    pin: KeyPin


@dataclass(frozen=True, slots=True)
class Read:
    """The sum is read: a state on the way to :class:`Finished`, never a durable one."""

    pin: KeyPin
    total: RingSum


def make_key(turn: Turn, state: Ready, request: m.KeysRequest) -> tuple[Dealt, Answer]:
    """Deal the key of a new epoch (E-3.1)."""
    pinned = _pinned(turn.memory, turn.plan)
    if request.epoch < pinned.epoch or (request.epoch == pinned.epoch and pinned.dealing is not None):
        raise turn.fault("E-3.1", f"asks for a key of epoch {request.epoch}, and there was one of {pinned.epoch}")
    dealing, parcels = deal(turn.party, turn.plan, request.epoch, sheet_of(turn.plan).scheme)
    return Dealt(KeyPin(request.epoch, dealing_digest(turn.party.name, dealing))), (dealing, parcels)


def upload(turn: Turn, state: Ready | Dealt, request: m.Assignment) -> tuple[Uploaded, Answer]:
    """Open the key and encrypt the update, one sheet after the other (E-4)."""
    sheet = sheet_of(turn.plan)
    held = _key_for(turn, request.plan, request.delivery, sheet.scheme)
    sheets = sheet.fill(turn.own_update(), held.secret, turn.party.name)
    ciphertexts = [held.key.encrypt(slots) for slots in sheets]
    answer = m.EncryptedUpload(held.dealing, digests_of(ciphertexts))
    return Uploaded(KeyPin(held.epoch, held.dealing)), (answer, ciphertexts)


def read_sum(turn: Turn, state: Uploaded, request: m.EncryptedSum) -> tuple[Read, Answer]:
    """Decrypt the sum, check it against its list, and sign the model that follows from it (E-5, E-6)."""
    pin, total = _opened(turn, request)
    decoded = turn.plan.codec.decode(total.total)
    party = turn.party
    following = party.model if party.following is None else party.following(decoded)
    published = {name: decoded.counters[name] for name in party.policy.published if name in decoded.counters}
    return Read(pin, total), (m.Adopted(following, published), [])


def catch_up(party: Party, memory: Memory, message: bytes) -> tuple[Plan, RingSum]:
    """The sum of a round that this member took no part in, or has not kept; the server sends it to whoever asks.

    Args:
        party: with the model that this member held at the start of that round.

    Raises:
        ProtocolError: the message breaks a rule, as in :class:`EncryptedClient`.
    """
    expected = Expected(m.SUM, SERVER, party.name, party.roster.server, None, None)
    frames = expected.frames(message)
    plan = expected.open(frames[0], m.EncryptedSum).plan
    expected = replace(expected, plan=plan.hash, place=plan.place)
    request = expected.open(frames[0], m.EncryptedSum)
    check_plan(plan, party, Memory(), m.SUM)
    if plan.protocol not in (BFV, CKKS):
        raise expected.fault("P-2.6", f"proposes protocol {plan.protocol[:40]!r} where a shared key is needed")
    turn = Turn(party, plan, Update(np.zeros(0), {}), b"", expected, memory, frames[1:])
    return plan, _opened(turn, request)[1]


class EncryptedClient(ClientSessionBase):
    """The client's half as a session."""

    steps = {  # noqa: RUF012
        Ready: (Step(m.INPUT, m.Assignment, upload), Step(m.KEYS, m.KeysRequest, make_key)),
        Dealt: (Step(m.INPUT, m.Assignment, upload),),
        Uploaded: (Step(m.SUM, m.EncryptedSum, read_sum, chunks=True),),
    }
    latched = (Uploaded, Finished)

    _sum: RingSum | None = None

    @property
    def sum(self) -> RingSum | None:
        """The sum, once this session has read it; it is not part of the durable state."""
        return self._sum

    def _transition(self, step: Step, turn: Turn, body: object) -> tuple[object, Answer]:
        try:
            state, answer = super()._transition(step, turn, body)
        except ProtocolError as error:
            if error.clause in _SPOILING:
                self._keep_pin(turn.plan, KeyPin(_pinned(turn.memory, turn.plan).epoch + 1, None))
            raise
        assert isinstance(state, Dealt | Uploaded | Read)
        self._keep_pin(turn.plan, state.pin)
        if isinstance(state, Read):
            self._sum = state.total
            return Finished(), answer
        return state, answer

    def _keep_pin(self, plan: Plan, pin: KeyPin) -> None:
        self._memory = replace(self._memory, keys={**self._memory.keys, plan.run.hex(): pin})


class BfvClient(EncryptedClient):
    """Exact sums of integers."""

    protocol = BFV


class CkksClient(EncryptedClient):
    """Sums of floats, up to noise."""

    protocol = CKKS


def _pinned(memory: Memory, plan: Plan) -> KeyPin:
    return memory.keys.get(plan.run.hex(), KeyPin(1, None))


def _key_for(turn: Turn, plan: Plan, delivery: m.Delivery, scheme: Scheme) -> Held:
    """The delivered key, if it is the one to use: no earlier epoch, and no second key in this one (E-3.4)."""
    if plan.hash != turn.plan.hash:
        raise turn.fault("P-1.3", "carries another plan than the one it is for")
    held, pinned = open_delivery(turn, delivery, scheme), _pinned(turn.memory, plan)
    if held.epoch < pinned.epoch or (held.epoch == pinned.epoch and pinned.dealing not in (None, held.dealing)):
        raise turn.fault("E-3.4", f"a key of epoch {held.epoch}, other than or older than the run's of {pinned.epoch}")
    return held


def _opened(turn: Turn, request: m.EncryptedSum) -> tuple[KeyPin, RingSum]:
    """The decrypted sum, checked (E-5)."""
    plan, survivors, listed = turn.plan, request.survivors, set(request.survivors)
    if list(survivors) != sorted(listed) or not listed <= set(plan.cohort):
        raise turn.fault("E-5.1", "the survivor list is not a sorted list of clients of the cohort")
    if len(survivors) < plan.min_survivors:
        raise turn.fault("E-5.1", f"{len(survivors)} survivors, {plan.min_survivors} are needed")
    sheet = sheet_of(plan)
    held = _key_for(turn, request.plan, request.delivery, sheet.scheme)
    check_chunks(turn.expected, "E-5.2", turn.chunks, request.digests, sheet.chunks)
    try:
        total = sheet.read(_decrypted(held.key, sheet, turn), held.secret, survivors)
    except CiphertextError as error:
        raise turn.fault("E-5.3", str(error)) from None
    except IntegrityError as error:
        raise turn.fault("E-5.4", f"{error}; listed are {', '.join(survivors)}") from None
    try:
        participants = plan.codec.counted(total)[1]
    except GarbageSumError as error:
        raise turn.fault("E-5.5", f"{error}; listed are {', '.join(survivors)}") from None
    if participants != len(survivors):
        raise turn.fault("E-5.5", f"{participants} participations; listed are {', '.join(survivors)}")
    dropped = tuple(name for name in plan.cohort if name not in listed)
    return KeyPin(held.epoch, held.dealing), RingSum(total, survivors, dropped)


def _decrypted(key: Key, sheet: Sheet, turn: Turn) -> Iterator[Any]:
    for chunk in turn.chunks:
        yield key.decrypt(sheet.scheme.load(chunk))
