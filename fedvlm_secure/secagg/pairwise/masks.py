"""Every derivation of the pairwise protocol, each bound to the plan's hash, and the masks that follow.

A client's ``mask_seed`` yields its mask key and the pair seeds towards clients whose names come later; pair seeds from
earlier names arrive sealed to the mask key. So whoever recovers a dropped client's ``mask_seed`` recovers exactly that
client's pairs (P-4.1). The share key comes from a seed of its own that is never shared: were it derived from
``mask_seed``, recovering a dropped client would open the shares everyone sealed to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.primitives.kdf import derive, digest
from fedvlm_secure.primitives.sealing import SealingKey, seal
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.stream import CHUNK, MaskStream
from fedvlm_secure.secagg.session import ClientId


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask over the whole vector: added, or subtracted."""

    key: Secret
    added: bool

    @property
    def inverse(self) -> "Mask":
        """The mask that removes this one."""
        return Mask(self.key, not self.added)


@dataclass(frozen=True, slots=True)
class Bound:
    """The derivations of one attempt: all bound to its plan."""

    plan: bytes

    def share_key(self, share_seed: Secret, client: ClientId) -> SealingKey:
        """The key that opens the shares sealed to ``client``; erased with the attempt."""
        return SealingKey(derive(share_seed, "share-key", self.plan, client))

    def mask_key(self, mask_seed: Secret, client: ClientId) -> SealingKey:
        """The key that opens the pair seeds sealed to ``client``."""
        return SealingKey(derive(mask_seed, "mask-key", self.plan, client))

    def self_commitment(self, self_seed: Secret, client: ClientId) -> bytes:
        """Binds ``client`` to its self-mask seed. Hiding, since the seed has 256 bits."""
        return derive(self_seed, "self-commitment", self.plan, client).reveal()

    def self_mask(self, self_seed: Secret, client: ClientId) -> Mask:
        """The mask that only ``client`` adds."""
        return Mask(derive(self_seed, "self-mask", self.plan, client), added=True)

    def pair_seed(self, mask_seed: Secret, earlier: ClientId, later: ClientId) -> Secret:
        """The seed that ``earlier`` chooses for the pair."""
        return derive(mask_seed, "pair-seed", self.plan, earlier, later)

    def pair_mask(self, pair_seed: Secret, me: ClientId, peer: ClientId) -> Mask:
        """The mask that ``me`` applies for the pair: the earlier name adds, the later one subtracts."""
        key = derive(pair_seed, "pair-mask", self.plan, *sorted((me, peer)))
        return Mask(key, added=me < peer)

    def seal_pair(self, pair_seed: Secret, public: bytes, root: bytes, earlier: ClientId, later: ClientId) -> bytes:
        """``pair_seed`` sealed to ``later``'s mask key."""
        return seal(public, pair_seed, "pair-seed", self.plan, root, earlier, later)

    def open_pair(self, box: bytes, key: SealingKey, root: bytes, earlier: ClientId, later: ClientId) -> Secret:
        """The inverse of :meth:`seal_pair`; raises :class:`~fedvlm_secure.primitives.sealing.SealError`."""
        return key.open(box, "pair-seed", self.plan, root, earlier, later)

    def seal_shares(self, shares: Secret, public: bytes, root: bytes, sender: ClientId, recipient: ClientId) -> bytes:
        """Two shares, one after the other, sealed to ``recipient``'s share key."""
        return seal(public, shares, "shares", self.plan, root, sender, recipient)

    def open_shares(self, box: bytes, key: SealingKey, root: bytes, sender: ClientId, recipient: ClientId) -> Secret:
        """The inverse of :meth:`seal_shares`; raises :class:`~fedvlm_secure.primitives.sealing.SealError`."""
        return key.open(box, "shares", self.plan, root, sender, recipient)

    def share_check(self, share: Secret, seed: str, dealer: ClientId, holder: ClientId) -> bytes:
        """Binds dealer and holder to one share of the dealer's ``seed`` (``"self-mask"`` or ``"mask-seed"``).

        Hiding, since below the threshold a share has the 256 bits of the seed.
        """
        return digest("share-check", self.plan, seed, dealer, holder, share.reveal())

    def key_root(self, keys: Mapping[str, bytes]) -> bytes:
        """The digest of the whole list of key messages' digests, in the order of names."""
        names = sorted(keys)
        return digest("key-root", self.plan, names, [keys[name] for name in names])

    def consent(self, root: bytes, survivors: Iterable[ClientId]) -> bytes:
        """What a survivor signs before anyone unmasks."""
        return digest("consent", self.plan, root, list(survivors))


def key_digest(envelope: bytes) -> bytes:
    """What stands for a client's signed key message in the key root."""
    return digest("key-message", envelope)


def apply_masks(words: Words, masks: Iterable[Mask]) -> None:
    """Add and subtract masks in place, chunk by chunk, so that sum and key stream stay in cache throughout."""
    streams = [(MaskStream(mask.key), np.add if mask.added else np.subtract) for mask in masks]
    keystream = np.empty(min(CHUNK, len(words)), words.dtype)
    for start in range(0, len(words), CHUNK):
        chunk = words[start : start + CHUNK]
        part = keystream[: len(chunk)]
        for stream, combine in streams:
            stream.fill(part)
            combine(chunk, part, out=chunk)
