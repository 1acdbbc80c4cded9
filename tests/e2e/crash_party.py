"""One party as a process, ``crash_party.py NAME FOLDER``, that test_crash_processes.py starts and kills.

The server asks, clients answer over Unix sockets in FOLDER; whoever is not there is asked again until it is. What a
party sends it first notes in NAME.sent, one line a message. Read here only, from the environment:

    DIE_AT, DIE_WHEN   kill this process at its n-th writing commit, "before" or "after" it
    PAUSE              seconds to wait before each message, so that kills from outside find something to hit
"""

import hashlib
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "secagg"))

from secagg_kit import SERVER, Federation, identity

from fedvlm_secure.federation.journal import ClientJournal, ServerJournal
from fedvlm_secure.files import write_json
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.pairwise.server import PairwiseServer

FEDERATION = Federation(clients=4)


class Mortal(sqlite3.Connection):
    """Kills its process at the n-th commit that writes something."""

    written = 0
    commits = 0

    def commit(self) -> None:
        if self.total_changes == self.written:
            super().commit()
            return
        self.written = self.total_changes
        Mortal.commits += 1
        due = Mortal.commits == int(os.environ.get("DIE_AT", "0"))
        if due and os.environ["DIE_WHEN"] == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        super().commit()
        if due:
            os.kill(os.getpid(), signal.SIGKILL)


def make_mortal() -> None:
    """From here on every database of this process is."""
    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **named: connect(*args, factory=Mortal, **named)


def note(name: str, phase: str, recipient: str, message: bytes) -> None:
    """A line that is in the file, whatever happens to this process, before the message leaves."""
    time.sleep(float(os.environ.get("PAUSE", "0")))
    with Path(f"{name}.sent").open("a") as file:
        file.write(json.dumps([phase, recipient, hashlib.sha256(message).hexdigest()]) + "\n")


def send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(len(message).to_bytes(8) + message)


def receive(connection: socket.socket) -> bytes:
    with connection.makefile("rb") as file:
        size = int.from_bytes(file.read(8))
        message = file.read(size)
    if not message or len(message) < size:
        raise ConnectionError("cut short")
    return message


def ask(client: str, request: bytes) -> bytes:
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(f"{client}.sock")
                send(connection, request)
                return receive(connection)
            except OSError:
                time.sleep(0.01)


def serve(name: str) -> None:
    party, update, place = FEDERATION.party(name), FEDERATION.updates[name], FEDERATION.plan.place
    session = ClientJournal(Path(f"{name}.sqlite"), PairwiseClient, party, update, place)
    Path(f"{name}.sock").unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{name}.sock")
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    request = receive(connection)
                except OSError:
                    continue
                reply = session.reply(request)
                note(name, hashlib.sha256(request).hexdigest(), SERVER, reply)
                try:
                    send(connection, reply)
                except OSError:
                    continue


def coordinate() -> None:
    path = Path("server.sqlite")
    session = ServerJournal.restore(path, PairwiseServer, identity(SERVER))
    if session is None:
        session = ServerJournal.begin(path, FEDERATION.server())
    while not session.done:
        for client, request in session.requests():
            note(SERVER, session.phase, client, request)
            session.receive(client, ask(client, request))
        session.end_phase()
    total = session.aggregate()
    write_json(Path("sum.json"), {"total": total.total.tolist(), "survivors": total.survivors})


if __name__ == "__main__":
    os.chdir(sys.argv[2])
    make_mortal()
    coordinate() if sys.argv[1] == SERVER else serve(sys.argv[1])
