"""NVFlare's homomorphic encryption under audit: its provisioning and its client filter; imported only where nvflare is.

Driven are the builder that writes the keys into the participants' kits, the filter that encrypts a client's update, the
one that decrypts, and TenSEAL. Its workflows, transports and policies are not: where an attack is about these, the
target says so instead of guessing.
"""

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedvlm_secure.audit.target import (
    HONEST,
    PROPOSAL,
    Cohort,
    Decryption,
    Exposed,
    Lacking,
    Masks,
    Mean,
    NotApplicableError,
    Proposal,
    Said,
    TooLittleError,
    Upload,
    Withheld,
)
from fedvlm_secure.errors import MisuseError

TENSOR = "update"
NOT_DRIVEN = "not driven: this target is NVFlare's key handling and encryption, not its workflows"


class NvflareTarget:
    """NVFlare's CKKS as its ``HEBuilder`` provisions it."""

    name = "nvflare-he"
    phases: tuple[str, ...] = ("input", "sum")
    input_phase = "input"

    def __init__(self) -> None:
        try:
            import nvflare.app_opt.he.model_encryptor
            import nvflare.lighter.impl.he  # noqa: F401
        except ImportError:
            raise MisuseError(
                "this target is nvflare's own code; install it with: pip install 'fedvlm-secure[bench]'"
            ) from None

    def open(self, cohort: Cohort, proposal: Proposal = HONEST) -> "NvflareAttempt":
        """See :class:`AuditTarget`."""
        if proposal.threshold is not None:
            raise NotApplicableError("there are no shares; the key is whole in every client's kit")
        if proposal.modulus_bits is not None:
            raise NotApplicableError("parameters are provisioned; the server proposes none in a round")
        if cohort.metrics:
            raise NotApplicableError(
                "metrics are messages of the application, which NVFlare's filters leave as they are"
            )
        if proposal != HONEST:
            raise NotApplicableError(NOT_DRIVEN)
        return NvflareAttempt(cohort)

    def masks(self) -> Masks:
        """See :class:`AuditTarget`."""
        raise NotApplicableError("there are no masks; ciphertexts are randomised by SEAL, from the operating system")

    def threshold(self, clients: int) -> int:
        """See :class:`AuditTarget`: any one client's kit."""
        return 1


class NvflareAttempt(Lacking):
    """One round's uploads under the key in the kits; what the server adds up, clients decrypt."""

    lacks: Mapping[str, str] = {
        "": NOT_DRIVEN,
        "unmask": "there are no masks, and no shares of seeds to ask for",
        "agree": "there are no masks, hence nothing to agree on before they are removed",
    }

    def __init__(self, cohort: Cohort, kits: Mapping[str, bytes] | None = None) -> None:
        self.cohort = cohort
        self.kits = provisioned(cohort.names) if kits is None else kits
        self._sent: dict[str, Any] = {}

    def until(self, step: str, withheld: Withheld | None = None) -> None:
        """See :class:`Attempt`."""
        if step != PROPOSAL:
            for name in self.cohort.names:
                self._upload(name)

    def _upload(self, name: str) -> Any:
        """What leaves a client: NVFlare's data exchange object after its encrypting filter."""
        from nvflare.apis.dxo import DXO, DataKind, MetaKey
        from nvflare.apis.fl_context import FLContext
        from nvflare.apis.shareable import Shareable
        from nvflare.app_opt.he.model_encryptor import HEModelEncryptor

        if name not in self._sent:
            encryptor, context = HEModelEncryptor(), FLContext()
            encryptor.encrypt_layers = [True]  # as it sets it when a run starts
            encryptor.tenseal_context = _context(self.kits[name])
            context.set_peer_context(FLContext())
            update = {TENSOR: self.cohort.updates[name].astype(np.float64)}
            meta = {MetaKey.NUM_STEPS_CURRENT_ROUND: self.cohort.weights[name]}
            with contextlib.redirect_stdout(io.StringIO()):  # TenSEAL warns of every long tensor
                self._sent[name] = encryptor.process_dxo(DXO(DataKind.WEIGHT_DIFF, update, meta), Shareable(), context)
        return self._sent[name]

    def _ciphertext(self, name: str) -> bytes:
        serialised: bytes = self._upload(name).data[TENSOR].serialize()
        return serialised

    def upload(self, client: str) -> Upload:
        """See :class:`Attempt`."""
        payload = self._ciphertext(client)
        return Upload(len(payload), payload)

    def said(self, client: str) -> list[Said]:
        """See :class:`Attempt`."""
        sent = self._upload(client)
        found = [Said(f"meta.{key}", value) for key, value in sent.meta.items() if isinstance(value, int | float | str)]
        return [*found, Said(TENSOR, self._ciphertext(client))]

    def recover(self, client: str) -> Exposed:
        """See :class:`Attempt`; with what is in the server's kit."""
        import tenseal

        try:
            values = tenseal.ckks_vector_from(_context(self.kits["server"]), self._ciphertext(client)).decrypt()
        except ValueError as error:
            raise TooLittleError(f"the server's kit does not decrypt: {error}") from error
        return self._exposed(client, values)

    def read_by_member(self, client: str, member: str) -> Exposed:
        """See :class:`Attempt`."""
        import tenseal

        opened = tenseal.ckks_vector_from(_context(self.kits[member]), self._ciphertext(client))
        return self._exposed(client, opened.decrypt())

    def _exposed(self, client: str, values: list[float]) -> Exposed:
        weight = self.cohort.weights[client]  # it is in the clear
        return Exposed(np.array(values) / weight, weight)

    def finish(self, silent: Mapping[str, str] | None = None) -> Mean:
        """See :class:`Attempt`; added as its aggregator adds, by the server's context."""
        if silent:
            self._no("dropouts")
        return Mean(self._decrypted(), sum(self.cohort.weights.values()), self.cohort.names)

    def _decrypted(self) -> Any:
        import tenseal
        from nvflare.apis.fl_context import FLContext
        from nvflare.app_opt.he.model_decryptor import HEModelDecryptor

        server, names = _context(self.kits["server"]), self.cohort.names
        total = tenseal.ckks_vector_from(server, self._ciphertext(names[0]))
        for name in names[1:]:
            total = total + tenseal.ckks_vector_from(server, self._ciphertext(name))
        decryptor = HEModelDecryptor()
        decryptor.tenseal_context = _context(self.kits[names[0]])
        opened = decryptor.decryption({TENSOR: total.serialize()}, {TENSOR: True}, FLContext())
        return np.array(opened[TENSOR]) / sum(self.cohort.weights.values())

    def again(self, new: bool, trained: bool) -> "NvflareAttempt":
        """See :class:`Attempt`; what a workflow would allow is not driven, only what encrypting twice gives."""
        if not (new and trained):
            self._no("again")
        updates = {name: update[::-1].copy() for name, update in self.cohort.updates.items()}
        return NvflareAttempt(replace(self.cohort, updates=updates), self.kits)

    def decryption(self) -> Decryption:
        """See :class:`Attempt`: after the round a client sends its next update, and nothing else of the sum."""
        values = self._decrypted() * sum(self.cohort.weights.values())
        following = self.again(new=True, trained=True)
        name = self.cohort.names[0]
        told = b"".join(str(each.value).encode() for each in following.said(name) if not isinstance(each.value, bytes))
        return Decryption(values, told + following.upload(name).payload, "the server, by NVFlare's filters")

    def secrets(self, client: str) -> Mapping[str, bytes]:
        """See :class:`Attempt`: the secret key, as the difference that it makes to a serialised context."""
        context = _context(self.kits[client])
        kept = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}
        with_it, without = (context.serialize(save_secret_key=saved, **kept) for saved in (True, False))
        start = next(place for place, (one, other) in enumerate(zip(with_it, without, strict=False)) if one != other)
        middle = start + (len(with_it) - len(without)) // 2
        return {"the secret key": with_it[middle - 512 : middle + 512]}

    def at_rest(self, client: str) -> bytes:
        """See :class:`Attempt`: the client's kit."""
        return self.kits[client]

    def server_view(self) -> bytes:
        """See :class:`Attempt`: the server's kit, and the uploads."""
        return self.kits["server"] + b"".join(self._ciphertext(name) for name in self.cohort.names)


def provisioned(clients: tuple[str, ...]) -> dict[str, bytes]:
    """The TenSEAL context that NVFlare's builder writes into each participant's kit, by name."""
    from nvflare.lighter.constants import ProvFileName
    from nvflare.lighter.ctx import ProvisionContext
    from nvflare.lighter.entity import Project
    from nvflare.lighter.impl.he import HEBuilder

    with tempfile.TemporaryDirectory() as folder:
        project = Project("audit", "provisioned to be audited")
        server = project.set_server("server", "consortium", {})
        members = [project.add_client(name, "hospital", {}) for name in clients]
        context, builder = ProvisionContext(folder, project), HEBuilder()
        for each in (server, *members):
            Path(context.get_kit_dir(each)).mkdir(parents=True)
        builder.initialize(project, context)
        builder.build(project, context)
        kits = dict(_kits(context, members, ProvFileName.CLIENT_CONTEXT_TENSEAL))
        kits["server"] = (Path(context.get_kit_dir(server)) / ProvFileName.SERVER_CONTEXT_TENSEAL).read_bytes()
    return kits


def _kits(context: Any, members: list[Any], file: str) -> Iterator[tuple[str, bytes]]:
    for member in members:
        yield member.name, (Path(context.get_kit_dir(member)) / file).read_bytes()


def _context(kit: bytes) -> Any:
    import tenseal

    return tenseal.context_from(kit)
