"""The server's half of the pairwise protocol: pass on, add up, collect consents, unmask the sum."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.sealing import SealError, check_public
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import ShareError, combine, weights_at_zero
from fedvlm_secure.primitives.signing import Identity, SignatureError, verify
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.envelope import NETWORK, Envelope, Expected
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.masks import Bound, Mask, apply_masks, key_digest
from fedvlm_secure.secagg.pairwise.rules import CONSENT_PURPOSE, least_peers, quorum
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.server import ServerSessionBase
from fedvlm_secure.secagg.session import ClientId


@dataclass(frozen=True, slots=True)
class Dealt:
    """One client's parcels: the signed list, and the parcels in the order of their recipients' names."""

    listed: bytes
    parcels: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PairwiseRecord:
    """What the pairwise server keeps besides the sum: keys, parcels, consents and shares, by client."""

    keys: dict[str, bytes]
    dealt: dict[str, Dealt]
    consents: dict[str, m.Signature]
    revealed: dict[str, m.Revealed]


class PairwiseServer(ServerSessionBase):
    """The server's half as a session."""

    phases = m.PHASES

    def __init__(self, plan: Plan, identity: Identity | None, roster: Roster, carried: bytes = b"") -> None:
        super().__init__(plan, identity, roster, carried)
        self._bound = Bound(self._hash)
        self._near = {name: plan.neighbours(name) for name in plan.cohort}
        self._kept = PairwiseRecord({}, {}, {}, {})
        self._trees: dict[ClientId, MerkleTree] = {}
        self._last_weights: tuple[tuple[int, ...], list[int]] = ((), [])

    @property
    def survivors(self) -> tuple[ClientId, ...]:
        """The clients whose masked input is in the sum, sorted."""
        return tuple(sorted(self._uploaded))

    @property
    def dropped(self) -> tuple[ClientId, ...]:
        """The clients whose pair masks are in the sum though their input is not, sorted."""
        return tuple(sorted(self._kept.dealt.keys() - self._uploaded))

    @cached_property
    def _key_digests(self) -> dict[ClientId, Digest]:
        """Fixed once the phase `keys` has ended; not read before."""
        return {name: key_digest(envelope) for name, envelope in self._kept.keys.items()}

    @cached_property
    def _key_root(self) -> bytes:
        return self._bound.key_root(self._key_digests)

    @cached_property
    def _recipients(self) -> dict[ClientId, list[ClientId]]:
        """To whom each client deals, sorted: its neighbours on the key list."""
        return {sender: [name for name in near if name in self._kept.keys] for sender, near in self._near.items()}

    def _holders(self, owner: ClientId) -> list[ClientId]:
        """The survivors who hold a share of ``owner``'s seeds."""
        return [name for name in sorted((owner, *self._near[owner])) if name in self._uploaded]

    def _request(self, client: ClientId) -> object:
        near = {client, *self._near[client]}
        match self._phase:
            case m.KEYS:
                return self._plan
            case m.SHARES:
                own = {name: envelope for name, envelope in self._kept.keys.items() if name in near}
                return m.KeyList(own, {name: it for name, it in self._key_digests.items() if name not in near})
            case m.MASKED_INPUT:
                senders = [name for name in self._near[client] if name in self._kept.dealt]
                return m.Deliveries({sender: self._delivery(sender, client) for sender in senders})
            case m.CONSISTENCY:
                return m.SurvivorList(self.survivors)
            case _:
                needed = sorted(self._kept.consents)[: quorum(self._plan)]
                consents = {name: self._kept.consents[name] for name in needed}
                return m.UnmaskRequest(tuple(name for name in self.dropped if name in near), consents)

    def _alike(self) -> bool:
        return self._phase in (m.KEYS, m.CONSISTENCY) or (self._plan.complete and self._phase != m.MASKED_INPUT)

    def _delivery(self, sender: ClientId, recipient: ClientId) -> m.Delivery:
        dealt, index = self._kept.dealt[sender], bisect_left(self._recipients[sender], recipient)
        if sender not in self._trees:
            self._trees[sender] = MerkleTree(dealt.parcels)
        return m.Delivery(dealt.listed, dealt.parcels[index], self._trees[sender].path(index))

    def _take(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        if self._phase == m.MASKED_INPUT:
            self._add_upload(expected, client, frames)
            return
        if self._phase == m.SHARES:
            self._take_parcels(expected, client, frames)
            return
        if len(frames) != 1:
            raise expected.fault("P-1.1", f"{len(frames)} frames where one is expected", NETWORK)
        takers = {m.KEYS: self._take_keys, m.CONSISTENCY: self._take_consent, m.UNMASK: self._take_shares}
        takers[self._phase](expected, client, bytes(frames[0]))

    def _take_keys(self, expected: Expected, client: ClientId, envelope: bytes) -> None:
        keys = expected.open(envelope, m.Keys)
        try:
            check_public(keys.share_key)
            check_public(keys.mask_key)
        except SealError as error:
            # Passed on, such a key would make every other client close its session.
            raise expected.fault("P-3.1", str(error)) from None
        self._kept.keys[client] = envelope

    def _take_parcels(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        envelope, parcels = bytes(frames[0]), tuple(bytes(frame) for frame in frames[1:])
        listed, recipients = expected.open(envelope, m.ParcelList), self._recipients[client]
        if listed.key_root != self._key_root:
            raise expected.fault("P-4.4", "its parcels are for another key list")
        if len(parcels) != len(recipients):
            raise expected.fault("P-4.3", f"{len(parcels)} parcels for {len(recipients)} peers", NETWORK)
        tree = MerkleTree(parcels)
        if tree.root != listed.parcels:
            raise expected.fault("P-4.2", "the parcels are not those of the signed list", NETWORK)
        for recipient, parcel in zip(recipients, parcels, strict=True):
            if len(parcel) != m.parcel_bytes(with_pair=client < recipient):
                raise expected.fault("P-4.2", f"a parcel of {len(parcel)} bytes for {recipient}")
        self._kept.dealt[client] = Dealt(envelope, parcels)
        self._trees[client] = tree

    def _take_consent(self, expected: Expected, client: ClientId, envelope: bytes) -> None:
        signature = expected.open(envelope, m.Consent).signature
        signed = self._bound.consent(self._key_root, self.survivors)
        try:
            verify(self._keys[client], CONSENT_PURPOSE, signed, signature)
        except SignatureError:
            raise expected.fault("P-6.2", "does not sign the survivor list it was sent") from None
        self._kept.consents[client] = signature

    def _take_shares(self, expected: Expected, client: ClientId, envelope: bytes) -> None:
        revealed, held = expected.open(envelope, m.Revealed), {client, *self._near[client]}
        if revealed.self_mask.keys() != held & self._uploaded or revealed.mask_seed.keys() != held & set(self.dropped):
            raise expected.fault("P-7.4", "reveals shares of others than was asked")
        for seed, shares in ((m.SELF_MASK, revealed.self_mask), (m.MASK_SEED, revealed.mask_seed)):
            for dealer, share in shares.items():
                if dealer != client:
                    self._check_share(expected, seed, dealer, client, share)
        self._kept.revealed[client] = revealed

    def _check_share(self, expected: Expected, seed: str, dealer: ClientId, holder: ClientId, share: Secret) -> None:
        """The holder found its share to fit the dealer's commitment; it must be the one it reveals (P-7.7)."""
        committed = m.check_of(self._dealt_parcel(dealer, holder), seed)
        if self._bound.share_check(share, seed, dealer, holder) != committed:
            raise expected.fault("P-7.7", f"its share of {dealer}'s {seed} seed is not the one that it was dealt")

    def _ended(self) -> tuple[ClientId, ...]:
        plan, kept = self._plan, self._kept
        match self._phase:
            case m.KEYS:
                self._require(len(kept.keys), plan.min_survivors, "P-3.3")
                return tuple(sorted(name for name in kept.keys if self._has_peers(name, kept.keys)))
            case m.SHARES:
                self._require(len(kept.dealt), plan.min_survivors, "P-5.1")
                return tuple(sorted(name for name in kept.dealt if self._has_peers(name, kept.dealt)))
            case m.MASKED_INPUT:
                self._require(len(self._uploaded), plan.min_survivors, "P-5.4")
                for owner in kept.dealt:
                    self._require(len(self._holders(owner)), plan.threshold, "P-5.4", f" around {owner}")
                return self.survivors
            case m.CONSISTENCY:
                self._require(len(kept.consents), quorum(plan), "P-7.3")
                return tuple(sorted(kept.consents))
            case _:
                for owner in kept.dealt:
                    self._require(len(self._answered(owner)), plan.threshold, "P-7.6", f" around {owner}")
                return ()

    def _has_peers(self, client: ClientId, present: Mapping[ClientId, object]) -> bool:
        """Whether ``client`` would answer: on a sparse graph it may have lost its neighbours though others remain."""
        return 1 + sum(name in present for name in self._near[client]) >= least_peers(self._plan)

    def _unprotected(self) -> Words:
        masks = [self._self_mask(survivor) for survivor in self.survivors]
        for dropped in self.dropped:
            masks += self._pair_masks(dropped)
        total = self._total.copy()
        apply_masks(total, [mask.inverse for mask in masks])
        return total

    def _self_mask(self, survivor: ClientId) -> Mask:
        commitment = self._published(survivor).self_commitment
        shares = {name: self._kept.revealed[name].self_mask[survivor] for name in self._answered(survivor)}
        seed = self._recover(survivor, shares, lambda seed: self._bound.self_commitment(seed, survivor) == commitment)
        return self._bound.self_mask(seed, survivor)

    def _pair_masks(self, dropped: ClientId) -> list[Mask]:
        """The masks that the survivors applied for their pairs with a dropped client."""
        public = self._published(dropped).mask_key
        shares = {name: self._kept.revealed[name].mask_seed[dropped] for name in self._answered(dropped)}
        mask_seed = self._recover(dropped, shares, lambda seed: self._bound.mask_key(seed, dropped).public == public)
        mask_key = self._bound.mask_key(mask_seed, dropped)
        masks = []
        for survivor in self._holders(dropped):
            if dropped < survivor:
                pair_seed = self._bound.pair_seed(mask_seed, dropped, survivor)
            else:
                box = m.Parcel.from_bytes(self._dealt_parcel(survivor, dropped), with_pair=True).pair
                try:
                    pair_seed = self._bound.open_pair(box or b"", mask_key, self._key_root, survivor, dropped)
                except SealError as error:
                    raise self._fault("P-4.2", survivor, str(error)) from None
            masks.append(self._bound.pair_mask(pair_seed, survivor, dropped))
        return masks

    def _answered(self, owner: ClientId) -> list[ClientId]:
        return [holder for holder in self._holders(owner) if holder in self._kept.revealed]

    def _recover(self, dealer: ClientId, shares: Mapping[ClientId, Secret], fits: Callable[[Secret], bool]) -> Secret:
        """The dealer's seed, from t shares that it has committed to, checked against what it published (P-7.7).

        Its own share has no commitment; if that is the wrong one, the others' give the seed without it.
        """
        others = {holder: share for holder, share in shares.items() if holder != dealer}
        for held in (shares, others):
            holders = sorted(held)[: self._plan.threshold]
            points = {self._plan.point(holder): held[holder] for holder in holders}
            try:
                seed = combine(points, self._weights(tuple(points)))
            except ShareError:
                continue
            if len(points) == self._plan.threshold and fits(seed):
                return seed
        raise self._fault("P-7.7", dealer, "the shares that it dealt do not give the seed that it committed to")

    def _weights(self, points: tuple[int, ...]) -> list[int]:
        """Lagrange's weights; nearly always the same set of holders, so the last answer is kept."""
        if self._last_weights[0] != points:
            self._last_weights = points, weights_at_zero(points)
        return self._last_weights[1]

    def _published(self, client: ClientId) -> m.Keys:
        return unpack(m.Keys, unpack(Envelope, self._kept.keys[client]).body)  # verified when it was taken in

    def _dealt_parcel(self, sender: ClientId, recipient: ClientId) -> bytes:
        return self._kept.dealt[sender].parcels[bisect_left(self._recipients[sender], recipient)]

    def _recorded(self, direction: str) -> bool:
        """Keep signed words, not shares; requests that only repeat recorded replies are kept as digests."""
        if direction == "request":
            return self._phase in (m.KEYS, m.CONSISTENCY, m.UNMASK)
        return self._phase != m.UNMASK

    def _own(self) -> bytes:
        return pack(self._kept, STATE_LIMITS)

    def _restore_own(self, own: bytes) -> None:
        self._kept = unpack(PairwiseRecord, own, STATE_LIMITS)
