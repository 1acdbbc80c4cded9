"""Peak memory of ``bfv`` and ``ckks`` at both parties: ``python benchmarks/encrypted_memory.py``.

Every role has a process to itself: a client that encrypts, a client that comes back from its saved state and reads the
sum, a server that adds and one that relays. Messages travel through files, so no process holds another's. A row is one
step of a role, in megabytes: what the process held when the step began, beyond the update and the empty program (the
message in hand included), how far memory rose above that, and how much stayed, the step's result included.

Resident memory counts everything, SEAL's ciphertexts too; ``--traced`` counts instead what Python and numpy allocate
(tracemalloc): exact, blind to SEAL, and slow. Linux with glibc only.
"""

import argparse
import ctypes
import multiprocessing
import os
import tempfile
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ParamSpec, TypeVar

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

from measure import Updates
from versus_nvflare import EncryptedCohort

from fedvlm_secure.secagg.encrypted.messages import KEYS
from fedvlm_secure.secagg.encrypted.parameters import BFV, CKKS, DEGREE
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.server import ServerSessionBase

P = ParamSpec("P")
R = TypeVar("R")

CLIENTS = 3
MEASURED = 1  # the client whose steps are shown; client 0 dealt the key
MEGABYTE = 1e6

_LIBC = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Step:
    """One step in bytes: held when it began, risen above that at most, and kept of that at its end."""

    name: str
    before: int
    peak: int
    kept: int


@dataclass
class Gauge:
    """This process's memory, step by step."""

    traced: bool
    steps: list[Step] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.traced:
            tracemalloc.start()
        self.base = self._now()

    def step(self, name: str, act: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """``act(...)``, watched."""
        before = self._now()
        self._forget_peak()
        result = act(*args, **kwargs)
        peak, after = self._peak(), self._now()
        self.steps.append(Step(name, before - self.base, max(peak - before, 0), after - before))
        return result

    def _now(self) -> int:
        if self.traced:
            return tracemalloc.get_traced_memory()[0]
        _LIBC.malloc_trim(0)  # what is free already and only kept for later is not held
        return _status("VmRSS")

    def _peak(self) -> int:
        return tracemalloc.get_traced_memory()[1] if self.traced else _status("VmHWM")

    def _forget_peak(self) -> None:
        if self.traced:
            tracemalloc.reset_peak()
        else:
            Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


@dataclass(frozen=True)
class Federation:
    """A cohort whose key is dealt, and the folder that its messages are passed on through."""

    cohort: EncryptedCohort
    server: ServerSessionBase
    folder: Path

    @classmethod
    def dealt(cls, protocol: str, dimension: int, folder: Path) -> "Federation":
        """One that has come to its input phase; the requests of that phase are in the folder."""
        cohort = EncryptedCohort(Updates(CLIENTS, dimension), protocol)
        server = cohort.server()
        ((dealer, request),) = server.requests()
        assert server.phase == KEYS
        server.receive(dealer, cohort.client(cohort.names.index(dealer)).reply(request))
        server.end_phase()
        for name, assignment in server.requests():
            (folder / f"{name}.assignment").write_bytes(assignment)
        return cls(cohort, server, folder)

    def path(self, client: int, what: str) -> Path:
        """Where one message lies."""
        return self.folder / f"{self.cohort.names[client]}.{what}"

    def encrypt(self, gauge: Gauge, client: int) -> None:
        """A client's input phase."""
        request = self.path(client, "assignment").read_bytes()
        session = gauge.step("opening the session", self.cohort.client, client)
        self.path(client, "upload").write_bytes(gauge.step("encrypting", session.reply, request))
        if client == MEASURED:
            self.path(client, "state").write_bytes(gauge.step("saving its state", session.to_bytes))

    def add(self, gauge: Gauge) -> None:
        """The server's input phase."""
        for client, name in enumerate(self.cohort.names):
            upload = self.path(client, "upload").read_bytes()
            gauge.step(f"adding upload {client + 1}", self.server.receive, name, upload)
            self.path(client, "upload").unlink()
            del upload
        gauge.step("saving its state", self.server.to_bytes)
        gauge.step("ending the phase", self.server.end_phase)
        (self.folder / "server.state").write_bytes(self.server.to_bytes())

    def relay(self, gauge: Gauge) -> None:
        """The server's sum phase, in a server that comes back from its saved state."""
        state = (self.folder / "server.state").read_bytes()
        server = gauge.step("restoring from state", type(self.server).from_bytes, state, self.cohort.server_key)
        del state
        requests = server.requests()
        for client in (0, MEASURED):
            _, message = gauge.step(f"making request {client + 1}", next, requests)
            if client == MEASURED:
                self.path(client, "sum").write_bytes(message)
            del message
        gauge.step("saving its state", server.to_bytes)

    def read(self, gauge: Gauge, client: int) -> None:
        """A client's sum phase, in a client that comes back from its saved state."""
        state = self.path(client, "state").read_bytes()
        party, update = self.cohort.party(client), self.cohort.update(client)
        restore = lookup(self.cohort.plan.protocol).client.from_bytes
        session = gauge.step("restoring from state", restore, state, party, update)
        del state
        gauge.step("reading the sum", session.reply, self.path(client, "sum").read_bytes())
        gauge.step("saving its state", session.to_bytes)


def in_a_process(traced: bool, role: Callable[..., None], *args: int) -> list[Step]:
    """The steps of ``role`` in a process of its own, which begins with what this one holds: keys, plan and updates."""
    forks = multiprocessing.get_context("fork")
    ours, theirs = forks.Pipe(duplex=False)
    process = forks.Process(target=_run, args=(role, args, traced, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"{role.__name__} failed, as said above") from None
    finally:
        process.join()


def _run(role: Callable[..., None], args: tuple[int, ...], traced: bool, results: Connection) -> None:
    gauge = Gauge(traced)
    role(gauge, *args)
    results.send(gauge.steps)


def measure(protocol: str, dimension: int, traced: bool) -> tuple[dict[str, list[Step]], dict[str, int]]:
    """One round, role by role, and what its largest things weigh."""
    with tempfile.TemporaryDirectory(prefix="fedvlm-secure-") as name:
        federation = Federation.dealt(protocol, dimension, Path(name))
        roles = {"a client, encrypting": in_a_process(traced, federation.encrypt, MEASURED)}
        sizes = {"update": 4 * dimension, "upload": federation.path(MEASURED, "upload").stat().st_size}
        for client in set(range(CLIENTS)) - {MEASURED}:
            in_a_process(False, federation.encrypt, client)
        roles["server, adding"] = in_a_process(traced, federation.add)
        roles["server, relaying"] = in_a_process(traced, federation.relay)
        sizes["sum's message"] = federation.path(MEASURED, "sum").stat().st_size
        sizes["sum as ciphertexts"] = sheet_of(federation.cohort.plan).chunks * 2 * 8 * DEGREE
        roles["a client, reading"] = in_a_process(traced, federation.read, MEASURED)
    return roles, sizes


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimension", type=int, default=10_000_000)
    parser.add_argument("--protocols", nargs="+", default=[BFV, CKKS], choices=[BFV, CKKS])
    parser.add_argument("--traced", action="store_true", help="count what Python and numpy allocate")
    arguments = parser.parse_args()
    for protocol in arguments.protocols:
        roles, sizes = measure(protocol, arguments.dimension, arguments.traced)
        weights = ", ".join(f"{name} {size / MEGABYTE:.0f}" for name, size in sizes.items())
        print(f"{protocol}, d = {arguments.dimension:,}, megabytes: {weights}")
        print(f"{'':<44}{'before':>10}{'peak':>10}{'kept':>10}")
        for role, steps in roles.items():
            for step in steps:
                figures = "".join(f"{size / MEGABYTE:>10.0f}" for size in (step.before, step.peak, step.kept))
                print(f"{f'{role}: {step.name}':<44}{figures}")
        print()


if __name__ == "__main__":
    main()
