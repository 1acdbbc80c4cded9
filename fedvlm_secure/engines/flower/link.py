"""A server's link to hospitals over Flower's grid: who is who, one phase of a protocol, deadlines."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedvlm_secure.engines.flower.wire import HELLO, REFUSAL, ROUND, Header, put, take
from fedvlm_secure.errors import ProtocolError, one_line
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.signing import SignatureError, verify
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.session import ClientId, ServerSession

log = logging.getLogger("flwr.secagg")

HELLO_PURPOSE = "flower-node"
CHALLENGE_BYTES = 32

_POLL = 0.2  # seconds between two looks for replies
_AGAIN = 30.0  # seconds until a node that has not shown a key is asked again
_HELLO_SECONDS = 60.0


class Link:
    """Hospitals by name over nodes by number.

    A name is only where messages are sent: that a reply is the hospital's own, its signature says.
    """

    def __init__(self, grid: Grid, roster: Roster) -> None:
        self._grid, self._roster = grid, roster
        self._names: dict[int, ClientId] = {}
        self._again: dict[int, float] = {}

    def hospitals(self) -> dict[int, ClientId]:
        """The connected nodes that have shown a key on the roster, by node id."""
        present, now = set(self._grid.get_node_ids()), time.monotonic()
        unknown = sorted(node for node in present - self._names.keys() if now >= self._again.get(node, now))
        challenges = {node: entropy.random_bytes(CHALLENGE_BYTES) for node in unknown}
        # Of the type that every app answers: one without a function for queries would not see the mod.
        asked = [
            Message(put(Header(HELLO), challenges[node]), node, MessageType.TRAIN, ttl=_HELLO_SECONDS)
            for node in unknown
        ]
        for reply in self._replies(asked, _HELLO_SECONDS):
            self._meet(reply, challenges)
        self._again |= dict.fromkeys(unknown, now + _AGAIN)
        return {node: name for node, name in self._names.items() if node in present}

    def attempt(
        self,
        session: ServerSession,
        header: Header,
        nodes: Mapping[ClientId, int],
        contents: Mapping[int, RecordDict],
        message_type: str,
        deadlines: tuple[float, float],
    ) -> dict[str, float]:
        """Run the attempt's phases to the end; return the seconds that each took.

        Args:
            header: its phase is filled in.
            nodes: where hospitals are; those that are nowhere are silent.
            contents: what goes along with the first request to a node, by its id.
            deadlines: seconds for a phase in which somebody is asked for the first time, and so trains, and for others.

        Raises:
            ProtocolError: too few hospitals remain.
        """
        seconds, fresh = dict[str, float](), dict(contents)
        while not session.done:
            phase, began = session.phase, time.monotonic()
            self._phase(session, replace(header, kind=ROUND, phase=phase), nodes, fresh, message_type, deadlines)
            session.end_phase()
            seconds[phase] = time.monotonic() - began
        return seconds

    def _phase(
        self,
        session: ServerSession,
        header: Header,
        nodes: Mapping[ClientId, int],
        fresh: dict[int, RecordDict],
        message_type: str,
        deadlines: tuple[float, float],
    ) -> None:
        """Ask everybody who owes a reply, and give the session what comes before the deadline."""
        began, owing = time.monotonic(), set[ClientId]()
        deadline = deadlines[0] if fresh else deadlines[1]

        def requests() -> Iterator[Message]:
            for name, request in session.requests():
                owing.add(name)
                if name in nodes:
                    content = put(header, request, fresh.pop(nodes[name], None))
                    yield Message(content, nodes[name], message_type, ttl=deadline)

        names = {node: name for name, node in nodes.items()}
        for reply in self._replies(requests(), deadline):
            name = names[reply.metadata.src_node_id]
            if (answer := _answer(reply, name, header.phase)) is None:
                continue
            try:
                session.receive(name, answer[1])
                owing.discard(name)
            except ProtocolError as fault:
                log.warning("%s is left out: %s", name, one_line(fault))
        silent = f", silent: {', '.join(sorted(owing))}" if owing else ""
        log.info("round %d.%d %s: %.1f s%s", *header.place, header.phase, time.monotonic() - began, silent)

    def ask(self, header: Header, contents: Mapping[int, RecordDict], deadline: float) -> dict[int, Header]:
        """Send everybody something outside a round; return who answered it, and how."""
        asked = [
            Message(put(header, content=content), node, MessageType.TRAIN, ttl=deadline)
            for node, content in contents.items()
        ]
        answered = {}
        for reply in self._replies(asked, deadline):
            node = reply.metadata.src_node_id
            if (answer := _answer(reply, self._names.get(node, f"node {node}"), header.kind)) is not None:
                answered[node] = answer[0]
        return answered

    def _meet(self, reply: Message, challenges: Mapping[int, bytes]) -> None:
        node = reply.metadata.src_node_id
        if (answer := _answer(reply, f"node {node}", HELLO)) is None:
            return
        header, signature = answer
        try:
            verify(self._roster.keys().get(header.text, b""), HELLO_PURPOSE, challenges[node], signature)
        except SignatureError:
            log.warning("node %d calls itself %r and cannot show that key: it is left out", node, header.text[:64])
            return
        self._names = {other: name for other, name in self._names.items() if name != header.text} | {node: header.text}
        log.info("node %d is %s", node, header.text)

    def _replies(self, messages: Iterable[Message], timeout: float) -> Iterator[Message]:
        """Send, one message in memory at a time, and give the replies as they come until the deadline."""
        waiting = {identifier for message in messages for identifier in self._grid.push_messages([message])}
        ends = time.monotonic() + timeout
        while waiting and time.monotonic() < ends:
            came = list(self._grid.pull_messages(waiting))
            for reply in came:
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
            if not came:
                time.sleep(_POLL)


def _answer(reply: Message, name: str, phase: str) -> tuple[Header, bytes] | None:
    """What a reply says; None, and a line in the log, if it is none."""
    if reply.has_error():
        log.warning("%s failed in %s: %s", name, phase, " ".join((reply.error.reason or "").split())[:300])
        return None
    try:
        taken = take(reply.content)
    except ProtocolError as fault:
        log.warning("%s: %s", name, one_line(fault))
        return None
    if taken is None or taken[0].kind == REFUSAL:
        reason = "no reason given" if taken is None else taken[0].text[:300]
        log.warning("%s refuses in %s: %s", name, phase, " ".join(reason.split()))
        return None
    return taken
