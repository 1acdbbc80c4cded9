"""The aggregation round as a loop: the page to read before any protocol.

A server asks, clients answer or fall silent, until the server holds the sum of the survivors' vectors. Engines differ
only in how bytes travel between the two.
"""

from collections.abc import Callable, Mapping

from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.secagg.session import ClientId, ClientSession, RingSum, SealedSum, ServerSession

Alive = Callable[[ClientId, str], bool]
OnFault = Callable[[ProtocolError], None]


def everyone(client: ClientId, phase: str) -> bool:
    """Nobody falls silent."""
    return True


def stop(fault: ProtocolError) -> None:
    """Let a peer's fault end the round."""
    raise fault


def run_round(
    server: ServerSession,
    clients: Mapping[ClientId, ClientSession],
    alive: Alive = everyone,
    on_fault: OnFault = stop,
) -> RingSum | SealedSum:
    """Run one attempt at a round in this process.

    Args:
        alive: called as ``alive(client, phase)``; False means the client stays silent in that phase.
        on_fault: called when a message breaks a rule; if it returns, that client counts as silent in this phase.

    Raises:
        RoundAbortedError: too few clients remain; nothing about any input has been revealed.
        ProtocolError: a peer broke a rule and ``on_fault`` raised.
    """
    while not server.done:
        for client, request in server.requests():
            if alive(client, server.phase):
                try:
                    server.receive(client, clients[client].reply(request))
                except ProtocolError as fault:
                    on_fault(fault)
        server.end_phase()
    return server.aggregate()
