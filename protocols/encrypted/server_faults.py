"""Single faults that the server must refuse, in the order of the clauses. `make_vectors.py` writes them."""
# ruff: noqa: INP001

from collections.abc import Iterator
from functools import partial

from protocols.encrypted.common import frames, merkle_root, uncbor, unframe
from protocols.encrypted.faults import (
    COHORT,
    JUNK,
    NETWORK,
    SERVER,
    Base,
    Change,
    Fault,
    fixed,
    flipped,
    refielded,
    without,
)
from protocols.encrypted.reference import digests
from protocols.encrypted.reference_schemes import N, Scheme

ME = "b"  # the sender, as long as the fault is in one message


def envelopes(base: Base) -> Iterator[Fault]:
    """P-1 for a reply."""
    at = partial(Fault, base=base, receiver=SERVER, phase="sum", sender=ME, party=NETWORK)
    reply = base.replies["sum"][ME]
    forged = refielded(reply, signature=flipped(uncbor(unframe(reply)[0])["signature"], 9))
    fewer = base.reply("sum", ME, without("published"))
    yield at("P-1.1-reply-with-a-chunk", "A chunk in a phase that has none", message=reply + frames(b""))
    yield at("P-1.2-reply-signature", "A bit of the signature", message=forged)
    yield at("P-1.3-reply-of-another-plan", "Another plan's hash", message=base.reply("sum", ME, plan=JUNK))
    yield at(
        "P-1.4-reply-of-another-phase", "The upload's envelope, once more", message=base.reply("input", ME, chunks=[])
    )
    yield at("P-1.5-reply-of-another-client", "Another client's reply", message=base.replies["sum"]["aa"])
    yield at("P-1.6-reply-missing-field", "A field is missing", party=ME, message=fewer)
    yield at("P-1.7-second-reply", "A reply, once more", before=(ME,), message=reply)
    late = base.reply("sum", ME, sender="site-10", key="site-10")
    yield at("P-1.7-unasked", "An answer of a client that never uploaded", sender="site-10", message=late)


def dealings(base: Base) -> Iterator[Fault]:
    """E-3.1 and E-3.2, where a key is dealt."""
    at = partial(Fault, base=base, receiver=SERVER, phase="keys", sender=base.dealer, party=base.dealer)
    boxes = unframe(base.replies["keys"][base.dealer])[1:]

    def dealt(change: Change, boxes: list[bytes] = boxes) -> bytes:
        return base.reply("keys", base.dealer, change, boxes)

    def changed(**fields) -> bytes:
        return dealt(lambda body: body.update(fields))

    silent = {"keys": {base.dealer: None}}
    yield at("E-3.1-end", "The client that is asked deals no key", event="end", instead=silent)
    yield at("E-3.2-dealt-epoch", "A key of another epoch", message=changed(epoch=2))
    yield at("E-3.2-dealt-run", "A key for another run", message=changed(run=JUNK[:16]))
    yield at("E-3.2-dealt-protocol", "A key for the other scheme", message=changed(protocol="ckks"))
    yield at("E-3.2-dealt-roster", "A key for another roster", message=changed(roster=JUNK))
    fewer, other = dealt(lambda body: None, boxes[1:]), dealt(lambda body: None, [flipped(boxes[0], 7), *boxes[1:]])
    short = [boxes[0][:-1], *boxes[1:]]
    cut = dealt(lambda body: body.update(parcels=merkle_root(short)), short)
    yield at("E-3.2-dealt-too-few", "A box is missing", party=NETWORK, message=fewer)
    yield at("E-3.2-dealt-other", "A box that the root does not cover", party=NETWORK, message=other)
    yield at("E-3.2-dealt-length", "A box without its last byte", message=cut)


def uploads(base: Base, two: Base, floats: Base) -> Iterator[Fault]:
    """E-4, but for E-4.4."""
    at = partial(Fault, base=base, phase="input", receiver=SERVER, sender=ME, party=ME)
    (chunk,) = base.uploads(ME)

    def sent(chunks: list[bytes], base: Base = base, sender: str = ME) -> bytes:
        return base.reply("input", sender, lambda body: body.update(digests=digests(chunks)), chunks)

    elsewhere = base.reply("input", ME, lambda body: body.update(dealing=JUNK))
    exchanged = base.reply("input", ME, chunks=base.uploads("aa"))
    yield at("E-4.1-dealing", "Encrypted under another key", message=elsewhere)
    yield at("E-4.2-one-too-many", "Two ciphertexts, where the layout has one", message=sent([chunk, chunk]))
    yield at("E-4.2-digest", "Another ciphertext than that of the digest", party=NETWORK, message=exchanged)
    missing = base.reply("input", ME, chunks=[])
    yield at("E-4.2-missing", "No ciphertext", party=NETWORK, message=missing)
    yield at("E-4.3-cut-short", "The first bytes of a ciphertext", message=sent([chunk[:1000]]))
    form = Scheme("ckks", 2**45)
    foreign = form.encrypt(form.key(fixed("another scheme")), [0.5] * N, fixed("another scheme"))
    yield at("E-4.3-scheme", "A ciphertext of the other scheme", message=sent([foreign]))
    half = Scheme("ckks", 2**45)
    sheet = floats.sheets.scheme.decrypt(floats.he_key, floats.sheets.scheme.load(floats.uploads("aa")[0]))
    unscaled = half.encrypt(floats.he_key, sheet, fixed("another scale"))
    title = "A ciphertext of another scale"
    yield at("E-4.3-scale", title, base=floats, sender="aa", party="aa", message=sent([unscaled], floats, "aa"))
    first, _ = two.uploads(ME)
    title = "A good ciphertext, which must leave nothing behind, and junk"
    yield at("E-4.3-second", title, base=two, before=("aa",), message=sent([first, JUNK * 9], two))
    silent = {"input": {"aa": None, ME: None}}
    yield at("E-4.5-end", "Too few uploads", event="end", party=COHORT, instead=silent)


def answers(base: Base) -> Iterator[Fault]:
    """E-6."""
    at = partial(Fault, base=base, phase="sum", receiver=SERVER, sender=ME, party=COHORT)

    def publishes(**numbers: int) -> bytes:
        return base.reply("sum", ME, lambda body: body["published"].update(numbers))

    other = base.reply("sum", ME, lambda body: body.update(model=JUNK))
    title = "The same from half of the survivors only"
    yield at("E-6.1-two-models", title, event="end", instead={"sum": {ME: other}})
    fewer = base.reply("sum", ME, lambda body: body["published"].pop("answers"))
    yield at("E-6.1-published", "Readers publish different things", event="end", instead={"sum": {ME: fewer}})
    nobody = {"sum": dict.fromkeys(base.replies["sum"])}
    yield at("E-6.1-none", "Nobody reads the sum", event="end", instead=nobody)
    yield at("E-6.2-unknown", "A number that is no counter's", party=ME, message=publishes(accuracy=1))
    yield at("E-6.2-too-large", "More than the survivors can have", party=ME, message=publishes(weight=41))
