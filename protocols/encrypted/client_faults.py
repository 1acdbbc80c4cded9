"""Single faults that a client must refuse, in the order of the clauses. `make_vectors.py` writes them."""
# ruff: noqa: INP001

import struct
from collections.abc import Iterator
from functools import partial

import tenseal.sealapi as seal

from protocols.encrypted.common import CHECKS, Plan, cbor, digest, frames, uncbor, unframe
from protocols.encrypted.faults import (
    JUNK,
    NETWORK,
    SERVER,
    STRANGER,
    Base,
    Change,
    Fault,
    body_of,
    fixed,
    flipped,
    refielded,
    without,
)
from protocols.encrypted.reference_schemes import N, Q, Scheme, saved, sheets_of

ME = "b"  # the receiver, as long as it takes part


def envelopes(base: Base) -> Iterator[Fault]:
    """P-1 for a request that the server sends itself: the client's state does not change."""
    at = partial(Fault, base=base, receiver=ME, phase="input", party=NETWORK)
    request = base.requests["input"][ME]
    forged = refielded(request, signature=flipped(uncbor(unframe(request)[0])["signature"], 9))
    next_attempt = digest("plan", cbor(base.plan.body | {"attempt": 3}))
    yield at("P-1.1-cut-short", "The last byte is missing", message=request[:-1])
    yield at("P-1.1-chunk", "A chunk in a phase without", message=request + frames(b""))
    yield at("P-1.2-signature", "A bit of the signature", message=forged)
    yield at("P-1.2-signer", "Signed with a client's key", message=base.request("input", ME, key="aa"))
    yield at("P-1.3-other-hash", "The plan under another's hash", message=base.request("input", ME, plan=next_attempt))
    yield at("P-1.4-too-early", "The sum, before anything was uploaded", message=base.request("sum", ME, chunks=[]))
    yield at("P-1.5-recipient", "The request for another client", message=base.requests["input"]["aa"])
    no_box = base.request("input", ME, lambda body: body["delivery"].update(parcel=bytes(1167)))
    yield at("P-1.6-length", "A box of 1,167 bytes", party=SERVER, message=no_box)
    inside = base.request("sum", ME, lambda body: body["plan"].update(attempt=3))
    closed = {"party": SERVER, "phase": "sum", "afterwards": "closed"}
    yield at("P-1.3-other-plan-inside", "A sum with another plan than the one begun", message=inside, **closed)


def plans(base: Base, floats: Base) -> Iterator[Fault]:
    """P-2, where it says more than for `pairwise`; the rest of it is in the vectors there."""

    def at(name: str, title: str, base=base, receiver=ME, **changed) -> Fault:
        return Fault(name, title, base, "input", receiver, SERVER, base.plan_request(receiver, **changed))

    layout = base.plan.layout
    weight, answers = layout["counters"]
    wide = layout | {"counters": [weight, answers | {"bound": 3 * 10**10}]}
    steps = layout | {"value_bits": 24, "weight_max": 4000, "counters": [weight | {"bound": 4000}, answers]}
    corrupt = {"max_corrupt": 1, "threshold": 2}
    floors_at = partial(at, base=floats, receiver="aa")
    five = floats.plan.layout
    long_counter = five | {"counters": [*five["counters"][:2], five["counters"][2] | {"bound": 2**51}]}
    heavy_counters = [five["counters"][0] | {"bound": 2**17}, *five["counters"][1:]]
    heavy = five | {"weight_max": 2**17, "counters": heavy_counters}
    yield at("P-2.2-without-this-client", "A cohort without the receiver", cohort=["aa", "site-10", "site-9", "z.1"],
             degree=3)  # fmt: skip
    yield at("P-2.3-model", "Another model", model=JUNK)
    yield at("P-2.4-threshold", "A threshold of one", threshold=1)
    yield at("P-2.4-two-survivors", "Sums of two, of which each would know the other's part", min_survivors=2)
    yield at("P-2.5-ring", "Another ring than the layout's", ring_bits=48)
    yield at("P-2.5-headroom-counter", "A counter whose sums reach half the plain modulus", layout=wide)
    yield at("P-2.5-headroom-update", "An update whose sums reach half the plain modulus", layout=steps, ring_bits=40)
    yield at("P-2.5-update", "A layout with one coordinate more", layout=layout | {"update": 15})
    yield floors_at("P-2.5-ckks-counter", "A counter whose sums are beyond a double's whole numbers",
                    layout=long_counter, ring_bits=56)  # fmt: skip
    yield floors_at("P-2.5-ckks-weight", "A weight beyond 2^16", layout=heavy, ring_bits=48)
    yield at("P-2.6-protocol", "The other scheme", protocol="ckks")
    title = "A plan against a malicious server, for a client that publishes counters"
    yield at("P-2.6-published", title, threat_model="malicious-server", threshold=3)
    yield at("P-2.6-max-corrupt", "A plan that counts on a colluding client", **corrupt)
    yield at("P-2.6-max-corrupt-ckks", "The same under ckks", floats, "aa", **corrupt)
    yield at("P-2.7-same-attempt", "The attempt that the client began last", attempt=1)


def noisy_plans(base: Base, floats: Base) -> Iterator[Fault]:
    """P-2 for a plan with noise."""

    def at(name: str, title: str, base=base, receiver="aa", **changed) -> Fault:
        return Fault(name, title, base, "input", receiver, SERVER, base.plan_request(receiver, **changed))

    def noise(multiplier: float) -> bytes:
        return struct.pack(">d", multiplier)

    yield at("P-2.5-noise-headroom", "A ring without room for the noise", ring_bits=8)
    yield at("P-2.5-noise-modulus", "Noise beyond half the plain modulus", noise=noise(1e10), ring_bits=40)
    yield at("P-2.5-noise-nearest", "Noise without stochastic rounding", rounding="nearest")
    one = {"weight_max": 1, "counters": [{"name": "weight", "bound": 1}]}
    counted = one | {"update": floats.plan.layout["update"] + 1}  # one coordinate for the counter that goes
    yield at("P-2.5-noise-ckks", "Noise without a modulus", floats, noise=noise(1.5), rounding="stochastic",
             layout=floats.plan.layout | counted, ring_bits=16)  # fmt: skip
    yield at("P-2.6-noise", "Less noise than the floor", noise=noise(3.9999))


def dealings(base: Base, kept: Base) -> Iterator[Fault]:
    """E-3, and P-1 for a dealing that is passed on."""
    at = partial(Fault, base=base, receiver=ME, phase="input", party=SERVER, afterwards="closed")
    genuine, secret = body_of(base.requests["input"][ME])["delivery"], base.secret

    def delivered(base: Base = base, phase: str = "input", **changed) -> bytes:
        return base.request(phase, ME, lambda body: body["delivery"].update(changed))

    def dealing(change: Change, **fields) -> bytes:
        said = unframe(base.reply("keys", "aa", change, [], **fields))[0]
        return delivered(dealing=said)

    def made(dealer: str = "aa", secret: bytes = secret, base: Base = base, phase: str = "input", **how) -> bytes:
        return delivered(base, phase, **base.delivery(ME, dealer, secret, **how))

    part = genuine["dealing"]
    forged = cbor(uncbor(part) | {"signature": flipped(uncbor(part)["signature"], 9)})
    yield at("P-1.1-passed-on", "A dealing that is cut short", message=delivered(dealing=part[:-1]))
    yield at("P-1.2-passed-on", "A dealing with a wrong signature", message=delivered(dealing=forged))
    yield at("P-1.4-passed-on", "A dealing of another phase", message=dealing(lambda body: None, phase="input"))
    yield at("P-1.5-passed-on", "A dealing for somebody else", message=dealing(lambda body: None, recipient="z.1"))
    yield at("P-1.6-passed-on", "A dealing without its check", party="aa", message=dealing(without("check")))

    def asked(epoch: int) -> bytes:
        said = {"phase": "keys", "sender": "server", "recipient": ME}
        return kept.say({"plan": kept.plan.body, "epoch": epoch}, lambda body: None, said)

    again = partial(at, base=kept)
    yield again("E-3.1-same-epoch", "Asks for a key of the epoch that has one", message=asked(1))
    yield again("E-3.1-earlier-epoch", "Asks for a key of an earlier epoch", message=asked(0))
    yield again("E-3.1-last-epoch", "Asks for a key of an epoch that none could follow", message=asked(2**32))
    other = base.delivery(ME, "aa", secret, lambda body: body.update(run=JUNK[:16]))
    yield at("E-3.2-stranger", "A dealer that is not on the roster", message=delivered(dealer=STRANGER))
    yield at("E-3.2-run", "A key that was dealt for another run", message=delivered(**other))
    ckks = made(change=lambda body: body.update(protocol="ckks"))
    yield at("E-3.2-protocol", "A key that was dealt for the other scheme", message=ckks)
    yield at(
        "E-3.2-roster", "A key dealt to another roster", message=made(change=lambda body: body.update(roster=JUNK))
    )
    neighbour = body_of(base.requests["input"]["z.1"])["delivery"]
    yield at("E-3.2-box", "A box with one bit changed", message=delivered(parcel=flipped(genuine["parcel"], 1130)))
    yield at("E-3.2-box-of-another", "Another member's box, with its path", message=delivered(**neighbour))
    yield at("E-3.2-path", "A path without its last step", message=delivered(path=genuine["path"][:-32]))
    mine = sorted(base.sealing).index(ME)

    def other_box(boxes: list[bytes]) -> None:
        boxes[mine] = boxes[mine - 1]

    yield at("E-3.3-box", "The dealer signs a box that does not open", party="aa", message=made(boxes=other_box))
    unlike = made(change=lambda body: body.update(check=JUNK))
    yield at("E-3.3-check", "The key is not the one that the dealer committed to", party="aa", message=unlike)
    none = made(change=lambda body: body.update(epoch=0))
    yield at("E-3.2-epoch", "A key of epoch 0", party="aa", message=none)
    in_two = {"keyed": {"epoch": 2, "dealing": JUNK.hex()}}
    second = made("site-10", JUNK, kept)
    later = made("site-10", phase="sum", change=lambda body: body.update(epoch=2))
    yield again(
        "E-3.4-earlier-epoch", "The key of an epoch before the pinned one", message=kept.request("input", ME), **in_two
    )
    yield again("E-3.4-second-key", "A second key in the pinned epoch", message=second)
    yield at("E-3.4-other-key-in-sum", "A sum under a later key than the upload", phase="sum", message=later)
    spoiled, title = {"keyed": {"spoiled": True}}, "A key under which a sum was not that of its list"
    yield again("E-5.6-spoiled", title, message=kept.request("input", ME), **spoiled)
    read, title = {"keyed": {"readings": 2048 // 3}}, "One sum more than may be read under a key"
    yield again("E-5.6-readings", title, phase="sum", message=kept.request("sum", ME), **read)


def sums(base: Base) -> Iterator[Fault]:
    """E-5.1 to E-5.3, before anything is decrypted."""
    at = partial(Fault, base=base, receiver=ME, phase="sum", party=SERVER, afterwards="closed")
    survivors, again = base.vector["survivors"], base.next_attempt(ME)

    def listed(names: list[str]) -> bytes:
        return base.request("sum", ME, lambda body: body.update(survivors=names))

    unsorted = sorted(survivors, key=lambda name: (len(name), name))
    stranger = sorted([*survivors, STRANGER])
    yield at("E-5.1-unsorted", "Survivors in CBOR's order", message=listed(unsorted), then=(again, None, None))
    yield at("E-5.1-twice", "A survivor twice", message=listed([survivors[0], *survivors]))
    yield at("E-5.1-stranger", "A survivor outside the cohort", message=listed(stranger))
    yield at("E-5.1-too-few", "Two survivors, where three are needed", message=listed(survivors[:2]))
    spoilt, on_the_way = {"then": (again, "E-5.6", SERVER)}, {"party": NETWORK, "afterwards": "open"}
    short = base.request("sum", ME, lambda body: body.update(digests=[]), [])
    yield at("E-5.2-no-digest", "A sum without ciphertexts", message=short, then=(again, None, None))
    yield at("E-5.2-missing", "The ciphertext is missing", message=base.request("sum", ME, chunks=[]), **on_the_way)
    exchanged = base.request("sum", ME, chunks=base.uploads("aa"))
    yield at("E-5.2-digest", "Another ciphertext than that of the digest", message=exchanged, **on_the_way)
    form = Scheme("ckks", 2**45)
    floats = form.encrypt(form.key(fixed("another scheme")), [0.5] * N, fixed("another scheme"))
    yield at("E-5.3-scheme", "A ciphertext of the other scheme", message=base.sum_of(ME, [floats]), **spoilt)
    yield at("E-5.3-parameters", "A ciphertext of other parameters", message=base.sum_of(ME, [foreign()]))
    (fresh,) = base.uploads("aa")
    yield at("E-5.3-cut-short", "The first bytes of a ciphertext", message=base.sum_of(ME, [fresh[:1000]]))
    yield at("E-5.3-left-over", "A byte behind a ciphertext", message=base.sum_of(ME, [fresh + b"\0"]))


def foreign() -> bytes:
    """A ciphertext under a smaller plain modulus."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(N)
    parameters.set_coeff_modulus([seal.Modulus(Q)])
    parameters.set_plain_modulus(65537)
    parameters.set_random_generator(seal.Blake2xbPRNGFactory([1] * 8))
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC256)
    key = seal.KeyGenerator(context).secret_key()
    return saved(seal.Encryptor(context, key).encrypt_symmetric(seal.Plaintext("7")))


def with_constant(base: Base, chunk: bytes, slot: int, number: float) -> bytes:
    """A number added to one slot, as whoever holds no key can do it."""
    scheme, plain, slots = base.sheets.scheme, seal.Plaintext(), [0] * N
    slots[slot] = number
    if scheme.kind == "bfv":
        scheme.encoder.encode(slots, plain)
    else:
        pairs = zip(slots[::2], slots[1::2], strict=True)
        scheme.encoder.encode([complex(x, y) for x, y in pairs], scheme.scale, plain)
    ciphertext = scheme.load(chunk)
    scheme.evaluator.add_plain_inplace(ciphertext, plain)
    return saved(ciphertext)


def other_sums(base: Base, receiver: str) -> Iterator[Fault]:
    """E-5.4 under either scheme, from one attempt's ciphertexts of one chunk."""
    at = partial(Fault, base=base, receiver=receiver, phase="sum", party=SERVER, afterwards="closed")
    survivors, genuine = base.vector["survivors"], unframe(base.requests["sum"][receiver])[1:]
    kind, uploads = base.sheets.scheme.kind, {name: base.uploads(name) for name in base.vector["survivors"]}
    first, *others = survivors
    spoilt = {"then": (base.next_attempt(receiver), "E-5.6", SERVER)}
    repeated = base.sum_of(receiver, base.total(*[uploads[first]] * len(survivors)))
    without_one = base.total(*(uploads[name] for name in others))
    doubled = base.sum_of(receiver, base.total(genuine, genuine))
    added = [with_constant(base, genuine[0], 1, 1 if kind == "bfv" else 1e-6)]
    yield at(f"E-5.4-{kind}-repeated", "One ciphertext as often as there are survivors", message=repeated, **spoilt)
    yield at(f"E-5.4-{kind}-alone", "One client's upload as the sum", message=base.sum_of(receiver, uploads[first]))
    yield at(f"E-5.4-{kind}-left-out", "A listed client is not in it", message=base.sum_of(receiver, without_one))
    unlisted = base.sum_of(receiver, genuine, others)
    yield at(f"E-5.4-{kind}-unlisted", "A client is in it that is not listed", message=unlisted)
    yield at(f"E-5.4-{kind}-doubled", "Twice the sum", message=doubled)
    yield at(f"E-5.4-{kind}-constant", "A constant added to one slot", message=base.sum_of(receiver, added))
    replayed = base.sum_of(receiver, base.total(without_one, of_another_attempt(base, first)))
    yield at(f"E-5.4-{kind}-replayed", "A client's ciphertext is of another attempt", message=replayed)


def of_another_attempt(base: Base, client: str) -> list[bytes]:
    """What a client uploaded in the attempt before, under the same key."""
    before = sheets_of(Plan(base.plan.body | {"attempt": base.plan.body["attempt"] - 1}))
    vector = [*base.vector["clients"][client]["vector"], *CHECKS]
    return base.encrypted(before.fill(vector, base.secret, client), f"{base.name} replayed")


def swapped(base: Base, kind: str) -> Fault:
    """The sum's ciphertexts for each other."""
    chunks = unframe(base.requests["sum"][ME])[1:]
    title, message = "The two ciphertexts of the sum for each other", base.sum_of(ME, chunks[::-1])
    return Fault(f"E-5.4-{kind}-swapped", title, base, "sum", ME, SERVER, message, afterwards="closed")


def bad_vectors(base: Base, receiver: str, changes: dict[str, tuple[str, int, int]]) -> Iterator[Fault]:
    """E-5.5: the sum is the one of the list, and a client's vector is none."""
    kind, (one, *others) = base.sheets.scheme.kind, base.vector["survivors"]
    for name, (title, place, number) in changes.items():
        vector = [*base.vector["clients"][one]["vector"], *CHECKS]
        vector[place] += number
        wrong = base.upload_of(one, vector, f"{base.name} {name}")
        message = base.sum_of(receiver, base.total(wrong, *(base.uploads(other) for other in others)))
        yield Fault(f"E-5.5-{kind}-{name}", title, base, "sum", receiver, SERVER, message, afterwards="closed")


def bfv_sums(two: Base, kept: Base, packed: Base) -> Iterator[Fault]:
    """E-5.4 and E-5.5 under BFV."""
    yield from other_sums(packed, ME)
    yield swapped(two, "bfv")
    earlier = two.uploads("aa")[:1]
    chunks = kept.total(earlier, kept.uploads("b"), kept.uploads("site-10"))
    title, message = "A client's ciphertext of the round before, whose key is kept", kept.sum_of(ME, chunks)
    yield Fault("E-5.4-bfv-earlier-round", title, kept, "sum", ME, SERVER, message, afterwards="closed")
    changes = {
        "participants": ("A client that says it is two", -3, 1),
        "zero": ("A client whose last check is not zero", -1, 1),
        "counter": ("A counter below zero", -4, -(5 * 10**9)),
        "weight": ("A total weight below the number of clients", -5, -40),
    }
    yield from bad_vectors(packed, ME, changes)


def ckks_sums(floats: Base, five: Base) -> Iterator[Fault]:
    """E-5.4 and E-5.5 under CKKS."""
    yield from other_sums(five, "site-9")
    yield swapped(floats, "ckks")
    changes = {
        "participants": ("A client that says it is two", -3, 1),
        "counter": ("A counter beyond its bound", -5, 10**7),
    }
    yield from bad_vectors(five, "site-9", changes)
