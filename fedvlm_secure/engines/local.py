"""The local engine: a whole federation in this process, one base model in memory, adapters swapped in per hospital.

Parties still talk only through protocol messages and keep their own folders; the engine is the network between them.
"""

import hashlib
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvlm_secure import data
from fedvlm_secure.adapters import Adapter
from fedvlm_secure.engines.assembly import Encoded, attached, encoded_splits, rows_of, sites_in
from fedvlm_secure.engines.first_bytes import FirstBytes, kept
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError, PolicyRefusalError, ProtocolError, one_line
from fedvlm_secure.federation.coordinator import EVALUATION, TRAINING, Agreed, Coordinator
from fedvlm_secure.federation.participant import Participant
from fedvlm_secure.federation.rounds import check_settings
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.report import SiteRow, table
from fedvlm_secure.report import write as write_report
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import NEVER, Roster, member, read_roster, sign_roster
from fedvlm_secure.secagg.round import run_round
from fedvlm_secure.secagg.session import ClientId, ServerSession
from fedvlm_secure.secagg.transcript import Transcript

_PACKAGES = ("fedvlm-secure", "torch", "transformers", "peft", "cryptography", "numpy", "datasets")


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run directory.
        summary: what the server has seen, as in ``coordinator/summary.json``.
        sites: the table per hospital: simulation view, no server sees this.
    """

    folder: Path
    summary: dict[str, Any]
    sites: list[SiteRow]


def run(
    settings: Settings,
    out: Path | str | None = None,
    *,
    resume: bool = False,
    observer: Observer | None = None,
    encoded: Encoded | None = None,
    first_bytes: bool | None = None,
) -> RunResult:
    """Run a federation from the first round to the report.

    Args:
        out: the run directory; ``runs/NAME`` if None. It must not exist yet, or be empty.
        resume: go on with the run in ``out``, which began with the same settings, from its last finished phase.
        encoded: kept from run to run, it spares the encoding; the data must not change meanwhile.
        first_bytes: keep the first bytes of one hospital's first upload before masking and as the server received
            them, for the report. If None, where the hospitals are the simulated ones. Never under differential privacy.

    Raises:
        MisuseError: wrong settings, or on resuming other ones than the run's; a directory that holds something else;
            missing packages for the data set.
        PolicyRefusalError: a hospital's floors are above what the settings propose.
        ProtocolError: a round failed as often as the settings allow.
    """
    folder = RunDirectory(Path("runs") / settings.name if out is None else Path(out))
    check_folder(folder, settings, resume)
    lookup(settings.aggregation.protocol)
    torch.set_num_threads(settings.threads)
    with folder.locked():
        federation = _assemble(folder, settings, observer or Observer(), {} if encoded is None else encoded)
        pictured = data.level_of(settings.data) is not None if first_bytes is None else first_bytes
        federation.pictured = folder if pictured and settings.privacy.mode == "none" else None
        while federation.coordinator.round <= settings.rounds:
            federation.round(TRAINING)
        federation.closing()
        summary = federation.finish()
        write_report(folder.path)
        folder.sign_manifest(federation.coordinator.identity)
    return RunResult(folder.path, summary, table(folder.path))


def resume(path: Path | str, observer: Observer | None = None) -> RunResult:
    """Go on with an interrupted run, with the settings it began with; raises as :func:`run` does."""
    folder = RunDirectory(Path(path))
    if not folder.settings.exists():
        raise MisuseError(f"{path} is no run directory: it has no settings.toml")
    return run(Settings.from_toml(folder.settings), folder.path, resume=True, observer=observer)


@dataclass
class _Federation:
    """All parties of a simulated run."""

    settings: Settings
    coordinator: Coordinator
    participants: dict[ClientId, Participant]
    roster: bytes
    adapter: Adapter
    base: bytes
    model_name: str
    observer: Observer
    pictured: RunDirectory | None = None  # where the first bytes of an upload are to be kept

    def round(self, kind: str) -> None:
        """One attempt at one round: everybody trains, the vectors are summed, everybody adopts the result."""
        coordinator, observer = self.coordinator, self.observer
        round_index, attempt = coordinator.place
        agreed = self._agreed(round_index)
        shared = coordinator.shared(agreed.common)
        observer.round_begins(round_index, self.settings.rounds, attempt, len(self.participants))
        started = time.monotonic()
        self._prepare(kind, coordinator.place, shared)
        seconds = {TRAINING: time.monotonic() - started}
        protocol, watch = lookup(self.settings.aggregation.protocol), self._watch(kind, agreed)
        with ExitStack() as files:
            session = files.enter_context(closing(coordinator.open(agreed, shared, kind)))
            clients = {}
            for name, participant in self.participants.items():
                half = protocol.client if watch is None else watch.watching(name, protocol.client)
                own = participant.session(coordinator.place, self.roster, shared, half)
                clients[name] = files.enter_context(closing(own))
            alive = self._alive(coordinator.place, protocol.phases)
            try:
                total = run_round(_Watched(session, observer, seconds, watch), clients, alive)
            except PolicyRefusalError:
                raise  # another attempt would be refused alike
            except ProtocolError as reason:
                observer.round_aborts(round_index, attempt, one_line(reason))
                coordinator.abort(session, reason, seconds)
                return
            coordinator.close(session, total, agreed, kind, seconds)
        if watch is not None:
            watch.keep((round_index, attempt))
        accuracy = self._adopt(round_index) if kind == TRAINING else float("nan")
        observer.round_ends(round_index, len(total.survivors), len(clients), accuracy)
        spent = {name: participant.spent(round_index) for name, participant in self.participants.items()}
        if known := {name: epsilon for name, epsilon in spent.items() if epsilon is not None}:
            observer.spent(known)

    def closing(self) -> None:
        """The test counters' sum, in a round of its own; under differential privacy everybody looks for itself."""
        if self.settings.privacy.mode == "none":
            while self.coordinator.round == self.settings.rounds + 1:
                self.round(EVALUATION)
            return
        self._adopt(self.settings.rounds)
        shared = self.coordinator.shared(self.adapter.common_layout())
        for participant in self.participants.values():
            participant.evaluate_test(self.settings.rounds, shared)

    def finish(self) -> dict[str, Any]:
        """Everybody exports what it has, and the coordinator sums up."""
        rounds, common = self.settings.rounds, self.adapter.common_layout()
        shared, ending = self.coordinator.shared(common), self.coordinator.closing(self._agreed(rounds))
        for participant in self.participants.values():
            participant.finish(rounds, shared, self.model_name, ending)
        return self.coordinator.finish(common.size, versions())

    def _watch(self, kind: str, agreed: Agreed) -> FirstBytes | None:
        """What looks at this attempt's uploads, if they are updates and none has been kept yet."""
        if self.pictured is None or kind != TRAINING or not agreed.layout.size or kept(self.pictured):
            return None
        return FirstBytes(self.pictured)

    def _prepare(self, kind: str, place: tuple[int, int], shared: np.ndarray | None) -> None:
        round_index = place[0]
        if round_index > 1:
            self._adopt(round_index - 1)  # whoever was interrupted before it did
        for name, participant in self.participants.items():
            if kind == TRAINING:
                participant.prepare(
                    place,
                    shared,
                    lambda info, name=name: self.observer.step(name, info.step, info.steps, info.loss),  # type: ignore[misc]
                )
                self.observer.trained(name)
            else:
                participant.prepare_evaluation(round_index, shared)

    def _adopt(self, round_index: int) -> float:
        common, coordinator = self.adapter.common_layout(), self.coordinator
        evaluations = [
            participant.adopt(round_index, self.roster, partial(coordinator.result, common, name))
            for name, participant in self.participants.items()
        ]
        return sum(evaluation.accuracy for evaluation in evaluations) / len(evaluations)

    def _alive(self, place: tuple[int, int], phases: tuple[str, ...]) -> Callable[[ClientId, str], bool]:
        """Who stays on the line: drawn from the experiment's seed, since a dropout hides nothing."""

        def alive(client: ClientId, phase: str) -> bool:
            described = f"fedvlm-secure dropout {self.settings.seed} {place} {client}".encode()
            drawn = hashlib.sha256(described).digest()
            if int.from_bytes(drawn[:8]) >= self.settings.simulation.dropout_rate * 2**64:
                return True
            return phases.index(phase) < int.from_bytes(drawn[8:16]) % len(phases)

        return alive

    def _agreed(self, round_index: int) -> Agreed:
        adapter = self.adapter
        return Agreed(self.base, adapter.settings, adapter.common_layout(), adapter.layout(round_index))


class _Watched:
    """A server session whose phases are timed, and whose uploads somebody may look at."""

    def __init__(
        self, session: ServerSession, observer: Observer, seconds: dict[str, float], watch: FirstBytes | None
    ) -> None:
        self._session, self._observer, self._seconds, self._watch = session, observer, seconds, watch
        self._since = time.monotonic()
        self.requests, self.aggregate, self.to_bytes = session.requests, session.aggregate, session.to_bytes

    @property
    def phase(self) -> str:
        return self._session.phase

    @property
    def done(self) -> bool:
        return self._session.done

    @property
    def transcript(self) -> Transcript:
        return self._session.transcript

    def receive(self, client: ClientId, reply: bytes) -> None:
        self._session.receive(client, reply)
        if self._watch is not None:
            self._watch.received(self._session.phase, client, reply)

    def end_phase(self) -> None:
        phase = self._session.phase
        self._session.end_phase()
        spent, self._since = time.monotonic() - self._since, time.monotonic()
        self._seconds[phase] = spent
        self._observer.phase_ends(phase, spent)


def check_folder(folder: RunDirectory, settings: Settings, resume: bool) -> None:
    """Never write among files that are not this run's; raises :class:`MisuseError`."""
    if folder.settings.exists():
        if not resume:
            raise MisuseError(
                f"{folder.path} exists; name another with --out, or continue it with run --resume {folder.path}"
            )
        if Settings.from_toml(folder.settings) != settings:
            raise MisuseError(f"{folder.path} began with other settings; a resumed run keeps those in settings.toml")
    elif folder.path.exists() and (not folder.path.is_dir() or any(map(_is_foreign, folder.path.iterdir()))):
        raise MisuseError(f"{folder.path} is not empty and holds no run; name another with --out")


def _is_foreign(path: Path) -> bool:
    """Whether the path is anything but what is left of a run that was killed while it wrote its very first file."""
    return path.name != "settings.toml.part"


def _assemble(folder: RunDirectory, settings: Settings, observer: Observer, encoded: Encoded) -> _Federation:
    """Load the model, give every hospital its rows and its folder, and enrol everybody."""
    observer.loading(f"model {settings.model}")
    loaded, adapter = attached(settings)
    observer.loading(f"data {data.called(settings.data)}")
    sites = sites_in(settings, observer)
    check_settings(settings, {name: len(splits["train"]) for name, splits in sites.items()}, adapter.layout(1).size)
    write(folder.settings, settings.to_toml().encode())
    participants = {}
    for name, splits in sites.items():
        observer.loading(f"site {name}")
        own = encoded_splits(loaded, adapter, settings, name, splits, encoded)
        rows = rows_of(splits, own, settings, data.description(settings.data, name))
        participants[name] = Participant(name, folder.site(name), adapter, loaded.digest, rows, settings)
        participants[name].enrol()
    roster = _roster(folder, participants)
    for participant in participants.values():
        participant.pin(roster)
    coordinator = Coordinator(folder.coordinator, settings, read_roster(roster))
    common = adapter.common_layout()
    coordinator.begin(common, common.flatten(adapter.initial_state()))
    return _Federation(settings, coordinator, participants, roster, adapter, loaded.digest, loaded.name, observer)


def _roster(folder: RunDirectory, participants: Mapping[ClientId, Participant]) -> bytes:
    """The run's signed roster. Nobody keeps the consortium's key, so there will be no other version."""
    if not folder.roster.exists():
        consortium, server = Identity.generate(), folder.coordinator.identity()
        members = tuple(member(name, participants[name].identity) for name in sorted(participants))
        write(folder.roster, sign_roster(Roster(consortium.public, 1, NEVER, server.public, members), consortium))
    return folder.roster.read_bytes()


def versions() -> dict[str, str]:
    """Python's and the packages' that a result may depend on."""
    return {"python": platform.python_version()} | {package: version(package) for package in _PACKAGES}
