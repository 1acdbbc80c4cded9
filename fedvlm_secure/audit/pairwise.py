"""What the pairwise protocol asks of an attempt beyond what all protocols share, from the signed words recorded."""

from fedvlm_secure.audit.messages import Messages
from fedvlm_secure.audit.verdict import Checklist
from fedvlm_secure.primitives.signing import SignatureError, verify
from fedvlm_secure.secagg.log import REPLY, REQUEST
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.masks import Bound, key_digest
from fedvlm_secure.secagg.pairwise.rules import CONSENT_PURPOSE, quorum
from fedvlm_secure.secagg.roster import Roster
from fedvlm_secure.secagg.session import ClientId


class PairwiseAudit:
    """One attempt's keys, survivors and consents."""

    def __init__(self, said: Messages, roster: Roster, found: Checklist) -> None:
        self._said, self._found, self._keys = said, found, roster.keys()
        self._plan, self._where = said.attempt.plan, said.attempt.where
        self._bound = Bound(said.attempt.hash)
        self.published = said.of(m.KEYS, REPLY)
        self._dealt = set(said.of(m.SHARES, REPLY))
        self.survivors = tuple(sorted(said.of(m.MASKED_INPUT, REPLY)))
        envelopes = said.envelopes.get((m.KEYS, REPLY), {})
        self._sound: dict[tuple[ClientId, bytes], bool] = {}  # consents looked at: each is shown to many
        self._root = self._bound.key_root({name: key_digest(envelope) for name, envelope in envelopes.items()})
        self._consent = self._bound.consent(self._root, self.survivors)

    def check(self, *, summed: bool) -> None:
        """All clauses; ``summed`` says whether the attempt has ended with a sum."""
        self._check_enough()
        if summed:
            self._check_answers()
        self._check_key_list()
        self._check_survivors()
        self._check_unmasking()

    def _check_enough(self) -> None:
        """Whoever was asked had come as far, and a phase began only where enough had (A-6)."""
        said, plan = self._said, self._plan
        for before, after, needed in (
            (m.KEYS, m.SHARES, plan.min_survivors),
            (m.SHARES, m.MASKED_INPUT, plan.min_survivors),
            (m.MASKED_INPUT, m.CONSISTENCY, plan.min_survivors),
            (m.CONSISTENCY, m.UNMASK, quorum(plan)),
        ):
            asked, came = said.who(after, REQUEST), said.who(before, REPLY)
            if not asked:
                continue
            self._found.require("A-6", asked <= came, self._where, f"{after} was asked of clients silent in {before}")
            self._found.require(
                "A-6", len(came) >= needed, self._where, f"{after} began with {len(came)} clients, {needed} are needed"
            )

    def _check_key_list(self) -> None:
        """Every client has signed the root of the one key list (A-7)."""
        for client, listed in self._said.of(m.SHARES, REPLY).items():
            same = listed.key_root == self._root
            self._found.require("A-7", same, f"{self._where}: {client}", "signed another key list than was published")

    def _check_survivors(self) -> None:
        """One list, the uploaders', to everyone, and consents to it (A-8)."""
        said, found = self._said, self._found
        for client, listed in said.of(m.CONSISTENCY, REQUEST).items():
            same = listed.survivors == self.survivors
            found.require("A-8", same, f"{self._where}: {client}", "was shown another list than those who uploaded")
        for client, consent in said.of(m.CONSISTENCY, REPLY).items():
            self._consents("A-8", client, consent.signature, f"{self._where}: {client}")

    def _check_unmasking(self) -> None:
        """What was asked of whom in the end (A-8, A-9)."""
        plan, found, said = self._plan, self._found, self._said
        dropped = self._dealt - set(self.survivors)
        for client, request in said.of(m.UNMASK, REQUEST).items():
            where, near = f"{self._where}: {client}", set(plan.neighbours(client))
            both = set(request.dropped) & set(self.survivors)
            found.require("A-9", not both, where, f"was asked for both shares of {', '.join(sorted(both))}")
            due = tuple(sorted(dropped & near))
            found.require("A-9", request.dropped == due, where, "was asked for shares of others than dealt and dropped")
            signers = set(request.consents)
            enough = len(signers) >= quorum(plan) and signers <= set(self.survivors)
            found.require("A-8", enough, where, f"was shown {len(signers)} consents, {quorum(plan)} are needed")
            for signer, signature in request.consents.items():
                self._consents("A-8", signer, signature, f"{where}, shown the consent of {signer}")

    def _check_answers(self) -> None:
        """Every seed could be recovered (A-6)."""
        plan, answered = self._plan, self._said.who(m.UNMASK, REPLY)
        for owner in sorted(self._dealt):
            holders = answered & set(self.survivors) & {owner, *plan.neighbours(owner)}
            detail = f"{len(holders)} answers around {owner}, {plan.threshold} recover a seed"
            self._found.require("A-6", len(holders) >= plan.threshold, self._where, detail)

    def _consents(self, clause: str, signer: ClientId, signature: bytes, where: str) -> None:
        if (signer, signature) not in self._sound:
            self._sound[signer, signature] = self._is_consent(signer, signature)
        self._found.require(clause, self._sound[signer, signature], where, "is no consent to this survivor list")

    def _is_consent(self, signer: ClientId, signature: bytes) -> bool:
        try:
            verify(self._keys.get(signer, b""), CONSENT_PURPOSE, self._consent, signature)
        except SignatureError:
            return False
        return True
