"""The client's half of the encrypted protocols: deal if asked to, encrypt and upload, read the sum."""

from dataclasses import dataclass

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.secagg.client import Answer, ClientSessionBase, Finished, Ready, Step, Turn
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import deal, key_for, new_pin, pin_of
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS
from fedvlm_secure.secagg.encrypted.reading import SPOILING, Reading, remembering, spoiled
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.session import KeyPin, RingSum
from fedvlm_secure.secagg.upload import digests_of


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
    dealing, parcels = deal(turn, request.epoch, sheet_of(turn.plan).scheme)
    return Dealt(new_pin(turn.party.name, dealing)), (dealing, parcels)


def upload(turn: Turn, state: Ready | Dealt, request: m.Assignment) -> tuple[Uploaded, Answer]:
    """Open the key and encrypt the update, one sheet after the other (E-4)."""
    sheet = sheet_of(turn.plan)
    held = key_for(turn, request.plan, request.delivery, sheet.scheme)
    pin = pin_of(turn.memory, held, turn.plan)
    if pin.spoiled:
        raise turn.fault("E-5.6", "asks to encrypt under a key under which a sum did not fit its list")
    sheets = sheet.fill(turn.own_update(), held.secret, turn.party.name)
    ciphertexts = [held.key.encrypt(slots) for slots in sheets]
    return Uploaded(pin), (m.EncryptedUpload(held.dealing, digests_of(ciphertexts)), ciphertexts)


def read_sum(turn: Turn, state: Uploaded, request: m.EncryptedSum) -> tuple[Read, Answer]:
    """Decrypt the sum, check it against its list, and sign the model that follows from it (E-5, E-6)."""
    reading = Reading(turn, request)
    if reading.held.dealing != state.pin.dealing:
        raise turn.fault("E-3.4", "the sum is under another key than our upload")
    total = reading.total()
    decoded, party = turn.plan.codec.decode(total.total), turn.party
    following = party.model if party.following is None else party.following(decoded)
    published = {name: decoded.counters[name] for name in party.policy.published if name in decoded.counters}
    return Read(reading.pin, total), (m.Adopted(following, published), [])


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
            if error.clause in SPOILING:
                pin = self._memory.keys[turn.plan.run.hex()]
                self._memory = remembering(self._memory, turn.plan, spoiled(pin))
            raise
        assert isinstance(state, Dealt | Uploaded | Read)
        self._memory = remembering(self._memory, turn.plan, state.pin)
        if isinstance(state, Read):
            self._sum = state.total
            return Finished(), answer
        return state, answer


class BfvClient(EncryptedClient):
    """Exact sums of integers."""

    protocol = BFV


class CkksClient(EncryptedClient):
    """Sums of floats, up to noise."""

    protocol = CKKS
