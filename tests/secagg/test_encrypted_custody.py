"""The server relays boxes and adds ciphertexts. Nothing that it holds, keeps or receives decrypts one of them."""

import gc
import types
from dataclasses import replace

import numpy as np
import pytest
import tenseal.sealapi as seal
from encrypted_kit import EncryptedFederation, EncryptedTable, held, opened, says
from secagg_kit import identity, refused

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import MisuseError, PolicyRefusalError
from fedvlm_secure.primitives.kdf import derive
from fedvlm_secure.primitives.sealing import SealError
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import PARCEL
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, SLOTS
from fedvlm_secure.secagg.encrypted.scheme import SEED_BYTES, Key, Scheme
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.envelope import split
from fedvlm_secure.secagg.plan import HONEST_BUT_CURIOUS, MALICIOUS_SERVER, propose
from fedvlm_secure.secagg.policy import Policy, check_plan
from fedvlm_secure.secagg.session import SERVER, Memory
from fedvlm_secure.secagg.upload import digests_of

BOTH = pytest.mark.parametrize("protocol", [BFV, CKKS])
ABLE_TO_DECRYPT = (seal.SecretKey, seal.KeyGenerator, seal.Decryptor, seal.Encryptor, Key)


def reachable(root: object) -> list[object]:
    """Everything that a session object leads to, but not the modules and classes that it is made of."""
    seen, found, waiting = {id(root)}, [root], [root]
    while waiting:
        for thing in gc.get_referents(waiting.pop()):
            if id(thing) not in seen and not isinstance(thing, type | types.ModuleType | types.FunctionType):
                seen.add(id(thing))
                found.append(thing)
                waiting.append(thing)
        assert len(found) < 1_000_000
    return found


def secrets_of(table: EncryptedTable) -> list[bytes]:
    """What was dealt, and what SEAL's key follows from: 64 bytes, as bytes and as the words it takes them in."""
    plan, secret = table.federation.plan, held(table, "c02").secret
    seed = derive(secret, "he-secret-key", plan.run, 1, plan.protocol, plan.roster, length=SEED_BYTES)
    return [secret.reveal(), seed.reveal()[:32], seed.reveal()[32:]]


def dealt_round(protocol: str) -> tuple[EncryptedTable, list[bytes]]:
    """A round whose key is dealt, and that key's secrets."""
    table = EncryptedFederation(protocol=protocol, dimension=100).table().play_until(m.INPUT)
    secrets = secrets_of(table)
    return table, secrets


@BOTH
def test_no_state_of_the_server_holds_a_key(protocol):
    table, secrets = dealt_round(protocol)
    for phase in (m.SUM, "done"):
        for state in (table.server.to_bytes(), table.server.transcript.to_bytes()):
            assert not any(secret in state for secret in secrets)
        things = reachable(table.server)
        assert not [thing for thing in things if isinstance(thing, ABLE_TO_DECRYPT)]
        held_bytes = b"\n".join(bytes(thing) for thing in things if isinstance(thing, bytes | bytearray))
        held_bytes += b"\n".join(thing.reveal() for thing in things if isinstance(thing, Secret))
        assert not any(secret in held_bytes for secret in secrets)
        table.play_until(phase)
    assert not any(secret in table.server.bulletin + table.server.carried for secret in secrets)


def test_the_search_finds_a_key_where_there_is_one():
    """A client's half as a check of :func:`reachable`: while it encrypts, it holds all that the server must not."""
    table, secrets = dealt_round(BFV)
    key = held(table, "c02")
    things = reachable(key)
    assert [thing for thing in things if isinstance(thing, Key)]
    assert [thing for thing in things if isinstance(thing, Secret) and thing.reveal() == secrets[0]]


@BOTH
def test_nothing_that_passes_through_the_server_holds_a_key(protocol):
    """The dealer's message, every request with its box, every upload, every answer."""
    table, secrets = dealt_round(protocol)
    said = []
    while not table.server.done:
        said += [request for _, request in table.server.requests()]
        table.play_phase()
        table.server.end_phase()
    said += [reply for replies in table.replies.values() for reply in replies.values()]
    assert len(said) == 1 + 4 * 5
    assert not any(secret in message for secret in secrets for message in said)


@BOTH
def test_boxes_open_for_their_member_only(protocol):
    """All of the roster has one, the client outside the cohort too; the server opens none, nor does a neighbour."""
    table, secrets = dealt_round(protocol)
    federation, plan = table.federation, table.federation.plan
    boxes = [bytes(frame) for frame in split(table.replies[m.KEYS]["c00"])[1:]]
    names = [member.name for member in federation.roster.members]
    assert len(boxes) == len(names) == 6
    assert len(set(boxes)) == 6
    for name, box in zip(names, boxes, strict=True):
        bound = (plan.run, 1, plan.protocol, plan.roster)
        assert identity(name).sealing.open(box, PARCEL, *bound, name).reveal() == secrets[0]
        for other in {*names, SERVER} - {name}:
            with pytest.raises(SealError):
                identity(other).sealing.open(box, PARCEL, *bound, name)
        for otherwise in (
            (bytes(15) + b"x", *bound[1:], name),
            (plan.run, 2, *bound[2:], name),
            (plan.run, 1, "pairwise", plan.roster, name),
            (*bound[:3], bytes(32), name),
            (*bound, "c09"),
        ):
            with pytest.raises(SealError):
                identity(name).sealing.open(box, PARCEL, *otherwise)


@BOTH
def test_the_servers_context_cannot_decrypt(protocol):
    """SEAL's decryptor needs a secret key; with a key of the server's own it reads noise."""
    table, _ = dealt_round(protocol)
    table.play_until(m.SUM)
    scheme, federation = table.server._scheme, table.federation
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        seal.Decryptor(scheme.context, seal.SecretKey())
    ciphertext = scheme.load(opened(table.replies[m.INPUT]["c01"], m.EncryptedUpload)[1][0])
    own = held(table, "c02").key.decrypt(ciphertext)
    values = [scheme.key(Secret.generate(64)).decrypt(ciphertext) for _ in range(3)]
    for garbage in values:
        # The slots that nobody filled are zero to the right key, and anything to others.
        assert np.count_nonzero(np.abs(own) < 1e-6) > SLOTS // 2
        assert np.count_nonzero(np.abs(garbage) < 1e-6) < 10
        assert abs(np.corrcoef(garbage[:100].astype(float), own[:100].astype(float))[0, 1]) < 0.8
    assert federation.plan.layout.update == 100


@BOTH
def test_ciphertexts_of_equal_updates_do_not_look_alike(protocol):
    """Nothing but the length is in common: not even a client's zeros show."""
    federation = EncryptedFederation(protocol=protocol, dimension=100)
    update = Update(np.zeros(100, np.float32), {"weight": 1})
    federation.updates = dict.fromkeys(federation.names, update)
    table = federation.table().play_until(m.SUM)
    chunks = [opened(reply, m.EncryptedUpload)[1][0] for reply in table.replies[m.INPUT].values()]
    body = [set(zip(range(200), chunk[400:600], strict=True)) for chunk in chunks]
    for index, one in enumerate(body):
        for other in body[index + 1 :]:
            assert len(one & other) < 30, "of 200 bytes, of which one agrees by chance"


@BOTH
@pytest.mark.parametrize("threat_model", [HONEST_BUT_CURIOUS, MALICIOUS_SERVER])
@pytest.mark.parametrize("corrupt", [1, 2])
def test_colluding_clients_are_refused_unless_insisted_upon(protocol, threat_model, corrupt):
    federation = EncryptedFederation(clients=6, protocol=protocol, threat_model=threat_model, max_corrupt=corrupt)
    policy = federation.policy
    assert not policy.shared_key_despite_collusion
    table = federation.table()
    with pytest.raises(PolicyRefusalError) as refusal:
        table.clients["c00"].reply(table.request("c00"))
    assert (refusal.value.clause, refusal.value.party) == ("P-2.6", SERVER)
    insisting = replace(policy, shared_key_despite_collusion=True)
    table.clients = {name: federation.client(name, policy=insisting) for name in federation.names}
    assert table.finish_rightly().survivors == federation.names


@BOTH
@pytest.mark.parametrize("threat_model", [HONEST_BUT_CURIOUS, MALICIOUS_SERVER])
def test_a_policy_that_counts_on_colluders_takes_no_plan_without(protocol, threat_model):
    """The floor on `max_corrupt` holds here as anywhere: a shared key is not a way around it."""
    federation = EncryptedFederation(protocol=protocol, threat_model=threat_model)
    policies = (Policy(threat_model, 1, protocols=(protocol,)), Policy(threat_model, 0, protocols=("pairwise",)))
    for policy in policies:
        with pytest.raises(PolicyRefusalError) as refusal:
            check_plan(federation.plan, federation.party("c01", policy=policy), Memory(), m.INPUT)
        assert refusal.value.clause == "P-2.6"


def test_nobody_proposes_colluders_by_default():
    for protocol, corrupt in ((BFV, 0), (CKKS, 0), ("pairwise", 1)):
        plan = propose(
            run=bytes(16),
            round=1,
            attempt=1,
            cohort=("a", "b", "c", "d"),
            layout=VectorLayout(3, (Counter("weight", 5),), 8, 5),
            clip_norm=1.0,
            roster=bytes(32),
            model=bytes(32),
            protocol=protocol,
        )
        assert plan.max_corrupt == corrupt


@BOTH
def test_what_is_published_is_what_the_policy_names(protocol):
    """Nothing by default; a counter that the policy names and the layout lacks is left out."""
    counters = (Counter("correct", 1000), Counter("asked", 1000))
    settings = {"protocol": protocol, "counters": counters, "threat_model": HONEST_BUT_CURIOUS}
    for published in ((), ("correct",), ("correct", "weight", "nothing")):
        federation = EncryptedFederation(published=published, **settings)
        federation.updates = {
            name: replace(update, counters={**update.counters, "correct": 3, "asked": 1000})
            for name, update in federation.updates.items()
        }
        sealed = federation.table().finish_rightly()
        known = {"correct": 15, "weight": sum(it.counters["weight"] for it in federation.updates.values())}
        assert sealed.published == {name: known[name] for name in published if name in known}


@BOTH
def test_nothing_is_published_to_a_server_that_may_lie(protocol):
    """It could send several clients several sums, and learn from what they publish whose part is in which."""
    federation = EncryptedFederation(protocol=protocol, published=("weight",))
    table = federation.table()
    with pytest.raises(PolicyRefusalError):
        table.clients["c00"].reply(table.request("c00"))


@BOTH
def test_a_client_says_one_model_of_one_sum(protocol):
    """Two sums over two lists, both of them right: the second reading is refused, whichever came first."""
    table = EncryptedFederation(protocol=protocol, clients=7).table().play_until(m.SUM)
    client, federation = table.clients["c00"], table.federation
    truth, chunks = table.truth("c00", m.EncryptedSum)
    client.reply(table.request("c00"))
    scheme = table.server._scheme
    uploads = {name: opened(reply, m.EncryptedUpload)[1] for name, reply in table.replies[m.INPUT].items()}
    total = scheme.load(chunks[0])
    scheme.subtract(total, scheme.load(uploads["c06"][0]))
    fewer = [scheme.dump(total)]
    lie = replace(truth, survivors=truth.survivors[:-1], digests=digests_of(fewer))
    with pytest.raises(MisuseError, match="is over"):
        client.reply(says(federation, m.SUM, "c00", lie, fewer))
    # It is a sum as good as the other: a client that has read none yet takes it.
    other = says(federation, m.SUM, "c01", replace(lie, delivery=table.truth("c01", m.EncryptedSum)[0].delivery), fewer)
    table.clients["c01"].reply(other)
    assert table.clients["c01"].sum.survivors == lie.survivors


def test_sheets_of_both_protocols_use_schemes_without_a_key():
    for protocol in (BFV, CKKS):
        sheet = sheet_of(EncryptedFederation(protocol=protocol).plan)
        assert isinstance(sheet.scheme, Scheme)
        assert not [thing for thing in reachable(sheet) if isinstance(thing, ABLE_TO_DECRYPT)]


def test_a_key_is_dealt_to_the_pinned_roster_only():
    """A plan that names another, with a member more to seal to, is refused before a key is made."""
    federation = EncryptedFederation()
    client = federation.client("c00")
    other = replace(federation.roster, version=2)
    plan = replace(federation.plan, roster=other.hash)
    federation.plan = plan
    refused(lambda: client.reply(says(federation, m.KEYS, "c00", m.KeysRequest(plan, 1))), "P-2.2", SERVER)
