"""The protocols by name."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.client import ClientSessionBase
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plain import PlainClient, PlainServer
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party
from fedvlm_secure.secagg.server import ServerSessionBase
from fedvlm_secure.secagg.session import ClientId, Memory, RingSum


@dataclass(frozen=True, slots=True)
class ProtocolEntry:
    """One protocol: its two halves, and whether it hides a client's vector from the server.

    Attributes:
        relay: where only clients can read a sum: the message that brings it to one member, from the server's bulletin.
        catch_up: there: the plan and the sum that such a message brings.
    """

    server: type[ServerSessionBase]
    client: type[ClientSessionBase]
    protects: bool
    relay: Callable[[bytes, Identity, ClientId], bytes] | None = None
    catch_up: Callable[[Party, Memory, bytes], tuple[Plan, RingSum]] | None = None

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases in order."""
        return self.server.phases


def _encrypted(name: str) -> ProtocolEntry:
    """Imported when it is asked for: TenSEAL takes a fifth of a second."""
    from fedvlm_secure.secagg.encrypted.client import BfvClient, CkksClient, catch_up
    from fedvlm_secure.secagg.encrypted.server import EncryptedServer, relay

    client = BfvClient if name == BFV else CkksClient
    return ProtocolEntry(EncryptedServer, client, protects=True, relay=relay, catch_up=catch_up)


PROTOCOLS: Mapping[str, Callable[[], ProtocolEntry]] = {
    "plain": lambda: ProtocolEntry(PlainServer, PlainClient, protects=False),
    "pairwise": lambda: ProtocolEntry(PairwiseServer, PairwiseClient, protects=True),
    CKKS: lambda: _encrypted(CKKS),
    BFV: lambda: _encrypted(BFV),
}


def lookup(name: str) -> ProtocolEntry:
    """The protocol called ``name``; raises :class:`MisuseError` naming the choices."""
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise MisuseError(f"protocol {name!r} is not known.{hint} Choices: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]()
