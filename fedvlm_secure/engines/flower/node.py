"""A hospital's own folder on its SuperNode: keys, the roster it trusts, what it has agreed to, what outlives a message.

Flower starts a process for every message. What one of them leaves for the next lies here and not in Flower's
``context.state``, so that it survives a restart of the SuperNode, and so that nothing secret is anywhere else.
"""

import fcntl
import json
import os
import time
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.layout import VectorLayout
from fedvlm_secure.errors import MisuseError, ProtocolError
from fedvlm_secure.federation import keyfile, rosterfile
from fedvlm_secure.federation.journal import ClientJournal, keep_line, remembered
from fedvlm_secure.federation.lineage import Lineage
from fedvlm_secure.federation.settings import PolicyTable
from fedvlm_secure.federation.vault import Vault
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.client import fingerprint
from fedvlm_secure.secagg.encrypted.parameters import SHARED_KEY
from fedvlm_secure.secagg.log import signed_line
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.session import SERVER

KEY, ROSTER, OWN = "identity.key", "roster.cbor", "hospital.toml"
SETTINGS = "settings.toml"  # of the run that was agreed on
SIMULATED_VARIABLE = "FEDVLM_SECURE_SIMULATED"
PASSPHRASE_VARIABLE = "FEDVLM_SECURE_PASSPHRASE"  # noqa: S105  # its name, not its value


@dataclass(frozen=True, slots=True)
class Prepared:
    """An update that waits to be summed.

    Attributes:
        plan: hash of the plan that it was prepared for, once that was verified.
        place: (round, attempt) of the plan.
        asked: digest of what the update was trained for.
        model: hash of the model that it starts from.
        values: float32, little-endian.
        layout: of the vector, as the hospital has agreed to it.
        policy: the floors that the attempt was entered with, as JSON.
        lineage: what the model after the sum follows from, where hospitals read sums.
    """

    protocol: str
    run: bytes
    plan: Digest
    place: tuple[int, ...]
    asked: Digest
    model: Digest
    values: bytes
    counters: dict[str, int]
    layout: VectorLayout
    policy: str
    lineage: Lineage | None = None

    @property
    def update(self) -> Update:
        """As the session takes it."""
        return Update(np.frombuffer(self.values, "<f4"), self.counters)


class Node:
    """One hospital on one machine.

    Args:
        folder: holds :data:`KEY`, :data:`ROSTER` and, if the defaults do not fit, :data:`OWN`.

    Raises:
        MisuseError: a file is missing or damaged, or the roster does not list the key.
        VerificationError: the roster is not sound and signed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (KEY, ROSTER):
            if not (folder / name).exists():
                raise MisuseError(f"{folder} holds no {name}; see examples/hospitals/README.md")
        self.identity = load_identity(folder / KEY)
        self.roster = rosterfile.read_signed(folder / ROSTER)
        self.name = _name_of(self.identity, self.roster, folder)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Node":
        """The hospital that a SuperNode was started for, with ``--node-config 'folder="…"'``.

        In Flower's simulation no SuperNode is started: there the hospitals are the folders in the folder that the
        environment variable :data:`SIMULATED_VARIABLE` names, by name, one for each partition.
        """
        folder = config.get("folder")
        if isinstance(folder, str):
            return cls(Path(folder).expanduser())
        if SIMULATED_VARIABLE in os.environ:
            place = Path(os.environ[SIMULATED_VARIABLE]).expanduser()
            return cls(_simulated(place, config.get("partition-id"), config.get("num-partitions")))
        raise MisuseError("start the SuperNode with --node-config 'folder=\"/path/of/the/hospital\"'")

    @cached_property
    def own(self) -> dict[str, Any]:
        """The hospital's own settings, :data:`OWN`."""
        path = self.folder / OWN
        try:
            return tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        except (OSError, ValueError) as error:
            raise MisuseError(f"{path} cannot be used: {error}") from None

    @cached_property
    def policy(self) -> Policy:
        """The hospital's floors, ``[policy]`` of its own settings; what a plan proposes is not thereby accepted."""
        try:
            table = PolicyTable.model_validate(self.own.get("policy", {}))
        except ValidationError as error:
            raise MisuseError(f"{self.folder / OWN}: [policy]: {' '.join(str(error).split())[:300]}") from None
        given = {name: value for name, value in table.model_dump().items() if value is not None}
        if table.protocols and set(table.protocols) <= set(SHARED_KEY):
            given.setdefault("max_corrupt", 0)  # every hospital holds that key
        return Policy(**given)

    @property
    def journal(self) -> Path:
        """The file of sessions and of what was answered: one for all runs (P-7.5)."""
        return self.folder / "state/session.sqlite"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process of this hospital away meanwhile; raises :class:`MisuseError` if one is at it."""
        path = self.folder / "state/lock"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MisuseError(f"another process is working on {self.folder}; wait for it, or end it") from None
            yield

    def proposed(self, protocol: str, request: bytes) -> Plan:
        """The plan in a first request: signed by the server, and accepted but for model and update.

        Raises:
            ProtocolError: the request is not authentic, or proposes a plan that this hospital refuses.
            VerificationError: the roster has expired.
        """
        self.roster.check_current(time.time())
        memory, _ = remembered(self.journal, self.identity)
        party = Party(self.name, self.identity, self.roster, self.policy, bytes(32))
        try:
            return lookup(protocol).client.proposed(request, party, memory)
        except ProtocolError:
            if (line := signed_line(request, self.name, self.roster.server)) is not None:
                keep_line(self.journal, b"", line)  # evidence, whatever the run
            raise

    def prepared(self) -> Prepared | None:
        """The update that waits, if one does."""
        if not self._prepared.exists():
            return None
        try:
            return unpack(Prepared, self._vault.open(self._prepared.read_bytes()), STATE_LIMITS)
        except WireError as error:
            raise MisuseError(f"{self._prepared} cannot be read: {error}") from None

    def prepare(self, prepared: Prepared) -> None:
        """Keep an update until it is summed; it lies on disk sealed."""
        write(self._prepared, self._vault.seal(pack(prepared, STATE_LIMITS)), PRIVATE)

    def has_answered(self, update: Update) -> bool:
        """Whether the update is in a sum that may have been opened, and is never sent again (P-7.5)."""
        memory, _ = remembered(self.journal, self.identity)
        return fingerprint(update) in memory.answered

    def session(self, prepared: Prepared) -> ClientJournal:
        """This hospital's half of the attempt, as it was left if the attempt had begun.

        Raises:
            MisuseError: this update must not be sent.
        """
        place = (prepared.place[0], prepared.place[1])
        party = Party(
            self.name,
            self.identity,
            self.roster,
            policy_from(prepared.policy),
            prepared.model,
            following=None if prepared.lineage is None else prepared.lineage.following,
            place=place,
            run=prepared.run,
            layout=prepared.layout,
        )
        return ClientJournal(self.journal, lookup(prepared.protocol).client, party, prepared.update, place)

    @property
    def _prepared(self) -> Path:
        return self.folder / "state/update.sealed"

    @cached_property
    def _vault(self) -> Vault:
        return Vault(self.identity, "update")


def policy_text(policy: Policy) -> str:
    """A policy as :class:`Prepared` keeps it."""
    return json.dumps(asdict(policy), sort_keys=True)


def policy_from(text: str) -> Policy:
    """The inverse of :func:`policy_text`."""
    values: dict[str, Any] = {}
    for name, value in json.loads(text).items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return Policy(**values)


def load_identity(path: Path) -> Identity:
    """The keys in ``path``, with the passphrase from the environment if they have one; raises :class:`MisuseError`."""
    return keyfile.load(path, _passphrase if PASSPHRASE_VARIABLE in os.environ else None)


def _passphrase() -> str:
    return os.environ[PASSPHRASE_VARIABLE]


def _simulated(place: Path, partition: object, partitions: object) -> Path:
    folders = sorted(path.parent for path in place.glob(f"*/{KEY}") if path.parent.name != SERVER)
    if not isinstance(partition, int) or partitions != len(folders):
        raise MisuseError(f"{place} holds {len(folders)} hospitals' folders; simulate as many SuperNodes")
    return folders[partition]


def _name_of(identity: Identity, roster: Roster, folder: Path) -> str:
    found = [name for name, key in roster.keys().items() if key == identity.public and name != SERVER]
    if not found:
        raise MisuseError(f"the roster in {folder} does not list this hospital's key; ask the consortium to add it")
    return found[0]
