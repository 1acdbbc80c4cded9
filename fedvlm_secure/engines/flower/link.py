"""A server's link to hospitals over Flower's grid: who is who, one phase of a protocol, deadlines."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

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
_HELLO_SECONDS = 30.0
_AGAIN, _LONGEST = (
    30.0,
    3600.0,
)  # seconds until a node that has not shown a key is greeted again, twice as long each time
_SLACK = 60.0  # seconds that a message lives on after its deadline, which runs from when the last one is sent


Who = TypeVar("Who")


class Link:
    """Hospitals by name over nodes by number.

    A name is only where messages are sent: that a reply is the hospital's own, its signature says.
    """

    def __init__(self, grid: Grid, roster: Roster) -> None:
        self._grid, self._roster = grid, roster
        self._names: dict[int, ClientId] = {}
        self._again: dict[int, tuple[float, float]] = {}  # when a silent node is greeted next, and after how long then

    def hospitals(self) -> dict[int, ClientId]:
        """The connected nodes that have shown a key on the roster, by node id."""
        present, now = set(self._grid.get_node_ids()), time.monotonic()
        unknown = sorted(node for node in present - self._names.keys() if now >= self._again.get(node, (0, 0))[0])
        challenges = {node: entropy.random_bytes(CHALLENGE_BYTES) for node in unknown}
        # Of the type that every app answers: one without a function for queries would not see the mod.
        asked = (
            (node, Message(put(Header(HELLO), challenges[node]), node, MessageType.TRAIN, ttl=_HELLO_SECONDS + _SLACK))
            for node in unknown
        )
        for node, reply in self._replies(asked, _HELLO_SECONDS):
            self._meet(node, reply, challenges[node])
        for node in present & set(unknown) - self._names.keys():
            pause = min(2 * self._again.get(node, (0.0, _AGAIN / 2))[1], _LONGEST)
            self._again[node] = (time.monotonic() + pause, pause)
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
        seconds, fresh = dict[str, float](), {node: contents[node] for node in nodes.values() if node in contents}
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

        def requests() -> Iterator[tuple[ClientId, Message]]:
            for name, request in session.requests():
                owing.add(name)
                if name in nodes:
                    content = put(header, request, fresh.pop(nodes[name], None))
                    yield name, Message(content, nodes[name], message_type, ttl=deadline + _SLACK)

        for name, reply in self._replies(requests(), deadline):
            if (answer := _answer(reply, name, header.phase)) is None:
                continue
            try:
                session.receive(name, answer[1])
                owing.discard(name)
            except ProtocolError as fault:
                log.warning("%s is left out: %s", name, one_line(fault))
        silent = f", silent: {', '.join(sorted(owing))}" if owing else ""
        log.info("round %d.%d %s: %.1f s%s", *header.place, header.phase, time.monotonic() - began, silent)

    def ask(self, header: Header, body: bytes, contents: Mapping[int, RecordDict], deadline: float) -> set[int]:
        """Send everybody something outside a round; return the nodes that have done it."""
        asked = (
            (node, Message(put(header, body, content), node, MessageType.TRAIN, ttl=deadline + _SLACK))
            for node, content in contents.items()
        )
        return {
            node
            for node, reply in self._replies(asked, deadline)
            if _answer(reply, self._names.get(node, f"node {node}"), header.kind) is not None
        }

    def _meet(self, node: int, reply: Message, challenge: bytes) -> None:
        if (answer := _answer(reply, f"node {node}", HELLO)) is None:
            return
        header, signature = answer
        try:
            verify(self._roster.keys().get(header.text, b""), HELLO_PURPOSE, challenge, signature)
        except SignatureError:
            log.warning("node %d calls itself %r and cannot show that key: it is left out", node, header.text[:64])
            return
        self._names = {other: name for other, name in self._names.items() if name != header.text} | {node: header.text}
        log.info("node %d is %s", node, header.text)

    def _replies(self, messages: Iterable[tuple[Who, Message]], timeout: float) -> Iterator[tuple[Who, Message]]:
        """Send, one message in memory at a time, and give the replies as they come until the deadline.

        Whose reply it is, the message that it answers says: Flower answers for a node that is gone, in its own name.
        """
        waiting = {}
        for who, message in messages:
            for identifier in self._grid.push_messages([message]):
                if identifier:  # None for a node that has just gone
                    waiting[identifier] = who
        ends = time.monotonic() + timeout
        while waiting:
            for identifier in list(waiting):
                for reply in self._pulled(identifier, waiting[identifier]):
                    yield waiting.pop(identifier), reply
            if not waiting or time.monotonic() >= ends:
                return
            time.sleep(_POLL)

    def _pulled(self, identifier: str, who: object) -> list[Message]:
        """One message's reply, if it is there; what Flower cannot put together again counts as silence."""
        try:
            return list(self._grid.pull_messages([identifier]))[:1]
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: a reply that cannot be read: %s", who, one_line(error)[:300])
            return []


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
