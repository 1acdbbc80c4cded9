"""Flower nodes in this process: real messages through the real app and mod, without SuperLink and SuperNodes."""

import copy
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedvlm_secure.engines.flower import secure_aggregation
from fedvlm_secure.engines.flower.node import KEY, ROSTER
from fedvlm_secure.federation import keyfile
from fedvlm_secure.files import write
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.roster import NEVER, Roster, member, sign_roster

METRICS = {"accuracy": 1.0}
NAMES = ("clinic-a", "clinic-b", "clinic-c", "clinic-d")


def found(folder: Path, names: tuple[str, ...] = NAMES) -> dict[str, Path]:
    """Folders of a server and hospitals with keys and one signed roster, by name."""
    folders = {name: folder / name for name in ("server", *names)}
    identities = {name: keyfile.create(path / KEY) for name, path in folders.items()}
    consortium = Identity.generate()
    members = tuple(member(name, identities[name]) for name in sorted(names))
    roster = sign_roster(Roster(consortium.public, 1, NEVER, identities["server"].public, members), consortium)
    for path in folders.values():
        write(path / ROSTER, roster)
    return folders


class Place:
    """A node with an app, on a machine of its own."""

    def __init__(self, folder: Path, app: ClientApp) -> None:
        self.folder, self.app = folder, app


class Site(Place):
    """A node of an app that knows nothing of secure aggregation: its own update, and what it has been asked."""

    def __init__(self, folder: Path, update: np.ndarray, examples: int, accuracy: float) -> None:
        super().__init__(folder, ClientApp(mods=[secure_aggregation(metrics=METRICS)]))
        self.update, self.examples, self.accuracy = update, examples, accuracy
        self.trained = 0
        self.app.train()(self._train)
        self.app.evaluate()(self._evaluate)

    def _train(self, message: Message, context: Context) -> Message:
        self.trained += 1
        assert set(message.content) == {"arrays", "config"}
        (values,) = message.content["arrays"].to_numpy_ndarrays()
        # No two trainings end alike: an update that was summed is never sent again.
        arrays = ArrayRecord([values + self.update + np.float32((self.trained - 1) / 1024)])
        return Message(RecordDict({"arrays": arrays, "metrics": self._metrics()}), reply_to=message)

    def _evaluate(self, message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": self._metrics()}), reply_to=message)

    def _metrics(self) -> MetricRecord:
        return MetricRecord({"num-examples": self.examples, "accuracy": self.accuracy})


class LocalGrid(Grid):
    """Every message is answered at once by the site it goes to; ``tamper`` may change or drop what passes."""

    def __init__(self, sites: dict[int, Any]) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.sites, self._replies, self._numbers = sites, {}, itertools.count(1)
        self.sent: list[tuple[int, Message, Message | None]] = []
        self.tamper: Callable[[int, Message, Message], Message | None] = lambda node, asked, reply: reply

    @property
    def run(self) -> None:
        return None

    def set_run(self, run: object) -> None:
        pass

    def create_message(self, *args: object, **kwargs: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identifiers = []
        for message in messages:
            identifier = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = identifier
            identifiers.append(identifier)
            node = message.metadata.dst_node_id
            reply = self._answer(node, copy.deepcopy(message))
            kept = self.tamper(node, message, copy.deepcopy(reply))
            self.sent.append((node, copy.deepcopy(message), reply))
            if kept is not None:
                self._replies[identifier] = kept
        return identifiers

    def _answer(self, node: int, message: Message) -> Message:
        site = self.sites[node]
        context = Context(1, node, {"folder": str(site.folder)}, RecordDict(), {})
        try:
            return site.app(message, context)
        except Exception as error:  # noqa: BLE001  # as a SuperNode does
            return Message(Error(code=2, reason=str(error)), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._replies.pop(identifier) for identifier in list(message_ids) if identifier in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting, replies, ends = set(self.push_messages(messages)), [], time.monotonic() + (timeout or 1e9)
        while waiting and time.monotonic() < ends:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies
