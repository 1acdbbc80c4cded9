"""One client out of line, within `max_corrupt`: it is named, or it changes nothing; honest clients are not blamed."""

from dataclasses import replace

import numpy as np
import pytest
from secagg_kit import Federation, Table, identity, refused

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.primitives.shamir import split as split_shares
from fedvlm_secure.secagg.envelope import Envelope, join, seal, split
from fedvlm_secure.secagg.pairwise import client as client_module
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.upload import Upload

LIAR = "c00"  # the first in the order of names, hence in every sorted set of holders


def says(table: Table, phase: str, body: object, chunks: tuple[bytes, ...] = ()) -> bytes:
    return join([seal(identity(LIAR), phase, table.federation.plan.hash, LIAR, SERVER, body), *chunks])


def truth(table: Table, form: type):
    reply = table.clients[LIAR].reply(table.request(LIAR))
    return unpack(form, unpack(Envelope, split(reply)[0]).body)


def at(phase: str) -> Table:
    return Federation(clients=6).table().play_until(phase)


@pytest.mark.parametrize("field", ["share_key", "mask_key"])
def test_a_key_that_nothing_can_be_sealed_to_is_not_passed_on(field):
    """Passed on, it would end every honest client's session."""
    table = at(m.KEYS)
    keys = truth(table, m.Keys)
    for bad in (b"\xff" * 1216, getattr(keys, field)[:1184] + bytes(32)):
        message = says(table, m.KEYS, replace(keys, **{field: bad}))
        refused(lambda message=message: table.server.receive(LIAR, message), "P-3.1", LIAR)
    table.play_until(m.SHARES, {LIAR: m.KEYS})
    assert LIAR not in table.finish_rightly().survivors


def dealt(table: Table) -> tuple[m.ParcelList, list[bytes]]:
    """The liar's true list and its parcels, for c01 to c05."""
    frames = split(table.clients[LIAR].reply(table.request(LIAR)))
    return unpack(m.ParcelList, unpack(Envelope, frames[0]).body), [bytes(frame) for frame in frames[1:]]


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        (lambda p: [], "P-4.3"),
        (lambda p: p[1:], "P-4.3"),
        (lambda p: [*p, p[0]], "P-4.3"),
        (lambda p: [p[1], p[0], *p[2:]], "P-4.2"),
        (lambda p: [p[0][:-1], *p[1:]], "P-4.2"),
        (lambda p: [p[0][:-1] + bytes([p[0][-1] ^ 1]), *p[1:]], "P-4.2"),
    ],
)
def test_parcels_that_are_not_those_signed(change, clause):
    """Whether the sender or somebody on the way did it, no signature tells."""
    table = at(m.SHARES)
    listed, parcels = dealt(table)
    before = table.server.to_bytes()
    message = says(table, m.SHARES, listed, tuple(change(parcels)))
    assert refused(lambda: table.server.receive(LIAR, message), clause, "network").phase == m.SHARES
    assert table.server.to_bytes() == before
    assert table.finish_rightly().dropped == ()


def test_parcels_that_cannot_be_passed_on():
    table = at(m.SHARES)
    listed, parcels = dealt(table)
    before = table.server.to_bytes()
    other_root = says(table, m.SHARES, replace(listed, key_root=bytes(32)), tuple(parcels))
    refused(lambda: table.server.receive(LIAR, other_root), "P-4.4", LIAR)
    for change in (lambda parcel: parcel[:-1], lambda parcel: parcel + b"x", lambda parcel: b""):
        changed = [change(parcels[0]), *parcels[1:]]
        message = says(table, m.SHARES, replace(listed, parcels=MerkleTree(changed).root), tuple(changed))
        refused(lambda message=message: table.server.receive(LIAR, message), "P-4.2", LIAR)
    assert table.server.to_bytes() == before
    assert table.finish_rightly().dropped == ()


@pytest.mark.parametrize("liars", [1, 2])
@pytest.mark.parametrize("which", ["self_mask", "mask_seed"])
def test_wrong_shares_name_their_holder_and_do_not_end_the_round(liars, which):
    """However many of them lie, the sum is found while t of the others answer."""
    federation = Federation(clients=9, max_corrupt=1)
    table = federation.table().play_until(m.UNMASK, {federation.names[-1]: m.MASKED_INPUT})
    for name, request in table.server.requests():
        reply = table.clients[name].reply(request)
        if name in federation.names[:liars]:
            revealed = unpack(m.Revealed, unpack(Envelope, split(reply)[0]).body)
            victim = next(peer for peer in getattr(revealed, which) if peer != name)
            wrong = replace(revealed, **{which: getattr(revealed, which) | {victim: Secret(bytes(33))}})
            lie = join([seal(identity(name), m.UNMASK, federation.plan.hash, name, SERVER, wrong)])
            before = table.server.to_bytes()
            refused(lambda name=name, lie=lie: table.server.receive(name, lie), "P-7.7", name)
            assert table.server.to_bytes() == before
        else:
            table.server.receive(name, reply)
    table.server.end_phase()
    total = table.server.aggregate()
    np.testing.assert_array_equal(total.total, federation.expected(total.survivors))
    assert len(total.survivors) == 8


def test_a_wrong_share_of_its_own_seed_is_passed_over():
    """Nobody else has seen that share, so nothing tells it from a right one until the seed does not fit."""
    table = at(m.UNMASK)
    for name, request in table.server.requests():
        reply = table.clients[name].reply(request)
        if name == LIAR:
            revealed = unpack(m.Revealed, unpack(Envelope, split(reply)[0]).body)
            reply = says(table, m.UNMASK, replace(revealed, self_mask=revealed.self_mask | {LIAR: Secret(bytes(33))}))
        table.server.receive(name, reply)
    table.finish_rightly()


@pytest.mark.parametrize("silent", [{}, {LIAR: m.MASKED_INPUT}])
def test_a_dealer_of_shares_that_do_not_belong_together_is_named(silent, monkeypatch):
    """Its commitments fit the shares, the shares do not fit the seed: whichever seed is recovered names it."""
    table = at(m.SHARES)
    monkeypatch.setattr(
        client_module, "split", lambda secret, threshold, points: split_shares(Secret(bytes(32)), threshold, points)
    )
    wrong = table.clients[LIAR].reply(table.request(LIAR))
    monkeypatch.undo()
    table.server.receive(LIAR, wrong)
    table.play_until("done", silent)
    refused(table.server.aggregate, "P-7.7", LIAR)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, self_mask={name: share for name, share in r.self_mask.items() if name != "c03"}),
        lambda r: replace(r, self_mask=r.self_mask | {"stranger": r.self_mask["c03"]}),
        lambda r: replace(r, mask_seed={"c03": r.self_mask["c03"]}),
        lambda r: replace(r, self_mask={}),
    ],
)
def test_shares_of_others_than_asked(change):
    table = at(m.UNMASK)
    message = says(table, m.UNMASK, change(truth(table, m.Revealed)))
    before = table.server.to_bytes()
    refused(lambda: table.server.receive(LIAR, message), "P-7.4", LIAR)
    assert table.server.to_bytes() == before
    table.finish_rightly()


@pytest.mark.parametrize("body", [m.Consent(bytes(64)), m.Consent(b"\xff" * 64)])
def test_a_consent_to_nothing(body):
    table = at(m.CONSISTENCY)
    refused(lambda: table.server.receive(LIAR, says(table, m.CONSISTENCY, body)), "P-6.2", LIAR)
    table.finish_rightly()


def test_uploads_of_another_length_or_with_other_chunks():
    table = at(m.MASKED_INPUT)
    good = table.clients[LIAR].reply(table.request(LIAR))
    chunk = bytes(split(good)[1])
    before = table.server.to_bytes()
    digest = truth(table, Upload).digests[0]
    for upload, chunks, party in (
        (Upload(()), (), LIAR),
        (Upload((digest, digest)), (chunk, chunk), LIAR),
        (Upload((digest,)), (), "network"),
        (Upload((digest,)), (chunk[:-1],), "network"),
        (Upload((digest,)), (chunk, chunk), "network"),
        (Upload((digest,)), (bytes(len(chunk)),), "network"),
    ):
        message = says(table, m.MASKED_INPUT, upload, chunks)
        refused(lambda message=message: table.server.receive(LIAR, message), "P-5.3", party)
        assert table.server.to_bytes() == before
    table.finish_rightly()


def test_an_upload_that_is_no_encoding_is_noticed_in_the_sum():
    table = at(m.MASKED_INPUT)
    good = table.clients[LIAR].reply(table.request(LIAR))
    chunk = bytes(byte ^ 0x55 for byte in split(good)[1])
    import hashlib

    table.server.receive(LIAR, says(table, m.MASKED_INPUT, Upload((hashlib.sha256(chunk).digest(),)), (chunk,)))
    with pytest.raises(ProtocolError) as refusal:
        table.finish()
    assert refusal.value.clause == "P-8.1"
