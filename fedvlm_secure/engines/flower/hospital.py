"""A hospital of a VLM run, for the one message a round in which it trains: model, rows and adapter are loaded here."""

import tomllib
from pathlib import Path
from typing import Any

import torch

from fedvlm_secure import data
from fedvlm_secure.engines.assembly import attached, encoded_splits, rows_of, sites_in
from fedvlm_secure.engines.flower.job import Job
from fedvlm_secure.engines.flower.node import ROSTER, Node, Prepared, policy_text
from fedvlm_secure.engines.flower.wire import Header
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.coordinator import TRAINING
from fedvlm_secure.federation.participant import Participant
from fedvlm_secure.federation.rounds import Result
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.secagg.protocols import lookup

OWN = "hospital.toml"
"""A hospital's own settings: what of a run is its own affair."""

_OWN_TABLES = ("model", "data", "sites", "rows", "policy", "device", "threads")
_OWN_PRIVACY = ("epsilon-limit", "ledger")


def prepare(node: Node, header: Header, job: Job) -> Prepared:
    """Take over what the last rounds have brought, train, and have the update ready.

    Raises:
        MisuseError: the hospital's settings, rows or model do not fit the run's.
        PrivacyBudgetExhaustedError: the hospital's ledger does not allow it.
        ProtocolError: a sum that the server relays breaks a rule.
    """
    round_index, attempt = header.place[0], header.place[1]
    hospital = _Hospital(node, job)
    hospital.catch_up(round_index - 1)
    if job.kind == TRAINING:
        hospital.participant.prepare((round_index, attempt), job.shared)
    else:
        hospital.participant.prepare_evaluation(round_index, job.shared)
    party, update = hospital.participant.admit((round_index, attempt), hospital.roster, job.shared)
    return Prepared(
        protocol=hospital.settings.aggregation.protocol,
        place=(round_index, attempt),
        asked=digest("flower-job", party.model),
        model=party.model,
        values=update.values.astype("<f4").tobytes(),
        counters=dict(update.counters),
        policy=policy_text(party.policy),
        lineage=hospital.participant.starts(round_index, job.shared) if hospital.reads_sums else None,
    )


def finish(node: Node, job: Job, model: str) -> None:
    """Take over the last round's result, look how it does here, and export the adapter."""
    hospital = _Hospital(node, job)
    rounds = hospital.settings.rounds
    hospital.catch_up(rounds)
    if hospital.settings.privacy.mode != "none":
        hospital.participant.evaluate_test(rounds, job.shared)
    hospital.participant.finish(rounds, job.shared, model)


class _Hospital:
    """The hospital as it is for one message."""

    def __init__(self, node: Node, job: Job) -> None:
        self.job, self.roster = job, (node.folder / ROSTER).read_bytes()
        self.settings = own_settings(job.settings, node)
        torch.set_num_threads(self.settings.threads)
        loaded, adapter = attached(self.settings)
        ((name, splits),) = sites_in(self.settings, Observer()).items()
        encoded = encoded_splits(loaded, adapter, self.settings, name, splits, {})
        rows = rows_of(splits, encoded, self.settings, data.description(self.settings.data, name))
        self.participant = Participant(
            node.name, node.work, adapter, loaded.digest, rows, self.settings, node.identity, node.is_foreign
        )
        self.participant.enrol()
        self.participant.pin(self.roster)

    @property
    def reads_sums(self) -> bool:
        """Whether hospitals read sums, and the server does not."""
        return lookup(self.settings.aggregation.protocol).relay is not None

    def catch_up(self, round_index: int) -> None:
        """Take over what round ``round_index`` has brought, and what this hospital missed before, if it was silent."""
        if round_index:
            self.participant.adopt(round_index, self.roster, self._result)

    def _result(self) -> Result:
        result = self.job.last if self.reads_sums else self.job.shared
        if result is None:
            raise MisuseError("the server has not sent what the last round has brought")
        return result


def own_settings(run: str, node: Node) -> Settings:
    """The run's settings, with what is the hospital's own affair from its own file.

    Raises:
        MisuseError: the hospital's file holds something that is not its affair, or the settings do not fit together.
    """
    tables: dict[str, Any] = tomllib.loads(run)
    path = node.folder / OWN
    try:
        own: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise MisuseError(f"{path} cannot be used: {error}") from None
    privacy = own.pop("privacy", {})
    strange = [key for key in own if key not in _OWN_TABLES] + [key for key in privacy if key not in _OWN_PRIVACY]
    if strange:
        raise MisuseError(f"{path}: {strange[0]!r} is the run's affair; a hospital sets {', '.join(_OWN_TABLES)}")
    named = str(tables.get("model", "embedded"))
    for key in _OWN_TABLES:
        tables.pop(key, None)
    privacy = {"ledger": str(node.folder / "ledger"), **privacy}
    tables["privacy"] = {k: v for k, v in tables.get("privacy", {}).items() if k not in _OWN_PRIVACY} | privacy
    # What the run proposes is not thereby accepted: a protocol other than the default has to be in the hospital's file.
    own["policy"] = {"protocols": ["pairwise"], **own.get("policy", {})}
    if "model" not in own:
        own["model"] = _named(named)
    own |= {} if "sites" in own else _data(own.get("data", "hospitals"), node.name)
    return Settings.from_tables(tables | own)


def _named(model: str) -> str:
    """The model that the run names: the embedded one or a hub id, not a place on this hospital's disk."""
    if model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists():
        raise MisuseError(f"the run names the model by a path, {model!r}; write where it is here into {OWN}: model = …")
    return model


def _data(place: Any, name: str) -> dict[str, Any]:
    """One hospital's rows: its part of a simulated data set, or its own."""
    if isinstance(place, str) and data.level_of(place) is None:
        return {"data": {name: str(Path(place).expanduser())}, "sites": []}
    return {"data": place, "sites": [name]}
