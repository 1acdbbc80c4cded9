"""Parties that die at any point and come back from their files: the same sum, and never a second answer."""

import itertools
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from secagg_kit import PHASES, SERVER, Federation, identity

from fedvlm_secure.errors import RoundAbortedError
from fedvlm_secure.federation import journal
from fedvlm_secure.federation.journal import ClientJournal, ServerJournal, remembered
from fedvlm_secure.secagg.client import fingerprint
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.server import PairwiseServer

LEAVING = {
    "nobody": {},
    "one in masked-input": {"c02": "masked-input"},
    "too many": {"c00": "shares", "c03": "masked-input"},
} | {f"one in {phase}": {"c02": phase} for phase in PHASES}
CONNECT = sqlite3.connect
FAST = (("nobody", False), ("nobody", True), ("one in masked-input", True), ("too many", False))


class Died(BaseException):
    """Stands for SIGKILL: nothing may catch it on its way out."""


class Reaper:
    """Lets whoever makes the n-th writing commit die, before or after it."""

    def __init__(self) -> None:
        self.commits, self.at, self.when = 0, 0, ""

    def arm(self, at: int, when: str) -> None:
        self.commits, self.at, self.when = 0, at, when

    def connect(self, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        reaper = self

        class Mortal(sqlite3.Connection):
            written = 0

            def commit(self) -> None:
                if self.total_changes == self.written:
                    super().commit()
                    return
                self.written = self.total_changes
                reaper.commits += 1
                if (reaper.commits, reaper.when) == (reaper.at, "before"):
                    raise Died
                super().commit()
                if (reaper.commits, reaper.when) == (reaper.at, "after"):
                    raise Died

        return CONNECT(*args, factory=Mortal, **kwargs)


@pytest.fixture
def reaper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reaper]:
    """Deaths at commits. They lose memory and no disk, so nothing here waits for a disk."""
    reaper = Reaper()
    monkeypatch.setattr(sqlite3, "connect", reaper.connect)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    for form in ("_SERVER", "_CLIENT"):
        durable = getattr(journal, form)
        monkeypatch.setattr(journal, form, replace(durable, settings=f"{durable.settings}; PRAGMA synchronous = OFF"))
    return reaper


class World:
    """One attempt of four parties and a server: what is in memory, and everything that has left a party so far."""

    def __init__(self, folder: Path, silent: Mapping[str, str]) -> None:
        self.federation = Federation(clients=4)
        self.silent = silent
        self.folder = folder
        self.memory: dict[str, Any] = {}
        self.acting = SERVER
        self.sent: dict[tuple[str, str, str], set[bytes]] = defaultdict(set)

    def path(self, party: str) -> Path:
        return self.folder / f"{party}.sqlite"

    def server(self) -> ServerJournal:
        self.acting = SERVER
        if SERVER not in self.memory:
            path, federation = self.path(SERVER), self.federation
            restored = ServerJournal.restore(path, PairwiseServer, identity(SERVER))
            self.memory[SERVER] = restored or ServerJournal.begin(path, federation.server())
        return self.memory[SERVER]

    def client(self, name: str) -> ClientJournal:
        self.acting = name
        if name not in self.memory:
            party, update, place = (
                self.federation.party(name),
                self.federation.updates[name],
                self.federation.plan.place,
            )
            self.memory[name] = ClientJournal(self.path(name), PairwiseClient, party, update, place)
        return self.memory[name]

    def play(self) -> tuple[Any, ...]:
        """The round from where it stands, to what it ends with."""
        while not self.server().done:
            phase = self.server().phase
            for name, request in self.server().requests():
                leaves = self.silent.get(name)
                if leaves is not None and PHASES.index(phase) >= PHASES.index(leaves):
                    continue
                self.sent[phase, SERVER, name].add(request)
                reply = self.client(name).reply(request)
                self.sent[phase, name, SERVER].add(reply)
                self.server().receive(name, reply)
            try:
                self.server().end_phase()
            except RoundAbortedError as reason:
                return reason.clause, reason.phase
        total = self.server().aggregate()
        return total.total.tobytes(), total.survivors, total.dropped

    def play_with_deaths(self, all_die: bool) -> tuple[Any, ...]:
        while True:
            try:
                return self.play()
            except Died:
                self.memory = {} if all_die else {name: s for name, s in self.memory.items() if name != self.acting}

    def messages(self) -> list[tuple[str, str, str]]:
        return [(entry.phase, entry.direction, entry.client) for entry in self.server().transcript.entries]

    def check(self) -> None:
        """No party ever said two things where it may say one; every answer for a vector is remembered on disk."""
        assert all(len(messages) == 1 for messages in self.sent.values())
        for name, update in self.federation.updates.items():
            has_answered = ("unmask", name, SERVER) in self.sent
            assert (fingerprint(update) in remembered(self.path(name), identity(name))[0].answered) == has_answered, (
                name
            )


@pytest.mark.parametrize(
    ("leaving", "all_die"),
    [
        pytest.param(*case, marks=() if case in FAST else pytest.mark.slow)
        for case in itertools.product(LEAVING, (False, True))
    ],
)
def test_a_death_at_every_commit(tmp_path: Path, reaper: Reaper, leaving: str, all_die: bool) -> None:
    silent = LEAVING[leaving]
    (tmp_path / "whole").mkdir()
    whole = World(tmp_path / "whole", silent)
    outcome, commits = whole.play(), reaper.commits
    whole.check()
    assert commits > 20
    if len(outcome) == 3:
        np.testing.assert_array_equal(np.frombuffer(outcome[0], np.int64), whole.federation.expected(outcome[1]))
    for at in range(1, commits + 1):
        for when in ("before", "after"):
            folder = tmp_path / f"{at}-{when}"
            folder.mkdir()
            world = World(folder, silent)
            reaper.arm(at, when)
            assert world.play_with_deaths(all_die) == outcome
            reaper.arm(0, "")
            world.check()
            assert world.messages() == whole.messages()
