"""The protocols by name."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedvlm_secure.errors import MisuseError
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.client import ClientSessionBase
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.server import PairwiseServer
from fedvlm_secure.secagg.plain import PlainClient, PlainServer
from fedvlm_secure.secagg.server import ServerSessionBase
from fedvlm_secure.secagg.session import ClientId

if TYPE_CHECKING:
    from fedvlm_secure.secagg.encrypted.reading import CatchUp


@dataclass(frozen=True, slots=True)
class ProtocolEntry:
    """One protocol: its two halves, and whether it hides a client's vector from the server.

    Attributes:
        relay: where only clients can read a sum: the message that brings it to one member, from the server's bulletin.
        catch_up: there: what reads such a message.
    """

    server: type[ServerSessionBase]
    client: type[ClientSessionBase]
    protects: bool
    relay: Callable[[bytes, Identity, ClientId], bytes] | None = None
    catch_up: "type[CatchUp] | None" = None

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases in order."""
        return self.server.phases


def _encrypted(name: str) -> ProtocolEntry:
    """Imported when it is asked for: TenSEAL takes a fifth of a second."""
    from fedvlm_secure.secagg.encrypted.client import BfvClient, CkksClient
    from fedvlm_secure.secagg.encrypted.reading import CatchUp
    from fedvlm_secure.secagg.encrypted.server import EncryptedServer, relay

    client = BfvClient if name == BFV else CkksClient
    return ProtocolEntry(EncryptedServer, client, protects=True, relay=relay, catch_up=CatchUp)


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
