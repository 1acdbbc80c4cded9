"""One attempt at a round of SecAgg+, by flwr's client mod; imported only where flwr is."""

import contextlib
import copy
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.client.mod.secure_aggregation.secaggplus_mod import SecAggPlusState
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Status,
    bytes_to_ndarray,
    ndarrays_to_parameters,
)
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import generate_shared_key
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, RECORD_KEY_STATE, Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from flwr.common.serde import recorddict_to_proto
from flwr.compat.common import recorddict_compat as compat
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from fedvlm_secure.audit.target import (
    AGREEMENT,
    HONEST,
    INPUT,
    KEYS,
    PROPOSAL,
    STEPS,
    UNMASK,
    Cohort,
    Exposed,
    Lacking,
    Malformed,
    Mean,
    Proposal,
    RefusedError,
    Said,
    TooLittleError,
    Upload,
    Withheld,
)
from fedvlm_secure.audit.targets.flower import FIRST_NODE, NUM_SHARES, RUN, STEP_OF, THRESHOLD

_STAGE_OF = {step: stage for stage, step in STEP_OF.items()}
# What Python raises of itself where nobody has looked: a refusal by accident.
_ACCIDENTS = (LookupError, AttributeError, ArithmeticError, AssertionError)
MODEL = b"the model"


class FlowerAttempt(Lacking):
    """Clients that run flwr's mod, each with a context of its own, and a server that says what it likes to them."""

    lacks: Mapping[str, str] = {
        "read_by_member": "nothing is encrypted homomorphically; masks have no key that opens an upload",
        "decryption": "nothing is encrypted homomorphically; sums are integers",
    }

    def __init__(self, cohort: Cohort, proposal: Proposal = HONEST, number: int = 1) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = RUN, 1, 1  # whose messages these are
        self.cohort, self.proposal, self.number = cohort, proposal, number
        self.nodes = {name: FIRST_NODE + index for index, name in enumerate(cohort.names)}
        self.names = {node: name for name, node in self.nodes.items()}
        self.contexts = {name: Context(RUN, node, {}, RecordDict(), {}) for name, node in self.nodes.items()}
        self.workflow = SecAggPlusWorkflow(
            NUM_SHARES,
            THRESHOLD,
            max_weight=float(cohort.weight_max),
            **({} if proposal.modulus_bits is None or proposal.modulus_bits < 23 else {"modulus_range": self.modulus}),
        )
        self.replies: dict[str, dict[str, RecordDict]] = {name: {} for name in self.nodes}
        self.shares: dict[tuple[str, str], dict[str, bytes]] = {}
        self._secrets: dict[str, dict[str, bytes]] = {name: {} for name in self.nodes}
        self._reached = 0
        self._withheld: Withheld = {}

    @property
    def modulus(self) -> int:
        """What the server says it is."""
        return 1 << (32 if self.proposal.modulus_bits is None else self.proposal.modulus_bits)

    @property
    def threshold(self) -> int:
        """What the server says it is; if it does not lie, what its workflow makes of the share."""
        due = max(2, round(THRESHOLD * len(self.nodes)))
        return due if self.proposal.threshold is None else self.proposal.threshold

    def deliver(self, name: str, message: Message) -> Message:
        """One client's reply by its mod, which is given a copy since it changes what it is given."""
        stage = str(message.content.config_records[RECORD_KEY_CONFIGS].get(Key.STAGE))

        def train(message: Message, context: Context) -> Message:
            return Message(self._trained(name), reply_to=message)

        try:
            reply = secaggplus_mod(copy.deepcopy(message), self.contexts[name], train)
        except Exception as error:
            detail, deliberate = f"{type(error).__name__}: {error}", not isinstance(error, _ACCIDENTS)
            raise RefusedError(name, STEP_OF.get(stage, stage), detail[:200], deliberate=deliberate) from error
        self.replies[name][stage] = reply.content
        self._secrets[name] |= {
            key: value for key in ("sk1", "sk2", "rd_seed") if (value := getattr(self.state(name), key))
        }
        return reply

    def state(self, name: str) -> SecAggPlusState:
        """What a client's mod keeps in its context."""
        return SecAggPlusState(**self.contexts[name].state.config_records[RECORD_KEY_STATE])

    def _trained(self, name: str) -> RecordDict:
        parameters = ndarrays_to_parameters([self.cohort.updates[name]])
        metrics: Any = {"correct": self.cohort.metrics[name]} if name in self.cohort.metrics else {}
        result = FitRes(Status(Code.OK, ""), parameters, self.cohort.weights[name], metrics)
        return compat.fitres_to_recorddict(result, keep_input=True)

    def message(self, name: str, step: str, configs: Mapping[str, Any]) -> Message:
        """A request as the workflow words it, whatever it says; with instructions to train where those belong."""
        content = RecordDict()
        if step == INPUT:
            model = np.frombuffer(self.proposal.shown.get(name, MODEL), np.uint8)
            content = compat.fitins_to_recorddict(FitIns(ndarrays_to_parameters([model]), {}), keep_input=True)
        stage = {Key.STAGE: _STAGE_OF[step]}
        content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(cast(Any, {**configs, **stage}))
        return Message(content, dst_node_id=self.nodes[name], message_type="train", group_id=str(self.number))

    def configs(self, name: str, step: str) -> dict[str, Any]:
        """What the server tells one client at a step, honestly but for the proposal."""
        if step == PROPOSAL:
            return {
                Key.SAMPLE_NUMBER: len(self.nodes),
                Key.SHARE_NUMBER: len(self.nodes),
                Key.THRESHOLD: self.threshold,
                Key.CLIPPING_RANGE: self.workflow.clipping_range,
                Key.TARGET_RANGE: self.workflow.quantization_range,
                Key.MOD_RANGE: self.modulus,
                Key.MAX_WEIGHT: self.workflow.max_weight,
            }
        if step == KEYS:
            return {str(self.nodes[peer]): list(self.keys(peer)) for peer in self.nodes}
        if step == INPUT:
            boxes = {peer: box for peer in self.masked_with(name) if (box := self._box(peer, name))}
            return {Key.CIPHERTEXT_LIST: list(boxes.values()), Key.SOURCE_LIST: [self.nodes[peer] for peer in boxes]}
        return {Key.ACTIVE_NODE_ID_LIST: list(self.nodes.values()), Key.DEAD_NODE_ID_LIST: []}

    def keys(self, name: str) -> tuple[bytes, bytes]:
        """A client's public keys."""
        reply = self._reply(name, PROPOSAL)
        return reply[Key.PUBLIC_KEY_1], reply[Key.PUBLIC_KEY_2]

    def masked_with(self, name: str) -> list[str]:
        """The peers whose shares a client is given, and with whom it masks."""
        return [peer for peer in self.nodes if peer != name and peer not in self._withheld.get(name, ())]

    def _box(self, sender: str, recipient: str) -> bytes | None:
        reply = self._reply(sender, KEYS)
        boxes = dict(zip(reply[Key.DESTINATION_LIST], reply[Key.CIPHERTEXT_LIST], strict=True))
        return boxes.get(self.nodes[recipient])

    def _reply(self, name: str, step: str) -> Any:
        return self.replies[name][_STAGE_OF[step]].config_records[RECORD_KEY_CONFIGS]

    def ask(self, name: str, step: str, configs: Mapping[str, Any]) -> Any:
        """One client's answer to whatever the server says."""
        return self.deliver(name, self.message(name, step, configs)).content.config_records[RECORD_KEY_CONFIGS]

    def until(self, step: str, withheld: Withheld | None = None) -> None:
        """See :class:`Attempt`; nothing is agreed on before masks are removed."""
        self._withheld = withheld or {}
        for done in STEPS[self._reached : STEPS.index(step)]:
            if done != AGREEMENT:
                for name in self.nodes:
                    self.ask(name, done, self.configs(name, done))
            self._reached += 1

    def agree(self, client: str, survivors: Collection[str]) -> None:
        """See :class:`Attempt`: nothing to do."""

    def unmask(self, client: str, survivors: Collection[str], dropped: Collection[str]) -> None:
        """See :class:`Attempt`."""
        active, dead = ([self.nodes[name] for name in names] for names in (survivors, dropped))
        reply = self.ask(client, UNMASK, {Key.ACTIVE_NODE_ID_LIST: active, Key.DEAD_NODE_ID_LIST: dead})
        shares = reply[Key.SHARE_LIST]
        for node, share in zip(active, shares[: len(active)], strict=True):
            self._keep("self", self.names[node], client, share)
        for node, share in zip(dead, shares[len(active) :], strict=True):
            self._keep("key", self.names[node], client, share)

    def _keep(self, kind: str, owner: str, holder: str, share: bytes) -> None:
        self.shares.setdefault((kind, owner), {})[holder] = share

    def recover(self, client: str) -> Exposed:
        """See :class:`Attempt`; by flwr's own functions, as its server removes masks."""
        for name in (*self.proposal.colluders, *self._played):
            for node, share in self.state(name).rd_seed_share_dict.items():
                self._keep("self", self.names[node], name, share)
            for node, share in self.state(name).sk1_share_dict.items():
                self._keep("key", self.names[node], name, share)
        arrays = self._masked(client)
        shapes = [array.shape for array in arrays]
        masks = [(-1, self._secret("self", client))]
        masks += [
            (-1 if self.nodes[client] > self.nodes[peer] else 1, self._pair_seed(client, peer))
            for peer in self.masked_with(client)
        ]
        for sign, seed in masks:
            drawn = pseudo_rand_gen(seed, self.modulus, shapes)
            arrays = [(array + sign * mask) % self.modulus for array, mask in zip(arrays, drawn, strict=True)]
        return self._decoded(arrays)

    def _pair_seed(self, client: str, peer: str) -> bytes:
        """From the private key of either."""
        for owner, other in ((client, peer), (peer, client)):
            with contextlib.suppress(TooLittleError):
                key = bytes_to_private_key(self._secret("key", owner))
                return generate_shared_key(key, bytes_to_public_key(self.keys(other)[0]))
        raise TooLittleError(f"the attacker holds neither {client}'s nor {peer}'s key")

    @property
    def _played(self) -> tuple[str, ...]:
        return (*self.proposal.impersonated, *self.proposal.sybils)

    def _secret(self, kind: str, owner: str) -> bytes:
        if kind == "key" and owner in (*self.proposal.colluders, *self._played):
            return self.state(owner).sk1
        shares = list(self.shares.get((kind, owner), {}).values())
        if len(shares) < self.threshold:
            raise TooLittleError(f"the attacker holds {len(shares)} of {self.threshold} shares of {owner}'s {kind}")
        return combine_shares(shares)

    def _decoded(self, arrays: list[NDArray[np.int64]]) -> Exposed:
        ratio = int(arrays[0][0]) / self.workflow.quantization_range
        (values,) = dequantize(arrays[1:], self.workflow.clipping_range, self.workflow.quantization_range)
        return Exposed(values / ratio, ratio * self.workflow.max_weight)

    def _masked(self, name: str) -> list[NDArray[np.int64]]:
        return [bytes_to_ndarray(data) for data in self._reply(name, INPUT)[Key.MASKED_PARAMETERS]]

    def finish(self, silent: Mapping[str, str] | None = None) -> Mean:
        """See :class:`Attempt`; by flwr's workflow."""
        from fedvlm_secure.audit.targets.flower_workflow import workflow_round

        return workflow_round(self, silent or {})

    def again(self, new: bool, trained: bool) -> "FlowerAttempt":
        """See :class:`Attempt`; clients keep their contexts, and with them all that the mod remembers."""
        cohort = self.cohort
        if trained:
            cohort = replace(cohort, updates={name: update[::-1].copy() for name, update in cohort.updates.items()})
        following = FlowerAttempt(cohort, self.proposal, self.number + new)
        following.contexts = self.contexts
        return following

    def upload(self, client: str) -> Upload:
        """See :class:`Attempt`."""
        words, payload = self._masked(client)[1], b"".join(self._reply(client, INPUT)[Key.MASKED_PARAMETERS])
        target = self.workflow.quantization_range
        ratio = round(self.cohort.weights[client] / self.workflow.max_weight * target) / target
        (encoded,) = quantize(
            [self.cohort.updates[client].astype(np.float64) * ratio], self.workflow.clipping_range, target
        )
        size = recorddict_to_proto(self.replies[client][_STAGE_OF[INPUT]]).ByteSize()
        return Upload(size, payload, words, encoded.astype(np.int64) % self.modulus, self.modulus, tolerance=1)

    def said(self, client: str) -> list[Said]:
        """See :class:`Attempt`; all records of its replies."""
        found: list[Said] = []
        for stage, content in self.replies[client].items():
            records: dict[str, Any] = {**content.config_records, **content.metric_records}
            for record, values in records.items():
                for key, value in values.items():
                    found += [Said(f"{stage}: {record}.{key}", each) for each in _listed(value)]
        if _STAGE_OF[INPUT] in self.replies[client]:
            found.append(Said("first word of the upload", int(self._masked(client)[0][0])))
        return found

    def secrets(self, client: str) -> Mapping[str, bytes]:
        """See :class:`Attempt`."""
        return self._secrets[client]

    def at_rest(self, client: str) -> bytes:
        """See :class:`Attempt`: the context, which flwr keeps for as long as the run."""
        return recorddict_to_proto(self.contexts[client].state).SerializeToString()

    def server_view(self) -> bytes:
        """See :class:`Attempt`; its workflow stores nothing."""
        contents = (content for replies in self.replies.values() for content in replies.values())
        return b"".join(recorddict_to_proto(content).SerializeToString() for content in contents)

    def malformed(self) -> Iterator[Malformed]:
        """See :class:`Attempt`."""
        name = next(iter(self.nodes))
        for step in (PROPOSAL, KEYS, INPUT, UNMASK):
            self.until(step)
            for what, configs in _misshapen(step, self.nodes[name], self.configs(name, step)):
                yield Malformed(what, step, lambda step=step, configs=configs: self._try(name, step, configs))  # type: ignore[misc]

    def _try(self, name: str, step: str, configs: Mapping[str, Any]) -> object:
        """One client's answer, without a trace on it."""
        kept, replies = copy.deepcopy(self.contexts[name]), dict(self.replies[name])
        try:
            return self.ask(name, step, configs)
        finally:
            self.contexts[name], self.replies[name] = kept, replies


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _misshapen(step: str, node: int, honest: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Configurations that no workflow sends."""
    first = next(iter(honest))
    yield "a field too few", {key: value for key, value in honest.items() if key != first}
    yield "a field too many", honest | {"and": 1}
    yield "a field of another type", honest | {first: "text"}
    if step == PROPOSAL:
        yield "a threshold of -1", honest | {Key.THRESHOLD: -1}
        yield "a largest weight of -1", honest | {Key.MAX_WEIGHT: -1.0}
        yield "a largest weight that is text", honest | {Key.MAX_WEIGHT: "1000"}
        yield "a clipping range of 0", honest | {Key.CLIPPING_RANGE: 0.0}
    if step == KEYS:
        yield "keys that are no keys", honest | {str(node + 1): [b"1", b"2"]}
    if step == INPUT:
        yield "empty text for sources", honest | {Key.SOURCE_LIST: [""] * len(honest[Key.SOURCE_LIST])}
        yield "no boxes at all", {Key.CIPHERTEXT_LIST: [], Key.SOURCE_LIST: []}
    if step == UNMASK:
        yield "one survivor 100,000 times", honest | {Key.ACTIVE_NODE_ID_LIST: [node] * 100_000}
        yield "false for the dropped", honest | {Key.DEAD_NODE_ID_LIST: [False]}
