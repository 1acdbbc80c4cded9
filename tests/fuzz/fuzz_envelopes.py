"""Signed messages as trees of plain values that can be changed anywhere, and signed anew by their true senders.

A message is a list: a :class:`Signed` envelope, then its chunks. Where a body passes on other parties' envelopes, these
are :class:`Signed` in turn: whoever lies to the cohort may be a member together with the server.
"""

import hashlib
import random
from typing import Any

import cbor2
from fuzz_mutations import encode_loosely
from secagg_kit import identity

from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.wire import WireError, decode
from fedvlm_secure.secagg.envelope import _signed, join, split
from fedvlm_secure.secagg.pairwise import messages as m

Tree = list[Any]


class Signed(dict[str, Any]):
    """An envelope's fields, the body decoded.

    Attributes:
        signer: who has signed it, and would sign a lie.
        genuine: its bytes before anything was changed.
    """

    signer: str
    genuine: bytes


def unfold(message: bytes) -> Tree:
    """A genuine message as a tree."""
    envelope, *chunks = map(bytes, split(message))
    return [_envelope(envelope), *chunks]


def _envelope(data: bytes) -> Signed:
    fields = Signed(decode(data))
    fields.signer, fields.genuine = fields["sender"], data
    fields["body"] = _inner(decode(fields["body"]))
    return fields


def _inner(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _inner(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_inner(inner) for inner in value]
    if isinstance(value, bytes) and value[:1] == b"\xa7" and b"\x69recipient" in value:  # a map of seven fields
        return _envelope(value)
    return value


def fold(rng: random.Random, tree: Tree) -> tuple[bytes, set[str]]:
    """The message that ``tree`` stands for, and who has signed anything in it that is not genuine."""
    liars: set[str] = set()
    frames = [_plain(rng, frame, liars) for frame in tree]
    return join(frame if isinstance(frame, bytes) else encode_loosely(rng, frame) for frame in frames), liars


def _plain(rng: random.Random, value: Any, liars: set[str]) -> Any:
    if isinstance(value, Signed):
        return _sealed(rng, value, liars)
    if isinstance(value, dict):
        return {key: _plain(rng, inner, liars) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(rng, inner, liars) for inner in value]
    return value


def _sealed(rng: random.Random, envelope: Signed, liars: set[str]) -> bytes:
    fields = dict(envelope)
    if "body" in fields:
        body = _plain(rng, fields["body"], liars)
        # A body that is bytes already stands for itself: it was put there by hand.
        fields["body"] = body if isinstance(body, bytes) else encode_loosely(rng, body)
    changed = cbor2.dumps(fields, canonical=True) != envelope.genuine
    if changed and rng.random() < 0.95:
        try:
            signed = _signed(*(fields[name] for name in ("phase", "plan", "sender", "recipient", "body")))
        except (WireError, KeyError):  # no longer an envelope, whoever signs it
            return encode_loosely(rng, fields)
        fields["signature"] = identity(envelope.signer).sign("envelope", signed)
        liars.add(envelope.signer)
    return encode_loosely(rng, fields)


def make_consistent(tree: Tree, places: dict[str, tuple[int, int]]) -> None:
    """After a change, let digests and orders fit again, as a liar would who knows the rules.

    Args:
        places: where the recipient's parcel stands in each sender's Merkle tree, and the tree's size.
    """
    match tree:
        case [{"phase": m.KEYS | "input", "sender": "server", "body": dict(body)} as envelope]:
            envelope["plan"] = digest("plan", cbor2.dumps(body, canonical=True))
        case [{"body": {"digests": list()} as body}, *chunks]:
            body["digests"] = [hashlib.sha256(chunk).digest() for chunk in chunks if isinstance(chunk, bytes)]
        case [{"body": {"parcels": bytes()} as body}, bytes(), *_]:
            body["parcels"] = MerkleTree([chunk for chunk in tree[1:] if isinstance(chunk, bytes)]).root
        case [{"body": {"parcels": dict(deliveries)}}]:
            for sender, delivery in deliveries.items():
                _redeal(delivery, *places.get(sender, (0, 1)))
        case [{"body": {"survivors": list(names)}}] | [{"body": {"dropped": list(names)}}]:
            names[:] = sorted({name for name in names if isinstance(name, str)})


def _redeal(delivery: Any, index: int, size: int) -> None:
    """The sender signs a tree that holds the parcel at its place."""
    match delivery:
        case {"parcel": bytes(parcel), "path": _, "parcel_list": {"body": {"parcels": _} as body}}:
            leaves = [b"another parcel"] * size
            leaves[index] = parcel
            tree = MerkleTree(leaves)
            body["parcels"], delivery["path"] = tree.root, tree.path(index)
