"""Single faults that a client must refuse, in the order of the clauses. `make_vectors.py` writes them."""
# ruff: noqa: INP001

import struct
from collections.abc import Iterator
from functools import partial

from faults import JUNK, NETWORK, SERVER, STRANGER, Base, Change, Fault, body_of, flipped, refielded, without
from reference import frames, unframe
from reference_primitives import cbor, derive, digest, keypair, uncbor

ME = "b"  # the receiver
FAR_SIGHTED = "site-007"  # the receiver on the sparse graph


def cbor_order(names: list[str]) -> list[str]:
    """Names as the keys of a CBOR map are sorted, which is not the protocol's order."""
    return sorted(names, key=lambda name: (len(name), name))


def in_another_order(message: bytes) -> bytes:
    """The envelope with its fields in the order of the CDDL, which is not CBOR's."""
    fields = uncbor(unframe(message)[0])
    order = ("phase", "plan", "sender", "recipient", "body", "signature", "spec")
    return frames(bytes([5 << 5 | 7]) + b"".join(cbor(name) + cbor(fields[name]) for name in order))


def envelopes(base: Base) -> Iterator[Fault]:
    """P-1 for a request that the server sends itself: the client's state does not change."""
    at = partial(Fault, base=base, receiver=ME, phase="shares", party=NETWORK)
    request = base.request("shares", ME)
    forged = refielded(request, signature=flipped(uncbor(unframe(request)[0])["signature"], 9))
    next_attempt = digest("plan", cbor(base.plan.body | {"attempt": 3}))
    yield at("P-1.1-cut-short", "The last byte is missing", message=request[:-1])
    yield at("P-1.1-no-frame", "An empty message", message=b"")
    yield at("P-1.1-two-frames", "A chunk behind a request", message=request + frames(b""))
    yield at("P-1.1-trailing-byte", "A byte behind the envelope", message=frames(unframe(request)[0] + b"\0"))
    yield at("P-1.1-order-of-fields", "CBOR that is not deterministic", message=in_another_order(request))
    yield at("P-1.1-version", "An envelope of another version", message=refielded(request, spec="fedvlm-secure/2"))
    yield at("P-1.1-extra-field", "An envelope with an eighth field", message=refielded(request, more=0))
    yield at("P-1.2-signature", "A bit of the signature", message=forged)
    yield at("P-1.2-signer", "Signed with a client's key", message=base.request("shares", ME, key="aa"))
    yield at(
        "P-1.3-next-attempt", "The same for the next attempt", message=base.request("shares", ME, plan=next_attempt)
    )
    plan = base.request("keys", ME, plan=JUNK)
    yield at("P-1.3-hash-of-the-plan", "A plan under a hash that is not its own", phase="keys", message=plan)
    later, older = base.requests["masked-input"][ME], base.requests["keys"][ME]
    yield at("P-1.4-later-phase", "The next phase's request", message=later)
    yield at("P-1.4-older-request", "The request before the last", phase="masked-input", message=older)
    other_list = base.request("consistency", ME, lambda body: body["survivors"].append("zz"))
    yield at("P-1.4-second-survivor-list", "Another list, after one is signed", phase="unmask", message=other_list)
    yield at("P-1.5-recipient", "The request for another client", message=base.requests["shares"]["aa"])
    yield at("P-1.5-sender", "A client as if it were the server", message=base.request("shares", ME, sender="aa"))


def bodies(base: Base) -> Iterator[Fault]:
    """P-1.6 for a request: the server's fault, whose signature covers it; the client's state does not change."""

    def at(name: str, title: str, phase: str, change: Change) -> Fault:
        return Fault(name, title, base, phase, ME, SERVER, base.request(phase, ME, change))

    yield at("P-1.6-extra-field", "A field too many", "shares", lambda body: body.update(more=0))
    yield at("P-1.6-missing-field", "A field is missing", "shares", without("others"))
    yield at("P-1.6-type", "A text for a list", "consistency", lambda body: body.update(survivors="aa"))
    yield at("P-1.6-null", "A null for a list", "unmask", lambda body: body.update(dropped=None))
    yield at("P-1.6-length", "A consent of 63 bytes", "unmask", lambda body: body["consents"].update(aa=bytes(63)))


def passed_on(base: Base) -> Iterator[Fault]:
    """P-1 for what the server passes on: it should have looked, so its client closes the session."""
    at = partial(Fault, base=base, receiver=ME, phase="shares", party=SERVER, afterwards="closed")

    def listed(part: bytes) -> bytes:
        return base.request("shares", ME, lambda body: body["keys"].update(aa=part))

    genuine = base.keys("aa")
    forged = cbor(uncbor(genuine) | {"signature": flipped(uncbor(genuine)["signature"], 9)})
    short = base.keys("aa", lambda body: body.update(mask_key=bytes(1215)))
    yield at("P-1.1-passed-on", "A neighbour's key message is cut short", message=listed(genuine[:-1]))
    yield at("P-1.2-passed-on", "It has a wrong signature", message=listed(forged))
    yield at("P-1.3-passed-on", "It is of another plan", message=listed(base.keys("aa", plan=JUNK)))
    yield at("P-1.5-passed-on", "It is another neighbour's", message=listed(base.keys("z.1")))
    yield at("P-1.6-passed-on", "It has a key of 1,215 bytes", party="aa", message=listed(short))
    at, own, other = partial(at, phase="masked-input"), base.delivery("aa", ME), base.delivery("aa", "site-9")

    def delivered(**changed) -> bytes:
        return base.request("masked-input", ME, lambda body: body["parcels"]["aa"].update(changed))

    yield at("P-1.4-passed-on", "A key message for a parcel list", message=delivered(parcel_list=genuine))
    yield at("P-1.2-parcel", "A parcel with one bit changed", message=delivered(parcel=flipped(own["parcel"], 70)))
    yield at("P-1.2-parcel-of-another", "Another client's parcel, with its path", message=delivered(**other))
    yield at("P-1.2-path-too-long", "A path with a step too many", message=delivered(path=own["path"] + JUNK))
    yield at("P-1.2-path-too-short", "A path without its last step", message=delivered(path=own["path"][:-32]))
    yield at("P-1.2-path-cut", "A path without its last byte", message=delivered(path=own["path"][:-1]))


def plans(base: Base, curious: Base) -> Iterator[Fault]:
    """P-2, and the part of P-1.6 that concerns the layout."""

    def at(name: str, title: str, base=base, **changed) -> Fault:
        return Fault(name, title, base, "keys", ME, SERVER, base.plan_request(ME, **changed))

    layout, cohort = base.plan.layout, base.plan.cohort
    weight, other, third = layout["counters"]
    twice, last = layout | {"counters": [weight, other, other]}, layout | {"counters": [other, weight, third]}
    wide = layout | {"counters": [weight, other, third | {"bound": 2**63}]}
    three = {"cohort": ["aa", ME, "site-10"], "degree": 2, "threshold": 3, "min_survivors": 3}
    four = {"cohort": cohort[:4], "degree": 3, "threshold": 3, "min_survivors": 3}
    without_me = {"cohort": [name for name in cohort if name != ME], "degree": 3}
    yield at("P-1.6-counters-twice", "Two counters of one name", layout=twice)
    yield at("P-1.6-weight-not-first", "The weight is not the first counter", layout=last)
    yield at("P-1.6-weight-bound", "The weight has another bound", layout=layout | {"weight_max": 4095})
    yield at("P-1.6-value-bits", "Values of one bit", layout=layout | {"value_bits": 1}, ring_bits=24)
    yield at("P-2.1-version", "A plan of another version", spec="fedvlm-secure/2")
    yield at("P-2.2-roster", "Another roster", roster=JUNK)
    yield at("P-2.2-stranger", "A client that is not on the roster", cohort=[*cohort[:4], STRANGER])
    yield at("P-2.2-unsorted", "The cohort in CBOR's order", cohort=cbor_order(cohort))
    yield at("P-2.2-without-this-client", "A cohort without the receiver", **without_me)
    yield at("P-2.3-model", "Another model", model=JUNK)
    yield at("P-2.4-threshold", "A threshold below the majority", threshold=3)
    yield at("P-2.4-degree", "A sparse graph against a malicious server", degree=2)
    yield at("P-2.4-min-survivors", "Fewer survivors than the threshold", threshold=5)
    yield at("P-2.4-too-many-survivors", "More survivors than clients", min_survivors=6)
    yield at("P-2.4-threat-model", "A threat model that does not exist", curious, threat_model="benign")
    yield at("P-2.5-ring-too-small", "A ring in which the sum may wrap", ring_bits=32)
    yield at("P-2.5-ring-too-large", "A ring larger than needed", ring_bits=48)
    yield at("P-2.5-beyond-64-bits", "A layout for which no ring is large enough", layout=wide, ring_bits=72)
    yield at("P-2.5-clip", "A clip norm that is no number", clip=struct.pack(">d", float("nan")))
    yield at("P-2.5-clip-zero", "A clip norm of zero", clip=bytes(8))
    yield at("P-2.5-noise", "A noise multiplier that is no number", noise=struct.pack(">d", float("nan")))
    yield at("P-2.5-noise-negative", "A negative noise multiplier", noise=struct.pack(">d", -1.0))
    noisy = {"noise": struct.pack(">d", 1.0), "rounding": "stochastic"}
    yield at("P-2.5-noise-weights", "Noise for clients of different weights", **noisy)
    yield at("P-2.5-rounding", "A rounding that does not exist", rounding="down")
    yield at("P-2.5-update", "A layout with an update, of which the client has none", layout=layout | {"update": 4})
    yield at("P-2.6-protocol", "Another protocol", protocol="plain")
    yield at("P-2.6-threat-model", "A weaker threat model than the floor", threat_model="honest-but-curious")
    yield at("P-2.6-max-corrupt", "Fewer corrupt clients than the floor", max_corrupt=0)
    yield at("P-2.6-cohort", "A smaller cohort than the floor", **three)
    yield at("P-2.6-min-survivors", "Fewer survivors than the floor", **four)
    yield at("P-2.7-same-attempt", "The attempt that the client began last", attempt=1)
    yield at("P-2.7-earlier-round", "An earlier round", round=2, attempt=9)
    yield at("P-2.7-attempt-zero", "Attempts count from 1", round=4, attempt=0)


def keys(base: Base, sparse: Base) -> Iterator[Fault]:
    """P-3, where the keys are shown."""

    def at(name: str, title: str, change: Change, party=SERVER) -> Fault:
        return Fault(name, title, base, "shares", ME, party, base.request("shares", ME, change), afterwards="closed")

    def only_digest(body: dict) -> None:
        body["others"]["aa"] = digest("key-message", body["keys"].pop("aa"))

    def two_less(body: dict) -> None:
        del body["keys"]["aa"], body["keys"]["z.1"]

    low_order = body_of(base.replies["keys"]["aa"])["share_key"][:1184] + bytes(32)
    unusable = {"aa": base.keys("aa", lambda body: body.update(share_key=low_order))}
    other_key = keypair(derive(JUNK, "share-key", base.plan.hash, ME))[1]
    other = {ME: base.keys(ME, lambda body: body.update(share_key=other_key))}
    yield at("P-3.1-passed-on", "A neighbour's key of low order", lambda body: body["keys"].update(unusable), "aa")
    yield at("P-3.2-stranger", "A client outside the cohort", lambda body: body["others"].update({STRANGER: JUNK}))
    yield at("P-3.2-digest-only", "Of a neighbour only the digest", only_digest)
    yield at("P-3.3-too-few", "Keys of three clients, where four are needed", two_less)
    yield at("P-3.4-changed", "Other keys, which the receiver has signed", lambda body: body["keys"].update(other))
    yield at("P-3.4-missing", "Everybody's keys but the receiver's", lambda body: body["keys"].pop(ME))

    def more_than_neighbours(body: dict) -> None:
        far = min(body["others"])
        del body["others"][far]
        body["keys"][far] = sparse.keys(FAR_SIGHTED, sender=far)

    message, title = (
        sparse.request("shares", FAR_SIGHTED, more_than_neighbours),
        "On a sparse graph, keys of no neighbour",
    )
    yield Fault("P-3.2-no-neighbour", title, sparse, "shares", FAR_SIGHTED, SERVER, message, afterwards="closed")


def parcels(base: Base, lacking: Base, sparse: Base) -> Iterator[Fault]:
    """P-4 and P-5.1, where parcels arrive."""

    def at(name: str, title: str, change: Change, base=base, receiver=ME) -> Fault:
        message = base.request("masked-input", receiver, change)
        return Fault(name, title, base, "masked-input", receiver, SERVER, message, afterwards="closed")

    def dealt(name: str, title: str, parcel: bytes) -> Fault:
        message = base.deliver("aa", ME, parcel)
        return Fault(name, title, base, "masked-input", ME, "aa", message, afterwards="closed")

    delivery, deal = base.delivery("aa", ME), base.vector["clients"]["aa"]["deals"][ME]
    self_share, mask_share = bytes.fromhex(deal["self_mask"]), bytes.fromhex(deal["mask_seed"])
    parcel = delivery["parcel"]
    checks, pair_box = parcel[:64], parcel[1266:]
    other_box = base.shares_box("aa", ME, (self_share, flipped(mask_share, 32)))
    swapped = checks[32:] + checks[:32] + base.shares_box("aa", ME, (mask_share, self_share)) + pair_box
    yield dealt("P-4.2-length", "A parcel without its last byte", parcel[:-1])
    yield dealt("P-4.2-shares-box", "A box of shares that does not open", flipped(parcel, 1265))
    yield dealt("P-4.2-pair-box", "A pair seed's box that does not open", flipped(parcel, 1300))
    yield dealt("P-4.2-check", "A share that does not fit its check", checks + other_box + pair_box)
    yield dealt("P-4.2-swapped", "The two shares for each other, checks as well", swapped)
    elsewhere = unframe(base.reply("shares", "aa", lambda body: body.update(key_root=JUNK)))[0]

    def other_root(body: dict) -> None:
        body["parcels"]["aa"]["parcel_list"] = elsewhere

    def two_less(body: dict) -> None:
        del body["parcels"]["aa"], body["parcels"]["z.1"]

    def below_the_threshold(body: dict) -> None:
        for name in sorted(body["parcels"])[sparse.plan.t - 2 :]:
            del body["parcels"][name]

    yield at("P-4.3-itself", "A parcel of the receiver's own", lambda body: body["parcels"].update({ME: delivery}))
    absent, title = "b", "A parcel of a client that published no keys"
    yield at("P-4.3-not-listed", title, lambda body: body["parcels"].update({absent: delivery}), lacking, "aa")
    yield at("P-4.4-key-root", "A parcel dealt for another key list", other_root)
    yield at("P-5.1-too-few", "Parcels of two others, where three are needed", two_less)
    yield at("P-5.1-sparse", "On a sparse graph, t - 2 parcels", below_the_threshold, sparse, FAR_SIGHTED)


def survivor_lists(base: Base) -> Iterator[Fault]:
    """P-6, where the list is shown."""

    def at(name: str, title: str, survivors: list[str], **more) -> Fault:
        message = base.request("consistency", ME, lambda body: body.update(survivors=survivors))
        return Fault(name, title, base, "consistency", ME, SERVER, message, afterwards="closed", **more)

    survivors = base.vector["survivors"]
    fewer = {"masked-input": {ME: base.request("masked-input", ME, lambda body: body["parcels"].pop("aa"))}}
    yield at("P-6.1-unsorted", "Survivors in CBOR's order", cbor_order(survivors))
    yield at("P-6.1-twice", "A survivor twice", [survivors[0], *survivors])
    yield at("P-6.1-stranger", "A survivor that is not on the key list", sorted([*survivors, STRANGER]))
    yield at("P-6.1-without-this-client", "Everybody but the receiver", [u for u in base.plan.cohort if u != ME])
    yield at("P-6.1-no-parcel", "A neighbour whose parcel was never delivered", survivors, instead=fewer)
    yield at("P-6.3-too-few", "Three survivors, where four are needed", survivors[:3])


def unmask_requests(base: Base, curious: Base) -> Iterator[Fault]:
    """P-7.2 to P-7.5."""

    def at(name: str, title: str, change: Change, base=base, receiver=ME) -> Fault:
        message = base.request("unmask", receiver, change)
        return Fault(name, title, base, "unmask", receiver, SERVER, message, afterwards="closed")

    def dropped(*names: str) -> Change:
        return lambda body: body.update(dropped=list(names))

    def of_the_dropped(body: dict) -> None:
        del body["consents"]["aa"]
        body["consents"]["site-10"] = base.consent("site-10", base.vector["survivors"])

    def other_consents(body: dict) -> None:
        del body["consents"]["aa"]
        body["consents"]["z.1"] = curious.consent("z.1", curious.vector["survivors"])

    other = base.consent("aa", base.plan.cohort)
    yield at("P-7.2-too-few", "A dropped client is not named", dropped())
    yield at("P-7.2-stranger", "A dropped client that has dealt nothing", dropped("site-10", STRANGER))
    yield at("P-7.2-unsorted", "Not in order", dropped("site-9", "b"), curious, "z.1")
    yield at("P-7.3-too-few", "One consent below the majority", lambda body: body["consents"].pop("aa"))
    yield at("P-7.3-not-a-survivor", "A dropped client's consent for a survivor's", of_the_dropped)
    yield at("P-7.3-other-list", "A consent to another list", lambda body: body["consents"].update(aa=other))
    yield at("P-7.4-both", "The mask seed of a survivor", dropped("aa", "site-10"))
    message, title = curious.request("unmask", "z.1", other_consents), "Another good request, after the answer"
    yield Fault("P-7.5-second-request", title, curious, "done", "z.1", SERVER, message, afterwards="over")
