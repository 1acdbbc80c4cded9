"""A hospital of a VLM run, for the one message a round in which it trains: model, rows and adapter are loaded here.

The run's settings are the hospital's own file, handed out as the roster is, and nothing that the server sends.
"""

from pathlib import Path
from typing import Any

import torch

from fedvlm_secure import data
from fedvlm_secure.engines.assembly import attached, encoded_splits, rows_of, sites_in
from fedvlm_secure.engines.flower.job import Start
from fedvlm_secure.engines.flower.node import ROSTER, SETTINGS, Node, Prepared, policy_text
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation.participant import Participant
from fedvlm_secure.federation.rounds import Result
from fedvlm_secure.federation.rundir import Folder
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.secagg.log import CLOSING, read_closing
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.session import SERVER


def prepare(node: Node, plan: Plan, start: Start) -> Prepared:
    """Take over what the last round has brought, train, and have the update ready.

    Args:
        plan: verified but for the model.

    Raises:
        MisuseError: the hospital's settings, rows or model do not fit together.
        PrivacyBudgetExhaustedError: the hospital's ledger does not allow it.
        ProtocolError: what the server has sent does not lead to the plan's model, or a sum breaks a rule.
    """
    hospital = _Hospital(node)
    participant, place = hospital.participant, plan.place
    hospital.bind(plan)
    if plan.layout != participant.summed(plan.round):
        raise _fault("P-2.5", "proposes to sum something else than this hospital has agreed to", plan)
    hospital.take_over(plan, start)
    if plan.round <= hospital.settings.rounds:
        participant.prepare(place, start.shared)
    elif plan.round == hospital.settings.rounds + 1 and hospital.settings.privacy.mode == "none":
        participant.prepare_evaluation(plan.round, start.shared)
    else:
        raise _fault("P-2.7", "proposes a round beyond those that were agreed", plan)
    party, update = participant.admit(place, hospital.roster, start.shared)
    return Prepared(
        protocol=plan.protocol,
        run=plan.run,
        plan=plan.hash,
        place=place,
        asked=digest("flower-round", party.model),
        model=party.model,
        values=update.values.astype("<f4").tobytes(),
        counters=dict(update.counters),
        layout=plan.layout,
        policy=policy_text(party.policy),
        lineage=participant.starts(plan.round, start.shared) if hospital.reads_sums else None,
    )


def finish(node: Node, start: Start, ending: bytes) -> None:
    """Take over the last round's result, see how it does here, and export the adapter.

    Raises:
        ProtocolError: the server has not signed this end of the run.
    """
    hospital = _Hospital(node)
    rounds, participant = hospital.settings.rounds, hospital.participant
    run = bound_run(node)
    if run is None:
        raise MisuseError("the run that ends has not begun here")
    model = start.last.model if start.last is not None else participant.lineage(rounds + 1, _shared(start)).hash
    said = read_closing(ending, node.roster.server)
    if (said.run, said.rounds, said.model) != (run, rounds, model):
        raise ProtocolError("P-1.3", party=SERVER, phase=CLOSING, detail="ends another run, or with another model")
    participant.adopt(rounds, hospital.roster, lambda: hospital.result(start))
    if hospital.settings.privacy.mode != "none":
        participant.evaluate_test(rounds, start.shared)
    participant.finish(rounds, start.shared, hospital.model, ending)


def bound_run(node: Node) -> bytes | None:
    """The server's name of the run that the hospital takes part in; None before its first plan."""
    path = _folder(node, settings_of(node)).state / "run.pin"
    return path.read_bytes() if path.exists() else None


class _Hospital:
    """The hospital as it is for one message."""

    def __init__(self, node: Node) -> None:
        self.settings, self.roster = settings_of(node), (node.folder / ROSTER).read_bytes()
        self._pin = _folder(node, self.settings).state / "run.pin"
        torch.set_num_threads(self.settings.threads)
        loaded, adapter = attached(self.settings)
        self.model = loaded.name
        ((name, splits),) = sites_in(self.settings, Observer()).items()
        encoded = encoded_splits(loaded, adapter, self.settings, name, splits, {})
        rows = rows_of(splits, encoded, self.settings, data.description(self.settings.data, name))
        self.participant = Participant(
            node.name,
            _folder(node, self.settings),
            adapter,
            loaded.digest,
            rows,
            self.settings,
            node.identity,
            node.journal,
            bound_run(node),
        )
        self.participant.enrol()
        self.participant.pin(self.roster)

    @property
    def reads_sums(self) -> bool:
        """Whether hospitals read sums, and the server does not."""
        return lookup(self.settings.aggregation.protocol).relay is not None

    def bind(self, plan: Plan) -> None:
        """Take part in this run of the server's and, under these settings, in no other.

        Raises:
            ProtocolError: it is another run, or not what was agreed.
        """
        if plan.protocol != self.settings.aggregation.protocol:
            raise _fault("P-2.6", f"protocol {plan.protocol!r} is not the one that was agreed", plan)
        if not self._pin.exists():
            write(self._pin, plan.run, PRIVATE)
        elif self._pin.read_bytes() != plan.run:
            raise _fault("P-2.7", "is of another run than the one this hospital has agreed to", plan)
        self.participant.run = plan.run

    def take_over(self, plan: Plan, start: Start) -> None:
        """Adopt what the last round has brought, if the plan goes on from that.

        Raises:
            ProtocolError: it does not, or this hospital has loaded another model.
        """
        if start.shared is not None and self.participant.lineage(plan.round, start.shared).hash != plan.model:
            raise _fault("P-2.3", "names a model that is not the one this client has loaded", plan)
        if plan.round > 1:
            self.participant.adopt(plan.round - 1, self.roster, lambda: self.result(start))

    def result(self, start: Start) -> Result:
        """What the last round has brought."""
        if not self.reads_sums:
            return _shared(start)
        if start.last is None:
            raise MisuseError("the server has not sent the last round's sum")
        return start.last


def settings_of(node: Node) -> Settings:
    """The run's settings in the hospital's folder, with what is its own affair from :data:`OWN`.

    Raises:
        MisuseError: there are none, or they do not fit together.
    """
    path = node.folder / SETTINGS
    if not path.exists():
        raise MisuseError(
            f"{node.folder} holds no {SETTINGS}: the settings of the run that this hospital has agreed to"
        )
    # Without a word of the hospital's own, what a run proposes is not thereby accepted.
    policy = {"protocols": ["pairwise"], **node.own.get("policy", {})}
    tables: dict[str, Any] = Settings.from_toml(path).model_dump(by_alias=True, exclude_none=True, mode="json")
    privacy = {"ledger": str(node.folder / "ledger"), **tables["privacy"], **node.own.get("privacy", {})}
    own = node.own if "sites" in node.own else node.own | _rows(node.own.get("data", "hospitals"), node.name)
    return Settings.from_tables({**tables, **own, "policy": policy, "privacy": privacy})


def _rows(place: Any, name: str) -> dict[str, Any]:
    """One hospital's rows: its part of a simulated data set, or its own."""
    if isinstance(place, str) and data.level_of(place) is None:
        return {"data": {name: str(Path(place).expanduser())}, "sites": []}
    return {"data": place, "sites": [name]}


def _folder(node: Node, settings: Settings) -> Folder:
    return Folder(node.folder / "runs" / settings.name)


def _shared(start: Start) -> Any:
    if start.shared is None:
        raise MisuseError("the server has sent no shared state to start from")
    return start.shared


def _fault(clause: str, detail: str, plan: Plan) -> ProtocolError:
    return ProtocolError(clause, party=SERVER, phase="plan", detail=detail, round=plan.place)
