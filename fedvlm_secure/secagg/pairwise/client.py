"""The client's half of the pairwise protocol: five transitions from state and request to the next state and answer."""

from dataclasses import dataclass

from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import Digest
from fedvlm_secure.primitives.sealing import SealError, SealingKey
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import SHARE_BYTES, split
from fedvlm_secure.secagg.client import Answer, ClientSessionBase, Finished, Ready, Step, Turn
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise import rules
from fedvlm_secure.secagg.pairwise.masks import Bound, Mask, apply_masks, key_digest
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import ClientId
from fedvlm_secure.secagg.upload import upload_frames

NAME = "pairwise"


@dataclass(frozen=True, slots=True)
class KeysSent:
    """This attempt's three seeds exist; the public keys are on their way."""

    self_seed: Secret
    mask_seed: Secret
    share_seed: Secret


@dataclass(frozen=True, slots=True)
class SharesSent:
    """The keys are known and fixed by ``key_root``; shares and pair seeds are on their way.

    Attributes:
        published: everyone on the key list, sorted.
        own: this client's shares of its own seeds.
    """

    self_seed: Secret
    mask_seed: Secret
    share_seed: Secret
    published: tuple[ClientId, ...]
    key_root: Digest
    own: m.SharePair


@dataclass(frozen=True, slots=True)
class InputSent:
    """The masked vector is on its way; the seeds are gone, the peers' shares are kept."""

    published: tuple[ClientId, ...]
    key_root: Digest
    shares: dict[str, m.SharePair]


@dataclass(frozen=True, slots=True)
class Consented:
    """One survivor list is signed; no other will be."""

    key_root: Digest
    shares: dict[str, m.SharePair]
    survivors: tuple[ClientId, ...]


def advertise(turn: Turn, state: Ready, plan: Plan) -> tuple[KeysSent, Answer]:
    """Make this attempt's seeds and publish keys for them (P-3.1)."""
    seeds = KeysSent(Secret.generate(), Secret.generate(), Secret.generate())
    return seeds, (_public(Bound(plan.hash), seeds, turn.party.name), [])


def share(turn: Turn, state: KeysSent, request: m.KeyList) -> tuple[SharesSent, Answer]:
    """Verify the neighbours' keys, then share both seeds among them and seal a seed for every pair (P-3, P-4)."""
    plan, me = turn.plan, turn.party.name
    bound = Bound(plan.hash)
    keys = rules.verified_keys(turn, request, _public(bound, state, me))
    digests = request.others | {name: key_digest(envelope) for name, envelope in request.keys.items()}
    root = bound.key_root(digests)
    points = {name: plan.point(name) for name in keys}
    self_shares = split(state.self_seed, plan.threshold, list(points.values()))
    seed_shares = split(state.mask_seed, plan.threshold, list(points.values()))
    dealt = {name: m.SharePair(self_shares[point], seed_shares[point]) for name, point in points.items()}
    own, parcels = dealt.pop(me), []
    for peer, shares in dealt.items():
        pair_seed = bound.pair_seed(state.mask_seed, me, peer) if me < peer else None
        try:
            parcels.append(_parcel(bound, root, me, peer, keys[peer], shares, pair_seed))
        except SealError as error:
            raise turn.expected.fault("P-3.1", str(error), peer) from None
    sent = SharesSent(state.self_seed, state.mask_seed, state.share_seed, tuple(sorted(digests)), root, own)
    return sent, (m.ParcelList(root, MerkleTree(parcels).root), parcels)


def mask(turn: Turn, state: SharesSent, request: m.Deliveries) -> tuple[InputSent, Answer]:
    """Open the parcels, mask the encoded update with every sender's pair and our own mask (P-5.2), upload it."""
    plan, me = turn.plan, turn.party.name
    bound = Bound(plan.hash)
    published = frozenset(state.published)
    rules.senders_are_known(turn, request.parcels.keys(), published & set(plan.neighbours(me)))
    share_key, mask_key = bound.share_key(state.share_seed, me), bound.mask_key(state.mask_seed, me)
    shares, masks = {me: state.own}, [bound.self_mask(state.self_seed, me)]
    for sender, delivery in request.parcels.items():
        parcel = rules.verified_parcel(turn, sender, delivery, state.key_root, published)
        try:
            shares[sender] = _opened(bound.open_shares(parcel.shares, share_key, state.key_root, sender, me))
            masks.append(_pair_mask(bound, state, parcel, mask_key, sender, me))
        except SealError as error:
            raise turn.expected.fault("P-4.2", str(error), sender) from None
        rules.shares_fit(turn, sender, parcel, shares[sender])
    words = turn.encoded()
    apply_masks(words, masks)
    return InputSent(state.published, state.key_root, shares), upload_frames(words, plan)


def consent(turn: Turn, state: InputSent, request: m.SurvivorList) -> tuple[Consented, Answer]:
    """Sign the one survivor list this client will ever sign in this attempt (P-6)."""
    rules.survivor_list(turn, request.survivors, state.published, state.shares.keys())
    signed = Bound(turn.plan.hash).consent(state.key_root, request.survivors)
    answer = m.Consent(turn.party.identity.sign(rules.CONSENT_PURPOSE, signed))
    return Consented(state.key_root, state.shares, request.survivors), (answer, [])


def reveal(turn: Turn, state: Consented, request: m.UnmaskRequest) -> tuple[Finished, Answer]:
    """Give up what the server needs to remove masks, once (P-7).

    For a survivor the self-mask share, for a dropped client the mask-seed share; never both for one peer (P-7.4).
    """
    rules.never_both(turn, request.dropped, state.survivors)
    rules.dropped_are_the_rest(turn, request.dropped, state.survivors, state.shares.keys())
    signed = Bound(turn.plan.hash).consent(state.key_root, state.survivors)
    rules.consents(turn, signed, state.survivors, request.consents)
    revealed = m.Revealed(
        self_mask={name: state.shares[name].self_mask for name in state.survivors if name in state.shares},
        mask_seed={name: state.shares[name].mask_seed for name in request.dropped},
    )
    return Finished(), (revealed, [])


class PairwiseClient(ClientSessionBase):
    """The client's half as a session."""

    protocol = NAME
    steps = {  # noqa: RUF012
        Ready: (Step(m.KEYS, Plan, advertise),),
        KeysSent: (Step(m.SHARES, m.KeyList, share),),
        SharesSent: (Step(m.MASKED_INPUT, m.Deliveries, mask),),
        InputSent: (Step(m.CONSISTENCY, m.SurvivorList, consent),),
        Consented: (Step(m.UNMASK, m.UnmaskRequest, reveal),),
    }


def _public(bound: Bound, seeds: KeysSent, me: ClientId) -> m.Keys:
    return m.Keys(
        share_key=bound.share_key(seeds.share_seed, me).public,
        mask_key=bound.mask_key(seeds.mask_seed, me).public,
        self_commitment=bound.self_commitment(seeds.self_seed, me),
    )


def _parcel(
    bound: Bound, root: bytes, me: ClientId, peer: ClientId, keys: m.Keys, shares: m.SharePair, pair: Secret | None
) -> bytes:
    both = Secret(shares.self_mask.reveal() + shares.mask_seed.reveal())
    return m.Parcel(
        self_check=bound.share_check(shares.self_mask, m.SELF_MASK, me, peer),
        seed_check=bound.share_check(shares.mask_seed, m.MASK_SEED, me, peer),
        shares=bound.seal_shares(both, keys.share_key, root, me, peer),
        pair=None if pair is None else bound.seal_pair(pair, keys.mask_key, root, me, peer),
    ).to_bytes()


def _opened(both: Secret) -> m.SharePair:
    plain = both.reveal()
    return m.SharePair(Secret(plain[:SHARE_BYTES]), Secret(plain[SHARE_BYTES:]))


def _pair_mask(
    bound: Bound, state: SharesSent, parcel: m.Parcel, mask_key: SealingKey, peer: ClientId, me: ClientId
) -> Mask:
    if parcel.pair is None:
        pair_seed = bound.pair_seed(state.mask_seed, me, peer)
    else:
        pair_seed = bound.open_pair(parcel.pair, mask_key, state.key_root, peer, me)
    return bound.pair_mask(pair_seed, me, peer)
