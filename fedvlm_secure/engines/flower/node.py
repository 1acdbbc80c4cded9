"""A hospital's own folder on its SuperNode: keys, the roster it trusts, its policy, and what must outlive a message.

Flower starts a process for every message. What one of them leaves for the next lies here and not in Flower's
``context.state``, so that it survives a restart of the SuperNode, and so that nothing secret is anywhere else.
"""

import json
import os
import re
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
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation import keyfile, rosterfile
from fedvlm_secure.federation.journal import ClientJournal, remembered
from fedvlm_secure.federation.lineage import Lineage
from fedvlm_secure.federation.rundir import Folder, RunDirectory
from fedvlm_secure.federation.settings import PolicyTable
from fedvlm_secure.federation.vault import Vault
from fedvlm_secure.files import PRIVATE, write
from fedvlm_secure.primitives.schema import Digest, pack, unpack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.primitives.wire import STATE_LIMITS, WireError
from fedvlm_secure.secagg.client import fingerprint
from fedvlm_secure.secagg.policy import Party, Policy
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.session import SERVER

KEY, ROSTER, POLICY = "identity.key", "roster.cbor", "policy.toml"
_RUN = re.compile(r"[0-9a-f]{32}")
PASSPHRASE_VARIABLE = "FEDVLM_SECURE_PASSPHRASE"  # noqa: S105  # its name, not its value


@dataclass(frozen=True, slots=True)
class Prepared:
    """An update that waits to be summed.

    Attributes:
        place: (round, attempt) that it is for.
        asked: digest of the request that it was trained for.
        model: hash of the model that it starts from.
        values: float32, little-endian.
        policy: the floors that the attempt was entered with, as JSON.
        lineage: what the model after the sum follows from, where hospitals read sums.
    """

    protocol: str
    place: tuple[int, ...]
    asked: Digest
    model: Digest
    values: bytes
    counters: dict[str, int]
    policy: str
    lineage: Lineage | None = None

    @property
    def update(self) -> Update:
        """As the session takes it."""
        return Update(np.frombuffer(self.values, "<f4"), self.counters)


@dataclass(frozen=True, slots=True)
class Claims:
    """Which run has sent an update: fingerprint in hex → run."""

    runs: dict[str, str]


class Node:
    """One hospital on one machine.

    Args:
        folder: holds :data:`KEY`, :data:`ROSTER` and, if the defaults do not fit, :data:`POLICY`.
        run: in hex, of a run that keeps a folder of its own; empty for sums that belong to none.

    Raises:
        MisuseError: a file is missing or damaged, or the roster does not list the key.
    """

    def __init__(self, folder: Path, run: str = "") -> None:
        if run and not _RUN.fullmatch(run):
            raise MisuseError("a run's name is 32 hexadecimal digits")
        self.folder = folder
        self._run = run
        self.work = Folder(folder / "runs" / run if run else folder)
        for name in (KEY, ROSTER):
            if not (folder / name).exists():
                raise MisuseError(f"{folder} holds no {name}; see examples/hospitals/README.md")
        self.identity = load_identity(folder / KEY)
        self.roster = rosterfile.read_signed(folder / ROSTER)
        self.name = _name_of(self.identity, self.roster, folder)

    @classmethod
    def of(cls, config: Mapping[str, Any], run: str = "") -> "Node":
        """The hospital that a SuperNode was started for, with ``--node-config 'folder="…"'``."""
        folder = config.get("folder")
        if not isinstance(folder, str):
            raise MisuseError("start the SuperNode with --node-config 'folder=\"/path/of/the/hospital\"'")
        return cls(Path(folder).expanduser(), run)

    @cached_property
    def policy(self) -> Policy:
        """The hospital's floors."""
        path = self.folder / POLICY
        if not path.exists():
            return Policy()
        try:
            table = PolicyTable.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, ValidationError) as error:
            raise MisuseError(f"{path} cannot be used: {' '.join(str(error).split())[:300]}") from None
        return Policy(**{name: value for name, value in table.model_dump().items() if value is not None})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other process of this hospital away meanwhile."""
        with RunDirectory(self.folder / "state").locked():
            yield

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

    def is_spent(self, update: Update) -> bool:
        """Whether the update is in a sum that may have been opened (P-7.5), or is another run's."""
        memory, _ = remembered(self._journal, self.identity)
        return fingerprint(update) in memory.answered or self.is_foreign(update)

    def is_foreign(self, update: Update) -> bool:
        """Whether another run has claimed the update."""
        return self._claims().get(fingerprint(update).hex(), self._run) != self._run

    def claim(self, update: Update) -> None:
        """Bind an update to this run before anything made of it leaves.

        Two runs that train alike end up with the same update, and the server chooses runs' names: sums over different
        cohorts would tell what the others add. An update without values is counters only, and repeats in any case.

        Raises:
            MisuseError: it is another run's; train again.
        """
        if not update.values.size:
            return
        claims, mark = self._claims(), fingerprint(update).hex()
        if claims.setdefault(mark, self._run) != self._run:
            raise MisuseError("another run has sent this very update (P-7.5); the next attempt trains again")
        write(self._claimed, pack(Claims(claims), STATE_LIMITS), PRIVATE)

    def session(self, prepared: Prepared) -> ClientJournal:
        """This hospital's half of the attempt, as it was left if the attempt had begun.

        Raises:
            VerificationError: the roster has expired.
            MisuseError: this update must not be sent.
        """
        self.roster.check_current(time.time())
        self.claim(prepared.update)
        place, following = (prepared.place[0], prepared.place[1]), None
        if prepared.lineage is not None:
            following = prepared.lineage.following
        policy = policy_from(prepared.policy)
        party = Party(self.name, self.identity, self.roster, policy, prepared.model, following, place)
        return ClientJournal(self._journal, lookup(prepared.protocol).client, party, prepared.update, place)

    def _claims(self) -> dict[str, str]:
        if not self._claimed.exists():
            return {}
        try:
            return unpack(Claims, self._claimed.read_bytes(), STATE_LIMITS).runs
        except WireError as error:
            raise MisuseError(f"{self._claimed} cannot be read: {error}") from None

    @property
    def _claimed(self) -> Path:
        return self.folder / "state/claims.cbor"  # of all runs

    @property
    def _journal(self) -> Path:
        return self.work.state / "session.sqlite"

    @property
    def _prepared(self) -> Path:
        return self.work.state / "update.sealed"

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


def _name_of(identity: Identity, roster: Roster, folder: Path) -> str:
    found = [name for name, key in roster.keys().items() if key == identity.public and name != SERVER]
    if not found:
        raise MisuseError(f"the roster in {folder} does not list this hospital's key; ask the consortium to add it")
    return found[0]
