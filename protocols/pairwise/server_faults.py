"""Single faults that the server must refuse, in the order of the clauses. `make_vectors.py` writes them."""
# ruff: noqa: INP001

import hashlib
from collections.abc import Iterator
from functools import partial

from faults import COHORT, JUNK, NETWORK, SERVER, Base, Change, Fault, body_of, flipped, refielded, without
from reference import frames, unframe
from reference_primitives import shares, uncbor

ME = "b"  # the sender, as long as the fault is in one message


def envelopes(base: Base) -> Iterator[Fault]:
    """P-1 for a reply."""
    at = partial(Fault, base=base, receiver=SERVER, phase="unmask", sender=ME, party=NETWORK)
    reply = base.reply("unmask", ME)
    forged = refielded(reply, signature=flipped(uncbor(unframe(reply)[0])["signature"], 9))
    fewer = base.reply("unmask", ME, without("mask_seed"))
    yield at("P-1.1-reply-cut-short", "The last byte is missing", message=reply[:-1])
    yield at("P-1.1-reply-with-a-chunk", "A chunk in a phase that has none", message=reply + frames(b""))
    yield at("P-1.2-reply-signature", "A bit of the signature", message=forged)
    yield at("P-1.3-reply-of-another-plan", "Another plan's hash", message=base.reply("unmask", ME, plan=JUNK))
    yield at("P-1.4-reply-of-another-phase", "The consent, once more", message=base.replies["consistency"][ME])
    yield at("P-1.5-reply-of-another-client", "Another client's reply", message=base.replies["unmask"]["aa"])
    yield at("P-1.6-reply-missing-field", "A field is missing", party=ME, message=fewer)
    yield at("P-1.7-second-reply", "A reply, once more", before=(ME,), message=reply)
    late, phase = "site-10", "consistency"
    signature = base.consent(late, base.vector["survivors"])
    unasked = base.reply(phase, ME, lambda body: body.update(signature=signature), sender=late, key=late)
    yield at("P-1.7-unasked", "A consent of a client that never uploaded", phase=phase, sender=late, message=unasked)


def keys(base: Base) -> Iterator[Fault]:
    """P-3, where keys are published."""
    at = partial(Fault, base=base, phase="keys", receiver=SERVER)
    published = body_of(base.replies["keys"][ME])
    low_order, out_of_range = published["mask_key"][:1184] + bytes(32), b"\xff" * 1184 + published["share_key"][1184:]
    weak = base.reply("keys", ME, lambda body: body.update(mask_key=low_order))
    malformed = base.reply("keys", ME, lambda body: body.update(share_key=out_of_range))
    silent = {"keys": {"aa": None, ME: None}}
    yield at("P-3.1-low-order", "An X25519 key of low order", sender=ME, party=ME, message=weak)
    yield at("P-3.1-out-of-range", "ML-KEM coefficients beyond the modulus", sender=ME, party=ME, message=malformed)
    yield at("P-3.3-end", "Too few keys", event="end", party=COHORT, instead=silent)


def parcels(base: Base) -> Iterator[Fault]:
    """P-4 and P-5.1, where parcels are dealt."""
    at = partial(Fault, base=base, phase="shares", receiver=SERVER, sender=ME, party=ME)
    first, *rest = base.chunks("shares", ME)
    short = base.deal(ME, {"aa": base.parcels(ME)["aa"][:-1]})
    other = base.reply("shares", ME, lambda body: body.update(key_root=JUNK))
    uncovered, fewer = (base.reply("shares", ME, chunks=it) for it in ([flipped(first, 70), *rest], rest))
    silent = {"shares": {"aa": None, ME: None}}
    yield at("P-4.2-dealt-length", "A parcel without its last byte", message=short)
    yield at("P-4.2-dealt-other", "A parcel that the root does not cover", party=NETWORK, message=uncovered)
    yield at("P-4.3-dealt-too-few", "A parcel is missing", party=NETWORK, message=fewer)
    yield at("P-4.4-dealt-key-root", "Parcels for another key list", message=other)
    yield at("P-5.1-end", "Too few deal parcels", event="end", party=COHORT, instead=silent)


def uploads(base: Base) -> Iterator[Fault]:
    """P-5.3 and P-5.4."""
    at = partial(Fault, base=base, phase="masked-input", receiver=SERVER, sender=ME, party=NETWORK)
    upload, (chunk,) = partial(base.reply, "masked-input", ME), base.chunks("masked-input", ME)
    two = upload(lambda body: body["digests"].append(hashlib.sha256(chunk).digest()), [chunk, chunk])
    silent = {"masked-input": {"aa": None, ME: None}}
    yield at("P-5.3-digest", "A chunk that its digest does not fit", message=upload(chunks=[flipped(chunk, 3)]))
    yield at("P-5.3-missing-chunk", "No chunk", message=upload(chunks=[]))
    yield at("P-5.3-length", "A vector longer than the plan's layout", party=ME, message=two)
    yield at("P-5.4-end", "Too few uploads", event="end", party=COHORT, instead=silent)


def consents(base: Base) -> Iterator[Fault]:
    """P-6.2 and P-7.3."""
    at = partial(Fault, base=base, phase="consistency", receiver=SERVER)
    signature = base.consent(ME, base.plan.cohort)
    other = base.reply("consistency", ME, lambda body: body.update(signature=signature))
    silent = {"consistency": {ME: None}}
    yield at("P-6.2-other-list", "A consent to another survivor list", sender=ME, party=ME, message=other)
    yield at("P-7.3-end", "Fewer consents than a majority", event="end", party=COHORT, instead=silent)


def revealed(base: Base, curious: Base) -> Iterator[Fault]:
    """P-7.4, P-7.6 and P-7.7."""

    def at(name: str, title: str, change: Change) -> Fault:
        return Fault(name, title, base, "unmask", SERVER, ME, base.reply("unmask", ME, change), ME)

    def changed(seed: str, owner: str) -> Change:
        return lambda body: body[seed].update({owner: flipped(body[seed][owner], 32)})

    share = bytes.fromhex(base.vector["clients"]["aa"]["deals"][ME]["mask_seed"])
    yield at("P-7.4-revealed-both", "Both shares of a survivor", lambda body: body["mask_seed"].update(aa=share))
    yield at("P-7.4-revealed-too-few", "A survivor's share is missing", lambda body: body["self_mask"].pop("aa"))
    yield at("P-7.7-self-share", "Another share of a survivor's self seed", changed("self_mask", "aa"))
    yield at("P-7.7-mask-share", "Another share of a dropped client's mask seed", changed("mask_seed", "site-10"))
    silent, title = {"unmask": {"site-10": None}}, "Fewer answers than the threshold"
    yield Fault("P-7.6-end", title, curious, "unmask", SERVER, COHORT, event="end", instead=silent)


def sums(base: Base) -> Iterator[Fault]:
    """P-4.2, P-7.7 and P-8.1, which show when the masks come off."""

    def at(name: str, title: str, party: str, instead: dict) -> Fault:
        return Fault(name, title, base, "sum", SERVER, party, event="sum", instead=instead)

    def added(coordinate: int, number: int) -> dict:
        return {"masked-input": {"aa": upload_with(base, "aa", coordinate, number)}}

    garbage = base.deal("aa", {"site-10": flipped(base.parcels("aa")["site-10"], 1300)})
    beyond = (2**256 + 5).to_bytes(33)
    yield at("P-4.2-dropped", "A dropped client's box of a pair seed does not open", "aa", {"shares": {"aa": garbage}})
    self_seed, mask_seed = deals_other(base, "self_mask", "aa", JUNK), deals_other(base, "mask_seed", "site-10", JUNK)
    yield at("P-7.7-dealt-self-seed", "Shares of another seed than was committed to", "aa", self_seed)
    yield at("P-7.7-dealt-mask-seed", "Shares of another seed than the mask key's", "site-10", mask_seed)
    no_seed = deals_other(base, "self_mask", "aa", beyond)
    yield at("P-7.7-dealt-no-seed", "Shares of a number beyond 256 bits", "aa", no_seed)
    yield at("P-8.1-participants", "A vector that says it is two", COHORT, added(-3, 1))
    yield at("P-8.1-zero", "A vector whose last check is not zero", COHORT, added(-1, 1))
    yield at("P-8.1-counter", "A counter far beyond its bound", COHORT, added(1, 2**30))
    yield at("P-8.1-negative-counter", "A counter below zero", COHORT, added(1, -(2**20)))


def deals_other(base: Base, seed: str, owner: str, secret: bytes) -> dict:
    """`owner` shares another secret than its seed, checks and all; everyone else is honest."""
    plan, coefficients = base.plan, iter([bytes([0, *[1 + step] * 32]) for step in range(base.plan.t)])
    other, parcels = shares(secret, plan.t, plan.places(plan.cohort), lambda _: next(coefficients)), {}
    for v, parcel in base.parcels(owner).items():
        deal = base.vector["clients"][owner]["deals"][v]
        pair = {it: bytes.fromhex(deal[it]) for it in ("self_mask", "mask_seed")} | {seed: other[v]}
        both = (pair["self_mask"], pair["mask_seed"])
        parcels[v] = plan.checks(owner, v, both) + base.shares_box(owner, v, both) + parcel[1266:]
    answers = {
        v: base.reply("unmask", v, lambda body, v=v: body[seed].update({owner: other[v]}))
        for v in base.replies["unmask"]
    }
    return {"shares": {owner: base.deal(owner, parcels)}, "unmask": answers}


def upload_with(base: Base, client: str, coordinate: int, number: int) -> bytes:
    """A client's upload with a number added to one coordinate, signed anew."""
    (chunk,), width, modulus = base.chunks("masked-input", client), base.plan.bits // 8, 2**base.plan.bits
    words = [int.from_bytes(chunk[at : at + width], "little") for at in range(0, len(chunk), width)]
    words[coordinate] += number
    chunk = b"".join((word % modulus).to_bytes(width, "little") for word in words)
    digests = [hashlib.sha256(chunk).digest()]
    return base.reply("masked-input", client, lambda body: body.update(digests=digests), [chunk])
