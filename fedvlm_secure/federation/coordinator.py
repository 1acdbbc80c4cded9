"""The server: it proposes plans, relays messages, adds protected vectors, and learns one thing a round, the sum."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from fedvlm_secure.adapters import AdapterSettings, SharedLayout
from fedvlm_secure.encoding.codec import Decoded
from fedvlm_secure.errors import MisuseError, ProtocolError, one_line
from fedvlm_secure.federation.journal import ServerJournal
from fedvlm_secure.federation.rounds import evaluation_of, model_hash, proposal
from fedvlm_secure.federation.rundir import PRIVATE, Folder, read_json, write, write_json
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.primitives import SPEC_VERSION, entropy
from fedvlm_secure.secagg.plan import RUN_BYTES, Plan
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.session import RingSum

TRAINING, EVALUATION = "training", "evaluation"


@dataclass(frozen=True, slots=True)
class Agreed:
    """What every party of a run has agreed on about the model, for a round: the base's digest and what is shared."""

    base: bytes
    adapter: AdapterSettings
    layout: SharedLayout


class Coordinator:
    """The server of one run. Its folder holds sums only."""

    def __init__(self, folder: Folder, settings: Settings, roster: Roster) -> None:
        self._folder = folder
        self._settings = settings
        self.identity = folder.identity()
        self.roster = roster
        self._progress = folder.state / "progress.json"
        if not self._progress.exists():
            self._save_progress(entropy.random_bytes(RUN_BYTES).hex(), 1, 1)
        progress = read_json(self._progress)
        self._run, self.round, self.attempt = bytes.fromhex(progress["run"]), progress["round"], progress["attempt"]

    @property
    def place(self) -> tuple[int, int]:
        """(round, attempt) that runs now, from 1."""
        return self.round, self.attempt

    def shared(self, layout: SharedLayout) -> np.ndarray:
        """The shared state at the start of the round that runs now, float32 [d]."""
        return layout.flatten(_tensors(self._global(self.round - 1)))

    def begin(self, layout: SharedLayout, initial: np.ndarray) -> None:
        """Store the common initial shared state."""
        if not self._global(0).exists():
            self._save_global(0, layout, initial)

    def open(self, agreed: Agreed, shared: np.ndarray, kind: str) -> ServerJournal:
        """The server's half of this attempt, as it was left if the attempt had begun."""
        session = self._restored()
        if session is not None and session.plan.place == self.place:
            return session
        if session is not None:
            session.close()
        half = lookup(self._settings.aggregation.protocol).server
        plan = self._plan(agreed, shared, kind)
        return ServerJournal.begin(self._session_path, half(plan, self.identity, self.roster))

    def close(
        self, session: ServerJournal, total: RingSum, layout: SharedLayout, kind: str, seconds: dict[str, float]
    ) -> np.ndarray:
        """Decode the sum, move the shared state by the weighted mean, record what the server learnt, go on."""
        decoded = session.plan.codec.decode(total.total)
        shared = (self.shared(layout) + decoded.mean).astype(np.float32) if kind == TRAINING else self.shared(layout)
        self._save_global(self.round, layout, shared)
        self._archive(session)
        self._record(kind, session, total, decoded, seconds)
        self._advance(self.round + 1, 1)
        return shared

    def abort(self, session: ServerJournal, reason: ProtocolError, seconds: dict[str, float]) -> None:
        """Record a failed attempt and open the next; interrupted in between, the attempt goes on instead.

        Raises:
            ProtocolError: ``reason``, after the last attempt that the settings allow; a resumed run makes one more.
        """
        self._archive(session)
        self._folder.metrics.record(
            ("round", "attempt"),
            kind="aborted",
            round=self.round,
            attempt=self.attempt,
            reason=one_line(reason),
            bytes=session.transcript.bytes_per_phase(),
            seconds=_rounded(seconds),
        )
        last = self.attempt >= self._settings.aggregation.attempts
        self._advance(self.round, self.attempt + 1)
        if last:
            raise reason

    def finish(self, shared_parameters: int, versions: dict[str, str]) -> dict[str, Any]:
        """Sum the run up from what the server itself has seen; ``seconds`` is training and protocol, all attempts."""
        lines = self._folder.metrics.lines()
        done = [line for line in lines if line["kind"] != "aborted"]
        last = self._restored()
        assert last is not None  # the closing round's
        last.close()
        plan = last.plan
        summary = {
            "name": self._settings.name,
            "run": self._run.hex(),
            "spec": SPEC_VERSION,
            "protocol": plan.protocol,
            "threat-model": plan.threat_model,
            "max-corrupt": plan.max_corrupt,
            "threshold": plan.threshold,
            "min-survivors": plan.min_survivors,
            "cohort": list(plan.cohort),
            "rounds": self._settings.rounds,
            "strategy": self._settings.adapter.strategy,
            "shared-parameters": shared_parameters,
            "ring-bits": plan.ring_bits,
            "insecure": list(self._settings.insecure),
            "test-accuracy": done[-1]["accuracy"],
            "seconds": round(sum(line.get("training-seconds", 0) + sum(line["seconds"].values()) for line in lines), 1),
            "bytes": sum(sum(phase.values()) for line in lines for phase in line["bytes"].values()),
            "versions": versions,
        }
        write_json(self._folder.path / "summary.json", summary)
        return summary

    @property
    def _session_path(self) -> Path:
        return self._folder.state / "session.sqlite"

    def _restored(self) -> ServerJournal | None:
        half = lookup(self._settings.aggregation.protocol).server
        return ServerJournal.restore(self._session_path, half, self.identity)

    def _plan(self, agreed: Agreed, shared: np.ndarray, kind: str) -> Plan:
        return proposal(
            self._settings.aggregation,
            run=self._run,
            place=self.place,
            cohort=tuple(member.name for member in self.roster.members),
            size=agreed.layout.size if kind == TRAINING else 0,
            roster=self.roster.hash,
            model=model_hash(agreed.base, agreed.adapter, agreed.layout, shared),
        )

    def _record(
        self, kind: str, session: ServerJournal, total: RingSum, decoded: Decoded, seconds: dict[str, float]
    ) -> None:
        evaluation = evaluation_of(decoded.counters)
        self._folder.metrics.record(
            ("round", "attempt"),
            kind=kind,
            round=self.round,
            attempt=self.attempt,
            survivors=list(total.survivors),
            dropped=list(total.dropped),
            **{"total-weight": decoded.counters["weight"]},
            correct=evaluation.correct,
            asked=evaluation.asked,
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
            **{"update-norm": float(np.linalg.norm(decoded.mean)) if kind == TRAINING else None},
            bytes=session.transcript.bytes_per_phase(),
            **{"training-seconds": round(seconds.get(TRAINING, 0.0), 3)},
            seconds=_rounded(seconds),
        )

    def _archive(self, session: ServerJournal) -> None:
        name = f"round-{self.round:04d}-attempt-{self.attempt}.cbor"
        write(self._folder.path / "transcript" / name, session.transcript.to_bytes())

    def _advance(self, round_index: int, attempt: int) -> None:
        self._save_progress(self._run.hex(), round_index, attempt)
        self.round, self.attempt = round_index, attempt

    def _save_progress(self, run: str, round_index: int, attempt: int) -> None:
        write_json(self._progress, {"run": run, "round": round_index, "attempt": attempt}, PRIVATE)

    def _global(self, round_index: int) -> Path:
        return self._folder.path / "global" / f"round-{round_index:04d}.safetensors"

    def _save_global(self, round_index: int, layout: SharedLayout, vector: np.ndarray) -> None:
        write(self._global(round_index), safetensors.torch.save(layout.unflatten(vector)))


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {phase: round(spent, 3) for phase, spent in seconds.items() if phase != TRAINING}


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise MisuseError(f"{path} cannot be read: {error}") from None
