"""The server: it proposes plans, relays messages, adds protected vectors, and learns one thing a round, the sum.

Under a protocol whose key only hospitals hold it learns not even that: it relays the sum, and knows the model by its
hash.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from fedvlm_secure.adapters import AdapterSettings, SharedLayout
from fedvlm_secure.errors import MisuseError, ProtocolError, one_line
from fedvlm_secure.federation.attempts import Attempts
from fedvlm_secure.federation.journal import ServerJournal
from fedvlm_secure.federation.lineage import MOVED, Lineage
from fedvlm_secure.federation.payloads import Payloads
from fedvlm_secure.federation.rounds import Result, SealedResult, figures, lineage, proposal
from fedvlm_secure.federation.rundir import Folder
from fedvlm_secure.federation.safeguard import statement
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import write, write_json
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.log import Closing, close
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.session import ClientId, RingSum, SealedSum

TRAINING, EVALUATION = "training", "evaluation"


@dataclass(frozen=True, slots=True)
class Agreed:
    """What every party of a run has agreed on about the model.

    Attributes:
        base: the base model's digest.
        common: what all rounds share together.
        layout: what the round that runs now shares of it.
    """

    base: bytes
    adapter: AdapterSettings
    common: SharedLayout
    layout: SharedLayout

    def lineage(self, shared: np.ndarray) -> Lineage:
        """The model that the round begins with, from the shared state, float32 [common.size]."""
        return lineage(self.base, self.adapter, self.common, shared, self.layout)


class Coordinator:
    """The server of one run. Its folder holds sums only.

    Args:
        identity: the server's keys; those in the folder, made at first use, if None.
    """

    def __init__(self, folder: Folder, settings: Settings, roster: Roster, identity: Identity | None = None) -> None:
        self._folder = folder
        self._settings = settings
        self._protocol = lookup(settings.aggregation.protocol)
        self.identity = identity or folder.identity()
        self.roster = roster
        payloads = Payloads(folder) if settings.aggregation.keep_payloads else None
        self._attempts = Attempts(folder, self._protocol, self.identity, roster, payloads)

    @property
    def run(self) -> bytes:
        """The run's random name."""
        return self._attempts.run

    @property
    def round(self) -> int:
        """The round that runs now, from 1."""
        return self._attempts.round

    @property
    def place(self) -> tuple[int, int]:
        """(round, attempt) that runs now, from 1."""
        return self._attempts.place

    def shared(self, common: SharedLayout) -> np.ndarray | None:
        """The shared state at the start of the round that runs now, float32 [d]; None if only hospitals know it."""
        if self._protocol.relay is not None and self.round > 1:
            return None
        return common.flatten(_tensors(self._global(self.round - 1)))

    def result(self, common: SharedLayout, hospital: ClientId) -> Result:
        """What the last finished round left behind for one hospital."""
        if self._protocol.relay is None:
            return common.flatten(_tensors(self._global(self.round - 1)))
        bulletin = self._bulletin(self.round - 1).read_bytes()
        return SealedResult(self._attempts.model, self._protocol.relay(bulletin, self.identity, hospital))

    def begin(self, common: SharedLayout, initial: np.ndarray) -> None:
        """Store the common initial shared state."""
        if not self._global(0).exists():
            self._save_global(0, common, initial)

    def open(self, agreed: Agreed, shared: np.ndarray | None, kind: str) -> ServerJournal:
        """The server's half of this attempt, as it was left if the attempt had begun."""
        if not self._lineage.exists():  # what an auditor needs to tell one model from another
            begun = agreed.lineage(np.zeros(0, np.float32))
            named = {"base": begun.base.hex(), "adapter": begun.adapter, "common": begun.common.hex()}
            write_json(self._lineage, named)
        return self._attempts.open(lambda: self._plan(agreed, shared, kind))

    def close(
        self,
        session: ServerJournal,
        total: RingSum | SealedSum,
        agreed: Agreed,
        kind: str,
        seconds: dict[str, float],
    ) -> None:
        """Take the sum, or keep it for the hospitals; record what the server learnt, go on."""
        learnt: dict[str, int]
        model, norm = b"", None
        if isinstance(total, SealedSum):
            learnt, model = total.published, total.model
            write(self._bulletin(self.round), session.bulletin)
        else:
            decoded = session.plan.codec.decode(total.total)
            learnt = decoded.counters
            norm = float(np.linalg.norm(decoded.mean)) if kind == TRAINING else None
            before = self.shared(agreed.common)
            assert before is not None  # since the server reads the sums
            moved = agreed.layout.names if decoded.mean.size else ()
            self._save_global(self.round, agreed.common, agreed.lineage(before).moved(decoded), moved)
        self._record(kind, session, total, learnt, norm, seconds)
        rotation = self._settings.aggregation.key_rounds
        self._attempts.finish(session, model, rotate=rotation is not None and self.round % rotation == 0)

    def abort(self, session: ServerJournal, reason: ProtocolError, seconds: dict[str, float]) -> None:
        """Record a failed attempt and open the next; interrupted in between, the attempt goes on instead.

        Raises:
            ProtocolError: ``reason``, after the last attempt that the settings allow; a resumed run makes one more.
        """
        round_index, attempt = self.place
        self._folder.metrics.record(
            ("round", "attempt"),
            kind="aborted",
            round=round_index,
            attempt=attempt,
            reason=one_line(reason),
            bytes=session.transcript.bytes_per_phase(),
            seconds=_rounded(seconds),
        )
        self._attempts.fail(session)
        if attempt >= self._settings.aggregation.attempts:
            raise reason

    def closing(self, agreed: Agreed) -> bytes:
        """What tells the hospitals that the run is over, with what, and what the server has recorded of it."""
        shared = self.shared(agreed.common)
        model = self._attempts.model if shared is None else agreed.lineage(shared).hash
        said = Closing(self.run, self._settings.rounds, model, self._attempts.history)
        return close(self.identity, self._attempts.last, said)

    def finish(self, shared_parameters: int, versions: dict[str, str]) -> dict[str, Any]:
        """Sum the run up from what the server itself has seen; ``seconds`` is training and protocol, all attempts."""
        lines = self._folder.metrics.lines()
        done = [line for line in lines if line["kind"] != "aborted"]
        last = self._attempts.restored()
        assert last is not None  # the last round's
        last.close()
        plan = last.plan
        promised = statement(self._settings, plan.cohort, shared_parameters, repeated=len(lines) - len(done))
        summary = {
            "name": self._settings.name,
            "run": self.run.hex(),
            "spec": SPEC_VERSION,
            "protocol": plan.protocol,
            "threat-model": plan.threat_model,
            "max-corrupt": plan.max_corrupt,
            "threshold": plan.threshold if self._protocol.relay is None else None,
            "min-survivors": plan.min_survivors,
            "cohort": list(plan.cohort),
            "rounds": self._settings.rounds,
            "strategy": self._settings.adapter.strategy,
            "shared-parameters": shared_parameters,
            "ring-bits": plan.ring_bits if self._protocol.relay is None else None,
            "privacy": promised.to_json() | {"sentences": promised.sentences()},
            "insecure": list(self._settings.insecure),
            "test-accuracy": done[-1]["accuracy"],
            "seconds": round(sum(line.get("training-seconds", 0) + sum(line["seconds"].values()) for line in lines), 1),
            "bytes": sum(sum(phase.values()) for line in lines for phase in line["bytes"].values()),
            "versions": versions,
        }
        write_json(self._folder.path / "summary.json", summary)
        return summary

    def _plan(self, agreed: Agreed, shared: np.ndarray | None, kind: str) -> Plan:
        model = self._attempts.model
        if shared is not None:
            model = agreed.lineage(shared).hash
        return proposal(
            self._settings,
            run=self.run,
            place=self.place,
            cohort=tuple(member.name for member in self.roster.members),
            size=agreed.layout.size if kind == TRAINING else 0,
            roster=self.roster.hash,
            model=model,
            history=self._attempts.history,
        )

    def _record(
        self,
        kind: str,
        session: ServerJournal,
        total: RingSum | SealedSum,
        learnt: Mapping[str, int],
        norm: float | None,
        seconds: dict[str, float],
    ) -> None:
        self._folder.metrics.record(
            ("round", "attempt"),
            kind=kind,
            round=self.round,
            attempt=self.place[1],
            survivors=list(total.survivors),
            dropped=list(total.dropped),
            **{"total-weight": learnt.get("weight")},
            **figures(learnt),
            **{"update-norm": norm},
            bytes=session.transcript.bytes_per_phase(),
            **{"training-seconds": round(seconds.get(TRAINING, 0.0), 3)},
            seconds=_rounded(seconds),
        )

    @property
    def _lineage(self) -> Path:
        return self._folder.path / "lineage.json"

    def _bulletin(self, round_index: int) -> Path:
        return self._folder.path / "global" / f"round-{round_index:04d}.sum.cbor"

    def _global(self, round_index: int) -> Path:
        return self._folder.path / "global" / f"round-{round_index:04d}.safetensors"

    def _save_global(
        self, round_index: int, common: SharedLayout, vector: np.ndarray, moved: tuple[str, ...] = ()
    ) -> None:
        """Keep the state after a round, and the names of the tensors that the round has moved: auditors ask."""
        said = {MOVED: json.dumps(moved)}
        write(self._global(round_index), safetensors.torch.save(common.unflatten(vector), said))


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {phase: round(spent, 3) for phase, spent in seconds.items() if phase != TRAINING}


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise MisuseError(f"{path} cannot be read: {error}") from None
