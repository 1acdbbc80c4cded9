"""The server's side: rounds of the protocol over Flower's grid, for whoever writes the app's main loop themselves."""

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord, MessageType, RecordDict
from flwr.serverapp import Grid

from fedvlm_secure.engines.flower import vectors
from fedvlm_secure.engines.flower.link import Link
from fedvlm_secure.engines.flower.node import KEY, ROSTER, load_identity
from fedvlm_secure.engines.flower.wire import ROUND, Header
from fedvlm_secure.errors import MisuseError, ProtocolError, one_line
from fedvlm_secure.federation import rosterfile
from fedvlm_secure.federation.attempts import Attempts
from fedvlm_secure.federation.journal import ServerJournal
from fedvlm_secure.federation.rundir import Folder, RunDirectory
from fedvlm_secure.federation.settings import AggregationTable
from fedvlm_secure.secagg.plan import Plan, propose
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.session import ClientId, RingSum

log = logging.getLogger("flwr.secagg")

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
        settings: what every plan proposes, as in ``[aggregation]``; ``pairwise`` or ``plain``. Nodes refuse a plan
            whose ``weight-max`` or ``value-bits`` are not those of their own :func:`secure_aggregation`.
        metrics: largest value of each metric that is averaged beside the arrays, by name; the same as at the nodes.
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
        self._folder, self._deadline = Folder(Path(folder).expanduser()), deadline
        self._settings = settings or AggregationTable()
        self._protocol = lookup(self._settings.protocol)
        if self._protocol.relay is not None:
            raise MisuseError(f"under {self._settings.protocol} the server never has the arrays; use pairwise here")
        self.metrics = tuple(metrics or ())
        self._bounds = vectors.bounds_of(metrics or {})
        for name in (KEY, ROSTER):
            if not (self._folder.path / name).exists():
                raise MisuseError(f"{self._folder.path} holds no {name}; see examples/hospitals/README.md")
        self._identity = load_identity(self._folder.path / KEY)
        self._roster = rosterfile.read_signed(self._folder.path / ROSTER)
        self._attempts = Attempts(self._folder, self._protocol, self._identity, self._roster)
        self._link = Link(grid, self._roster)

    def hospitals(self) -> dict[int, ClientId]:
        """The connected nodes that have shown a key on the roster, by node id."""
        return self._link.hospitals()

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
        size = vectors.size(arrays) if message_type.split(".")[0] == MessageType.TRAIN else 0
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
            history=self._attempts.history,
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
        header = Header(ROUND, self._settings.protocol, place=session.plan.place)
        self._link.attempt(session, header, nodes, contents, message_type, (timeout, self._deadline))
        total = session.aggregate()
        assert isinstance(total, RingSum)  # since the server reads the sums of this protocol
        decoded = session.plan.codec.decode(total.total)
        after = vectors.moved(arrays, decoded.mean) if decoded.mean.size else arrays
        self._attempts.finish(session)
        metrics = vectors.means(decoded.counters, self._bounds)
        return Aggregate(after, metrics, decoded.counters["weight"], total.survivors, total.dropped)
