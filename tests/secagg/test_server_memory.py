"""The server adds uploads as they arrive: its memory grows with keys and shares, never with vectors."""

import tracemalloc

from secagg_kit import Federation

DIMENSION = 400_000  # a vector is 2 MB on the wire and 3.2 MB as words


def growth(clients: int) -> tuple[int, int]:
    """Bytes that the server gains over the upload phase, and its peak there above what it had, uploads not counted."""
    federation = Federation(clients=clients, dimension=DIMENSION, value_bits=20, weight_max=4096)
    table = federation.table().play_until("masked-input")
    requests = list(table.server.requests())
    tracemalloc.start()
    try:
        start, peak = tracemalloc.get_traced_memory()[0], 0
        for name, request in requests:
            reply = table.clients[name].reply(request)
            table.clients[name]._last_reply = b""  # the client's own copy is not the server's memory
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            table.server.receive(name, reply)
            peak = max(peak, tracemalloc.get_traced_memory()[1] - before)
            del reply
        kept = tracemalloc.get_traced_memory()[0] - start
    finally:
        tracemalloc.stop()
    # What the clients keep of one another's shares is theirs; with 33-byte shares it is small beside a vector.
    return kept, peak


def test_memory_does_not_grow_with_uploads():
    few, many = growth(3), growth(9)
    vector = DIMENSION * 5
    for kept, peak in (few, many):
        assert peak < vector / 3, "the server made a copy of an upload"
        assert kept < vector / 3, "the server kept an upload"
    assert many[0] - few[0] < 6 * 30_000
    assert many[1] < few[1] + 50_000


def test_state_on_disk_holds_one_vector():
    """The durable state is the running sum plus keys, parcels and digests."""
    sizes = []
    for clients in (3, 6):
        federation = Federation(clients=clients, dimension=100_000, value_bits=20, weight_max=4096)
        sizes.append(len(federation.table().play_until("consistency").server.to_bytes()))
    assert sizes[1] - sizes[0] < 100_000 * 5 / 2
