"""No protection at all: the server reads every client's vector. The baseline, and loud about it.

A policy has to name ``"plain"`` on purpose, and the report of a run under it says so.
"""

from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.secagg.client import Answer, ClientSessionBase, Finished, Ready, Step, Turn
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.server import ServerSessionBase
from fedvlm_secure.secagg.session import ClientId
from fedvlm_secure.secagg.upload import upload_frames

NAME = "plain"
INPUT = "input"


def send_readable(turn: Turn, state: Ready, plan: Plan) -> tuple[Finished, Answer]:
    """Encode the update and send it as it is."""
    return Finished(), upload_frames(turn.encoded(), plan)


class PlainClient(ClientSessionBase):
    """The client's half."""

    protocol = NAME
    steps = {Ready: (Step(INPUT, Plan, send_readable),)}  # noqa: RUF012


class PlainServer(ServerSessionBase):
    """The server's half: one phase, and the sum is readable as it stands."""

    phases = (INPUT,)

    def _request(self, client: ClientId) -> Plan:
        return self._plan

    def _take(self, expected: Expected, client: ClientId, frames: list[memoryview]) -> None:
        self._add_upload(expected, client, frames)

    def _ended(self) -> tuple[ClientId, ...]:
        self._require(len(self._uploaded), self._plan.min_survivors, "P-5.4")
        return ()

    def _unprotected(self) -> Words:
        return self._total

    def _own(self) -> bytes:
        return b""

    def _restore_own(self, own: bytes) -> None:
        pass
