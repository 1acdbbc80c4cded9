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
from fedvlm_secure.secagg.encrypted.scheme import SEED_BYTES, Key, Scheme
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party
from fedvlm_secure.secagg.session import SERVER, ClientId

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


def deal(party: Party, plan: Plan, epoch: int, scheme: Scheme) -> tuple[m.Dealing, list[bytes]]:
    """A fresh key, and a box with it for every member of the roster, sorted by name (E-3.2)."""
    secret = Secret.generate()
    members = sorted(party.roster.members, key=lambda member: member.name)
    parcels = [seal(member.sealing_key, secret, PARCEL, *_bound(plan, epoch), member.name) for member in members]
    check = he_key(secret, plan, epoch, scheme).check()
    root = MerkleTree(parcels).root
    return m.Dealing(plan.run, epoch, plan.protocol, plan.roster, root, check), parcels


def he_key(secret: Secret, plan: Plan, epoch: int, scheme: Scheme) -> Key:
    """The scheme's key that follows from what was dealt."""
    return scheme.key(derive(secret, "he-secret-key", *_bound(plan, epoch), length=SEED_BYTES))


def open_delivery(turn: Turn, delivery: m.Delivery, scheme: Scheme) -> Held:
    """The key that a member was dealt; raises :class:`~fedvlm_secure.errors.ProtocolError` (E-3)."""
    party, plan = turn.party, turn.plan
    keys = party.roster.keys()
    if delivery.dealer not in keys or delivery.dealer == SERVER:
        raise turn.fault("E-3.2", "the dealer is not on the roster")
    expected = Expected(
        m.KEYS, delivery.dealer, SERVER, keys[delivery.dealer], None, plan.place, SERVER, turn.expected.phase
    )
    dealing = expected.open(delivery.dealing, m.Dealing)
    if (dealing.run, dealing.protocol, dealing.roster) != (plan.run, plan.protocol, plan.roster):
        raise turn.fault("E-3.2", "the key was dealt for another run, protocol or roster")
    names = sorted(member.name for member in party.roster.members)
    try:
        check_path(dealing.parcels, len(names), names.index(party.name), delivery.parcel, delivery.path)
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


def dealing_digest(dealer: ClientId, dealing: m.Dealing) -> bytes:
    """What tells one dealing from another."""
    return digest("he-dealing", dealer, pack(dealing))


def _bound(plan: Plan, epoch: int) -> tuple[bytes, int, str, bytes]:
    """What a dealt key is bound to: it outlives a plan, not a run, an epoch, a protocol or a roster."""
    return plan.run, epoch, plan.protocol, plan.roster
