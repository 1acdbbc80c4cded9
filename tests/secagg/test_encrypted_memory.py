"""Ciphertexts are added as they come and made one after the other: memory grows with digests, never with uploads."""

import gc
import sys
import tracemalloc
from pathlib import Path

import pytest
from encrypted_kit import EncryptedFederation, EncryptedTable

from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS
from fedvlm_secure.secagg.encrypted.server import EncryptedRecord
from fedvlm_secure.secagg.server import ServerRecord

DIMENSION = 200_000  # an upload is 49 ciphertexts of 31 KB: 1.5 MB; the running sum takes twice that
CHUNK = 65_536 + 4096  # what one ciphertext takes, unpacked, and a little
BOTH = pytest.mark.parametrize("protocol", [BFV, CKKS])


def federation(protocol: str, clients: int, dimension: int = DIMENSION) -> EncryptedFederation:
    return EncryptedFederation(clients=clients, protocol=protocol, dimension=dimension, value_bits=20, weight_max=4096)


def uploads(table: EncryptedTable) -> dict[str, bytes]:
    """Everyone's reply to the assignment; the clients' own copies are not the server's memory."""
    replies = {}
    for name, request in table.server.requests():
        replies[name] = table.clients[name].reply(request)
        table.clients[name]._last_reply = b""
    return replies


@BOTH
def test_the_server_keeps_nothing_of_an_upload(protocol):
    """But its signed envelope, with 32 bytes for each ciphertext; and of any two ciphertexts one is in memory."""
    table = federation(protocol, 5).table().play_until(m.INPUT)
    replies = uploads(table)
    tracemalloc.start()
    try:
        for name, reply in replies.items():
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            table.server.receive(name, reply)
            now, peak = tracemalloc.get_traced_memory()
            assert now - before < 20_000
            assert peak - before < 2 * CHUNK
    finally:
        tracemalloc.stop()


def resident() -> int:
    """Bytes of this process in memory, SEAL's included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@BOTH
def test_seal_keeps_nothing_of_an_upload(protocol):
    """What Python does not count: the running sum is there after the first upload, and nothing is added by others."""
    table = federation(protocol, 9).table().play_until(m.INPUT)
    replies = uploads(table)
    gc.collect()
    sizes = []
    for name, reply in replies.items():
        table.server.receive(name, reply)
        sizes.append(resident())
    assert sizes[-1] - sizes[0] < len(reply) / 2, sizes


@BOTH
def test_the_state_on_disk_holds_one_sum(protocol):
    sizes, totals = [], []
    for clients in (3, 6):
        table = federation(protocol, clients, 50_000).table().play_until(m.INPUT)
        table.play_phase()
        state = table.server.to_bytes()
        own = unpack(EncryptedRecord, unpack(ServerRecord, state, STATE_LIMITS).own, STATE_LIMITS)
        sizes.append(len(state))
        totals.append(sum(map(len, own.total)))
    # A member more is a box (1.2 KB) in the dealing, a key in the roster, and signed envelopes.
    assert sizes[1] - sizes[0] < 3 * 20_000
    assert abs(totals[1] - totals[0]) < 20_000
    assert sizes[1] < totals[1] + 100_000


@BOTH
def test_a_client_holds_its_message_twice_and_some_floats(protocol):
    """Ciphertexts and the message that they are joined to, and the vector as doubles a few times while it is encoded.

    Measured: 16 bytes a coordinate for the former, 24 to 32 for the latter.
    """
    for dimension in (DIMENSION // 4, DIMENSION):
        table = federation(protocol, 3, dimension).table().play_until(m.INPUT)
        request = table.request("c01")
        tracemalloc.start()
        try:
            reply = table.clients["c01"].reply(request)
            now, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert now < 1.1 * len(reply) + CHUNK, "it keeps the reply, to give it again"
        assert peak < 2 * len(reply) + 4 * 8 * dimension + 4 * CHUNK


@BOTH
def test_a_client_reads_a_sum_a_ciphertext_at_a_time(protocol):
    """Beyond the request itself: the total and its rotated and decoded mean, no second copy of the ciphertexts."""
    table = federation(protocol, 3).table().play_until(m.SUM)
    request = table.request("c01")
    tracemalloc.start()
    try:
        table.clients["c01"].reply(request)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 7 * 8 * DIMENSION + 4 * CHUNK
