"""What the encrypted protocols ask of an attempt beyond what all protocols share, from what a transcript holds."""

from collections import Counter

from fedvlm_secure.audit.messages import Messages
from fedvlm_secure.audit.verdict import Checklist
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import dealing_digest
from fedvlm_secure.secagg.envelope import Envelope
from fedvlm_secure.secagg.log import REPLY, REQUEST
from fedvlm_secure.secagg.session import ClientId


def check_encrypted(said: Messages, found: Checklist, *, summed: bool) -> tuple[ClientId, ...]:
    """One key for all inputs, one sum of all of them, and enough who say what follows (A-6, A-7, A-8); who uploaded."""
    where, plan = said.attempt.where, said.attempt.plan
    uploads, sums = said.of(m.INPUT, REPLY), said.of(m.SUM, REQUEST)
    uploaded = tuple(sorted(uploads))
    _check_one_key(said, found)
    for client, body in sums.items():
        at, first = f"{where}: {client}", next(iter(sums.values()))
        found.require("A-8", body.survivors == uploaded, at, "was shown a sum of others than those who uploaded")
        found.require("A-8", body.digests == first.digests, at, "was shown another sum than the others")
        found.require("A-6", client in uploads, at, "was shown a sum without having uploaded")
    if sums:
        detail = f"a sum of {len(uploaded)} was shown, {plan.min_survivors} are needed"
        found.require("A-6", len(uploaded) >= plan.min_survivors, where, detail)
    if summed:
        following = adopted(said)
        found.require("A-8", following is not None, where, "no majority of those in the sum says what follows from it")
    return uploaded


def adopted(said: Messages) -> bytes | None:
    """The model that more than half of those who uploaded say follows from the sum; None if there is none."""
    said_by = Counter(body.model for body in said.of(m.SUM, REPLY).values())
    model, count = said_by.most_common(1)[0] if said_by else (b"", 0)
    return model if 2 * count > len(said.of(m.INPUT, REPLY)) else None


def _check_one_key(said: Messages, found: Checklist) -> None:
    where = said.attempt.where
    deliveries = [body.delivery for kind in (m.INPUT, m.SUM) for body in said.of(kind, REQUEST).values()]
    under = {(delivery.dealer, delivery.dealing) for delivery in deliveries}
    found.require("A-7", len(under) <= 1, where, "clients were given keys of different dealings")
    for dealer, envelope in said.envelopes.get((m.KEYS, REPLY), {}).items():
        found.require("A-7", under <= {(dealer, envelope)}, where, "clients were given another dealing than was made")
    named = {body.dealing for body in said.of(m.INPUT, REPLY).values()}
    dealt = set[bytes]()
    for dealer, envelope in under:
        with found.expecting("A-7", f"{where}: the dealing of {dealer}"):
            dealt.add(dealing_digest(dealer, unpack(m.Dealing, unpack(Envelope, envelope).body)))
    found.require("A-7", named <= dealt, where, "an upload is under another dealing than was given")
