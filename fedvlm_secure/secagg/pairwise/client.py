"""The client's half of the pairwise protocol: five transitions from state and request to the next state and answer."""

from dataclasses import dataclass

from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.sealing import SealError
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import SHARE_BYTES, split
from fedvlm_secure.primitives.signing import SignatureError, verify
from fedvlm_secure.primitives.wire import WireError
from fedvlm_secure.secagg.client import Answer, ClientSessionBase, Finished, Ready, Step, Turn
from fedvlm_secure.secagg.envelope import Expected, seal
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.masks import Bound, apply_masks
from fedvlm_secure.secagg.plan import MALICIOUS_SERVER, Plan, majority
from fedvlm_secure.secagg.server import upload_frames
from fedvlm_secure.secagg.session import SERVER, ClientId

NAME = "pairwise"
CONSENT_PURPOSE = "survivor-list"


@dataclass(frozen=True, slots=True)
class KeysSent:
    """This attempt's three seeds exist; the public keys are on their way."""

    self_seed: Secret
    mask_seed: Secret
    share_seed: Secret


@dataclass(frozen=True, slots=True)
class SharesSent:
    """Everyone's keys are known and fixed by ``key_root``; shares and pair seeds are on their way."""

    self_seed: Secret
    mask_seed: Secret
    share_seed: Secret
    keys: dict[str, bytes]
    key_root: Digest
    own: m.SharePair


@dataclass(frozen=True, slots=True)
class InputSent:
    """The masked vector is on its way; the seeds are gone, the peers' shares are kept."""

    key_root: Digest
    shares: dict[str, m.SharePair]


@dataclass(frozen=True, slots=True)
class Consented:
    """One survivor list is signed; no other will be."""

    key_root: Digest
    shares: dict[str, m.SharePair]
    survivors: tuple[ClientId, ...]


def quorum(plan: Plan) -> int:
    """How many of the whole cohort must have signed one survivor list before anyone unmasks (P-7.3)."""
    if plan.threat_model == MALICIOUS_SERVER:
        return majority(len(plan.cohort), plan.max_corrupt)
    return plan.threshold


def advertise(turn: Turn, state: Ready, plan: Plan) -> tuple[KeysSent, Answer]:
    """Make this attempt's seeds and publish keys for them (P-3.1)."""
    seeds = KeysSent(Secret.generate(), Secret.generate(), Secret.generate())
    return seeds, (_public(Bound(plan.hash), seeds, turn.party.name), [])


def share(turn: Turn, state: KeysSent, request: m.KeyList) -> tuple[SharesSent, Answer]:
    """Verify everyone's keys, then share both seeds among them and seal a seed for every pair (P-3, P-4)."""
    plan, me = turn.plan, turn.party.name
    bound = Bound(plan.hash)
    keys = _verified_keys(turn, state, request)
    root = bound.key_root(request.keys)
    points = {name: plan.point(name) for name in keys}
    self_shares = split(state.self_seed, plan.threshold, list(points.values()))
    seed_shares = split(state.mask_seed, plan.threshold, list(points.values()))
    parcels = {}
    for peer, peer_keys in keys.items():
        if peer == me:
            continue
        pair = m.SharePair(self_shares[points[peer]], seed_shares[points[peer]])
        try:
            sealed_shares = bound.seal_shares(Secret(pack(pair)), peer_keys.share_key, root, me, peer)
            sealed_pair = None
            if me < peer:
                pair_seed = bound.pair_seed(state.mask_seed, me, peer)
                sealed_pair = bound.seal_pair(pair_seed, peer_keys.mask_key, root, me, peer)
        except SealError as error:
            raise turn.expected.fault("P-3.1", str(error), peer) from None
        parcel = m.Parcel(root, sealed_shares, sealed_pair)
        parcels[peer] = seal(turn.party.identity, m.PARCEL, plan.hash, me, peer, parcel)
    own = m.SharePair(self_shares[points[me]], seed_shares[points[me]])
    sent = SharesSent(state.self_seed, state.mask_seed, state.share_seed, dict(request.keys), root, own)
    return sent, (m.Parcels(parcels), [])


def mask(turn: Turn, state: SharesSent, request: m.Parcels) -> tuple[InputSent, Answer]:
    """Open the parcels, mask the encoded update with every sender's pair and our own mask (P-5.2), upload it."""
    plan, me = turn.plan, turn.party.name
    bound = Bound(plan.hash)
    share_key, mask_key = bound.share_key(state.share_seed, me), bound.mask_key(state.mask_seed, me)
    if me in request.parcels or not request.parcels.keys() <= state.keys.keys():
        raise turn.fault("P-4.3", "parcels from clients that are not on the key list")
    if len(request.parcels) + 1 < plan.min_survivors:
        raise turn.fault("P-5.1", f"parcels of only {len(request.parcels)} peers")
    shares, masks = {me: state.own}, [bound.self_mask(state.self_seed, me)]
    for sender, envelope in request.parcels.items():
        parcel = _parcel(turn, sender, envelope, state.key_root)
        try:
            shares[sender] = _shares(bound.open_shares(parcel.shares, share_key, parcel.key_root, sender, me))
            if parcel.pair is None:
                pair_seed = bound.pair_seed(state.mask_seed, me, sender)
            else:
                pair_seed = bound.open_pair(parcel.pair, mask_key, parcel.key_root, sender, me)
        except (SealError, WireError) as error:
            raise turn.expected.fault("P-4.2", str(error), sender) from None
        masks.append(bound.pair_mask(pair_seed, me, sender))
    words = turn.encoded()
    apply_masks(words, masks)
    return InputSent(state.key_root, shares), upload_frames(words, plan)


def consent(turn: Turn, state: InputSent, request: m.SurvivorList) -> tuple[Consented, Answer]:
    """Sign the one survivor list this client will ever sign in this attempt (P-6)."""
    plan, me, survivors = turn.plan, turn.party.name, request.survivors
    if list(survivors) != sorted(set(survivors)) or not set(survivors) <= state.shares.keys():
        raise turn.fault("P-6.1", "the survivor list is not a sorted list of clients whose parcels we hold")
    if me not in survivors:
        raise turn.fault("P-6.1", "the survivor list leaves us out, and we have uploaded")
    if len(survivors) < plan.min_survivors:
        raise turn.fault("P-6.3", f"{len(survivors)} survivors, {plan.min_survivors} are needed")
    signed = Bound(plan.hash).consent(state.key_root, survivors)
    answer = m.Consent(turn.party.identity.sign(CONSENT_PURPOSE, signed))
    return Consented(state.key_root, state.shares, survivors), (answer, [])


def reveal(turn: Turn, state: Consented, request: m.UnmaskRequest) -> tuple[Finished, Answer]:
    """Give up what the server needs to remove masks, once (P-7).

    For a survivor the self-mask share, for a dropped client the mask-seed share; never both for one peer (P-7.4).
    """
    survivors, dropped = set(state.survivors), set(request.dropped)
    if survivors & dropped:
        raise turn.fault("P-7.4", f"asks for the mask seed of survivors {sorted(survivors & dropped)}")
    if list(request.dropped) != sorted(dropped) or dropped != state.shares.keys() - survivors:
        raise turn.fault("P-7.2", "the dropped clients are not those missing from the signed survivor list")
    _check_consents(turn, state, request.consents)
    revealed = m.Revealed(
        self_mask={name: state.shares[name].self_mask for name in survivors},
        mask_seed={name: state.shares[name].mask_seed for name in dropped},
    )
    return Finished(), (revealed, [])


class PairwiseClient(ClientSessionBase):
    """The client's half as a session."""

    protocol = NAME
    steps = {  # noqa: RUF012
        Ready: Step(m.KEYS, Plan, advertise),
        KeysSent: Step(m.SHARES, m.KeyList, share),
        SharesSent: Step(m.MASKED_INPUT, m.Parcels, mask),
        InputSent: Step(m.CONSISTENCY, m.SurvivorList, consent),
        Consented: Step(m.UNMASK, m.UnmaskRequest, reveal),
    }


def _public(bound: Bound, seeds: KeysSent, me: ClientId) -> m.Keys:
    return m.Keys(
        share_key=bound.share_key(seeds.share_seed, me).public,
        mask_key=bound.mask_key(seeds.mask_seed, me).public,
        self_commitment=bound.self_commitment(seeds.self_seed, me),
    )


def _verified_keys(turn: Turn, state: KeysSent, request: m.KeyList) -> dict[ClientId, m.Keys]:
    plan, me, signing_keys = turn.plan, turn.party.name, turn.party.roster.keys()
    if not request.keys.keys() <= set(plan.cohort):
        raise turn.fault("P-3.2", "keys of clients outside the cohort")
    if len(request.keys) < plan.min_survivors:
        raise turn.fault("P-3.3", f"keys of only {len(request.keys)} clients, {plan.min_survivors} are needed")
    keys = {
        name: Expected(
            m.KEYS, name, SERVER, signing_keys[name], plan.hash, plan.place, carrier=SERVER, during=m.SHARES
        ).open(envelope, m.Keys)
        for name, envelope in sorted(request.keys.items())
    }
    if keys.get(me) != _public(Bound(plan.hash), state, me):
        raise turn.fault("P-3.4", "our own keys are missing or changed")
    return keys


def _parcel(turn: Turn, sender: ClientId, envelope: bytes, root: bytes) -> m.Parcel:
    plan, me = turn.plan, turn.party.name
    key = turn.party.roster.keys()[sender]
    expected = Expected(m.PARCEL, sender, me, key, plan.hash, plan.place, carrier=SERVER, during=m.MASKED_INPUT)
    parcel = expected.open(envelope, m.Parcel)
    if parcel.key_root != root:
        raise turn.fault("P-4.4", f"{sender} was shown another key list than we were")
    if (parcel.pair is None) != (me < sender):
        raise expected.fault("P-4.2", "a pair seed is missing or superfluous")
    return parcel


def _shares(opened: Secret) -> m.SharePair:
    pair = unpack(m.SharePair, opened.reveal())
    if len(pair.self_mask) != SHARE_BYTES or len(pair.mask_seed) != SHARE_BYTES:
        raise WireError("shares of another length")
    return pair


def _check_consents(turn: Turn, state: Consented, consents: dict[str, bytes]) -> None:
    """Signatures over our own survivor list from a quorum of the whole cohort (P-7.3)."""
    plan, signing_keys = turn.plan, turn.party.roster.keys()
    if not consents.keys() <= set(state.survivors):
        raise turn.fault("P-7.3", "consents from clients that are not survivors")
    if len(consents) < quorum(plan):
        raise turn.fault("P-7.3", f"{len(consents)} consents, {quorum(plan)} are needed")
    signed = Bound(plan.hash).consent(state.key_root, state.survivors)
    for name, signature in consents.items():
        try:
            verify(signing_keys[name], CONSENT_PURPOSE, signed, signature)
        except SignatureError:
            raise turn.fault("P-7.3", f"{name}'s consent is not for the survivor list we signed") from None
