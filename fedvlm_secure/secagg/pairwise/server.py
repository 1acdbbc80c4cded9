"""The server's half of the pairwise protocol: pass on, add up, collect consents, unmask the sum."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.schema import pack, unpack
from fedvlm_secure.primitives.sealing import SealError, check_public
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import ShareError, combine, weights_at_zero
from fedvlm_secure.primitives.signing import Identity, SignatureError, verify
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.client import CONSENT_PURPOSE, quorum
from fedvlm_secure.secagg.pairwise.masks import Bound, Mask, apply_masks
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.server import THE_COHORT, ServerSessionBase
from fedvlm_secure.secagg.session import ClientId

# Where some shares are wrong, how many other sets of t shares are tried before the dealer is blamed.
ATTEMPTS_TO_RECOVER = 256


@dataclass(frozen=True, slots=True)
class PairwiseRecord:
    """What the pairwise server keeps besides the sum: keys, parcels, consents and shares, by client."""

    keys: dict[str, bytes]
    parcels: dict[str, m.Parcels]
    consents: dict[str, m.Signature]
    revealed: dict[str, m.Revealed]


class PairwiseServer(ServerSessionBase):
    """The server's half as a session."""

    phases = m.PHASES

    def __init__(self, plan: Plan, identity: Identity, roster: Roster) -> None:
        super().__init__(plan, identity, roster)
        self._bound = Bound(self._hash)
        self._kept = PairwiseRecord({}, {}, {}, {})
        self._last_weights: tuple[tuple[int, ...], list[int]] = ((), [])
        self._trusted: list[ClientId] = []

    @property
    def survivors(self) -> tuple[ClientId, ...]:
        """The clients whose masked input is in the sum, sorted."""
        return tuple(sorted(self._uploaded))

    @property
    def dropped(self) -> tuple[ClientId, ...]:
        """The clients whose pair masks are in the sum though their input is not, sorted."""
        return tuple(sorted(self._kept.parcels.keys() - self._uploaded))

    @cached_property
    def _key_root(self) -> bytes:
        """Fixed once the phase `keys` has ended; not read before."""
        return self._bound.key_root(self._kept.keys)

    def _request(self, client: ClientId) -> object:
        match self._phase:
            case m.KEYS:
                return self._plan
            case m.SHARES:
                return m.KeyList(self._kept.keys)
            case m.MASKED_INPUT:
                sent = self._kept.parcels.items()
                return m.Parcels({sender: out.parcels[client] for sender, out in sent if sender != client})
            case m.CONSISTENCY:
                return m.SurvivorList(self.survivors)
            case _:
                return m.UnmaskRequest(self.dropped, self._kept.consents)

    def _take(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        if self._phase == m.MASKED_INPUT:
            self._add_upload(expected, client, frames)
            return
        if len(frames) != 1:
            raise expected.fault("P-1.1", f"{len(frames)} frames where one is expected", "network")
        takers = {
            m.KEYS: self._take_keys,
            m.SHARES: self._take_parcels,
            m.CONSISTENCY: self._take_consent,
            m.UNMASK: self._take_shares,
        }
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

    def _take_parcels(self, expected: Expected, client: ClientId, envelope: bytes) -> None:
        parcels = expected.open(envelope, m.Parcels)
        if parcels.parcels.keys() != self._kept.keys.keys() - {client}:
            raise expected.fault("P-4.3", "parcels for others than the peers on the key list")
        for peer, parcel in parcels.parcels.items():
            self._parcel(client, peer, parcel)
        self._kept.parcels[client] = parcels

    def _take_consent(self, expected: Expected, client: ClientId, envelope: bytes) -> None:
        signature = expected.open(envelope, m.Consent).signature
        signed = self._bound.consent(self._key_root, self.survivors)
        try:
            verify(self._keys[client], CONSENT_PURPOSE, signed, signature)
        except SignatureError:
            raise expected.fault("P-6.2", "does not sign the survivor list it was sent") from None
        self._kept.consents[client] = signature

    def _take_shares(self, expected: Expected, client: ClientId, envelope: bytes) -> None:
        revealed = expected.open(envelope, m.Revealed)
        if revealed.self_mask.keys() != set(self.survivors) or revealed.mask_seed.keys() != set(self.dropped):
            raise expected.fault("P-7.4", "reveals shares of others than was asked")
        self._kept.revealed[client] = revealed

    def _ended(self) -> tuple[ClientId, ...]:
        plan, kept = self._plan, self._kept
        match self._phase:
            case m.KEYS:
                self._require(len(kept.keys), plan.min_survivors, "P-3.3")
                return tuple(sorted(kept.keys))
            case m.SHARES:
                self._require(len(kept.parcels), plan.min_survivors, "P-5.1")
                return tuple(sorted(kept.parcels))
            case m.MASKED_INPUT:
                self._require(len(self._uploaded), plan.min_survivors, "P-5.4")
                return self.survivors
            case m.CONSISTENCY:
                self._require(len(kept.consents), max(quorum(plan), plan.threshold), "P-7.3")
                return tuple(sorted(kept.consents))
            case _:
                self._require(len(kept.revealed), plan.threshold, "P-7.6")
                return ()

    def _unprotected(self) -> Words:
        masks = [self._self_mask(survivor) for survivor in self.survivors]
        for dropped in self.dropped:
            masks += self._pair_masks(dropped)
        total = self._total.copy()
        apply_masks(total, [mask.inverse for mask in masks])
        return total

    def _self_mask(self, survivor: ClientId) -> Mask:
        commitment = self._published(survivor).self_commitment
        shares = {name: revealed.self_mask[survivor] for name, revealed in self._kept.revealed.items()}
        seed = self._recover(survivor, shares, lambda seed: self._bound.self_commitment(seed, survivor) == commitment)
        return self._bound.self_mask(seed, survivor)

    def _pair_masks(self, dropped: ClientId) -> list[Mask]:
        """The masks that the survivors applied for their pairs with a dropped client."""
        public = self._published(dropped).mask_key
        shares = {name: revealed.mask_seed[dropped] for name, revealed in self._kept.revealed.items()}
        mask_seed = self._recover(dropped, shares, lambda seed: self._bound.mask_key(seed, dropped).public == public)
        mask_key = self._bound.mask_key(mask_seed, dropped)
        masks = []
        for survivor in self.survivors:
            if dropped < survivor:
                pair_seed = self._bound.pair_seed(mask_seed, dropped, survivor)
            else:
                box = self._parcel(survivor, dropped, self._kept.parcels[survivor].parcels[dropped]).pair
                try:
                    pair_seed = self._bound.open_pair(box or b"", mask_key, self._key_root, survivor, dropped)
                except SealError as error:
                    raise self._fault("P-4.2", survivor, str(error)) from None
            masks.append(self._bound.pair_mask(pair_seed, survivor, dropped))
        return masks

    def _recover(self, dealer: ClientId, shares: dict[ClientId, Secret], fits: Callable[[Secret], bool]) -> Secret:
        """The dealer's seed from any t shares that give one which fits what the dealer published (P-7.7)."""
        for holders in self._sets_of_holders(list(shares)):
            points = {self._plan.point(holder): shares[holder] for holder in holders}
            try:
                seed = combine(points, self._weights(tuple(points)))
            except ShareError:
                continue
            if fits(seed):
                self._trusted = holders
                return seed
        detail = f"shares of {dealer}'s seed do not give what it committed to: it dealt, or their holders gave, others"
        raise self._fault("P-7.7", THE_COHORT, detail)

    def _sets_of_holders(self, holders: list[ClientId]) -> Iterator[list[ClientId]]:
        """Sets of t holders to try, those who told the truth last time first.

        In the order of names, one liar with an early name would be in every set that is ever tried.
        """
        threshold = self._plan.threshold
        if self._trusted and set(self._trusted) <= set(holders):
            yield self._trusted
        yield sorted(holders)[:threshold]
        for number in range(ATTEMPTS_TO_RECOVER):
            ranked = sorted(holders, key=lambda holder: digest("holders", self._hash, number, holder))
            yield sorted(ranked[:threshold])

    def _weights(self, points: tuple[int, ...]) -> list[int]:
        """Lagrange's weights; nearly always the same set of holders, so the last answer is kept."""
        if self._last_weights[0] != points:
            self._last_weights = points, weights_at_zero(points)
        return self._last_weights[1]

    def _published(self, client: ClientId) -> m.Keys:
        return self._expected(m.KEYS, client).open(self._kept.keys[client], m.Keys)

    def _parcel(self, sender: ClientId, recipient: ClientId, envelope: bytes) -> m.Parcel:
        expected = replace(self._expected(m.PARCEL, sender, recipient), carrier=sender, during=m.SHARES)
        parcel = expected.open(envelope, m.Parcel)
        if parcel.key_root != self._key_root:
            raise expected.fault("P-4.4", f"its parcel for {recipient} is for another key list")
        if (parcel.pair is None) != (recipient < sender):
            raise expected.fault("P-4.2", f"in its parcel for {recipient} a pair seed is missing or superfluous")
        return parcel

    def _recorded(self, direction: str) -> bool:
        """Keep signed words, not shares; requests that only repeat recorded replies are kept as digests."""
        if direction == "request":
            return self._phase in (m.KEYS, m.CONSISTENCY, m.UNMASK)
        return self._phase != m.UNMASK

    def _own(self) -> bytes:
        return pack(self._kept, STATE_LIMITS)

    def _restore_own(self, own: bytes) -> None:
        self._kept = unpack(PairwiseRecord, own, STATE_LIMITS)
