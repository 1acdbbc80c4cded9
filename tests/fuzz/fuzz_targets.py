"""What is fuzzed, and what must hold of every outcome. A violation is an AssertionError, or whatever else is raised."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import NoneType
from typing import Any

from fuzz_envelopes import Signed, fold, make_consistent, unfold
from fuzz_mutations import BOMBS, encode_loosely, nearby, spoil_bytes, spoil_tree
from fuzz_scenes import Scene
from secagg_kit import identity

from fedvlm_secure.errors import MisuseError, ProtocolError, RoundAbortedError
from fedvlm_secure.primitives.wire import WireError, decode
from fedvlm_secure.secagg.client import Closed
from fedvlm_secure.secagg.envelope import NETWORK
from fedvlm_secure.secagg.session import SERVER

LONGEST_ERROR = 1000  # characters: an error is one line in a log, whatever a peer has sent
ACCEPTED, MISUSE = "accepted", "misuse"


@dataclass(frozen=True)
class Spoiled:
    """A message, and who has signed something in it that is not genuine."""

    message: bytes
    liars: frozenset[str] = frozenset()


class Target(ABC):
    """One handler in one situation.

    Attributes:
        state: what the receiver has saved; empty if it is a function.
    """

    handler: str
    state: bytes

    @abstractmethod
    def renew(self) -> None:
        """Restore the receiver as it was saved."""

    @abstractmethod
    def spoil(self, rng: random.Random, others: Sequence[bytes]) -> Spoiled:
        """A message to try; ``others`` are genuine ones of other handlers."""

    @abstractmethod
    def hand_over(self, rng: random.Random, spoiled: Spoiled) -> str:
        """Let the handler have it, and check all that must hold; what came of it, in a word."""


class SessionTarget(Target):
    """A client's or the server's next message."""

    def __init__(self, scene: Scene, side: str) -> None:
        self.handler = f"{side}: {scene.title}"
        self.scene = scene
        self.genuine = scene.request if side == "client" else scene.reply
        self._tree = unfold(self.genuine)
        self._names = (*scene.federation.names, "stranger", SERVER, "nobody")

    def spoil(self, rng: random.Random, others: Sequence[bytes]) -> Spoiled:
        if rng.random() < 0.35:
            return Spoiled(spoil_bytes(rng, self.genuine, rng.choice(others)))
        tree: list[Any] = deepcopy(self._tree)
        self._lie(rng, tree)
        if rng.random() < 0.85:
            make_consistent(tree, self.scene.places)
        message, liars = fold(rng, tree)
        if rng.random() < 0.05:
            message = spoil_bytes(rng, message, rng.choice(others))
        return Spoiled(message, frozenset(liars))

    @abstractmethod
    def handle(self, message: bytes) -> object:
        """What the receiver does with a message: its answer, or the error, as a value."""

    def _lie(self, rng: random.Random, tree: list[Any]) -> None:
        """Change something anywhere, or aim: at the body, one field of it, a passed-on envelope, a chunk."""
        envelope, chunks = tree[0], len(tree) - 1
        passed_on = [value for value in _walk(envelope["body"]) if isinstance(value, Signed)]
        aim = rng.random()
        if aim < 0.1:
            spoil_tree(rng, tree, self._names)
        elif aim < 0.13:
            envelope["body"] = rng.choice(BOMBS)
        elif aim < 0.25 and chunks:
            place = rng.randint(1, chunks)
            tree[place] = nearby(rng, tree[place], self._names)
        elif aim < 0.25 and passed_on:
            spoil_tree(rng, rng.choice(passed_on), self._names)
        elif aim < 0.4:
            field = rng.choice(list(envelope["body"]))
            envelope["body"][field] = nearby(rng, envelope["body"][field], self._names)
        else:
            spoil_tree(rng, envelope["body"], self._names)

    def _check_error(self, error: ProtocolError, liars: frozenset[str]) -> None:
        assert not isinstance(error, RoundAbortedError), "a message has ended the round"
        assert error.phase == self.scene.phase, error.phase
        assert error.round in (None, self.scene.federation.plan.place) or SERVER in liars, error.round
        assert len(str(error)) <= LONGEST_ERROR
        # A plan is blamed on the server, though an old one of its own may have been sent once more by somebody else.
        guilty = {NETWORK, *liars, *([SERVER] if error.clause.startswith("P-2.") else [])}
        assert error.party in guilty, f"{error.party} is blamed, {liars} have lied"


class ClientTarget(SessionTarget):
    """A request to a client."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene, "client")
        self.state = scene.client_states[scene.me]

    def renew(self) -> None:
        """See :class:`Target`."""
        self.scene.client = self.scene.new_client(self.scene.me)

    def handle(self, message: bytes) -> bytes | ProtocolError | MisuseError:
        """See :class:`SessionTarget`."""
        try:
            return self.scene.client.reply(message)
        except (ProtocolError, MisuseError) as error:
            return error

    def hand_over(self, rng: random.Random, spoiled: Spoiled) -> str:
        """See :class:`Target`."""
        client = self.scene.client
        reply = self.handle(spoiled.message)
        if isinstance(reply, MisuseError):
            assert client.to_bytes() == self.state
            return MISUSE
        if isinstance(reply, ProtocolError):
            self._check_error(reply, spoiled.liars)
            self._check_refusal(reply, spoiled.liars)
            return reply.clause
        assert client.reply(spoiled.message) == reply, "the same request has two answers"
        self._check_answer(reply)
        self.renew()
        return ACCEPTED

    def _check_refusal(self, error: ProtocolError, liars: frozenset[str]) -> None:
        """The session is unchanged, or closed if the server's own signature was on what breaks a rule after P-2."""
        client = self.scene.client
        if client.to_bytes() == self.state:
            assert error.clause < "P-3", "a rule was broken under the server's signature, and the session goes on"
            return
        assert SERVER in liars, "somebody other than the server has closed the session"
        assert type(client._state) is Closed
        closed = client.to_bytes()
        assert isinstance(self.handle(self.genuine), MisuseError), "a closed session goes on"
        assert client.to_bytes() == closed
        self.renew()

    def _check_answer(self, reply: bytes) -> None:
        body = unfold(reply)[0]["body"]
        if "mask_seed" in body:
            assert not body["mask_seed"].keys() & body["self_mask"].keys(), "both seeds of one client"


class ServerTarget(SessionTarget):
    """A reply to the server."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene, "server")
        self.state = scene.server.to_bytes()

    def renew(self) -> None:
        """See :class:`Target`."""
        self.scene.server = self.scene.new_server()

    def handle(self, message: bytes, sender: str | None = None) -> ProtocolError | MisuseError | None:
        """See :class:`SessionTarget`."""
        try:
            self.scene.server.receive(sender or self.scene.me, message)
        except (ProtocolError, MisuseError) as error:
            return error
        return None

    def hand_over(self, rng: random.Random, spoiled: Spoiled) -> str:
        error, server = self.handle(spoiled.message, self._from(rng)), self.scene.server
        if error is not None:
            assert server.to_bytes() == self.state
            if isinstance(error, MisuseError):
                return MISUSE
            self._check_error(error, spoiled.liars)
            return error.clause
        outcome = self._what_follows(rng)
        self.renew()
        return outcome

    def _from(self, rng: random.Random) -> str:
        """From whom the transport says the message is: rarely from somebody else."""
        return self.scene.me if rng.random() < 0.97 else rng.choice((*self.scene.federation.names, "stranger"))

    def _what_follows(self, rng: random.Random) -> str:
        """What a member may say within the rules must not make anyone fail otherwise than by a rule."""
        state = self.scene.server.to_bytes()
        assert self.scene.new_server().from_bytes(state, identity(SERVER)).to_bytes() == state
        if rng.random() > 0.02:
            return ACCEPTED
        try:
            self.scene.play_on(on_fault=lambda fault: None)
        except ProtocolError as error:
            return f"{ACCEPTED}, later {error.clause}"
        finally:
            self.scene.client = self.scene.new_client(self.scene.me)
        return f"{ACCEPTED}, and finished"


@dataclass
class ParserTarget(Target):
    """A function that reads foreign or saved bytes.

    Attributes:
        genuine: bytes that it reads.
        read: reads, and checks what it has read.
        errors: all that it may raise.
        inside: the fields of which the bytes are CBOR in turn.
        seal: makes changed values good again, by a signature for instance.
    """

    handler: str
    genuine: bytes
    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = (WireError,)
    inside: tuple[str, ...] = ()
    seal: Callable[[Any], None] = lambda value: None
    state: bytes = b""

    def renew(self) -> None:
        """Nothing is kept."""

    def spoil(self, rng: random.Random, others: Sequence[bytes]) -> Spoiled:
        choice = rng.random()
        if choice < 0.02:
            return Spoiled(rng.choice(BOMBS))
        tree = self._tree() if choice > 0.5 else None
        if not isinstance(tree, dict):
            return Spoiled(spoil_bytes(rng, self.genuine, rng.choice(others)))
        parts = [tree, *(value for value in tree.values() if isinstance(value, dict) and value)]
        spoil_tree(rng, rng.choice(parts), ("c00", "c01", "server", "keys"))
        for name in self.inside:
            if not isinstance(tree.get(name), bytes | NoneType):
                tree[name] = encode_loosely(rng, tree[name])
        self.seal(tree)
        return Spoiled(encode_loosely(rng, tree))

    def _tree(self) -> Any:
        try:
            tree = decode(self.genuine)
        except WireError:
            return None  # a parcel, or a whole message
        for name in self.inside:
            tree[name] = decode(tree[name]) if tree[name] else b""
        return tree

    def hand_over(self, rng: random.Random, spoiled: Spoiled) -> str:
        try:
            self.read(spoiled.message)
        except self.errors as error:
            return getattr(error, "clause", type(error).__name__)
        return ACCEPTED


def _walk(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value, *(found for item in inner for found in _walk(item))]
