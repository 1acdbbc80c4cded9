"""What travels beside a masked vector says nothing about it: a number in clear would be known plaintext."""

from collections.abc import Iterator
from typing import Any

import pytest
from secagg_kit import Federation

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.wire import decode
from fedvlm_secure.secagg.envelope import Envelope, split
from fedvlm_secure.secagg.pairwise import messages as m

DROPPED = "c04"


def replies(federation: Federation) -> dict[tuple[str, str], list[bytes]]:
    """The frames of everything that clients say in an attempt with one dropout, by phase and client."""
    table, said = federation.table(), {}
    while not table.server.done:
        phase = table.server.phase
        for name, request in table.server.requests():
            if name == DROPPED and phase == m.MASKED_INPUT:
                continue
            reply = table.clients[name].reply(request)
            said[phase, name] = [bytes(frame) for frame in split(reply)]
            table.server.receive(name, reply)
        table.server.end_phase()
    return said


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


@pytest.fixture(scope="module")
def said() -> dict[tuple[str, str], list[bytes]]:
    return replies(Federation())


def test_no_number_is_in_clear(said):
    """Keys, digests, signatures and shares, byte strings of fixed lengths; no count, weight or metric."""
    assert {phase for phase, _ in said} == set(m.PHASES)
    for frames in said.values():
        body = list(leaves(decode(unpack(Envelope, frames[0]).body)))
        assert body
        assert {type(leaf) for leaf in body} == {bytes}
        assert {len(leaf) for leaf in body} <= {32, 33, 64, 1216}


@pytest.mark.parametrize("weight", [1, 50])
def test_lengths_do_not_depend_on_the_update(said, weight):
    other = Federation(seed=1)
    for name, update in other.updates.items():
        other.updates[name] = Update(update.values * 0, update.counters | {"weight": weight})
    lengths = {key: [len(frame) for frame in frames] for key, frames in replies(other).items()}
    assert lengths == {key: [len(frame) for frame in frames] for key, frames in said.items()}
