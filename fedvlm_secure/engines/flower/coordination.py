"""The server of a VLM run on Flower: the same coordinator as in a simulation, over a grid."""

import logging
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import MessageType
from flwr.serverapp import Grid

from fedvlm_secure.adapters import Adapter
from fedvlm_secure.engines.assembly import attached
from fedvlm_secure.engines.flower.job import Start
from fedvlm_secure.engines.flower.link import Link
from fedvlm_secure.engines.flower.node import KEY, ROSTER, load_identity
from fedvlm_secure.engines.flower.wire import FINISH, ROUND, Header
from fedvlm_secure.engines.local import versions
from fedvlm_secure.errors import MisuseError, ProtocolError, one_line
from fedvlm_secure.federation import rosterfile
from fedvlm_secure.federation.coordinator import EVALUATION, TRAINING, Agreed, Coordinator
from fedvlm_secure.federation.rounds import SealedResult
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write

log = logging.getLogger("flwr.secagg")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that hospitals have: to come, to train and reply with keys, and for every message after that."""

    arrival: float = 600.0
    training: float = 3600.0
    reply: float = 120.0

    @property
    def of_a_round(self) -> tuple[float, float]:
        """For the message in which a hospital trains, and for the others."""
        return self.training, self.reply


def run(grid: Grid, settings: Settings, folder: Path, deadlines: Deadlines | None = None) -> dict[str, Any]:
    """Run the federation, or go on with it, in ``folder/runs/NAME``; the server's summary.

    Args:
        folder: the server's: holds ``identity.key`` and ``roster.cbor``.

    Raises:
        MisuseError: a file is missing, or the run's folder began with other settings.
        ProtocolError: a round failed as often as the settings allow.
    """
    for name in (KEY, ROSTER):
        if not (folder / name).exists():
            raise MisuseError(f"{folder} holds no {name}; see examples/hospitals/README.md")
    place = RunDirectory(folder / "runs" / settings.name)
    with place.locked():
        if place.settings.exists() and Settings.from_toml(place.settings) != settings:
            raise MisuseError(f"{place.path} began with other settings; choose another name for this run")
        write(place.settings, settings.to_toml().encode())
        write(place.roster, (folder / ROSTER).read_bytes())
        server = _Server(grid, settings, folder, place, deadlines or Deadlines())
        while server.coordinator.round <= settings.rounds:
            server.round(TRAINING)
        while settings.privacy.mode == "none" and server.coordinator.round == settings.rounds + 1:
            server.round(EVALUATION)
        summary = server.finish()
        place.sign_manifest(server.coordinator.identity)
    return summary


class _Server:
    def __init__(self, grid: Grid, settings: Settings, folder: Path, place: RunDirectory, deadlines: Deadlines) -> None:
        torch.set_num_threads(settings.threads)
        identity, roster = load_identity(folder / KEY), rosterfile.read_signed(folder / ROSTER)
        roster.check_current(time.time())
        self._settings, self._deadlines = settings, deadlines
        self._link, self._members = Link(grid, roster), len(roster.members)
        self._last = 0  # how many were in the last sum that this process has seen
        loaded, self._adapter = attached(settings)
        self._base = loaded.digest
        self.coordinator = Coordinator(place.coordinator, settings, roster, identity)
        common = self._adapter.common_layout()
        self.coordinator.begin(common, common.flatten(self._adapter.initial_state()))

    def round(self, kind: str) -> None:
        """One attempt at one round."""
        coordinator = self.coordinator
        agreed = self._agreed(coordinator.round)
        shared = coordinator.shared(agreed.common)
        seconds: dict[str, float] = {}
        with closing(coordinator.open(agreed, shared, kind)) as session:
            nodes = {name: node for node, name in self._arrived(session.plan.min_survivors).items()}
            starts = {node: self._start(name, shared).put() for name, node in nodes.items()}
            header = Header(ROUND, self._settings.aggregation.protocol, place=coordinator.place)
            try:
                seconds = self._link.attempt(
                    session, header, nodes, starts, MessageType.TRAIN, self._deadlines.of_a_round
                )
                total = session.aggregate()
            except ProtocolError as reason:
                log.warning("attempt failed: %s", one_line(reason))
                coordinator.abort(session, reason, seconds)
                return
            coordinator.close(session, total, agreed, kind, seconds)
        self._last = len(total.survivors)
        log.info("a round is over: %d of %d hospitals are in its sum", len(total.survivors), self._members)

    def finish(self) -> dict[str, Any]:
        """Let everybody take over the last round's result and export its adapter; sum the run up."""
        agreed = self._agreed(self._settings.rounds)
        shared = self.coordinator.shared(agreed.common)
        starts = {node: self._start(name, shared) for node, name in self._arrived(self._last).items()}
        ending = self.coordinator.closing(agreed)
        contents = {node: start.put() for node, start in starts.items()}
        answered = self._link.ask(Header(FINISH), ending, contents, self._deadlines.training)
        log.info("%d of %d hospitals have taken over the result", len(answered), self._members)
        return self.coordinator.finish(agreed.common.size, versions())

    def _arrived(self, needed: int) -> dict[int, str]:
        """The hospitals that are there, once they are all there, or were in time and ``needed`` are, or time is up.

        A server that has just begun or come back waits for everybody; later, whoever comes back joins the next round.
        """
        ends = time.monotonic() + self._deadlines.arrival
        while len(present := self._link.hospitals()) < self._members and time.monotonic() < ends:
            if self._last and len(present) >= needed:
                break
            time.sleep(1.0)
        return present

    def _start(self, name: str, shared: np.ndarray | None) -> Start:
        if shared is not None:
            return Start(shared)
        last = self.coordinator.result(self._adapter.common_layout(), name)
        assert isinstance(last, SealedResult)  # since the server has no shared state
        return Start(None, last)

    def _agreed(self, round_index: int) -> Agreed:
        adapter: Adapter = self._adapter
        return Agreed(self._base, adapter.settings, adapter.common_layout(), adapter.layout(round_index))
