"""The transcript holds signed words and sizes; never a share, never a masked vector."""

import hashlib

from secagg_kit import PHASES, Federation, chunks_of

from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.secagg.envelope import Envelope, split
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.transcript import Transcript


def test_what_it_holds():
    federation = Federation(clients=5)
    table, replies, sizes = federation.table(), {}, {}
    while not table.server.done:
        phase = table.server.phase
        sizes[phase] = {"request": 0, "reply": 0}
        for name, request in table.server.requests():
            sizes[phase]["request"] += len(request)
            if (name, phase) == ("c00", m.MASKED_INPUT):
                continue
            replies[phase, name] = table.clients[name].reply(request)
            sizes[phase]["reply"] += len(replies[phase, name])
            table.server.receive(name, replies[phase, name])
        table.server.end_phase()
    transcript = table.server.transcript
    data = transcript.to_bytes()
    assert Transcript.from_bytes(data) == transcript
    assert transcript.bytes_per_phase() == sizes
    assert tuple(sizes) == PHASES
    for (phase, name), reply in replies.items():
        entry = next(it for it in transcript.entries if (it.phase, it.direction, it.client) == (phase, "reply", name))
        envelope = bytes(split(reply)[0])
        assert entry.digest == hashlib.sha256(envelope).digest()
        assert entry.envelope == (None if phase == m.UNMASK else envelope)
        for chunk in chunks_of(reply):
            assert chunk not in data
        if phase == m.UNMASK:
            revealed = unpack(m.Revealed, unpack(Envelope, envelope).body)
            for share in [*revealed.self_mask.values(), *revealed.mask_seed.values()]:
                assert share.reveal() not in data
