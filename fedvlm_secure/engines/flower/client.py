"""The hospital's side: a Flower mod between the app that trains and everything that leaves the machine."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod

from fedvlm_secure.encoding.layout import VectorLayout
from fedvlm_secure.engines.flower import vectors
from fedvlm_secure.engines.flower.link import CHALLENGE_BYTES, HELLO_PURPOSE
from fedvlm_secure.engines.flower.node import Node, Prepared, policy_text
from fedvlm_secure.engines.flower.wire import FINISH, HELLO, REFUSAL, ROUND, Header, put, take, without
from fedvlm_secure.errors import MisuseError, ProtocolError, VerificationError, one_line
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.secagg.envelope import NETWORK, claimed_plan
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.session import SERVER

T = TypeVar("T")
EXAMPLES = "num-examples"

log = logging.getLogger("flwr.secagg")

Prepare = Callable[[Node, Plan], Prepared]


def secure_aggregation(
    metrics: Mapping[str, float] | None = None,
    weight_max: int = 4096,
    rows_per_weight: int = 1,
    value_bits: int = 20,
) -> Mod:
    """A Flower mod: what the app replies is summed under masks, and nothing of it leaves otherwise.

    Use it on the whole app, ``ClientApp(mods=[secure_aggregation()])``, with a server that aggregates through
    :class:`~fedvlm_secure.engines.flower.SecureStrategy` or ``SecureAggregator``. The app stays as it is: asked to
    train, it replies with one ArrayRecord (the arrays it was sent, after training) and a MetricRecord that holds
    ``num-examples``. A message that asks for a reply in the clear is refused.

    What is summed is the node's own choice, so both sides name it and a server that asks for anything else is refused.

    Args:
        metrics: largest value of each metric that is averaged beside the arrays, by name; others stay here.
        weight_max: the largest weight; more examples count as that.
        rows_per_weight: examples for each unit of weight.
        value_bits: as in ``[aggregation]``.
    """
    terms = _Terms(vectors.bounds_of(metrics or {}), weight_max, rows_per_weight, value_bits)

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        def prepare(node: Node, plan: Plan) -> Prepared:
            return _prepared(node, plan, terms, message, lambda asked: call_next(asked, context))

        return respond(message, context, prepare)

    return mod


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a node has agreed to sum."""

    bounds: vectors.Bounds
    weight_max: int
    rows_per_weight: int
    value_bits: int

    def layout(self, size: int) -> VectorLayout:
        return vectors.layout(size, self.bounds, self.value_bits, self.weight_max)


def respond(
    message: Message,
    context: Context,
    prepare: Prepare,
    finish: Callable[[Node, bytes], None] | None = None,
) -> Message:
    """Answer one message of the server's.

    Args:
        prepare: gives the update for an attempt that begins, whose plan is verified but for the model.
        finish: what the end of a run asks for, from the server's signature.
    """
    try:
        return Message(_answer(message, context, prepare, finish), reply_to=message)
    except ProtocolError as fault:
        log.warning("refused: %s", one_line(fault))
        # What is wrong with this hospital's own roster, in words that name its files, is not for the server either.
        own = isinstance(fault, VerificationError)
        return _refusal(message, f"the roster here violates {fault.clause}" if own else one_line(fault))
    except MisuseError as mistake:
        # Its text may speak of this hospital's own numbers: it is for the owner's log, not for the server.
        log.error("%s", one_line(mistake))
    except Exception:  # Flower would send its text, which may quote a row, to the server
        log.exception("the app failed")
    return _refusal(message, "this node cannot take part; the reason is in its own log")


def _refusal(message: Message, reason: str) -> Message:
    return Message(put(Header(REFUSAL, text=reason)), reply_to=message)


def _answer(
    message: Message,
    context: Context,
    prepare: Prepare,
    finish: Callable[[Node, bytes], None] | None,
) -> RecordDict:
    taken = take(message.content)
    if taken is None:
        raise _fault("transport", "asks for a reply in the clear, which would show this hospital's update or metrics")
    header, body = taken
    node = Node.of(context.node_config)
    if header.kind == HELLO and len(body) == CHALLENGE_BYTES:  # while it trains, too
        return put(Header(HELLO, text=node.name), node.identity.sign(HELLO_PURPOSE, body))
    with node.locked():
        if header.kind == FINISH and finish is not None:
            finish(node, body)
            return put(Header(FINISH))
        if header.kind != ROUND:
            raise _fault("transport", f"sends a message of kind {header.kind[:40]!r}, which is not known")
        return put(Header(ROUND), _reply(node, header, body, prepare))


def _reply(node: Node, header: Header, body: bytes, prepare: Prepare) -> bytes:
    """The session's answer. Only an attempt that begins prepares anything; later phases load neither model nor rows.

    Before anything is prepared, the plan is known to be the server's, and acceptable.
    """
    prepared = node.prepared()
    if prepared is None or prepared.plan != claimed_plan(body):
        plan = node.proposed(header.protocol, body)
        prepared = prepare(node, plan)
        node.prepare(prepared)
    with closing(node.session(prepared)) as session:
        return session.reply(body)


def _prepared(node: Node, plan: Plan, terms: _Terms, message: Message, app: Callable[[Message], Message]) -> Prepared:
    """The update for this attempt: trained now, or before and not sent yet."""
    content, trains = without(message.content), message.metadata.message_type.split(".")[0] == MessageType.TRAIN
    arrays = _only(ArrayRecord, content)
    model, before = vectors.model_digest(arrays), vectors.flatten(arrays)
    layout = terms.layout(before.size if trains else 0)
    # Before this node's own numbers are looked at: a refusal must not depend on them.
    if plan.layout != layout:
        raise _fault("plan", "proposes to sum something else than this node has agreed to", plan.place, "P-2.5")
    if plan.model != model:
        raise _fault("plan", "names other arrays than it has sent", plan.place, "P-2.3")
    asked, waiting = _digest(content, message.metadata.message_type), node.prepared()
    begun = Prepared(
        plan.protocol, plan.run, plan.hash, plan.place, asked, model, b"", {}, layout, policy_text(node.policy)
    )
    if (
        waiting is not None
        and (waiting.asked, waiting.layout) == (asked, layout)
        and not node.has_answered(waiting.update)
    ):
        return replace(begun, values=waiting.values, counters=waiting.counters)
    message.content = content
    reply = app(message)
    if reply.has_error():
        raise MisuseError(f"the app failed: {reply.error.reason}")
    values, counters = _contribution(reply.content, before if trains else None, terms)
    return replace(begun, values=values.astype("<f4").tobytes(), counters=counters)


def _contribution(content: RecordDict, before: np.ndarray | None, terms: _Terms) -> tuple[np.ndarray, dict[str, int]]:
    """What the app's reply adds to the sum."""
    metrics = _only(MetricRecord, content)
    weight = vectors.weight_of(metrics.get(EXAMPLES), terms.rows_per_weight, terms.weight_max)
    counters = vectors.counters(metrics, weight, terms.bounds)
    if before is None:
        return np.zeros(0, np.float32), counters
    after = vectors.flatten(_only(ArrayRecord, content))
    if after.shape != before.shape:
        raise MisuseError(f"the app was sent {before.size} numbers and replied with {after.size}; reply with as many")
    if not np.isfinite(after).all():
        raise MisuseError("the app replied with an array that holds a NaN or an infinity; training has diverged")
    return after - before, counters


def _only(kind: type[T], content: RecordDict) -> T:
    found = [record for record in content.values() if isinstance(record, kind)]
    if len(found) != 1:
        raise MisuseError(f"{len(found)} records of type {kind.__name__}; secure aggregation needs exactly one")
    return found[0]


def _digest(content: RecordDict, kind: str) -> bytes:
    """What the app is asked: the same question again needs no new training."""
    items = [kind.encode()]
    for key, record in sorted(content.items()):
        if isinstance(record, ArrayRecord):
            items.append(vectors.model_digest(record))
        elif isinstance(record, ConfigRecord | MetricRecord):
            items.append(hashlib.sha256(repr(sorted(record.items())).encode()).digest())
        items.append(key.encode())
    return digest("flower-request", items)


def _fault(phase: str, detail: str, place: tuple[int, ...] = (), clause: str = "P-1.1") -> ProtocolError:
    party = SERVER if clause != "P-1.1" else NETWORK
    where = (place[0], place[1]) if len(place) == 2 else None
    return ProtocolError(clause, party=party, phase=phase, detail=detail, round=where)
