"""Small runs as a server leaves them, without any model: for audits of all protocols, with whatever dropouts."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy

from fedvlm_secure.encoding.codec import Decoded, Update
from fedvlm_secure.encoding.layout import Counter, VectorLayout
from fedvlm_secure.errors import ProtocolError
from fedvlm_secure.federation.attempts import Attempts
from fedvlm_secure.federation.journal import ClientJournal, keep_line, logged
from fedvlm_secure.federation.lineage import MOVED, Lineage
from fedvlm_secure.federation.payloads import Payloads
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write, write_json
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.log import REQUEST, Closing, close, line_of
from fedvlm_secure.secagg.plan import Plan, propose
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import NEVER, Roster, member, sign_roster
from fedvlm_secure.secagg.round import run_round

SIZE = 24
ENCRYPTED = ("ckks", "bfv")


class Run:
    """A run of a few rounds in ``folder``, its clients' journals beside it.

    Attributes:
        server: the server's keys, for whoever plays a server that lies.
    """

    def __init__(
        self,
        folder: Path,
        protocol: str,
        clients: int,
        choices: random.Random,
        dropouts: float,
        *,
        keep: bool = False,
        size: int = SIZE,
        rounds: int = 2,
    ) -> None:
        self.folder, self.protocol, self.choices, self.dropouts = RunDirectory(folder), protocol, choices, dropouts
        self.size = size
        self.names = tuple(f"site-{number:03d}" for number in range(clients))
        self.server, self.consortium = Identity.generate(), Identity.generate()
        self.identities = {name: Identity.generate() for name in self.names}
        members = tuple(member(name, self.identities[name]) for name in self.names)
        self.roster = Roster(self.consortium.public, 1, NEVER, self.server.public, members)
        folder.mkdir(parents=True)
        write(self.folder.roster, sign_roster(self.roster, self.consortium))
        extra = ["policy.protocols=['plain']"] if protocol == "plain" else []
        asked = [f"aggregation.protocol={protocol}", "name=t", f"rounds={rounds}"]
        self.settings = Settings.from_tables({}, [*asked, *extra])
        write(self.folder.settings, self.settings.to_toml().encode())
        entry = lookup(protocol)
        self.payloads = Payloads(self.folder.coordinator) if keep else None
        self.attempts = Attempts(self.folder.coordinator, entry, self.server, self.roster, self.payloads)
        self.model = Lineage(bytes(32), "{}", bytes(32), bytes(4 * size))
        named = {"base": self.model.base.hex(), "adapter": self.model.adapter, "common": self.model.common.hex()}
        write_json(self.folder.coordinator.path / "lineage.json", named)
        self.save_model(0)
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
            layout=VectorLayout(self.size, (Counter("weight", 64),), 12, 64),
            clip_norm=1.0,
            roster=self.roster.hash,
            model=self.model.hash,
            protocol=self.protocol,
            history=self.attempts.history,
        )

    def round(self) -> bool:
        """One attempt; whether it came to a sum."""
        place, silent = self.attempts.place, self._silent()
        session = self.attempts.open(self.plan)
        clients = {name: self.client(name, place) for name in self.names}
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
        # Under an encrypted protocol the members tell what follows: only they can read the sum.
        decoded = self._decoded if self.protocol in ENCRYPTED else session.plan.codec.decode(total.total)
        self.model = replace(self.model, shared=self.model.moved(decoded).astype("<f4").tobytes())
        self.save_model(place[0])
        self.attempts.finish(session, self.model.hash)
        return True

    def export(self, name: str) -> Path:
        """A client's log as a file."""
        path = self.folder.path.parent / f"{self.folder.path.name}-{name}.log"
        write(path, logged(self.journal(name), name, self.attempts.run).to_bytes())
        return path

    def finish(self) -> list[Path]:
        """End the run; the clients' logs."""
        closing = Closing(self.attempts.run, self.settings.rounds, self.model.hash, self.attempts.history)
        ending = close(self.server, self.attempts.last, closing)
        for name in self.names:
            keep_line(self.journal(name), self.attempts.run, line_of(REQUEST, ending))
        self.folder.sign_manifest(self.server)
        return [self.export(name) for name in self.names]

    def client(self, name: str, place: tuple[int, int]) -> ClientJournal:
        party = Party(
            name, self.identities[name], self.roster, self.policy, self.model.hash, following=self._follow, place=place
        )
        values = np.random.default_rng(self.choices.randrange(1 << 32)).uniform(-0.1, 0.1, self.size)
        update = Update(values.astype(np.float32), {"weight": self.choices.randint(1, 64)})
        return ClientJournal(self.journal(name), lookup(self.protocol).client, party, update, place)

    def _follow(self, decoded: Decoded) -> bytes:
        self._decoded = decoded
        return self.model.following(decoded)

    def save_model(self, round_index: int) -> None:
        """What a server keeps of a round, unless only clients can read the sum."""
        if self.protocol not in ENCRYPTED:
            path = self.folder.coordinator.path / "global" / f"round-{round_index:04d}.safetensors"
            write(path, safetensors.numpy.save({"B": np.frombuffer(self.model.shared, "<f4")}, {MOVED: '["B"]'}))

    def _silent(self) -> dict[str, int]:
        """How many phases each client takes part in."""
        most = len(lookup(self.protocol).phases)
        return {
            name: self.choices.randrange(most) if self.choices.random() < self.dropouts else most for name in self.names
        }


def finished(folder: Path, protocol: str, seed: int, *, dropouts: float, keep: bool = False) -> tuple[Run, list[Path]]:
    """A run of two rounds, failed attempts besides, and its clients' logs."""
    choices = random.Random(seed)
    run, done = Run(folder, protocol, choices.randint(4, 7), choices, dropouts, keep=keep), 0
    while done < 2:
        done += run.round()
    return run, run.finish()
