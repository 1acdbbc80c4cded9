"""The server's side: rounds of the protocol over Flower's grid, for whoever writes the app's main loop themselves."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedvlm_secure.engines.flower import vectors
from fedvlm_secure.engines.flower.client import HELLO_PURPOSE
from fedvlm_secure.engines.flower.node import KEY, ROSTER, load_identity
from fedvlm_secure.engines.flower.wire import HELLO, REFUSAL, ROUND, Header, put, take
from fedvlm_secure.errors import MisuseError, ProtocolError, one_line
from fedvlm_secure.federation import rosterfile
from fedvlm_secure.federation.attempts import Attempts
from fedvlm_secure.federation.journal import ServerJournal
from fedvlm_secure.federation.rundir import Folder, RunDirectory
from fedvlm_secure.federation.settings import AggregationTable
from fedvlm_secure.primitives import entropy
from fedvlm_secure.primitives.signing import SignatureError, verify
from fedvlm_secure.secagg.plan import Plan, propose
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.session import ClientId, RingSum

log = logging.getLogger("flwr.secagg")

_POLL = 0.2  # seconds between two looks for replies
_AGAIN = 30.0  # seconds
_CHALLENGE_BYTES = 32
_FEWEST = 3  # of two, each reads the other off the mean


@dataclass(frozen=True)
class Aggregate:
    """What the server learns of one round.

    Attributes:
        arrays: the arrays sent, moved by the survivors' weighted mean update.
        metrics: each summed metric's weighted mean.
        weight: the survivors' weights, summed.
        survivors, dropped: hospitals by name.
    """

    arrays: ArrayRecord
    metrics: dict[str, float]
    weight: int
    survivors: tuple[ClientId, ...]
    dropped: tuple[ClientId, ...]


class SecureAggregator:
    """Sums what Flower nodes reply so that the server sees the sum and nothing else.

    Args:
        folder: the server's own: holds ``identity.key`` and ``roster.cbor``, and what a resumed server needs.
        settings: what every plan proposes, as in ``[aggregation]``; ``pairwise`` or ``plain``.
        metrics: largest value of each metric that is averaged beside the arrays, by name; others stay at the nodes.
        deadline: seconds that nodes have for each message but the first, in which they train.

    Raises:
        MisuseError: the folder lacks a file, or the protocol is one whose sums only hospitals read.
    """

    def __init__(
        self,
        grid: Grid,
        folder: Path | str,
        settings: AggregationTable | None = None,
        metrics: Mapping[str, float] | None = None,
        deadline: float = 120.0,
    ) -> None:
        self._grid, self._folder, self._deadline = grid, Folder(Path(folder).expanduser()), deadline
        self._settings = settings or AggregationTable()
        self._protocol = lookup(self._settings.protocol)
        if self._protocol.relay is not None:
            raise MisuseError(f"under {self._settings.protocol} the server never has the arrays; use pairwise here")
        self.metrics = tuple(metrics or ())
        self._bounds = vectors.bounds_of(metrics or {})
        for name in (KEY, ROSTER):
            if not (self._folder.path / name).exists():
                raise MisuseError(f"{self._folder.path} holds no {name}; see docs/deployment for what it needs")
        self._identity = load_identity(self._folder.path / KEY)
        self._roster = rosterfile.read_signed(self._folder.path / ROSTER)
        self._attempts = Attempts(self._folder, self._protocol, self._identity, self._roster)
        self._names: dict[int, ClientId] = {}
        self._again: dict[int, float] = {}  # when a node that has not shown a key is asked again

    def hospitals(self, timeout: float = 60.0) -> dict[int, ClientId]:
        """The connected nodes that have shown a key on the roster, by node id."""
        present, now = set(self._grid.get_node_ids()), time.monotonic()
        unknown = sorted(node for node in present - self._names.keys() if now >= self._again.get(node, now))
        challenges = {node: entropy.random_bytes(_CHALLENGE_BYTES) for node in unknown}
        # Of the type that every app answers: one without a function for queries would not see the mod.
        asked = [
            Message(put(Header(HELLO), challenges[node]), node, MessageType.TRAIN, ttl=timeout) for node in unknown
        ]
        for reply in self._replies(asked, timeout):
            self._meet(reply, challenges)
        self._again |= dict.fromkeys(unknown, now + _AGAIN)
        return {node: name for node, name in self._names.items() if node in present}

    def aggregate(
        self,
        arrays: ArrayRecord,
        contents: Mapping[int, RecordDict],
        message_type: str = MessageType.TRAIN,
        timeout: float = 3600.0,
    ) -> Aggregate:
        """One round: every node gets its content, trains, and its update is summed with the others'.

        Args:
            arrays: what the nodes are sent and the sum is added to; the same in all contents.
            contents: what each node's app is asked, by node id; as many of them as are hospitals take part.
            message_type: ``"train"``, or ``"evaluate"``, which sums metrics only.
            timeout: seconds that nodes have to train.

        Raises:
            ProtocolError: a round failed as often as ``settings.attempts`` allows; nothing about any update is known.
            MisuseError: fewer hospitals are connected than a sum needs.
        """
        known = self.hospitals()
        nodes = {known[node]: node for node in contents if node in known}
        with RunDirectory(self._folder.state).locked():
            while True:
                with closing(self._open(arrays, tuple(sorted(nodes)), message_type)) as session:
                    try:
                        return self._round(session, arrays, nodes, contents, message_type, timeout)
                    except ProtocolError as reason:
                        log.warning("attempt failed: %s", one_line(reason))
                        last = self._attempts.attempt >= self._settings.attempts
                        self._attempts.fail(session)
                        if last:
                            raise

    def _open(self, arrays: ArrayRecord, cohort: tuple[ClientId, ...], message_type: str) -> ServerJournal:
        """The session of this attempt; one that was begun for other arrays counts as a failed attempt."""
        plan = self._plan(arrays, cohort, message_type)
        session = self._attempts.open(lambda: plan)
        if (session.plan.model, session.plan.layout) == (plan.model, plan.layout):
            return session
        self._attempts.fail(session)
        session.close()
        return self._attempts.open(lambda: self._plan(arrays, cohort, message_type))

    def _plan(self, arrays: ArrayRecord, cohort: tuple[ClientId, ...], message_type: str) -> Plan:
        table = self._settings
        size = vectors.flatten(arrays).size if message_type.split(".")[0] == MessageType.TRAIN else 0
        if len(cohort) < _FEWEST:
            members = len(self._roster.members)
            raise MisuseError(f"{len(cohort)} of {members} hospitals are connected; a sum needs {_FEWEST} or more")
        return propose(
            run=self._attempts.run,
            round=self._attempts.round,
            attempt=self._attempts.attempt,
            cohort=cohort,
            layout=vectors.layout(size, self._bounds, table.value_bits, table.weight_max),
            clip_norm=table.clip_norm,
            protocol=table.protocol,
            threat_model=table.threat_model,
            max_corrupt=table.max_corrupt,
            threshold=table.threshold,
            min_survivors=table.min_survivors,
            rounding=table.rounding,
            roster=self._roster.hash,
            model=vectors.model_digest(arrays),
        )

    def _round(
        self,
        session: ServerJournal,
        arrays: ArrayRecord,
        nodes: Mapping[ClientId, int],
        contents: Mapping[int, RecordDict],
        message_type: str,
        timeout: float,
    ) -> Aggregate:
        while not session.done:
            first = session.phase == self._protocol.phases[0]
            began, missing = (
                time.monotonic(),
                self._phase(session, nodes, contents if first else {}, message_type, timeout),
            )
            log.info(
                "round %d.%d %s: %.1f s, %d silent",
                *session.plan.place,
                session.phase,
                time.monotonic() - began,
                missing,
            )
            session.end_phase()
        total = session.aggregate()
        assert isinstance(total, RingSum)  # since the server reads the sums of this protocol
        decoded = session.plan.codec.decode(total.total)
        after = vectors.moved(arrays, decoded.mean) if decoded.mean.size else arrays
        self._attempts.finish(session)
        metrics = vectors.means(decoded.counters, self._bounds)
        return Aggregate(after, metrics, decoded.counters["weight"], total.survivors, total.dropped)

    def _phase(
        self,
        session: ServerJournal,
        nodes: Mapping[ClientId, int],
        contents: Mapping[int, RecordDict],
        message_type: str,
        timeout: float,
    ) -> int:
        """Ask everybody who owes a reply, take in what comes before the deadline; return how many were silent."""
        deadline = timeout if contents else self._deadline
        header = Header(
            ROUND,
            self._settings.protocol,
            session.phase,
            session.plan.place,
            metrics=dict(self._bounds),
            weight_max=self._settings.weight_max,
            rows_per_weight=self._settings.rows_per_weight,
        )
        owing = set[ClientId]()

        def requests() -> Iterator[Message]:
            for name, request in session.requests():
                owing.add(name)
                if name in nodes:
                    content = put(header, request, contents.get(nodes[name]))
                    yield Message(content, nodes[name], message_type, ttl=deadline)

        names = {node: name for name, node in nodes.items()}
        for reply in self._replies(requests(), deadline):
            name = names[reply.metadata.src_node_id]
            if (body := self._body(reply, name, session.phase)) is None:
                continue
            try:
                session.receive(name, body)
                owing.discard(name)
            except ProtocolError as fault:
                log.warning("%s is left out: %s", name, one_line(fault))
        return len(owing)

    def _body(self, reply: Message, name: ClientId, phase: str) -> bytes | None:
        """The protocol's message in a reply; None, and a line in the log, if there is none."""
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
        return taken[1]

    def _meet(self, reply: Message, challenges: Mapping[int, bytes]) -> None:
        node = reply.metadata.src_node_id
        body = self._body(reply, f"node {node}", HELLO)
        taken = take(reply.content) if body is not None else None
        if taken is None or body is None:
            return
        name, keys = taken[0].text, self._roster.keys()
        try:
            verify(keys.get(name, b""), HELLO_PURPOSE, challenges[node], body)
        except SignatureError:
            log.warning("node %d calls itself %r and cannot show that key: it is left out", node, name[:64])
            return
        self._names = {other: known for other, known in self._names.items() if known != name} | {node: name}
        log.info("node %d is %s", node, name)

    def _replies(self, messages: Sequence[Message] | Iterator[Message], timeout: float) -> Iterator[Message]:
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
