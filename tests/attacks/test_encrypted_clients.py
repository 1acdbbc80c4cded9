"""One client out of line: the server names it and is as it was, or its neighbours read nonsense and say so."""

from dataclasses import replace

import numpy as np
import pytest
from encrypted_attacker import forged
from encrypted_kit import THREE_CHUNKS, EncryptedFederation, EncryptedTable, held, opened, pin_of
from secagg_kit import identity, refused

from fedvlm_secure.errors import MisuseError, RoundAbortedError
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, DEGREE
from fedvlm_secure.secagg.encrypted.server import EncryptedServer
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.envelope import join, seal
from fedvlm_secure.secagg.plan import HONEST_BUT_CURIOUS
from fedvlm_secure.secagg.session import SERVER
from fedvlm_secure.secagg.upload import digests_of

DEALER, LIAR = "c00", "c01"
PRIME = 18014398509309953


def says(table: EncryptedTable, phase: str, body: object, chunks=(), name: str = LIAR) -> bytes:
    return join([seal(identity(name), phase, table.federation.plan.hash, name, SERVER, body), *chunks])


def server_refuses(table: EncryptedTable, message: bytes, clause: str, party: str, name: str = LIAR) -> None:
    """With the state as it was, byte for byte; and so it is after a restart."""
    before = table.server.to_bytes()
    refused(lambda: table.server.receive(name, message), clause, party)
    assert table.server.to_bytes() == before
    assert EncryptedServer.from_bytes(before, identity(SERVER)).to_bytes() == before


def at(phase: str, protocol: str = BFV, **settings) -> EncryptedTable:
    return EncryptedFederation(protocol=protocol, dimension=THREE_CHUNKS, **settings).table().play_until(phase)


def dealt(table: EncryptedTable) -> tuple[m.Dealing, list[bytes]]:
    return opened(table.clients[DEALER].reply(table.request(DEALER)), m.Dealing)


DEALINGS = {
    "no boxes": (lambda d, b: (d, []), "network"),
    "a box missing": (lambda d, b: (d, b[:-1]), "network"),
    "a box too many": (lambda d, b: (d, [*b, b[0]]), "network"),
    "boxes swapped": (lambda d, b: (d, [b[1], b[0], *b[2:]]), "network"),
    "a box of zeros": (lambda d, b: (d, [bytes(len(b[0])), *b[1:]]), "network"),
    "signed for fewer": (lambda d, b: over(d, b[:-1]), "network"),
    "a shorter box": (lambda d, b: over(d, [b[0][:-1], *b[1:]]), DEALER),
    "longer boxes": (lambda d, b: over(d, [box + b"\0" for box in b]), DEALER),
    "empty boxes": (lambda d, b: over(d, [b"" for _ in b]), DEALER),
    "another run": (lambda d, b: (replace(d, run=bytes(15) + b"x"), b), DEALER),
    "another roster": (lambda d, b: (replace(d, roster=bytes(32)), b), DEALER),
    "another protocol": (lambda d, b: (replace(d, protocol=CKKS if d.protocol == BFV else BFV), b), DEALER),
    "a later epoch": (lambda d, b: (replace(d, epoch=2), b), DEALER),
    "no epoch": (lambda d, b: (replace(d, epoch=0), b), DEALER),
}


def over(dealing: m.Dealing, boxes: list[bytes]) -> tuple[m.Dealing, list[bytes]]:
    """Signed for these boxes."""
    return replace(dealing, parcels=MerkleTree(boxes).root), boxes


@pytest.mark.parametrize("protocol", [BFV, CKKS])
@pytest.mark.parametrize("kind", DEALINGS)
def test_a_wrong_dealing(protocol, kind):
    change, party = DEALINGS[kind]
    table = at(m.KEYS, protocol)
    dealing, boxes = change(*dealt(table))
    server_refuses(table, says(table, m.KEYS, dealing, boxes, DEALER), "E-3.2", party, DEALER)
    table.finish_rightly()


def test_a_dealing_by_somebody_who_was_not_asked():
    table = at(m.KEYS)
    dealing, boxes = dealt(table)
    server_refuses(table, says(table, m.KEYS, dealing, boxes), "P-1.7", "network")
    server_refuses(table, says(table, m.KEYS, dealing, boxes), "P-1.5", "network", DEALER)
    table.finish_rightly()


def test_a_second_dealing():
    table = at(m.KEYS)
    table.play_phase()
    server_refuses(table, table.replies[m.KEYS][DEALER], "P-1.7", "network", DEALER)


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_a_box_that_does_not_open_is_noticed_by_its_reader_alone(protocol):
    """A server cannot look inside. The member names the dealer and stays out; the rest make a sum."""
    table = at(m.KEYS, protocol)
    dealing, boxes = dealt(table)
    names = [member.name for member in table.federation.roster.members]
    boxes[names.index("c03")] = boxes[names.index("c04")]
    table.server.receive(DEALER, says(table, m.KEYS, *over(dealing, boxes), DEALER))
    table.server.end_phase()
    refused(lambda: table.clients["c03"].reply(table.request("c03")), "E-3.3", DEALER)
    sealed = table.finish_rightly({"c03": m.INPUT, DEALER: m.INPUT})
    assert sealed.survivors == ("c01", "c02", "c04")


def uploaded(table: EncryptedTable, name: str = LIAR) -> tuple[m.EncryptedUpload, list[bytes]]:
    reply = table.replies[m.INPUT].setdefault(name, table.clients[name].reply(table.request(name)))
    return opened(reply, m.EncryptedUpload)


@pytest.mark.parametrize("protocol", [BFV, CKKS])
@pytest.mark.parametrize("earlier", [0, 1, 2])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_garbage_in_one_of_several_chunks(protocol, earlier, bad):
    """All that went before it is taken back out of the sum: the state is the same to the byte, and so is the sum."""
    table = at(m.INPUT, protocol)
    for name in ("c02", "c03")[:earlier]:
        table.server.receive(name, table.clients[name].reply(table.request(name)))
    upload, chunks = uploaded(table)
    chunks[bad] = chunks[bad][:-1]
    server_refuses(table, says(table, m.INPUT, replace(upload, digests=digests_of(chunks)), chunks), "E-4.3", LIAR)
    sealed = table.finish_rightly({LIAR: m.INPUT})
    assert LIAR not in sealed.survivors


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_garbage_and_then_the_truth(protocol):
    table = at(m.INPUT, protocol)
    upload, chunks = uploaded(table)
    garbage = [*chunks[:-1], b""]
    for _ in range(2):
        message = says(table, m.INPUT, replace(upload, digests=digests_of(garbage)), garbage)
        server_refuses(table, message, "E-4.3", LIAR)
    assert table.finish_rightly().survivors == table.federation.names


@pytest.mark.parametrize("protocol", [BFV, CKKS])
@pytest.mark.parametrize("chunk", [0, 2])
def test_a_copy_that_cancels_the_sum(protocol, chunk):
    """c₁ and -c₁ add up to a plaintext in the open, which SEAL will not hold: refused, not a crash."""
    table = at(m.INPUT, protocol)
    others = opened(table.clients["c02"].reply(table.request("c02")), m.EncryptedUpload)[1]
    table.server.receive("c02", table.clients["c02"].reply(table.request("c02")))
    upload, chunks = uploaded(table)
    scheme = table.server._scheme
    ciphertext = scheme.load(others[chunk])
    words = [ciphertext.dyn_array().at(index) for index in range(2 * DEGREE)]
    negated = [(PRIME - word) % PRIME for word in words[DEGREE:]]
    chunks[chunk] = forged(scheme, words[:DEGREE], negated)
    server_refuses(table, says(table, m.INPUT, replace(upload, digests=digests_of(chunks)), chunks), "E-4.3", LIAR)
    table.finish_rightly({LIAR: m.INPUT})


def test_an_upload_comes_once():
    table = at(m.INPUT)
    table.play_phase()
    for name in table.federation.names:
        server_refuses(table, table.replies[m.INPUT][name], "P-1.7", "network", name)
    table.finish_rightly()


def test_an_upload_after_the_deadline():
    """It is in no sum: neither this round's nor the next one's."""
    table = at(m.INPUT)
    late = table.clients[LIAR].reply(table.request(LIAR))
    table.play_phase({LIAR: m.INPUT})
    table.server.end_phase()
    server_refuses(table, late, "P-1.7", "network")
    sealed = table.finish_rightly({LIAR: m.SUM})
    following = table.federation.after(table, round=4, model=sealed.model).table()
    before = following.server.to_bytes()
    refused(lambda: following.server.receive(LIAR, late), "P-1.3", "network")
    assert following.server.to_bytes() == before


@pytest.mark.parametrize("change", [lambda u: replace(u, dealing=bytes(32)), lambda u: replace(u, digests=())])
def test_an_upload_that_names_another_dealing_or_nothing(change):
    table = at(m.INPUT)
    upload, chunks = uploaded(table)
    clause = "E-4.1" if change(upload).dealing != upload.dealing else "E-4.2"
    server_refuses(table, says(table, m.INPUT, change(upload), chunks), clause, LIAR)


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_another_clients_ciphertexts_as_ones_own(protocol):
    """A copy doubles a stranger's vector. The server adds it; whoever reads the sum finds that it has another's tag."""
    table = at(m.INPUT, protocol)
    copied = opened(table.clients["c02"].reply(table.request("c02")), m.EncryptedUpload)[1]
    upload, _ = uploaded(table)
    table.server.receive(LIAR, says(table, m.INPUT, replace(upload, digests=digests_of(copied)), copied))
    table.play_until(m.SUM)
    for name in ("c00", "c02", "c03", "c04"):
        refused(lambda name=name: table.clients[name].reply(table.request(name)), "E-5.4", SERVER)
        assert pin_of(table.clients[name]).spoiled
    with pytest.raises(RoundAbortedError) as refusal:
        table.server.end_phase()
    assert refusal.value.clause == "E-6.1"


@pytest.mark.parametrize("protocol", [BFV, CKKS])
def test_a_client_that_knows_the_key_and_lies_about_its_counters(protocol):
    """Tags fit whatever a member encrypts. The count of participants and the bounds are what is left: E-5.5."""
    table = at(m.INPUT, protocol)
    plan, key = table.federation.plan, held(table, LIAR)
    sheet, tail = sheet_of(plan), plan.layout.update
    upload, _ = uploaded(table)

    if protocol == BFV:
        sheet._pack = lambda integers, pack=sheet._pack: pack(lying(integers, tail))
    else:
        sheet._flatten = lambda scaled, values, flatten=sheet._flatten: flatten(scaled, [values[0], 2, 0, 0])
    chunks = [key.key.encrypt(slots) for slots in sheet.fill(table.federation.updates[LIAR], key.secret, LIAR)]
    table.server.receive(LIAR, says(table, m.INPUT, replace(upload, digests=digests_of(chunks)), chunks))
    table.play_until(m.SUM)
    error = refused(lambda: table.clients["c02"].reply(table.request("c02")), "E-5.5", SERVER)
    assert LIAR in error.detail, "who was listed"


def lying(integers: np.ndarray, tail: int) -> np.ndarray:
    integers[tail + 1] = 2
    return integers


def at_sum(protocol: str = BFV, **settings) -> tuple[EncryptedTable, m.Adopted]:
    """Everyone has read the sum; what the liar would say of it."""
    settings = {"threat_model": HONEST_BUT_CURIOUS, "published": ("weight",)} | settings
    table = at(m.SUM, protocol, **settings)
    return table, opened(table.clients[LIAR].reply(table.request(LIAR)), m.Adopted)[0]


@pytest.mark.parametrize("protocol", [BFV, CKKS])
@pytest.mark.parametrize(
    "published", [{"weight": 50 * 5 + 1}, {"weight": 2**64 - 1}, {"loss": 0}, {"weight": 7, "": 0}]
)
def test_published_counters_out_of_bounds(protocol, published):
    table, adopted = at_sum(protocol)
    server_refuses(table, says(table, m.SUM, replace(adopted, published=published)), "E-6.2", LIAR)
    sealed = table.finish_rightly({LIAR: m.SUM})
    assert sealed.published == {
        "weight": sum(update.counters["weight"] for update in table.federation.updates.values())
    }


def test_bounds_are_those_of_the_uploads_not_of_the_cohort():
    table = at(m.INPUT, threat_model=HONEST_BUT_CURIOUS).play_until(m.SUM, {"c04": m.INPUT})
    adopted = opened(table.clients[LIAR].reply(table.request(LIAR)), m.Adopted)[0]
    server_refuses(table, says(table, m.SUM, replace(adopted, published={"weight": 50 * 4 + 1})), "E-6.2", LIAR)
    table.server.receive(LIAR, says(table, m.SUM, replace(adopted, published={"weight": 50 * 4})))


@pytest.mark.parametrize("change", [{"model": bytes(32)}, {"published": {"weight": 5}}, {"published": {}}])
def test_one_reader_decides_on_nothing(change):
    """First, last or in between: what most readers signed is what goes on."""
    for order in ((LIAR, "c00", "c02", "c03", "c04"), ("c00", "c02", LIAR, "c03", "c04"), ("c04", "c03", "c02", LIAR)):
        table, adopted = at_sum()
        said = {name: table.clients[name].reply(table.request(name)) for name in order}
        said[LIAR] = says(table, m.SUM, replace(adopted, **change))
        for name in order:
            table.server.receive(name, said[name])
        again = EncryptedServer.from_bytes(table.server.to_bytes(), identity(SERVER))
        for server in (table.server, again):
            server.end_phase()
            assert (server.aggregate().model, server.aggregate().published) == (adopted.model, adopted.published)


@pytest.mark.parametrize("liars", [("c00", "c01"), ("c00", "c01", "c02")])
def test_readers_that_disagree(liars):
    """Without a majority of those in the sum that says one thing there is no next model."""
    table, adopted = at_sum()
    for number, name in enumerate(("c00", "c01", "c02", "c03")):
        lie = replace(adopted, model=bytes([number]) * 32)
        table.server.receive(name, says(table, m.SUM, lie if name in liars else adopted, name=name))
    assert refuses_to_end(table) == "E-6.1"


@pytest.mark.parametrize("readers", [0, 1, 2])
def test_too_few_readers(readers):
    table, _ = at_sum()
    for name in table.federation.names[:readers]:
        table.server.receive(name, table.clients[name].reply(table.request(name)))
    assert refuses_to_end(table) == "E-6.1"


def refuses_to_end(table: EncryptedTable) -> str:
    with pytest.raises(RoundAbortedError) as refusal:
        table.server.end_phase()
    assert (refusal.value.phase, refusal.value.round) == (m.SUM, table.federation.plan.place)
    with pytest.raises(MisuseError):
        table.server.aggregate()
    with pytest.raises(MisuseError):
        _ = table.server.bulletin
    assert EncryptedServer.from_bytes(table.server.to_bytes(), identity(SERVER)).phase == "failed"
    return refusal.value.clause


def test_what_a_reader_may_not_append_or_repeat():
    table, adopted = at_sum()
    server_refuses(table, says(table, m.SUM, adopted, [b"x"]), "P-1.1", "network")
    table.server.receive(LIAR, says(table, m.SUM, adopted))
    server_refuses(table, says(table, m.SUM, replace(adopted, model=bytes(32))), "P-1.7", "network")


def test_who_is_not_in_the_sum_does_not_speak_of_it():
    table = at(m.INPUT).play_until(m.SUM, {LIAR: m.INPUT})
    server_refuses(table, says(table, m.SUM, m.Adopted(bytes(32), {})), "P-1.7", "network")
