"""A server that signs what it likes. Each lie is refused by clause, and the client answers it nothing further."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from secagg_kit import Federation, Table, identity, refused

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.envelope import Envelope, join, seal, split
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.masks import Bound
from fedvlm_secure.secagg.pairwise.rules import CONSENT_PURPOSE
from fedvlm_secure.secagg.session import SERVER

VICTIM = "c01"
CLIENTS = 6  # threshold and min_survivors are 4


def body(request: bytes, form: type):
    return unpack(form, unpack(Envelope, split(request)[0]).body)


def lie(table: Table, phase: str, message: object, clause: str, party: str = SERVER, victim: str = VICTIM) -> None:
    """The victim refuses the signed lie and closes: neither the lie nor the truth gets an answer now."""
    client, truth = table.clients[victim], table.request(victim)
    error = refused(lambda: client.reply(table.federation.says(phase, victim, message)), clause, party)
    assert (error.phase, error.round) == (phase, table.federation.plan.place)
    for request in (truth, table.federation.says(phase, victim, message)):
        with pytest.raises(MisuseError):
            client.reply(request)
    assert client.memory.answered == ()


def at(phase: str, silent: dict[str, str] | None = None, **changes) -> Table:
    return Federation(clients=CLIENTS, **changes).table().play_until(phase, silent)


@pytest.fixture
def unmasking() -> Table:
    """Five survivors; c00 dropped before its upload."""
    return at(m.UNMASK, {"c00": m.MASKED_INPUT})


def test_dual_request_for_a_survivor(unmasking):
    truth = body(unmasking.request(VICTIM), m.UnmaskRequest)
    lie(unmasking, m.UNMASK, replace(truth, dropped=("c00", "c02")), "P-7.4")


@pytest.mark.parametrize(
    "dropped", [(), ("c00", "c00"), ("c00", "stranger"), ("stranger",), ("c00", "server"), ("c00", "nobody")]
)
def test_another_list_of_the_dropped(unmasking, dropped):
    truth = body(unmasking.request(VICTIM), m.UnmaskRequest)
    lie(unmasking, m.UNMASK, replace(truth, dropped=dropped), "P-7.2")


@pytest.mark.parametrize(
    "change",
    {
        "none": lambda c, t: {},
        "too few": lambda c, t: dict(sorted(c.items())[:3]),
        "one repeated": lambda c, t: dict.fromkeys(c, c[VICTIM]),
        "one garbage": lambda c, t: c | {"c05": bytes(64)},
        "of the dropped": lambda c, t: c | {"c00": c[VICTIM]},
        "of a stranger": lambda c, t: c | {"stranger": c[VICTIM]},
        "of the server": lambda c, t: c | {SERVER: c[VICTIM]},
        "for another list": lambda c, t: c | {"c05": consent_of(t, "c05", ("c01", "c02", "c03", "c05"))},
    }.items(),
    ids=lambda item: item[0],
)
def test_no_quorum_of_consents(unmasking, change: tuple[str, Callable]):
    truth = body(unmasking.request(VICTIM), m.UnmaskRequest)
    lie(unmasking, m.UNMASK, replace(truth, consents=change[1](truth.consents, unmasking)), "P-7.3")


def consent_of(table: Table, name: str, survivors: tuple[str, ...]) -> bytes:
    signed = Bound(table.federation.plan.hash).consent(table.server._key_root, survivors)
    return identity(name).sign(CONSENT_PURPOSE, signed)


@pytest.mark.parametrize(
    ("survivors", "clause"),
    [
        (("c01", "c02", "c03"), "P-6.3"),
        ((VICTIM,), "P-6.3"),
        ((), "P-6.1"),
        (("c00", "c02", "c03", "c04", "c05"), "P-6.1"),  # without us
        (("c01", "c02", "c03", "c04", "c04"), "P-6.1"),
        (("c02", "c01", "c03", "c04", "c05"), "P-6.1"),
        (("c01", "c02", "c03", "c04", "stranger"), "P-6.1"),
        (("c00", "c01", "c02", "c03", "c04"), "P-6.1"),  # c00 left before it dealt any shares
    ],
)
def test_bad_survivor_lists(survivors, clause):
    lie(at(m.CONSISTENCY, {"c00": m.SHARES}), m.CONSISTENCY, m.SurvivorList(survivors), clause)


@pytest.mark.parametrize("first_half", [1, 2, 3, 4])
def test_equivocation_finds_at_most_one_quorum(first_half):
    """One list with c04, one without, for two halves; the colluder c05 signs both. Only one is answered for."""
    table = at(m.CONSISTENCY)
    federation, names = table.federation, table.federation.names
    honest = ("c04", "c00", "c01", "c02", "c03")
    without = tuple(name for name in names if name != "c04")
    answered = set()
    for survivors, half in ((names, honest[:first_half]), (without, honest[first_half:])):
        consents = {"c05": consent_of(table, "c05", survivors)}
        for name in half:
            reply = table.clients[name].reply(federation.says(m.CONSISTENCY, name, m.SurvivorList(survivors)))
            consents[name] = body(reply, m.Consent).signature
            # A first list is all that a client ever signs.
            again = federation.says(m.CONSISTENCY, name, m.SurvivorList(names[:-1]))
            refused(lambda name=name, again=again: table.clients[name].reply(again), "P-1.4", "network")
        dropped = tuple(sorted(set(names) - set(survivors)))
        for name in half:
            request = federation.says(m.UNMASK, name, m.UnmaskRequest(dropped, consents))
            if len(consents) < 4:
                refused(lambda name=name, request=request: table.clients[name].reply(request), "P-7.3", SERVER)
            else:
                revealed = body(table.clients[name].reply(request), m.Revealed)
                answered.add("c04" in revealed.self_mask)
                assert ("c04" in revealed.self_mask) != ("c04" in revealed.mask_seed)
    assert len(answered) <= 1


def keys_of(table: Table) -> dict[str, bytes]:
    return dict(body(table.request(VICTIM), m.KeyList).keys)


def forged_keys(table: Table, name: str, signer: str) -> bytes:
    keys = unpack(m.Keys, unpack(Envelope, keys_of(table)["c02"]).body)
    return seal(identity(signer), m.KEYS, table.federation.plan.hash, name, SERVER, keys)


@pytest.mark.parametrize(
    ("substitute", "clause"),
    [
        (lambda t, k: k | {"c03": forged_keys(t, "c03", SERVER)}, "P-1.2"),  # the server's own key for c03
        (lambda t, k: k | {"c03": k["c02"]}, "P-1.5"),
        (lambda t, k: k | {"c03": b""}, "P-1.1"),
        (lambda t, k: k | {"stranger": forged_keys(t, "stranger", "stranger")}, "P-3.2"),  # on the roster, not invited
        (lambda t, k: k | {"sybil": forged_keys(t, "sybil", SERVER)}, "P-3.2"),
        (lambda t, k: k | {VICTIM: forged_keys(t, VICTIM, VICTIM)}, "P-3.4"),  # if our key leaked
        (lambda t, k: {name: key for name, key in k.items() if name != VICTIM}, "P-3.4"),
        (lambda t, k: dict(sorted(k.items())[:3]), "P-3.3"),
        (lambda t, k: {VICTIM: k[VICTIM]}, "P-3.3"),
        (lambda t, k: {}, "P-3.3"),
    ],
)
def test_substituted_keys_and_sybils(substitute, clause):
    table = at(m.SHARES)
    lie(table, m.SHARES, m.KeyList(substitute(table, keys_of(table)), {}), clause)


def test_keys_of_an_older_attempt():
    table, twin = at(m.SHARES), Federation(clients=CLIENTS)
    twin.plan = replace(twin.plan, attempt=1)
    older = keys_of(twin.table().play_until(m.SHARES))
    lie(table, m.SHARES, m.KeyList(keys_of(table) | {"c03": older["c03"]}, {}), "P-1.3")


def test_two_key_lists():
    """One client is shown the list without one member: its parcels fit nobody else's list."""
    table = at(m.SHARES)
    fewer = {name: envelope for name, envelope in keys_of(table).items() if name != "c05"}
    odd = table.clients["c04"].reply(table.federation.says(m.SHARES, "c04", m.KeyList(fewer, {})))
    refused(lambda: table.server.receive("c04", odd), "P-4.4", "c04")  # an honest server notices
    frames = [bytes(frame) for frame in split(odd)]
    for name in ("c00", "c01", "c02", "c03", "c05"):
        table.server.receive(name, table.clients[name].reply(table.request(name)))
    table.server.end_phase()
    truth = body(table.request(VICTIM), m.Deliveries).parcels
    tree = MerkleTree(frames[1:])
    sent = {"c04": m.Delivery(frames[0], frames[2], tree.path(1))}
    lie(table, m.MASKED_INPUT, m.Deliveries(truth | sent), "P-4.4")


@pytest.mark.parametrize(
    ("change", "clause", "party"),
    [
        (lambda t, p: dict(sorted(p.items())[:2]), "P-5.1", SERVER),
        (lambda t, p: {}, "P-5.1", SERVER),
        (lambda t, p: p | {VICTIM: p["c02"]}, "P-4.3", SERVER),
        (lambda t, p: p | {"stranger": p["c02"]}, "P-4.3", SERVER),
        (lambda t, p: p | {"c03": p["c02"]}, "P-1.5", SERVER),
        (lambda t, p: p | {"c03": replace(p["c03"], parcel=p["c02"].parcel)}, "P-1.2", SERVER),
        (lambda t, p: p | {"c03": replace(p["c03"], path=p["c03"].path[:-32])}, "P-1.2", SERVER),
        (lambda t, p: p | {"c03": replace(p["c03"], path=b"")}, "P-1.2", SERVER),
        (lambda t, p: p | {"c03": own_parcel(t, "c03", SERVER)}, "P-1.2", SERVER),  # the server's own parcel
        (lambda t, p: p | {"c03": own_parcel(t, "c03", "c03")}, "P-4.2", "c03"),  # a colluder's garbage
        (lambda t, p: p | {"c03": own_parcel(t, "c03", "c03", shares=bytes(66))}, "P-4.2", "c03"),  # not as committed
        (lambda t, p: p | {"c03": own_parcel(t, "c03", "c03", cut=1)}, "P-4.2", "c03"),
        (lambda t, p: p | {"c00": own_parcel(t, "c00", "c00", shares=bytes(66))}, "P-4.2", "c00"),  # no pair seed opens
    ],
)
def test_parcels_of_the_server_or_of_a_colluder(change, clause, party):
    table = at(m.MASKED_INPUT)
    truth = body(table.request(VICTIM), m.Deliveries).parcels
    lie(table, m.MASKED_INPUT, m.Deliveries(change(table, truth)), clause, party)


def own_parcel(table: Table, sender: str, signer: str, shares: bytes = bytes(65), cut: int = 0) -> m.Delivery:
    """A parcel for the victim in a list of its own, with a garbage pair box where one belongs."""
    bound, root = Bound(table.federation.plan.hash), table.server._key_root
    public = table.server._published(VICTIM).share_key
    box = bound.seal_shares(Secret(shares), public, root, sender, VICTIM).ljust(m.SHARES_BOX_BYTES, b"x")
    pair = bytes(m.PAIR_BOX_BYTES) if sender < VICTIM else None
    parcel = m.Parcel(bytes(32), bytes(32), box, pair).to_bytes()
    parcel = parcel[: len(parcel) - cut]
    recipients = [name for name in table.federation.names if name != sender]
    tree = MerkleTree([parcel if name == VICTIM else b"" for name in recipients])
    listed = seal(identity(signer), m.SHARES, table.federation.plan.hash, sender, SERVER, m.ParcelList(root, tree.root))
    return m.Delivery(listed, parcel, tree.path(recipients.index(VICTIM)))


def test_late_upload_after_the_survivor_list():
    """An honest server refuses it; a lying one gains nothing, for nobody reveals c00's self-mask share any more."""
    table = at(m.MASKED_INPUT)
    late = table.clients["c00"].reply(table.request("c00"))
    table.play_until(m.CONSISTENCY, {"c00": m.MASKED_INPUT})
    before = table.server.to_bytes()
    refused(lambda: table.server.receive("c00", late), "P-1.7", "network")
    assert table.server.to_bytes() == before
    table.play_until(m.UNMASK)
    answers = {name: body(table.clients[name].reply(request), m.Revealed) for name, request in table.server.requests()}
    for revealed in answers.values():
        assert "c00" not in revealed.self_mask
        assert set(revealed.mask_seed) == {"c00"}
        assert not set(revealed.self_mask) & set(revealed.mask_seed)


def test_unmask_is_answered_once(unmasking):
    request, client = unmasking.request(VICTIM), unmasking.clients[VICTIM]
    answer = client.reply(request)
    assert client.reply(request) == answer
    truth = body(request, m.UnmaskRequest)
    fewer = dict(sorted(truth.consents.items())[1:])
    with pytest.raises(MisuseError):
        client.reply(unmasking.federation.says(m.UNMASK, VICTIM, replace(truth, consents=fewer)))


def test_a_message_signed_by_a_client_is_not_the_servers(unmasking):
    truth = body(unmasking.request(VICTIM), m.UnmaskRequest)
    forged = join([seal(identity("c02"), m.UNMASK, unmasking.federation.plan.hash, SERVER, VICTIM, truth)])
    refused(lambda: unmasking.clients[VICTIM].reply(forged), "P-1.2", "network")
    unmasking.finish_rightly()
