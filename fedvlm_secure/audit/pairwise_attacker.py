"""A server of the pairwise protocol that lies, the clients that are one with it, and what they work out together.

The attacker checks nothing. It signs whatever helps it with the server's true key, reads the sessions of its colluders,
and keeps every key, parcel, masked vector and share that it gets hold of.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import combine
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.envelope import Envelope, split
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise import rules
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.masks import Bound, Mask, apply_masks, key_digest
from fedvlm_secure.secagg.plan import Plan

T = TypeVar("T")


class Stage(Protocol):
    """Where the attack happens: one plan, and the keys that the attacker signs with."""

    @property
    def plan(self) -> Plan:
        """What the server proposes; an attack may change it on the way."""

    def says(self, phase: str, client: str, body: object) -> bytes:
        """A message to ``client`` under the server's true signature, whatever it says."""

    def identity_of(self, name: str) -> Identity:
        """A colluder's signing key."""


class NotEnoughError(LookupError):
    """The attacker holds fewer than t shares of the seed that it needs."""


@dataclass
class Attacker:
    """The server and its colluders in one attempt.

    Attributes:
        clients: everyone who answers, the colluders included: their sessions serve them well.
        keys: each client's signed key message.
        dealt: the frames of each client's reply in `shares`: the signed list, then its parcels.
        uploads: each client's masked vector.
        masked_with: the neighbours whose parcels each client was given, and has masked with.
        seeds: what the attacker knows outright, by kind and owner.
        shares: by kind and owner, the shares it holds, by holder.
    """

    federation: Stage
    clients: dict[str, PairwiseClient]
    colluders: Collection[str] = ()
    keys: dict[str, bytes] = field(default_factory=dict)
    dealt: dict[str, list[bytes]] = field(default_factory=dict)
    uploads: dict[str, Words] = field(default_factory=dict)
    masked_with: dict[str, list[str]] = field(default_factory=dict)
    seeds: dict[tuple[str, str], Secret] = field(default_factory=dict)
    shares: dict[tuple[str, str], dict[str, Secret]] = field(default_factory=dict)

    @property
    def plan(self) -> Plan:
        """What the server proposes."""
        return self.federation.plan

    @property
    def bound(self) -> Bound:
        """The derivations of this attempt."""
        return Bound(self.plan.hash)

    @property
    def root(self) -> bytes:
        """The key root of all keys that it was given."""
        return self.bound.key_root({name: key_digest(envelope) for name, envelope in self.keys.items()})

    def ask(self, phase: str, name: str, body: object) -> list[bytes]:
        """The frames of one client's reply to one request."""
        return [bytes(frame) for frame in split(self.clients[name].reply(self.federation.says(phase, name, body)))]

    def until_uploads(self, late: Collection[str] = ()) -> "Attacker":
        """Three phases, honestly, except that the ``late`` are not asked for their masked vectors yet."""
        for name in self.clients:
            self.collect_keys(name)
        for name in self.clients:
            self.collect_parcels(name)
        for name in self.clients:
            if name not in late:
                self.collect_upload(name)
        return self

    def collect_keys(self, name: str) -> None:
        """Propose the plan to one client; a colluder's seeds are the attacker's as well."""
        self.keys[name] = self.ask(m.KEYS, name, self.plan)[0]
        if name in self.colluders:
            state = state_of(self.clients[name])
            self.seeds[m.SELF_MASK, name], self.seeds[m.MASK_SEED, name] = state.self_seed, state.mask_seed

    def collect_parcels(self, name: str) -> None:
        """Show one client the keys, and keep what it deals."""
        self.dealt[name] = self.ask(m.SHARES, name, self.key_list(name))

    def key_list(self, name: str) -> m.KeyList:
        """The keys as ``name`` is to see them."""
        near = {name, *self.plan.neighbours(name)}
        others = {peer: key_digest(envelope) for peer, envelope in self.keys.items() if peer not in near}
        return m.KeyList({peer: envelope for peer, envelope in self.keys.items() if peer in near}, others)

    def collect_upload(self, name: str, without: Collection[str] = ()) -> Words:
        """``name``'s vector, masked with all of its neighbours but those ``without``."""
        deliveries = self.deliveries(name, without)
        frames = self.ask(m.MASKED_INPUT, name, deliveries)
        self.masked_with[name] = list(deliveries.parcels)
        self.uploads[name] = self.plan.ring.unpack(b"".join(frames[1:])).copy()
        if name in self.colluders:
            for dealer, pair in state_of(self.clients[name]).shares.items():
                self._keep(m.SELF_MASK, dealer, name, pair.self_mask)
                self._keep(m.MASK_SEED, dealer, name, pair.mask_seed)
        return self.uploads[name]

    def deliveries(self, recipient: str, without: Collection[str] = ()) -> m.Deliveries:
        """The parcels for one client, but those of ``without``."""
        senders = [name for name in self._peers(recipient) if name in self.dealt and name not in without]
        return m.Deliveries({sender: self._delivery(sender, recipient) for sender in senders})

    def _delivery(self, sender: str, recipient: str) -> m.Delivery:
        listed, *parcels = self.dealt[sender]
        index = self._peers(sender).index(recipient)
        return m.Delivery(listed, parcels[index], MerkleTree(parcels).path(index))

    def _peers(self, name: str) -> list[str]:
        return [peer for peer in self.plan.neighbours(name) if peer in self.keys]

    def _keep(self, kind: str, owner: str, holder: str, share: Secret) -> None:
        self.shares.setdefault((kind, owner), {})[holder] = share

    def consent(self, name: str, survivors: tuple[str, ...]) -> bytes:
        """``name``'s signature over a survivor list; a colluder signs any number of them."""
        if name in self.colluders:
            signed = self.bound.consent(self.root, survivors)
            return self.federation.identity_of(name).sign(rules.CONSENT_PURPOSE, signed)
        return body_of(self.ask(m.CONSISTENCY, name, m.SurvivorList(survivors)), m.Consent).signature

    def reveal(self, name: str, request: m.UnmaskRequest) -> m.Revealed:
        """What ``name`` answers to ``request``; its shares are kept."""
        revealed = body_of(self.ask(m.UNMASK, name, request), m.Revealed)
        for kind, shares in ((m.SELF_MASK, revealed.self_mask), (m.MASK_SEED, revealed.mask_seed)):
            for owner, share in shares.items():
                self._keep(kind, owner, name, share)
        return revealed

    def unmask(self, survivors: tuple[str, ...], asked: Collection[str], also_dropped: Collection[str] = ()) -> None:
        """Have ``asked`` and the colluders sign one list, and ``asked`` answer for it.

        Args:
            also_dropped: survivors that the requests call dropped as well.
        """
        consents = {name: self.consent(name, survivors) for name in [*asked, *self.colluders] if name in survivors}
        for name in asked:
            self.reveal(name, self.unmask_request(name, survivors, consents, also_dropped))

    def unmask_request(
        self,
        name: str,
        survivors: tuple[str, ...],
        consents: Mapping[str, bytes],
        also_dropped: Collection[str] = (),
    ) -> m.UnmaskRequest:
        """The last request, with these consents; ``also_dropped`` are survivors that it calls dropped."""
        gone = set(self.masked_with[name]) - set(survivors)
        return m.UnmaskRequest(tuple(sorted(gone | set(also_dropped))), dict(consents))

    def seed(self, kind: str, owner: str) -> Secret:
        """A seed that the attacker knows, or has t shares of."""
        if (kind, owner) in self.seeds:
            return self.seeds[kind, owner]
        shares = list(self.shares.get((kind, owner), {}).items())
        if len(shares) < self.plan.threshold:
            raise NotEnoughError(f"{len(shares)} shares of {owner}'s {kind} seed")
        return combine({self.plan.point(holder): share for holder, share in shares[: self.plan.threshold]})

    def pair_mask(self, name: str, peer: str) -> Mask:
        """The mask that ``name`` applied for its pair with ``peer``: either one's mask seed gives it."""
        for owner, other in ((name, peer), (peer, name)):
            try:
                seed = self.seed(m.MASK_SEED, owner)
            except NotEnoughError:
                continue
            if owner < other:
                return self.bound.pair_mask(self.bound.pair_seed(seed, owner, other), name, peer)
            box = m.Parcel.from_bytes(self._delivery(other, owner).parcel, with_pair=True).pair
            pair = self.bound.open_pair(box or b"", self.bound.mask_key(seed, owner), self.root, other, owner)
            return self.bound.pair_mask(pair, name, peer)
        raise NotEnoughError(f"neither {name}'s nor {peer}'s mask seed")

    def vector_of(self, name: str) -> NDArray[np.int64]:
        """One client's integers, its masks removed: int64 [layout.size]; raises :class:`NotEnoughError`."""
        words = self.without_pair_masks(name)
        apply_masks(words, [self.bound.self_mask(self.seed(m.SELF_MASK, name), name).inverse])
        return self.plan.ring.to_signed(words)

    def without_pair_masks(self, name: str) -> Words:
        """One client's masked vector, only its self mask left; raises :class:`NotEnoughError`."""
        words = self.uploads[name].copy()
        apply_masks(words, [self.pair_mask(name, peer).inverse for peer in self.masked_with[name]])
        return words


def body_of(frames: list[bytes], form: type[T]) -> T:
    """The body of a message, unverified."""
    return unpack(form, unpack(Envelope, frames[0]).body)


def state_of(client: PairwiseClient) -> Any:
    """A colluder hides nothing from the attacker."""
    return client._state  # noqa: SLF001
