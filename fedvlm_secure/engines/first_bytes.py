"""The first bytes of one upload in a simulated run: as its hospital had them, and as the server was sent them.

They are for the report's readers, who would rather see what masking does. What a hospital has before masking is its
secret, so this is for the local engine alone, where one process plays everybody; nothing of it is in the code that
servers and hospitals of a deployment run. Each half lies in the folder of the party that has it in a deployment, too.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.encoding.ring import Words
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.files import write_json
from fedvlm_secure.report.reading import FIRST_BYTES
from fedvlm_secure.report.rounds import UPLOADS
from fedvlm_secure.secagg.client import ClientSessionBase, Step, Turn
from fedvlm_secure.secagg.envelope import split
from fedvlm_secure.secagg.session import ClientId

FIRST = 4096  # bytes

Tell = Callable[[str, int, bytes], None]  # "words" or "update", bytes a number, the first bytes


@dataclass(frozen=True, slots=True)
class _Told(Turn):
    """A turn that tells what is about to be protected: the last it tells is what goes into the masking."""

    tell: Tell = lambda form, value_bytes, content: None

    def encoded(self) -> Words:
        words, ring = Turn.encoded(self), self.plan.ring
        self.tell("words", ring.value_bytes, ring.pack(words[:FIRST])[:FIRST])
        return words

    def own_update(self) -> Update:
        update = Turn.own_update(self)
        self.tell("update", 4, np.asarray(update.values[:FIRST], "<f4").tobytes()[:FIRST])
        return update


def kept(folder: RunDirectory) -> bool:
    """Whether a run has them already."""
    return (folder.coordinator.path / FIRST_BYTES).exists()


class FirstBytes:
    """Watches one attempt of a run, and keeps the first bytes of one upload that came to the server."""

    def __init__(self, folder: RunDirectory) -> None:
        self._folder = folder
        self._sent: dict[ClientId, dict[str, Any]] = {}
        self._received: dict[ClientId, dict[str, Any]] = {}

    def watching(self, name: ClientId, kind: type[ClientSessionBase]) -> type[ClientSessionBase]:
        """``kind``, whose sessions do the same and are looked at before they mask or encrypt."""

        def tell(form: str, value_bytes: int, content: bytes) -> None:
            self._sent[name] = {"form": form, "value-bytes": value_bytes, "bytes": _text(content)}

        class Watched(kind):  # type: ignore[misc, valid-type]
            def _transition(self, step: Step, turn: Turn, body: object) -> Any:
                known = {field.name: getattr(turn, field.name) for field in fields(turn)}
                return super()._transition(step, _Told(**known, tell=tell), body)

        return Watched

    def received(self, phase: str, client: ClientId, message: bytes) -> None:
        """The server was sent this, and took it."""
        if phase in UPLOADS:
            payload = bytes(split(message)[1][:FIRST])
            self._received[client] = {"hospital": client, "phase": phase, "bytes": _text(payload)}

    def keep(self, place: tuple[int, int]) -> None:
        """Write both halves, of the first hospital whose upload was seen whole; nothing if there is none."""
        for name in sorted(self._sent.keys() & self._received.keys())[:1]:
            at = {"round": place[0], "attempt": place[1]}
            write_json(self._folder.site(name).path / FIRST_BYTES, at | self._sent[name])
            write_json(self._folder.coordinator.path / FIRST_BYTES, at | self._received[name])


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
