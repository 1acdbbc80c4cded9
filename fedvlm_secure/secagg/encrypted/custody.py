"""Who holds the key: a dealer makes it, seals it to every member of the roster, and the server relays the boxes.

Every member can decrypt, so the server and any one member together read every client's input. That is why a plan under
these protocols counts on no colluding client (``max_corrupt`` 0) unless the client's policy says otherwise.
"""

from dataclasses import dataclass

from fedvlm_secure.primitives.kdf import derive, digest
from fedvlm_secure.primitives.merkle import MerkleError, MerkleTree, check_path
from fedvlm_secure.primitives.schema import Digest, pack
from fedvlm_secure.primitives.sealing import SealError, seal
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.client import Turn
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.parameters import LARGEST_EPOCH, LARGEST_ROSTER
from fedvlm_secure.secagg.encrypted.scheme import SEED_BYTES, Key, Scheme
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import SERVER, ClientId, KeyPin, Memory

PARCEL = "he-key"


@dataclass(frozen=True, slots=True)
class Held:
    """A key that was dealt, opened and checked.

    Attributes:
        dealing: what uploads name it by.
        secret: where tags and indicators come from as well.
    """

    epoch: int
    dealing: Digest
    secret: Secret
    key: Key


def deal(turn: Turn, epoch: int, scheme: Scheme) -> tuple[m.Dealing, list[bytes]]:
    """A fresh key, and a box with it for every member of the roster, sorted by name (E-3.1, E-3.2).

    Raises:
        ProtocolError: the epoch is over, or has its key already.
    """
    party, plan = turn.party, turn.plan
    pinned = _pinned(turn.memory, plan)
    if not pinned.epoch <= epoch <= LARGEST_EPOCH or (epoch == pinned.epoch and pinned.dealing is not None):
        raise turn.fault("E-3.1", f"asks for a key of epoch {epoch}, and there was one of {pinned.epoch}")
    secret = Secret.generate()
    members = sorted(party.roster.members, key=lambda member: member.name)
    parcels = [seal(member.sealing_key, secret, PARCEL, *_bound(plan, epoch), member.name) for member in members]
    check = he_key(secret, plan, epoch, scheme).check()
    return m.Dealing(plan.run, epoch, plan.protocol, plan.roster, MerkleTree(parcels).root, check), parcels


def he_key(secret: Secret, plan: Plan, epoch: int, scheme: Scheme) -> Key:
    """The scheme's key that follows from what was dealt."""
    return scheme.key(derive(secret, "he-secret-key", *_bound(plan, epoch), length=SEED_BYTES))


def key_for(turn: Turn, plan: Plan, delivery: m.Delivery, scheme: Scheme) -> Held:
    """The key that we were dealt for ``plan``, the turn's own.

    Raises:
        ProtocolError: it is not genuine (E-3.2, E-3.3), of an earlier epoch or a second one in this epoch (E-3.4).
    """
    if plan.hash != turn.plan.hash:
        raise turn.fault("P-1.3", "carries another plan than the one it is for")
    held, pinned = _opened(turn, delivery, scheme), _pinned(turn.memory, plan)
    if held.epoch < pinned.epoch or (held.epoch == pinned.epoch and pinned.dealing not in (None, held.dealing)):
        raise turn.fault("E-3.4", f"a key of epoch {held.epoch}, other than or older than the run's of {pinned.epoch}")
    return held


def _opened(turn: Turn, delivery: m.Delivery, scheme: Scheme) -> Held:
    party, plan, members = turn.party, turn.plan, sorted(member.name for member in turn.party.roster.members)
    if delivery.dealer not in members or len(members) > LARGEST_ROSTER:
        raise turn.fault("E-3.2", f"the dealer is not on the roster, or that has more than {LARGEST_ROSTER} members")
    signer = party.roster.keys()[delivery.dealer]
    expected = Expected(m.KEYS, delivery.dealer, SERVER, signer, None, plan.place, SERVER, turn.expected.phase)
    dealing = expected.open(delivery.dealing, m.Dealing)
    if (dealing.run, dealing.protocol, dealing.roster) != (plan.run, plan.protocol, plan.roster):
        raise turn.fault("E-3.2", "the key was dealt for another run, protocol or roster")
    if not 1 <= dealing.epoch <= LARGEST_EPOCH:
        raise expected.fault("E-3.2", f"the key is of epoch {dealing.epoch}")
    try:
        check_path(dealing.parcels, len(members), members.index(party.name), delivery.parcel, delivery.path)
    except MerkleError as error:
        raise turn.fault("E-3.2", f"the box is not one that {delivery.dealer} signed: {error}") from None
    try:
        secret = party.identity.sealing.open(delivery.parcel, PARCEL, *_bound(plan, dealing.epoch), party.name)
        key = he_key(secret, plan, dealing.epoch, scheme)
    except (SealError, ValueError) as error:
        raise expected.fault("E-3.3", str(error)) from None
    if key.check() != dealing.check:
        raise expected.fault("E-3.3", "the key that follows from the box is not the one it committed to")
    return Held(dealing.epoch, dealing_digest(delivery.dealer, dealing), secret, key)


def new_pin(dealer: ClientId, dealing: m.Dealing) -> KeyPin:
    """What a client remembers of a key that it has not used yet."""
    return KeyPin(dealing.epoch, dealing_digest(dealer, dealing))


def pin_of(memory: Memory, held: Held, plan: Plan) -> KeyPin:
    """What the client remembers of this key."""
    pinned = _pinned(memory, plan)
    return pinned if pinned.dealing == held.dealing else KeyPin(held.epoch, held.dealing)


def dealing_digest(dealer: ClientId, dealing: m.Dealing) -> bytes:
    """What tells one dealing from another."""
    return digest("he-dealing", dealer, pack(dealing))


def _pinned(memory: Memory, plan: Plan) -> KeyPin:
    return memory.keys.get(plan.run.hex(), KeyPin(1, None))


def _bound(plan: Plan, epoch: int) -> tuple[bytes, int, str, bytes]:
    """What a dealt key is bound to: it outlives a plan, not a run, an epoch, a protocol or a roster."""
    return plan.run, epoch, plan.protocol, plan.roster
