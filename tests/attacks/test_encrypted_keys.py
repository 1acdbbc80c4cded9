"""Keys that a lying server passes on, and a lying dealer's: refused by clause, and the next honest key is used."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from encrypted_kit import EncryptedFederation, EncryptedTable, held, opened, pin_of, says
from secagg_kit import identity, refused

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.sealing import seal as sealed_box
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import PARCEL, he_key
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, LARGEST_EPOCH
from fedvlm_secure.secagg.encrypted.server import DealtKey
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.envelope import seal
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.upload import digests_of

VICTIM, DEALER, OTHER = "c01", "c00", "c02"  # the first of the cohort deals in the first epoch


def own_dealing(
    federation: EncryptedFederation,
    dealer: str,
    signer: str | None = None,
    *,
    boxes: Callable[[list[bytes]], list[bytes]] = list,
    recipient: str = SERVER,
    phase: str = m.KEYS,
    plan: Plan | None = None,
    secret: Secret | None = None,
    **changes,
) -> DealtKey:
    """A dealing as an attacker would make it, with ``changes`` to what is signed."""
    plan = federation.plan if plan is None else plan
    epoch, secret = changes.get("epoch", 1), Secret.generate() if secret is None else secret
    members = federation.roster.members
    bound = (plan.run, epoch, plan.protocol, plan.roster)
    parcels = boxes([sealed_box(member.sealing_key, secret, PARCEL, *bound, member.name) for member in members])
    check = he_key(secret, plan, epoch, sheet_of(plan).scheme).check()
    dealing = m.Dealing(plan.run, epoch, plan.protocol, plan.roster, MerkleTree(parcels).root, check)
    dealing = replace(dealing, **changes)
    envelope = seal(identity(signer or dealer), phase, plan.hash, dealer, recipient, dealing)
    return DealtKey(dealer, envelope, bytes(32), bytes(32), tuple(parcels))


def delivery(federation: EncryptedFederation, key: DealtKey, name: str = VICTIM, path_of: str | None = None):
    names = [member.name for member in federation.roster.members]
    path = MerkleTree(key.parcels).path(names.index(path_of or name))
    return m.Delivery(key.dealer, key.envelope, key.parcels[names.index(name)], path)


def at_input(protocol: str = BFV, **settings) -> EncryptedTable:
    return EncryptedFederation(protocol=protocol, **settings).table().play_until(m.INPUT)


def assigned(table: EncryptedTable, given: m.Delivery, name: str = VICTIM) -> bytes:
    federation = table.federation
    return says(federation, m.INPUT, name, m.Assignment(federation.plan, given))


def refuses(table: EncryptedTable, request: bytes, clause: str, party: str, name: str = VICTIM) -> None:
    """Closed, nothing uploaded, nothing pinned or latched by it; and a next attempt goes well with the same update."""
    client, truth = table.clients[name], table.request(name)
    memory = client.memory
    error = refused(lambda: client.reply(request), clause, party)
    assert error.phase == table.server.phase
    assert client.memory == memory
    for late in (truth, request):
        with pytest.raises(MisuseError):
            client.reply(late)
    again = table.federation.after(table, attempt=table.federation.attempt + 1)
    again.table().finish_rightly()


def test_a_refusal_of_the_first_request_names_the_round():
    table = at_input()
    client, key = table.clients[VICTIM], own_dealing(table.federation, SERVER)
    error = refused(lambda: client.reply(assigned(table, delivery(table.federation, key))), "E-3.2", SERVER)
    assert error.round == client.refusal.round == table.federation.plan.place


def second_round(protocol: str) -> EncryptedTable:
    first = EncryptedFederation(protocol=protocol).table()
    sealed = first.finish_rightly()
    return first.federation.after(first, round=4, model=sealed.model).table()


SUBSTITUTES = {
    "the server's own": (lambda f: own_dealing(f, SERVER), "E-3.2", SERVER),
    "the server's own, as a client's": (lambda f: own_dealing(f, DEALER, SERVER), "P-1.2", SERVER),
    "nobody's": (lambda f: own_dealing(f, "nobody", SERVER), "E-3.2", SERVER),
    "one client's in another's name": (lambda f: own_dealing(f, DEALER, OTHER), "P-1.2", SERVER),
    "another run's": (lambda f: own_dealing(f, DEALER, plan=replace(f.plan, run=bytes(15) + b"x")), "E-3.2", SERVER),
    "another roster's": (lambda f: own_dealing(f, DEALER, plan=replace(f.plan, roster=bytes(32))), "E-3.2", SERVER),
    "the other protocol's": (
        lambda f: own_dealing(f, DEALER, plan=replace(f.plan, protocol=CKKS if f.protocol == BFV else BFV)),
        "E-3.2",
        SERVER,
    ),
    "of no epoch": (lambda f: own_dealing(f, DEALER, epoch=0), "E-3.2", DEALER),
    "of the last epoch's next": (lambda f: own_dealing(f, DEALER, epoch=LARGEST_EPOCH + 1), "E-3.2", DEALER),
    "of another phase": (lambda f: own_dealing(f, DEALER, phase=m.INPUT), "P-1.4", SERVER),
    "to another recipient": (lambda f: own_dealing(f, DEALER, recipient=VICTIM), "P-1.5", SERVER),
    "of another check": (lambda f: own_dealing(f, DEALER, check=bytes(32)), "E-3.3", DEALER),
    "boxes for others": (lambda f: own_dealing(f, DEALER, boxes=lambda b: b[1:] + b[:1]), "E-3.3", DEALER),
    "a garbage box": (lambda f: own_dealing(f, DEALER, boxes=lambda b: [bytes(len(b[0]))] * len(b)), "E-3.3", DEALER),
    "fewer boxes": (lambda f: own_dealing(f, DEALER, boxes=lambda b: b[:4]), "E-3.2", SERVER),
    "boxes not signed": (lambda f: own_dealing(f, DEALER, parcels=bytes(32)), "E-3.2", SERVER),
}


@pytest.mark.parametrize("protocol", [BFV, CKKS])
@pytest.mark.parametrize("substitute", SUBSTITUTES)
def test_a_substituted_key(protocol, substitute):
    make, clause, party = SUBSTITUTES[substitute]
    table = at_input(protocol)
    refuses(table, assigned(table, delivery(table.federation, make(table.federation))), clause, party)


def test_a_key_sealed_to_another_length():
    """A seed of 16 or 64 bytes is no secret of ours, even in a sound box."""
    table = at_input()
    for name, size in ((OTHER, 16), (VICTIM, 64)):
        key = own_dealing(table.federation, DEALER, secret=Secret.generate(size))
        request = assigned(table, delivery(table.federation, key, name), name)
        refused(lambda name=name, request=request: table.clients[name].reply(request), "P-1.6", SERVER)


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda d, o: replace(d, parcel=o.parcel, path=o.path), "E-3.2"),
        (lambda d, o: replace(d, parcel=o.parcel), "E-3.2"),
        (lambda d, o: replace(d, path=o.path), "E-3.2"),
        (lambda d, o: replace(d, path=b""), "E-3.2"),
        (lambda d, o: replace(d, path=d.path + bytes(32)), "E-3.2"),
        (lambda d, o: replace(d, parcel=bytes(len(d.parcel))), "E-3.2"),
        (lambda d, o: replace(d, dealer=OTHER), "P-1.5"),
        (lambda d, o: replace(d, dealing=b""), "P-1.1"),
        (lambda d, o: replace(d, dealing=d.dealing[:-1]), "P-1.1"),
        (lambda d, o: replace(d, dealing=d.dealing[:-1] + bytes([d.dealing[-1] ^ 1])), "P-1.2"),
    ],
    ids=["box", "box only", "path only", "no path", "longer path", "zeros", "dealer", "nothing", "cut", "flipped"],
)
def test_swapped_and_damaged_boxes(change, clause):
    table = at_input()
    truth, _ = table.truth(VICTIM, m.Assignment)
    others, _ = table.truth(OTHER, m.Assignment)
    refuses(table, assigned(table, change(truth.delivery, others.delivery)), clause, SERVER)


def test_another_plan_in_the_assignment():
    """To the dealer, who has begun one; to everybody else the assignment is where the plan comes from."""
    table = at_input()
    truth, _ = table.truth(DEALER, m.Assignment)
    other = replace(table.federation.plan, attempt=9)
    request = says(table.federation, m.INPUT, DEALER, replace(truth, plan=other))
    refuses(table, request, "P-1.3", SERVER, DEALER)


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_a_second_key_in_the_same_epoch(protocol):
    """Dealt by a member and in order: but there is one already."""
    table = second_round(protocol)
    assert pin_of(table.clients[VICTIM]).epoch == 1
    for dealer in (OTHER, DEALER, VICTIM):
        table.clients[VICTIM] = table.federation.client(VICTIM)
        key = own_dealing(table.federation, dealer)
        refuses(table, assigned(table, delivery(table.federation, key)), "E-3.4", SERVER)


def test_the_dealer_takes_no_key_but_its_own_in_its_epoch():
    table = at_input()
    key = own_dealing(table.federation, OTHER)
    refuses(table, assigned(table, delivery(table.federation, key, DEALER), DEALER), "E-3.4", SERVER, DEALER)


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_a_key_of_an_older_epoch(protocol):
    first = EncryptedFederation(protocol=protocol).table()
    model = first.finish_rightly().model
    older = first.server._key()
    rotated = first.server.rotated(first.server.carried)
    second = first.federation.after(first, round=4, model=model, carried=rotated).table()
    assert second.server.phase == m.KEYS
    model = second.finish_rightly().model
    assert pin_of(second.clients[VICTIM]).epoch == 2
    third = second.federation.after(second, round=5, model=model).table()
    refuses(third, assigned(third, delivery(third.federation, older)), "E-3.4", SERVER)


def test_a_sum_under_another_key_than_the_upload():
    """Between upload and sum the key does not change, not even to one of a later epoch."""
    table = at_input().play_until(m.SUM)
    truth, chunks = table.truth(VICTIM, m.EncryptedSum)
    key = own_dealing(table.federation, OTHER, epoch=2)
    client = table.clients[VICTIM]
    lie = replace(truth, delivery=delivery(table.federation, key))
    refused(lambda: client.reply(says(table.federation, m.SUM, VICTIM, lie, chunks)), "E-3.4", SERVER)
    assert client.sum is None
    assert client.memory.answered


def test_two_keys_for_two_halves():
    """Each half is too few for a sum of its own, and a sum over both fits nobody's tags."""
    table = EncryptedFederation(clients=6).table()
    federation, names = table.federation, table.federation.names
    keys = {dealer: own_dealing(federation, dealer) for dealer in ("c00", "c05")}
    halves = {"c00": names[1:3], "c05": names[3:5]}
    uploads = {}
    for dealer, half in halves.items():
        for name in half:
            reply = table.clients[name].reply(assigned(table, delivery(federation, keys[dealer], name), name))
            uploads[name] = opened(reply, m.EncryptedUpload)[1]
    scheme = table.server._scheme
    mixed = [scheme.load(chunk) for chunk in uploads["c01"]]
    for name in ("c02", "c03", "c04"):
        for total, chunk in zip(mixed, uploads[name], strict=True):
            scheme.add(total, scheme.load(chunk))
    chunks = [scheme.dump(total) for total in mixed]
    for dealer, half in halves.items():
        for name, (listed, clause) in zip(half, ((half, "E-5.1"), (names[1:5], "E-5.4")), strict=True):
            given = delivery(federation, keys[dealer], name)
            lie = m.EncryptedSum(federation.plan, given, listed, digests_of(chunks))
            request = says(federation, m.SUM, name, lie, chunks)
            refused(lambda name=name, request=request: table.clients[name].reply(request), clause, SERVER)


@pytest.mark.parametrize(
    ("epoch", "done", "clause"),
    [(0, False, "E-3.1"), (LARGEST_EPOCH + 1, False, "E-3.1"), (1, True, "E-3.1"), (0, True, "E-3.1")],
)
def test_asking_for_a_key_that_is_not_due(epoch, done, clause):
    """A dealer that has dealt, or holds one of this epoch, makes no second: two would split the cohort."""
    table = second_round(BFV) if done else EncryptedFederation().table()
    federation, client = table.federation, table.clients[DEALER]
    memory = client.memory
    refused(
        lambda: client.reply(says(federation, m.KEYS, DEALER, m.KeysRequest(federation.plan, epoch))), clause, SERVER
    )
    assert client.memory == memory
    with pytest.raises(MisuseError):
        client.reply(says(federation, m.KEYS, DEALER, m.KeysRequest(federation.plan, 2)))


def test_a_dealer_is_asked_once():
    table = at_input()
    client, federation = table.clients[DEALER], table.federation
    dealt = next(iter(table.replies[m.KEYS].values()))
    for epoch in (1, 2):
        request = says(federation, m.KEYS, DEALER, m.KeysRequest(federation.plan, epoch))
        if epoch == 1:
            assert client.reply(request) == dealt, "the identical request"
        else:
            refused(lambda request=request: client.reply(request), "P-1.4", "network")
    table.finish_rightly()


def test_a_later_epoch_is_taken():
    """A member that slept through a rotation uses the key of the epoch that runs now."""
    first = EncryptedFederation().table()
    model = first.finish_rightly().model
    rotated = first.server.rotated(first.server.rotated(first.server.carried))
    second = first.federation.after(first, round=4, model=model, carried=rotated).table()
    second.finish_rightly()
    assert {pin_of(client).epoch for client in second.clients.values()} == {3}
    assert next(iter(second.replies[m.KEYS])) == "c02", "another client's turn in every epoch"


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_what_a_colluder_gives_away(protocol):
    """One member and the server read every upload. No rule can help; hence `max_corrupt` 0, unless a policy insists."""
    table = at_input(protocol).play_until(m.SUM)
    sheet = sheet_of(table.federation.plan)
    key = held(table, OTHER)
    chunks = opened(table.replies[m.INPUT][VICTIM], m.EncryptedUpload)[1]
    total = sheet.read([key.key.decrypt(sheet.scheme.load(chunk)) for chunk in chunks], key.secret, (VICTIM,))
    table.check(total, (VICTIM,))


def test_a_dealer_that_carries_another_key_than_it_was_sent_is_noticed():
    """The server's own check: an upload names the dealing that it is encrypted under."""
    table = at_input()
    key = own_dealing(table.federation, OTHER)
    reply = table.clients[VICTIM].reply(assigned(table, delivery(table.federation, key)))
    before = table.server.to_bytes()
    refused(lambda: table.server.receive(VICTIM, reply), "E-4.1", VICTIM)
    assert table.server.to_bytes() == before
