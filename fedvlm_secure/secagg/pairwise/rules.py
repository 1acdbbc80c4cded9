"""What a client checks before it answers, one function a group of clauses. Each raises; none returns a verdict.

The numbers are those of ``protocols/pairwise/SPEC.md``. What every message has to satisfy (P-1) is checked in
:mod:`fedvlm_secure.secagg.envelope`, what a plan has to satisfy (P-2) in :mod:`fedvlm_secure.secagg.policy`.
"""

from collections.abc import Collection, Mapping

from fedvlm_secure.primitives.merkle import MerkleError, check_path
from fedvlm_secure.primitives.signing import SignatureError, verify
from fedvlm_secure.primitives.wire import WireError
from fedvlm_secure.secagg.client import Turn
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.masks import Bound
from fedvlm_secure.secagg.plan import MALICIOUS_SERVER, Plan, majority
from fedvlm_secure.secagg.session import SERVER, ClientId

CONSENT_PURPOSE = "survivor-list"


def quorum(plan: Plan) -> int:
    """How many of the whole cohort must have signed one survivor list before anyone unmasks (P-7.3)."""
    if plan.threat_model == MALICIOUS_SERVER:
        return majority(len(plan.cohort), plan.max_corrupt)
    return plan.threshold


def least_peers(plan: Plan) -> int:
    """How many clients, itself included, a client needs around itself: all of a sum, or enough to recover a seed."""
    return plan.min_survivors if plan.complete else plan.threshold


def verified_keys(turn: Turn, request: m.KeyList, own: m.Keys) -> dict[ClientId, m.Keys]:
    """The keys of this client and its neighbours, each in its owner's signed words (P-3.2 to P-3.4)."""
    plan, me = turn.plan, turn.party.name
    near, listed = {me, *plan.neighbours(me)}, request.keys.keys() | request.others.keys()
    if not listed <= set(plan.cohort) or not request.keys.keys() <= near or request.others.keys() & near:
        raise turn.fault("P-3.2", "keys of clients outside the cohort, or of others than our neighbours")
    if len(listed) < plan.min_survivors or len(request.keys) < least_peers(plan):
        counts = f"{len(listed)} clients, {len(request.keys)} of them here and near"
        raise turn.fault("P-3.3", f"keys of only {counts}; {plan.min_survivors} and {least_peers(plan)} are needed")
    keys = {name: _passed_on(turn, m.KEYS, name).open(request.keys[name], m.Keys) for name in sorted(request.keys)}
    if keys.get(me) != own:
        raise turn.fault("P-3.4", "our own keys are missing or changed")
    return keys


def senders_are_known(turn: Turn, senders: Collection[ClientId], known: Collection[ClientId]) -> None:
    """Parcels come from neighbours on the key list only (P-4.3), and from enough of them (P-5.1)."""
    if turn.party.name in senders or not set(senders) <= set(known):
        raise turn.fault("P-4.3", "parcels from clients that are not our neighbours on the key list")
    if len(senders) + 1 < least_peers(turn.plan):
        raise turn.fault("P-5.1", f"parcels of only {len(senders)} peers, {least_peers(turn.plan) - 1} are needed")


def verified_parcel(
    turn: Turn, sender: ClientId, delivery: m.Delivery, root: bytes, published: frozenset[ClientId]
) -> m.Parcel:
    """The parcel that ``sender`` signed for this client and this key list (P-4.2, P-4.4)."""
    me, expected = turn.party.name, _passed_on(turn, m.SHARES, sender)
    listed = expected.open(delivery.parcel_list, m.ParcelList)
    if listed.key_root != root:
        raise turn.fault("P-4.4", f"{sender} was shown another key list than we were")
    recipients = [name for name in turn.plan.neighbours(sender) if name in published]
    try:
        check_path(listed.parcels, len(recipients), recipients.index(me), delivery.parcel, delivery.path)
    except MerkleError as error:
        raise expected.fault("P-1.2", f"the parcel is not one that {sender} signed: {error}", SERVER) from None
    try:
        return m.Parcel.from_bytes(delivery.parcel, with_pair=sender < me)
    except WireError as error:
        raise expected.fault("P-4.2", str(error)) from None


def shares_fit(turn: Turn, sender: ClientId, parcel: m.Parcel, shares: m.SharePair) -> None:
    """The shares in the box are those that the sender has committed to (P-4.2)."""
    bound, me = Bound(turn.plan.hash), turn.party.name
    checks = (
        bound.share_check(shares.self_mask, m.SELF_MASK, sender, me),
        bound.share_check(shares.mask_seed, m.MASK_SEED, sender, me),
    )
    if checks != (parcel.self_check, parcel.seed_check):
        raise turn.expected.fault("P-4.2", "the shares it sealed are not those it committed to", sender)


def survivor_list(
    turn: Turn, survivors: tuple[ClientId, ...], published: Collection[ClientId], holding: Collection[ClientId]
) -> None:
    """A list that may be signed: well-formed, with us, of clients that can be unmasked (P-6.1), and enough (P-6.3)."""
    plan, me, listed = turn.plan, turn.party.name, set(survivors)
    if list(survivors) != sorted(listed) or not listed <= set(published):
        raise turn.fault("P-6.1", "the survivor list is not a sorted list of clients on the key list")
    if not listed & {me, *plan.neighbours(me)} <= set(holding):
        raise turn.fault("P-6.1", "the survivor list holds a neighbour whose parcel we were not given")
    if me not in listed:
        raise turn.fault("P-6.1", "the survivor list leaves us out, and we have uploaded")
    if len(survivors) < plan.min_survivors:
        raise turn.fault("P-6.3", f"{len(survivors)} survivors, {plan.min_survivors} are needed")


def never_both(turn: Turn, dropped: Collection[ClientId], survivors: Collection[ClientId]) -> None:
    """No peer's two seeds: what is a survivor's cannot be asked as a dropped client's (P-7.4)."""
    if both := sorted(set(dropped) & set(survivors)):
        raise turn.fault("P-7.4", f"asks for the mask seed of survivors {both}")


def dropped_are_the_rest(
    turn: Turn, dropped: tuple[ClientId, ...], survivors: Collection[ClientId], holding: Collection[ClientId]
) -> None:
    """The dropped are exactly the clients whose shares we hold and who are not survivors (P-7.2)."""
    if list(dropped) != sorted(set(holding) - set(survivors)):
        raise turn.fault("P-7.2", "the dropped clients are not those missing from the signed survivor list")


def consents(turn: Turn, signed: bytes, survivors: Collection[ClientId], given: Mapping[str, bytes]) -> None:
    """Signatures over our own survivor list from a quorum of the whole cohort (P-7.3)."""
    plan, signing_keys = turn.plan, turn.party.roster.keys()
    if not given.keys() <= set(survivors):
        raise turn.fault("P-7.3", "consents from clients that are not survivors")
    if len(given) < quorum(plan):
        raise turn.fault("P-7.3", f"{len(given)} consents, {quorum(plan)} are needed")
    for name, signature in given.items():
        try:
            verify(signing_keys[name], CONSENT_PURPOSE, signed, signature)
        except SignatureError:
            raise turn.fault("P-7.3", f"{name}'s consent is not for the survivor list we signed") from None


def _passed_on(turn: Turn, phase: str, sender: ClientId) -> Expected:
    """What a peer signed for the server in ``phase`` and the server passes on to us now."""
    plan, key = turn.plan, turn.party.roster.keys()[sender]
    return Expected(phase, sender, SERVER, key, plan.hash, plan.place, carrier=SERVER, during=turn.expected.phase)
