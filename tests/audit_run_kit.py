"""Small runs as a server leaves them, without any model: for audits of all protocols, with whatever dropouts."""

import random
from pathlib import Path

import numpy as np

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.federation.attempts import Attempts
from fedvlm_secure.federation.journal import ClientJournal, keep_line, logged
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.log import REQUEST, Closing, close, line_of
from fedvlm_secure.secagg.plan import Plan, propose
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import NEVER, Roster, member, sign_roster
from fedvlm_secure.secagg.round import run_round

MODEL = bytes(range(32))
ENCRYPTED = ("ckks", "bfv")


class Run:
    """A run of a few rounds in ``folder``, its clients' journals beside it.

    Attributes:
        server: the server's keys, for whoever plays a server that lies.
    """

    def __init__(self, folder: Path, protocol: str, clients: int, choices: random.Random, dropouts: float) -> None:
        self.folder, self.protocol, self.choices, self.dropouts = RunDirectory(folder), protocol, choices, dropouts
        self.names = tuple(f"site-{number:02d}" for number in range(clients))
        self.server, self.consortium = Identity.generate(), Identity.generate()
        self.identities = {name: Identity.generate() for name in self.names}
        members = tuple(member(name, self.identities[name]) for name in self.names)
        self.roster = Roster(self.consortium.public, 1, NEVER, self.server.public, members)
        folder.mkdir(parents=True)
        write(self.folder.roster, sign_roster(self.roster, self.consortium))
        extra = ["policy.protocols=['plain']"] if protocol == "plain" else []
        self.settings = Settings.from_tables({}, [f"aggregation.protocol={protocol}", "name=t", "rounds=2", *extra])
        write(self.folder.settings, self.settings.to_toml().encode())
        entry = lookup(protocol)
        self.attempts = Attempts(self.folder.coordinator, entry, self.server, self.roster)
        self.policy = Policy(max_corrupt=0 if protocol in ENCRYPTED else 1, protocols=(protocol,))

    def journal(self, name: str) -> Path:
        """A client's own file, outside the run directory."""
        return self.folder.path.parent / f"{self.folder.path.name}-{name}.sqlite"

    def plan(self) -> Plan:
        """The plan of the attempt that runs now."""
        return propose(
            run=self.attempts.run,
            round=self.attempts.round,
            attempt=self.attempts.attempt,
            cohort=self.names,
            layout=VectorLayout(24, (Counter("weight", 64),), 12, 64),
            clip_norm=1.0,
            roster=self.roster.hash,
            model=MODEL,
            protocol=self.protocol,
            history=self.attempts.history,
        )

    def round(self) -> bool:
        """One attempt; whether it came to a sum."""
        place, silent = self.attempts.place, self._silent()
        session = self.attempts.open(self.plan)
        clients = {name: self._client(name, place) for name in self.names}
        phases = lookup(self.protocol).phases
        try:
            total = run_round(session, clients, lambda name, at: phases.index(at) < silent[name])
        except ProtocolError:
            self.folder.coordinator.metrics.record(
                ("round", "attempt"), round=place[0], attempt=place[1], kind="aborted"
            )
            self.attempts.fail(session)
            return False
        finally:
            session.close()
            for client in clients.values():
                client.close()
        self.folder.coordinator.metrics.record(
            ("round", "attempt"), round=place[0], attempt=place[1], kind="training", survivors=list(total.survivors)
        )
        self.attempts.finish(session, MODEL)
        return True

    def export(self, name: str) -> Path:
        """A client's log as a file."""
        path = self.folder.path.parent / f"{self.folder.path.name}-{name}.log"
        write(path, logged(self.journal(name), name, self.attempts.run).to_bytes())
        return path

    def finish(self) -> list[Path]:
        """End the run; the clients' logs."""
        ending = close(self.server, self.attempts.last, Closing(self.attempts.run, 2, MODEL, self.attempts.history))
        for name in self.names:
            keep_line(self.journal(name), self.attempts.run, line_of(REQUEST, ending))
        self.folder.sign_manifest(self.server)
        return [self.export(name) for name in self.names]

    def _client(self, name: str, place: tuple[int, int]) -> ClientJournal:
        party = Party(
            name, self.identities[name], self.roster, self.policy, MODEL, following=lambda decoded: MODEL, place=place
        )
        values = np.array([self.choices.uniform(-0.1, 0.1) for _ in range(24)], np.float32)
        update = Update(values, {"weight": self.choices.randint(1, 64)})
        return ClientJournal(self.journal(name), lookup(self.protocol).client, party, update, place)

    def _silent(self) -> dict[str, int]:
        """How many phases each client takes part in."""
        most = len(lookup(self.protocol).phases)
        return {
            name: self.choices.randrange(most) if self.choices.random() < self.dropouts else most for name in self.names
        }


def finished(folder: Path, protocol: str, seed: int, *, dropouts: float) -> tuple[Run, list[Path]]:
    """A run of two rounds, failed attempts besides, and its clients' logs."""
    choices = random.Random(seed)
    run, done = Run(folder, protocol, choices.randint(4, 7), choices, dropouts), 0
    while done < 2:
        done += run.round()
    return run, run.finish()
