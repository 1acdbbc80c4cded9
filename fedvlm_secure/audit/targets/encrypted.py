"""``bfv`` and ``ckks`` under audit: a server that deals keys of its own, and a member that gives its key away."""

from collections.abc import Iterator, Mapping

import numpy as np

from fedvlm_secure.audit.target import (
    AGREEMENT,
    INPUT,
    KEYS,
    PROPOSAL,
    STEPS,
    Decryption,
    Exposed,
    Malformed,
    NotApplicableError,
    Said,
    TooLittleError,
    Upload,
    Withheld,
)
from fedvlm_secure.audit.targets.ours import OurAttempt
from fedvlm_secure.primitives.merkle import MerkleTree
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.sealing import seal as seal_box
from fedvlm_secure.primitives.secret import Secret
from fedvlm_secure.secagg.client import Turn
from fedvlm_secure.secagg.encrypted import messages as m
from fedvlm_secure.secagg.encrypted.custody import PARCEL, Held, he_key, key_for
from fedvlm_secure.secagg.encrypted.parameters import CKKS
from fedvlm_secure.secagg.encrypted.server import DealtKey, EncryptedServer, deliveries
from fedvlm_secure.secagg.encrypted.sheets import sheet_of
from fedvlm_secure.secagg.envelope import Envelope, Expected, seal, split
from fedvlm_secure.secagg.session import SERVER, Memory


class EncryptedAttempt(OurAttempt):
    """One attempt under a key that all members hold and the server does not."""

    lacks: Mapping[str, str] = {
        "agree": "the server unmasks nothing: members read the sum, check it against its list, and tell a hash",
        "unmask": "there are no masks, and no shares of seeds to ask for",
    }
    _own_key: tuple[DealtKey, Secret] | None = None  # what a lying server has dealt itself

    def until(self, step: str, withheld: Withheld | None = None) -> None:
        """See :class:`Attempt`; keys and inputs are one exchange here, and the sum is read at the agreement."""
        if step == PROPOSAL or self.server is not None or self._own_key is not None:
            return
        lies = self.federation.proposal
        if lies.impersonated or lies.sybils:
            self._upload_under_a_false_key()
            return
        # By a server without scruples: ours would not work with every plan. What it asks for later is the same request.
        dealer = self.plan.cohort[0]
        self.clients[dealer].reply(self.federation.says(m.KEYS, dealer, m.KeysRequest(self.plan, 1)))
        self.server = EncryptedServer(self.plan, self.federation.server_identity, self.federation.roster)
        self._play(m.KEYS)
        if STEPS.index(step) > STEPS.index(INPUT):
            self._play(m.INPUT)

    def _play(self, phase: str) -> None:
        assert self.server.phase == phase
        for name, request in self.server.requests():
            self.server.receive(name, self.clients[name].reply(request))
        self.server.end_phase()

    def _upload_under_a_false_key(self) -> None:
        """The server deals a key that it knows, in the name of a client that it plays."""
        plan, federation = self.plan, self.federation
        played = (*federation.proposal.impersonated, *federation.proposal.sybils)
        dealer, scheme, secret = played[0], sheet_of(plan).scheme, Secret.generate()
        bound = plan.run, 1, plan.protocol, plan.roster
        members = sorted(federation.roster.members, key=lambda member: member.name)
        boxes = tuple(seal_box(member.sealing_key, secret, PARCEL, *bound, member.name) for member in members)
        check = he_key(secret, plan, 1, scheme).check()
        dealing = m.Dealing(plan.run, 1, plan.protocol, plan.roster, MerkleTree(boxes).root, check)
        envelope = seal(federation.server_identity, m.KEYS, plan.hash, dealer, SERVER, dealing)
        key = DealtKey(dealer, envelope, bytes(32), plan.roster, boxes)
        self._own_key = key, secret
        relayed = deliveries(key, [member.name for member in members])
        for name in self.clients:
            if name not in played:
                self.clients[name].reply(federation.says(m.INPUT, name, m.Assignment(plan, relayed[name])))

    def recover(self, client: str) -> Exposed:
        """See :class:`Attempt`."""
        if self._own_key is None:
            raise TooLittleError("the server holds ciphertexts and no key")
        secret = self._own_key[1]
        return self._read(client, Held(1, bytes(32), secret, he_key(secret, self.plan, 1, sheet_of(self.plan).scheme)))

    def read_by_member(self, client: str, member: str) -> Exposed:
        """See :class:`Attempt`."""
        return self._read(client, self._held(member))

    def _read(self, client: str, held: Held) -> Exposed:
        sheet = sheet_of(self.plan)
        chunks = split(self.reply_in(client, INPUT))[1:]
        return self.exposed(
            sheet.read([held.key.decrypt(sheet.scheme.load(chunk)) for chunk in chunks], held.secret, (client,))
        )

    def _held(self, member: str) -> Held:
        """The shared key as ``member`` holds it, from the box that the server has relayed to it."""
        request = next(
            request
            for request, _ in self.clients[member].exchanges
            if unpack(Envelope, split(request)[0]).phase == m.INPUT
        )
        delivery = unpack(m.Assignment, unpack(Envelope, split(request)[0]).body).delivery
        federation, plan = self.federation, self.plan
        expected = Expected(m.INPUT, SERVER, member, federation.roster.server, plan.hash, plan.place)
        turn = Turn(federation.party(member), plan, federation.update(member), b"", expected, Memory())
        return key_for(turn, plan, delivery, sheet_of(plan).scheme)

    def upload(self, client: str) -> Upload:
        """See :class:`Attempt`."""
        reply = self.reply_in(client, INPUT)
        return Upload(len(reply), b"".join(split(reply)[1:]))

    def words_said(self, payload: bytes) -> list[Said]:
        """Ciphertexts are bytes to whoever has no key."""
        return [Said("ciphertexts", payload)]

    def secrets(self, client: str) -> Mapping[str, bytes]:
        """See :class:`Attempt`; sessions keep no key, they open their box when they need it."""
        return {"the shared key": self._held(client).secret.reveal()}

    def at_rest(self, client: str) -> bytes:
        """See :class:`Attempt`; the box that brought the key is on record, and the member's identity key opens it."""
        return super().at_rest(client) + self._held(client).secret.reveal()

    def decryption(self) -> Decryption:
        """See :class:`Attempt`."""
        if self.federation.protocol != CKKS:
            raise NotApplicableError("sums are exact integers; a decryption holds no noise that could tell of the key")
        reader = next(client for client in self.clients.values() if client.session.sum is not None)
        assert reader.session.sum is not None
        total = reader.session.sum.total[: self.plan.layout.update]
        values = np.concatenate([total, self.plan.codec.decode(reader.session.sum.total).mean])
        return Decryption(values, b"".join(reply for _, reply in reader.exchanges), "the server")

    def malformed(self) -> Iterator[Malformed]:
        """See :class:`Attempt`."""
        federation = self.federation
        self.server = EncryptedServer(self.plan, federation.server_identity, federation.roster)
        for step, phase in ((PROPOSAL, m.KEYS), (KEYS, m.INPUT), (AGREEMENT, m.SUM)):
            name, request = next(iter(self.server.requests()))
            yield from self.malformed_at(step, name, request)
            self._play(phase)
