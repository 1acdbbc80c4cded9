"""The hospital's side: a Flower mod between the app that trains and everything that leaves the machine."""

import hashlib
import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fedvlm_secure.engines.flower import vectors
from fedvlm_secure.engines.flower.link import CHALLENGE_BYTES, HELLO_PURPOSE
from fedvlm_secure.engines.flower.node import Node, Prepared, policy_text
from fedvlm_secure.engines.flower.wire import FINISH, HELLO, REFUSAL, ROUND, Header, put, take, without
from fedvlm_secure.errors import MisuseError, ProtocolError, one_line
from fedvlm_secure.primitives.kdf import digest
from fedvlm_secure.secagg.client import Ready
from fedvlm_secure.secagg.envelope import NETWORK
from fedvlm_secure.secagg.protocols import lookup
from fedvlm_secure.secagg.session import SERVER

T = TypeVar("T")

EXAMPLES = "num-examples"

log = logging.getLogger("flwr.secagg")


def secure_aggregation(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A Flower mod: what the app replies is summed under encryption or masks, and nothing of it leaves otherwise.

    Use it on the whole app, ``ClientApp(mods=[secure_aggregation])``, with a server that aggregates through
    :class:`~fedvlm_secure.engines.flower.SecureStrategy` or ``SecureAggregator``. The app stays as it is: asked to
    train, it replies with one ArrayRecord (the arrays it was sent, after training) and a MetricRecord that holds
    ``num-examples``. A message that asks for a reply in the clear is refused.
    """

    def prepare(node: Node, header: Header) -> Prepared:
        return _prepared(node, header, message, lambda asked: call_next(asked, context))

    return respond(message, context, prepare)


def respond(
    message: Message,
    context: Context,
    prepare: Callable[[Node, Header], Prepared],
    finish: Callable[[Node, Header], None] | None = None,
) -> Message:
    """Answer one message of the server's.

    Args:
        prepare: gives the update for the attempt that begins.
        finish: what the end of a run asks for.
    """
    try:
        return Message(_answer(message, context, prepare, finish), reply_to=message)
    except ProtocolError as fault:
        log.warning("refused: %s", one_line(fault))
        return _refusal(message, one_line(fault))
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
    prepare: Callable[[Node, Header], Prepared],
    finish: Callable[[Node, Header], None] | None,
) -> RecordDict:
    taken = take(message.content)
    if taken is None:
        raise _fault("transport", "asks for a reply in the clear, which would show this hospital's update or metrics")
    header, body = taken
    node = Node.of(context.node_config, header.run)
    with node.locked():
        if header.kind == HELLO and len(body) == CHALLENGE_BYTES:
            return put(Header(HELLO, text=node.name), node.identity.sign(HELLO_PURPOSE, body))
        if header.kind == FINISH and finish is not None:
            finish(node, header)
            return put(Header(FINISH))
        if header.kind != ROUND:
            raise _fault("transport", f"sends a message of kind {header.kind[:40]!r}, which is not known")
        return put(Header(ROUND, place=header.place), _reply(node, header, body, prepare))


def _reply(node: Node, header: Header, body: bytes, prepare: Callable[[Node, Header], Prepared]) -> bytes:
    """The session's answer. Only an attempt that begins prepares anything; later phases load neither model nor rows."""
    prepared = node.prepared()
    if prepared is None or (prepared.protocol, prepared.place) != (header.protocol, header.place):
        if header.phase not in {step.phase for step in lookup(header.protocol).client.steps[Ready]}:
            raise _fault(header.phase, "asks about an attempt that this node has not begun", header.place, "P-2.7")
        prepared = prepare(node, header)
        node.prepare(prepared)
    with closing(node.session(prepared)) as session:
        return session.reply(body)


def _prepared(node: Node, header: Header, message: Message, app: Callable[[Message], Message]) -> Prepared:
    """The update for this attempt: trained now, or before and not sent yet."""
    content, policy = without(message.content), policy_text(node.policy)
    asked, waiting = _digest(content, header, message.metadata.message_type), node.prepared()
    if waiting is not None and waiting.asked == asked and not node.is_spent(waiting.update):
        return replace(waiting, protocol=header.protocol, place=header.place, policy=policy)
    arrays = _only(ArrayRecord, content)
    model, before = vectors.model_digest(arrays), vectors.flatten(arrays)
    message.content = content
    reply = app(message)
    if reply.has_error():
        raise MisuseError(f"the app failed: {reply.error.reason}")
    values, counters = _contribution(reply.content, before, header, trains=_is_training(message))
    packed = values.astype("<f4").tobytes()
    return Prepared(header.protocol, header.place, asked, model, packed, counters, policy)


def _contribution(
    content: RecordDict, before: np.ndarray, header: Header, *, trains: bool
) -> tuple[np.ndarray, dict[str, int]]:
    """What the app's reply adds to the sum."""
    metrics = _only(MetricRecord, content)
    weight = vectors.weight_of(metrics.get(EXAMPLES), header.rows_per_weight, header.weight_max)
    counters = vectors.counters(metrics, weight, header.metrics)
    if not trains:
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


def _is_training(message: Message) -> bool:
    return message.metadata.message_type.split(".")[0] == MessageType.TRAIN


def _digest(content: RecordDict, header: Header, kind: str) -> bytes:
    """What the app is asked: the same question again needs no new training."""
    items = [kind.encode(), str((sorted(header.metrics.items()), header.weight_max, header.rows_per_weight)).encode()]
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
