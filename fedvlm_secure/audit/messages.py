"""One attempt's recorded messages, held against the rules that every protocol shares: form, signatures, order, plan."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from fedvlm_secure.audit.records import Attempt, Records
from fedvlm_secure.audit.verdict import Checklist
from fedvlm_secure.errors import PolicyRefusalError, ProtocolError
from fedvlm_secure.federation.floors import policy_of
from fedvlm_secure.primitives import SPEC_VERSION
from fedvlm_secure.primitives.schema import pack
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.encrypted import messages as encrypted
from fedvlm_secure.secagg.envelope import Expected
from fedvlm_secure.secagg.log import REPLY, REQUEST
from fedvlm_secure.secagg.pairwise import messages as pairwise
from fedvlm_secure.secagg.pairwise.messages import MASKED_INPUT
from fedvlm_secure.secagg.plain import INPUT
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.policy import Party, Policy, check_plan
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.session import SERVER, ClientId, Memory
from fedvlm_secure.secagg.transcript import Entry
from fedvlm_secure.secagg.upload import Upload

_ENCRYPTED = {
    (encrypted.KEYS, REQUEST): encrypted.KeysRequest,
    (encrypted.KEYS, REPLY): encrypted.Dealing,
    (encrypted.INPUT, REQUEST): encrypted.Assignment,
    (encrypted.INPUT, REPLY): encrypted.EncryptedUpload,
    (encrypted.SUM, REQUEST): encrypted.EncryptedSum,
    (encrypted.SUM, REPLY): encrypted.Adopted,
}
# The envelopes that a transcript holds whole, with the form of their bodies; of all others it holds the digest. What
# it leaves out would reveal shares, or repeats what it holds.
FORMS: dict[str, dict[tuple[str, str], type]] = {
    "plain": {(INPUT, REQUEST): Plan, (INPUT, REPLY): Upload},
    "ckks": _ENCRYPTED,
    "bfv": _ENCRYPTED,
    "pairwise": {
        (pairwise.KEYS, REQUEST): Plan,
        (pairwise.KEYS, REPLY): pairwise.Keys,
        (pairwise.SHARES, REPLY): pairwise.ParcelList,
        (pairwise.MASKED_INPUT, REPLY): Upload,
        (pairwise.CONSISTENCY, REQUEST): pairwise.SurvivorList,
        (pairwise.CONSISTENCY, REPLY): pairwise.Consent,
        (pairwise.UNMASK, REQUEST): pairwise.UnmaskRequest,
    },
}


@dataclass
class Messages:
    """What an attempt's messages said, as far as they were in order.

    Attributes:
        bodies: of the envelopes kept whole: phase, direction → client → body.
        envelopes: those envelopes themselves, alike.
        spoke: phase, direction → clients, whether kept whole or not.
        sound: whether the plan keeps the protocol's rules; otherwise its numbers mean nothing.
    """

    attempt: Attempt
    bodies: dict[tuple[str, str], dict[ClientId, Any]] = field(default_factory=dict)
    envelopes: dict[tuple[str, str], dict[ClientId, bytes]] = field(default_factory=dict)
    spoke: dict[tuple[str, str], set[ClientId]] = field(default_factory=dict)
    sound: bool = True

    def of(self, phase: str, direction: str) -> dict[ClientId, Any]:
        """The bodies of one kind, by client."""
        return self.bodies.get((phase, direction), {})

    def who(self, phase: str, direction: str) -> set[ClientId]:
        """Who was asked, or replied, in a phase."""
        return self.spoke.get((phase, direction), set())

    @property
    def uploaded(self) -> set[ClientId]:
        """Whose vectors are recorded."""
        return self.who(INPUT, REPLY) | self.who(MASKED_INPUT, REPLY)


def check_messages(attempt: Attempt, records: Records, found: Checklist) -> Messages:
    """Read an attempt's messages, and hold each against form, signature and order (A-5, A-6)."""
    said, phases, at = Messages(attempt), lookup(attempt.plan.protocol).phases, 0
    for entry in attempt.transcript.entries:
        where = f"{attempt.where}: {entry.phase} {entry.direction} of {entry.client}"
        if not found.require(
            "A-6",
            entry.phase in phases and entry.direction in (REQUEST, REPLY) and entry.client in attempt.plan.cohort,
            where,
            "is no message of this protocol and cohort",
        ):
            continue
        key, place = (entry.phase, entry.direction), phases.index(entry.phase)
        found.require("A-6", place >= at, where, f"comes after phase {phases[at]} has begun")
        at = max(at, place)
        found.require("A-6", entry.client not in said.who(*key), where, "is there twice")
        asked = entry.direction == REQUEST or entry.client in said.who(entry.phase, REQUEST)
        found.require("A-6", asked, where, "was not asked for")
        said.spoke.setdefault(key, set()).add(entry.client)
        _read(attempt, entry, where, records, said, found)
    return said


def _read(attempt: Attempt, entry: Entry, where: str, records: Records, said: Messages, found: Checklist) -> None:
    key = (entry.phase, entry.direction)
    form = FORMS[attempt.plan.protocol].get(key)
    if not found.require(
        "A-5", (entry.envelope is not None) == (form is not None), where, "is kept as the wrong thing"
    ):
        return
    if entry.envelope is None or form is None:
        return
    found.require("A-5", hashlib.sha256(entry.envelope).digest() == entry.digest, where, "is not what its digest says")
    keys, (sender, recipient) = records.roster.keys(), _parties(entry)
    if not found.require("A-5", sender in keys, where, "comes from nobody on the roster"):
        return
    expected = Expected(entry.phase, sender, recipient, keys[sender], attempt.hash, attempt.plan.place)
    with found.expecting("A-5", where):
        said.bodies.setdefault(key, {})[entry.client] = expected.open(entry.envelope, form)
        said.envelopes.setdefault(key, {})[entry.client] = entry.envelope


def _parties(entry: Entry) -> tuple[ClientId, ClientId]:
    return (SERVER, entry.client) if entry.direction == REQUEST else (entry.client, SERVER)


def check_plan_of(said: Messages, records: Records, policy: Policy | None, found: Checklist) -> bool:
    """The plan is the one that was sent, and sound for a client (A-2, A-4); whether it keeps the protocol's rules.

    Args:
        policy: the floors it is held against; None takes those of the run's settings, which hospitals need not share.
    """
    attempt, plan = said.attempt, said.attempt.plan
    found.require("A-2", plan.roster == records.roster.hash, attempt.where, "its plan names another roster")
    same = attempt.transcript.roster == pack(records.roster) and attempt.transcript.spec == SPEC_VERSION
    found.require("A-2", same, attempt.where, "holds another roster, or speaks another version")
    for client, sent in _plans(said):
        found.require("A-4", pack(sent) == attempt.transcript.plan, attempt.where, f"{client} was sent another plan")
    floors = policy or _lenient(plan) if records.settings is None else policy or policy_of(records.settings)
    # A client's part in these rules is played with its name; model and update are other clauses'.
    party = Party(plan.cohort[0] if plan.cohort else "", _NOBODY, records.roster, floors, plan.model)
    try:
        check_plan(plan, party, Memory(), "plan")
    except PolicyRefusalError as error:
        if policy is None:
            why = f"a plan is below the floors of the run's own settings ({error.detail}); hospitals have their own"
            found.unchecked("A-4", f"{why}: name them with --policy")
        else:
            found.require("A-4", holds=False, where=attempt.where, detail=f"{error.clause}: {error.detail}")
    except ProtocolError as error:
        return found.require("A-4", holds=False, where=attempt.where, detail=f"{error.clause}: {error.detail}")
    return found.require("A-4", holds=True, where=attempt.where, detail="")


def _lenient(plan: Plan) -> Policy:
    return Policy(plan.threat_model, plan.max_corrupt, 2, 2, (plan.protocol,), shared_key_despite_collusion=True)


def _plans(said: Messages) -> Iterator[tuple[ClientId, Plan]]:
    """Every plan that a recorded request carries."""
    for (_, direction), bodies in said.bodies.items():
        if direction == REQUEST:
            for client, body in bodies.items():
                plan = body if isinstance(body, Plan) else getattr(body, "plan", None)
                if isinstance(plan, Plan):
                    yield client, plan


_NOBODY = Identity.generate()
