"""A hospital: it trains on its own rows, keeps its personal tensors, and sends nothing but protected vectors.

Everything it does is durable and repeatable: an interrupted round goes on from the last finished step.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedvlm_secure.adapters import Adapter, save_peft
from fedvlm_secure.encoding.codec import Decoded, Update
from fedvlm_secure.encoding.layout import VectorLayout
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation.floors import policy_of
from fedvlm_secure.federation.journal import ClientJournal, keep_line, keep_memory, logged, remembered
from fedvlm_secure.federation.lineage import Lineage
from fedvlm_secure.federation.rounds import (
    Result,
    SealedResult,
    counters,
    lineage,
    noisy_sums,
    training_seed,
    vector_layout,
    weight_of,
)
from fedvlm_secure.federation.rundir import Folder
from fedvlm_secure.federation.safeguard import OnStep, Rows, Safeguard
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.federation.standing import Pending, Standing, Tensors
from fedvlm_secure.files import PRIVATE, write, write_json
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.client import ClientSessionBase, fingerprint
from fedvlm_secure.secagg.log import REQUEST, ended_run, line_of
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import Roster, member, open_roster, read_roster
from fedvlm_secure.training import Evaluation, Split, TrainSettings, evaluate, train

_TRIES = 3


class Participant:
    """One hospital in one run.

    Args:
        adapter: attached to the base model; in a simulation all hospitals take turns with one.
        base: the digest of the base model as this hospital loaded it.
        identity: the hospital's keys; those in the folder, made at first use, if None.
        journal: the file of its sessions, if that serves other runs too.
        run: the only run that this one takes part in; None is any.
    """

    def __init__(
        self,
        name: str,
        folder: Folder,
        adapter: Adapter,
        base: bytes,
        rows: Rows,
        settings: Settings,
        identity: Identity | None = None,
        journal: Path | None = None,
        run: bytes | None = None,
    ) -> None:
        self.name = name
        self.rows = rows
        self.identity = identity or folder.identity()
        self._folder = folder
        self._adapter = adapter
        self._base = base
        self._settings = settings
        self._protocol = lookup(settings.aggregation.protocol)
        self._safeguard = Safeguard(name, folder, rows.protected, settings)
        self._session_path, self.run = journal or folder.state / "session.sqlite", run
        self._next: np.ndarray | None = None  # the shared state after the sum that was read last
        self._weight = weight_of(len(rows.train), settings)

    def enrol(self) -> None:
        """Begin: the seeded common initial state, and how well the base model does here."""
        if self._standing_path.exists():
            return
        self._safeguard.check()
        self._adapter.load(self._adapter.initial_state())
        self._record("base", 0, "test", self._evaluate(self.rows.test))
        validation = self._evaluate(self.rows.validation)
        self._record("base", 0, "validation", validation)
        self._summarise()
        initial = self._adapter.initial_state()
        self._stand(0, self._personal(initial, 0), validation, self._adapter.common_layout().flatten(initial))

    def pin(self, roster: bytes) -> None:
        """Pin the run's signed roster: no session begins with any other. A pin stays.

        Raises:
            MisuseError: the roster does not list this hospital with its own keys.
            VerificationError: it is not sound and signed, or is another than the pinned one (R-3).
        """
        if self._pin_path.exists():
            open_roster(roster, pinned=self._pin_path.read_bytes())
            return
        listed = read_roster(roster)
        if member(self.name, self.identity) not in listed.members:
            raise MisuseError(f"the roster does not list {self.name!r} with this hospital's keys; enrol it first")
        write(self._pin_path, listed.hash, PRIVATE)

    def prepare(self, place: tuple[int, int], given: np.ndarray | None, on_step: OnStep | None = None) -> None:
        """Have an update ready for the attempt: train, unless one is ready that no earlier attempt was answered for.

        An update that *this* attempt was answered for is the one in its sum: it stays until the round is over.

        Args:
            place: (round, attempt).
            given: float32 [d], the shared state at the start of the round; None if the server has none, and this
                hospital goes by its own copy.
        """
        round_index, tries = place[0], 1
        memory, plan = remembered(self._session_path, self.identity)
        if (pending := self._trained(round_index)) is not None:
            answered = fingerprint(pending.update) in memory.answered
            going_on = plan is not None and (plan.place, plan.run) == (place, self.run or plan.run)
            if not answered or going_on:
                return
            tries = pending.tries + 1
        for again in range(tries, tries + _TRIES):
            pending = self._train(round_index, again, given, on_step)
            if fingerprint(pending.update) not in memory.answered:  # as in another run that trained alike
                pending.save(self._pending_path, self.identity)
                return
        raise MisuseError(f"{self.name}: training ends with an update that was sent before, however often it is tried")

    def _train(self, round_index: int, tries: int, given: np.ndarray | None, on_step: OnStep | None) -> Pending:
        """Train for the round, the ``tries``-th time."""
        standing = self._standing(round_index - 1)
        shared = self._shared(standing, given)
        begun = self._adapter.common_layout().unflatten(shared)
        own = None if self._adapter.strategy.keeps_copy else standing.personal
        self._adapter.load(begun | (own or {}))
        seed = training_seed(self._settings.seed, self.name, round_index, tries)
        stats, spent = self._safeguard.train(self._adapter, self.rows.train, (round_index, tries), seed, on_step)
        state, layout = self._adapter.state(), self._adapter.layout(round_index)
        values = layout.flatten(state) - layout.flatten(begun)
        update = Update(values, counters(self._weight, standing.validation, self._settings))
        if own is None:
            state = self._train_copy(standing.personal, begun, round_index, seed)
        self._folder.metrics.record(
            ("stage", "round"),
            round=round_index,
            stage="training",
            **{"steps": stats.steps, "mean-loss": stats.mean_loss, "last-loss": stats.last_loss},
            **{"seconds": round(stats.seconds, 3), "update-norm": float(np.linalg.norm(values))},
            epsilon=_written(spent),
        )
        return Pending(round_index, tries, update, self._personal(state, round_index))

    def _train_copy(self, copy: Tensors, shared: Tensors, round_index: int, seed: int) -> Tensors:
        """Train this hospital's own copy of the adapter, drawn towards the shared one; nothing of it leaves."""
        self._adapter.load(copy)
        settings = TrainSettings(**self._settings.training.model_dump())
        train(self._adapter, self.rows.train, settings, seed=seed, round_index=round_index, towards=shared)
        return self._adapter.state()

    def prepare_evaluation(self, round_index: int, given: np.ndarray | None) -> None:
        """Have the test counters ready for the closing round, in which nothing but counters is summed."""
        evaluation = self.evaluate_test(round_index - 1, given)
        update = Update(np.zeros(0, np.float32), counters(self._weight, evaluation, self._settings))
        Pending(round_index, 1, update, self._standing(round_index - 1).personal).save(
            self._pending_path, self.identity
        )

    def evaluate_test(self, round_index: int, given: np.ndarray | None) -> Evaluation:
        """How the model that the rounds ended with does on the test split; for the hospital's own eyes."""
        standing = self._standing(round_index)
        self._enter(standing, given)
        evaluation = self._evaluate(self.rows.test)
        self._record("final", round_index, "test", evaluation)
        return evaluation

    def session(
        self, place: tuple[int, int], roster: bytes, given: np.ndarray | None, half: type[ClientSessionBase]
    ) -> ClientJournal:
        """This hospital's half of one attempt, as it was left if the attempt had begun; raises as :meth:`admit`.

        Args:
            half: the protocol's sessions of clients.
        """
        party, update = self.admit(place, roster, given)
        return ClientJournal(self._session_path, half, party, update, place)

    def admit(self, place: tuple[int, int], roster: bytes, given: np.ndarray | None) -> tuple[Party, Update]:
        """What this hospital enters an attempt with, once its ledger has allowed it.

        Args:
            place: (round, attempt).
            roster: the signed roster.
            given: as in :meth:`prepare`.

        Raises:
            VerificationError: the roster is not the pinned one, or has expired.
            PrivacyBudgetExhaustedError: the attempt would exceed what the hospital's ledger allows.
        """
        pending = self._pending(place[0])
        shared = self._shared(self._standing(place[0] - 1), given)
        party = self._party(place, roster, shared)
        if self._trains(pending.round):  # the closing round's counts come from no training
            self._safeguard.leaves((pending.round, pending.tries), fingerprint(pending.update))
        spent = self._safeguard.noised(place, _cohort(party.roster), len(pending.update.values))
        if spent is not None:
            self._folder.metrics.record(("stage", "round"), round=place[0], stage="noise", epsilon=_written(spent))
        return party, pending.update

    def spent(self, round_index: int) -> float | None:
        """ε of all that this hospital's data has released by the end of the round; None where no ledger is kept."""
        lines = [line for line in self._folder.metrics.lines() if line["round"] <= round_index]
        return max((float(line["epsilon"]) for line in lines if line.get("epsilon") is not None), default=None)

    def adopt(self, round_index: int, roster: bytes, result: Callable[[], Result]) -> Evaluation:
        """Take over the round's new shared state, keep the personal tensors just trained, and look how that does.

        A hospital that did not train in the round keeps its personal tensors as they were.

        Raises:
            ProtocolError: the sum that the server relays breaks a rule.
            MisuseError: what follows from it is not the model that the other hospitals have signed.
        """
        standing = Standing.load(self._standing_path)
        if standing.round >= round_index:
            return standing.validation
        given = result()
        shared = given if isinstance(given, np.ndarray) else self._unsealed(standing, roster, given)
        pending = self._trained(round_index)
        personal = standing.personal if pending is None else pending.personal
        self._adapter.load(self._adapter.common_layout().unflatten(shared) | personal)
        validation = self._evaluate(self.rows.validation)
        self._record("adopted", round_index, "validation", validation)
        if pending is not None:
            self._record_encoding(pending)
        if (plan := remembered(self._session_path, self.identity)[1]) is not None:
            self._keep_log(plan.run)
        self._stand(round_index, personal, validation, shared)
        return validation

    def finish(self, round_index: int, given: np.ndarray | None, model: str, ending: bytes) -> None:
        """Export the adapter in PEFT's format, keep the log for auditors, and sum the run up.

        Args:
            ending: the server's message that the run is over.
        """
        keep_line(self._session_path, ended_run(ending), line_of(REQUEST, ending))
        self._keep_log(ended_run(ending))
        self._enter(self._standing(round_index), given)
        save_peft(self._adapter.exported(), self._adapter.settings, self._folder.path / "adapter", base_model=model)
        self._summarise()

    def _summarise(self) -> None:
        accuracy = {
            line["stage"]: line["accuracy"] for line in self._folder.metrics.lines() if line.get("split") == "test"
        }
        rows = {"train": self.rows.train, "validation": self.rows.validation, "test": self.rows.test}
        write_json(
            self._folder.path / "summary.json",
            {
                "site": self.name,
                "description": self.rows.description,
                "rows": {name: len(split) for name, split in rows.items()},
                "question-only": self.rows.question_only,
                "base": accuracy.get("base"),
                "final": accuracy.get("final"),
                "epsilon": _written(self.spent(self._settings.rounds)),
            },
        )

    @property
    def _pin_path(self) -> Path:
        return self._folder.state / "roster.pin"

    @property
    def _standing_path(self) -> Path:
        return self._folder.state / "standing.safetensors"

    @property
    def _pending_path(self) -> Path:
        return self._folder.state / "pending.safetensors"

    def _party(self, place: tuple[int, int], roster: bytes, shared: np.ndarray) -> Party:
        """This hospital as it enters the attempt (round, attempt), which starts from ``shared``."""
        members = open_roster(roster, pinned=self._pin_path.read_bytes())
        members.check_current(time.time())
        model = self.lineage(place[0], shared)

        def following(decoded: Decoded) -> bytes:
            self._next = model.moved(decoded)
            return self.lineage(place[0], self._next).hash

        policy = self._policy(members, len(shared))
        layout = self.summed(place[0])
        return Party(
            self.name, self.identity, members, policy, model.hash, following, place, run=self.run, layout=layout
        )

    def summed(self, round_index: int) -> VectorLayout:
        """What this hospital has agreed to sum in a round."""
        size = self._adapter.layout(round_index).size if self._trains(round_index) else 0
        return vector_layout(size, self._settings)

    def _trains(self, round_index: int) -> bool:
        return round_index <= self._settings.rounds

    def _policy(self, roster: Roster, size: int) -> Policy:
        noised = self._settings.privacy.mode == "client" and size > 0
        return policy_of(self._settings, noisy_sums(self._settings, _cohort(roster), size) if noised else None)

    def starts(self, round_index: int, given: np.ndarray | None) -> Lineage:
        """As :meth:`lineage`, from the shared state given as in :meth:`prepare`."""
        return self.lineage(round_index, self._shared(self._standing(round_index - 1), given))

    def lineage(self, round_index: int, shared: np.ndarray) -> Lineage:
        """The model that round ``round_index`` begins with, as this hospital has loaded it."""
        adapter = self._adapter
        return lineage(self._base, adapter.settings, adapter.common_layout(), shared, adapter.layout(round_index))

    def _unsealed(self, standing: Standing, roster: bytes, result: SealedResult) -> np.ndarray:
        """The shared state after the round that follows on ``standing``: as the session just read it, or read now."""
        round_index = standing.round + 1
        if self._next is None or self.lineage(round_index, self._next).hash != result.model:
            assert self._protocol.catch_up is not None  # since the result is sealed
            before = self._shared(standing, None)
            memory, _ = remembered(self._session_path, self.identity)
            party = self._party((round_index, 0), roster, before)
            reading = self._protocol.catch_up(party, memory, result.message)
            plan = reading.plan
            keep_memory(self._session_path, reading.memory)
            try:
                total = reading.read()
            except ProtocolError:
                keep_memory(self._session_path, reading.memory)
                raise
            self._next = self.lineage(round_index, before).moved(plan.codec.decode(total.total))
            if plan.round != round_index or self.lineage(round_index, self._next).hash != result.model:
                raise MisuseError(f"{self.name}: the sum of round {round_index} does not lead to the model agreed on")
        return self._next

    def _shared(self, standing: Standing, given: np.ndarray | None) -> np.ndarray:
        """The shared state that this hospital starts from."""
        shared = standing.shared if given is None else given
        if shared is None:
            raise MisuseError(f"{self.name} has no shared state of its own for round {standing.round + 1}")
        return shared

    def _stand(self, round_index: int, personal: Tensors, validation: Evaluation, shared: np.ndarray) -> None:
        """Record where this hospital stands, with the shared state where it alone keeps that."""
        own = None if self._protocol.relay is None else shared
        Standing(round_index, personal, validation, own).save(self._standing_path)

    def _standing(self, round_index: int) -> Standing:
        standing = Standing.load(self._standing_path)
        if standing.round != round_index:
            raise MisuseError(f"{self.name} stands after round {standing.round}, not after round {round_index}")
        return standing

    def _trained(self, round_index: int) -> Pending | None:
        """The update that this hospital has for the round, if it has one."""
        if not self._pending_path.exists():
            return None
        pending = Pending.load(self._pending_path, self.identity)
        return pending if pending.round == round_index else None

    def _pending(self, round_index: int) -> Pending:
        pending = self._trained(round_index)
        if pending is None:
            raise MisuseError(f"{self.name} has no update for round {round_index}")
        return pending

    def _enter(self, standing: Standing, given: np.ndarray | None) -> None:
        """Load what this hospital answers with: what is shared, and over it what is its own."""
        shared = self._adapter.common_layout().unflatten(self._shared(standing, given))
        self._adapter.load(shared | standing.personal)

    def _personal(self, state: Tensors, round_index: int) -> Tensors:
        """What of a state stays here after a round; all of it where the hospital keeps a copy."""
        strategy = self._adapter.strategy
        return {name: tensor for name, tensor in state.items() if strategy.personal(name, round_index)}

    def _evaluate(self, split: Split) -> Evaluation:
        return evaluate(self._adapter.peft_model, split)

    def _record(self, stage: str, round_index: int, split: str, evaluation: Evaluation) -> None:
        self._folder.metrics.record(
            ("stage", "round", "split"),
            round=round_index,
            stage=stage,
            split=split,
            correct=evaluation.correct,
            asked=evaluation.asked,
            accuracy=evaluation.accuracy,
            loss=evaluation.loss,
        )

    def _keep_log(self, run: bytes) -> None:
        """The log so far as a file: this hospital's to hand over, whether the server ends the run or not."""
        log = logged(self._session_path, self.name, run)
        if log.lines:
            log = replace(log, attested=self._safeguard.attestation(self.identity, run, log.lines[-1].plan))
        write(self._folder.path / "log.cbor", log.to_bytes())

    def _record_encoding(self, pending: Pending) -> None:
        """Tell the owner whether the round's plan was too narrow for its update."""
        _, plan = remembered(self._session_path, self.identity)
        if plan is None or plan.round != pending.round:
            return
        saturated, clipped = plan.codec.saturation(pending.update)
        self._folder.metrics.record(
            ("stage", "round"), round=pending.round, stage="encoding", saturated=saturated, clipped=clipped
        )


def _written(epsilon: float | None) -> float | str | None:
    """ε for a file of JSON, which has no infinity: a data set without a bound is not one without a ledger."""
    return "inf" if epsilon == math.inf else epsilon


def _cohort(roster: Roster) -> tuple[str, ...]:
    return tuple(sorted(member.name for member in roster.members))
