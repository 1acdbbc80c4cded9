"""Attacks that ask twice: replayed plans, clients that come back from a crash, vectors that were already answered for.

Each runs twice: with its rules off, and no others, a vector or the difference of two comes out; with them on the client
refuses.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from attacker import (
    ALL,
    BUT_VICTIM,
    HONEST_PEERS,
    VICTIM,
    Attacker,
    assert_difference,
    assert_exposed,
    attack,
    refuses,
)
from secagg_kit import Federation, Table, play

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.journal import ClientJournal
from fedvlm_secure.primitives import entropy
from fedvlm_secure.secagg import client as client_module
from fedvlm_secure.secagg import policy
from fedvlm_secure.secagg.pairwise import messages as m
from fedvlm_secure.secagg.pairwise.client import PairwiseClient
from fedvlm_secure.secagg.session import Memory, RingSum


@pytest.fixture
def federation() -> Federation:
    return Federation(clients=6)


def train_again(federation: Federation) -> None:
    values, counters = federation.updates[VICTIM].values, federation.updates[VICTIM].counters
    federation.updates[VICTIM] = Update(values[::-1].copy(), counters)


@contextmanager
def restored_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a virtual machine that was copied or set back: the system's randomness starts over."""
    with monkeypatch.context() as patch:
        draws = count()
        patch.setattr(entropy, "random_bytes", lambda size: hashlib.shake_256(str(next(draws)).encode()).digest(size))
        yield


def replayed_plan(
    federation: Federation, randomness: Callable[[], AbstractContextManager[None]], **changes: int
) -> np.ndarray:
    """Replayed round: the difference of the victim's two masked vectors.

    Move: after the upload the victim is gone, and has trained again when it comes back. The server sends it the same
    plan, and then, without troubling anyone else, what its peers said the first time. ``changes`` are to the plan.
    Rule: P-2.7, each plan later than the last begun. P-3.1 with P-4.4 stands behind it: the seeds are drawn anew, so
    the key list is another, for which the peers' parcels are not.
    Learnt when P-2.7 is off and the randomness repeats: the difference of the two updates, all masks being the same.
    """
    attacker = attack(federation)
    with randomness():
        attacker.collect_keys(VICTIM)
    for name in BUT_VICTIM:
        attacker.collect_keys(name)
    for name in ALL:
        attacker.collect_parcels(name)
    first = attacker.collect_upload(VICTIM)

    federation.memories[VICTIM] = attacker.clients[VICTIM].memory
    federation.plan = replace(federation.plan, **changes)
    train_again(federation)
    attacker.clients[VICTIM] = federation.client(VICTIM)
    with randomness():
        attacker.collect_keys(VICTIM)
    attacker.ask(m.SHARES, VICTIM, attacker.key_list(VICTIM))
    return federation.plan.ring.to_signed(first - attacker.collect_upload(VICTIM))


def test_replayed_plan_off(federation, monkeypatch):
    monkeypatch.setattr(policy, "_is_news", lambda plan, memory: True)
    before = federation.updates[VICTIM]
    difference = replayed_plan(federation, partial(restored_machine, monkeypatch))
    assert_difference(federation, difference, before, federation.updates[VICTIM])


@pytest.mark.parametrize("place", [{}, {"attempt": 1}, {"round": 2, "attempt": 9}], ids=["same", "attempt", "round"])
def test_replayed_plan_on(federation, monkeypatch, place):
    randomness = partial(restored_machine, monkeypatch)
    refuses(federation, lambda: replayed_plan(federation, randomness, **place), "P-2.7", m.KEYS)


def test_replayed_plan_to_a_client_with_fresh_seeds(federation, monkeypatch):
    monkeypatch.setattr(policy, "_is_news", lambda plan, memory: True)
    refuses(federation, lambda: replayed_plan(federation, nullcontext), "P-4.4", m.MASKED_INPUT)


def test_repeated_randomness_in_the_next_attempt(federation, monkeypatch):
    """The attempt is bound into every key and mask: nothing that was said in the last one fits."""
    randomness = partial(restored_machine, monkeypatch)
    refuses(federation, lambda: replayed_plan(federation, randomness, attempt=3), "P-1.3", m.SHARES)


class Restarts:
    """Clients with files, who come back from them."""

    def __init__(self, attacker: Attacker, folder: Path, names: tuple[str, ...]) -> None:
        self.attacker = attacker
        self.paths = {name: folder / name for name in names}
        self.start()

    def start(self) -> None:
        federation = self.attacker.federation
        for name, path in self.paths.items():
            self.attacker.clients[name] = ClientJournal(
                path, PairwiseClient, federation.party(name), federation.updates[name], federation.plan.place
            )

    def copies(self) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in self.paths.items()}

    def start_from(self, copies: dict[str, bytes]) -> None:
        """P-1.7 off: an old copy takes the place of the file, and the client forgets what it has answered since."""
        for name, path in self.paths.items():
            path.write_bytes(copies[name])
        self.start()


def with_files(federation: Federation, folder: Path, names: tuple[str, ...]) -> tuple[Attacker, Restarts]:
    attacker = attack(federation)
    return attacker, Restarts(attacker, folder, names)


def withheld_parcels(attacker: Attacker, come_back: Callable[[], None]) -> None:
    """Replayed attempt after a crash, in `masked-input`.

    Move: the victim uploads, crashes, and is asked again, each time with another peer's parcel left out. The attempt
    then ends as it should, with the victim a survivor.
    Rule: P-1.7, on disk before the reply leaves: the identical request gets the identical bytes, any other a refusal.
    Learnt when off: two masked vectors differ by one pair mask, so all of them; the self mask comes out anyway. Hence
    the victim's update and weight.
    """
    whole = attacker.collect_upload(VICTIM)
    pair_masks = np.zeros_like(whole)
    for peer in BUT_VICTIM:
        come_back()
        pair_masks += whole - attacker.collect_upload(VICTIM, without=(peer,))
    attacker.uploads[VICTIM], attacker.masked_with[VICTIM] = whole - pair_masks, []
    attacker.unmask(ALL, HONEST_PEERS)


def test_withheld_parcels_off(federation, tmp_path):
    attacker, restarts = with_files(federation, tmp_path, (VICTIM,))
    attacker.until_uploads(late=(VICTIM,))
    copies = restarts.copies()
    withheld_parcels(attacker, lambda: restarts.start_from(copies))
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


def test_withheld_parcels_on(federation, tmp_path):
    attacker, restarts = with_files(federation, tmp_path, (VICTIM,))
    attacker.until_uploads()
    upload = attacker.uploads[VICTIM]
    restarts.start()
    np.testing.assert_array_equal(attacker.collect_upload(VICTIM), upload)
    refuses(federation, lambda: withheld_parcels(attacker, restarts.start), "P-1.4", m.CONSISTENCY, "network")


def two_lists(attacker: Attacker, come_back: Callable[[], None]) -> None:
    """Replayed attempt after a crash, in `consistency` and `unmask`.

    Move: three clients answer for everyone, crash, and are told that the victim did not survive.
    Rule: P-1.7 with P-6.2 and P-7.5: one list, one answer, also after a crash.
    Learnt when off: shares of both kinds from the same three clients, hence the victim's update and weight.
    """
    attacker.unmask(ALL, HONEST_PEERS[:3])
    come_back()
    attacker.unmask(BUT_VICTIM, HONEST_PEERS[:3])


def test_two_lists_off(federation, tmp_path):
    attacker, restarts = with_files(federation, tmp_path, HONEST_PEERS)
    attacker.until_uploads()
    copies = restarts.copies()
    two_lists(attacker, lambda: restarts.start_from(copies))
    assert_exposed(federation, VICTIM, attacker.vector_of(VICTIM))


def test_two_lists_on(federation, tmp_path):
    attacker, restarts = with_files(federation, tmp_path, HONEST_PEERS)
    attacker.until_uploads()
    attacker.consent("c04", ALL)
    restarts.start()
    refuses(federation, lambda: attacker.consent("c04", BUT_VICTIM), "P-1.4", m.UNMASK, "network")
    with pytest.raises(MisuseError, match="session is over"):
        two_lists(attacker, restarts.start)


def another_update(federation: Federation, folder: Path) -> np.ndarray:
    """Replayed attempt after a crash, with a new update: the difference of the victim's two masked vectors.

    Move: the victim comes back from a copy made before its upload, and has trained again meanwhile.
    Rule: P-7.5, a session knows its update by fingerprint, and goes on with no other.
    Learnt when off: the difference of the two updates.
    """
    attacker, restarts = with_files(federation, folder, (VICTIM,))
    attacker.until_uploads(late=(VICTIM,))
    copies = restarts.copies()
    first = attacker.collect_upload(VICTIM)
    train_again(federation)
    restarts.start_from(copies)
    return federation.plan.ring.to_signed(first - attacker.collect_upload(VICTIM))


def test_another_update_off(federation, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "fingerprint", lambda update: bytes(32))
    before = federation.updates[VICTIM]
    difference = another_update(federation, tmp_path)
    assert_difference(federation, difference, before, federation.updates[VICTIM])


def test_another_update_on(federation, tmp_path):
    with pytest.raises(MisuseError, match="opened with another update"):
        another_update(federation, tmp_path)


def forget(memory: Memory) -> Memory:
    """P-7.5 off: the client no longer knows for what it has answered."""
    return replace(memory, answered=())


def answered_vectors(federation: Federation, remember: Callable[[Memory], Memory]) -> tuple[RingSum, RingSum]:
    """Second attempt with already answered vectors.

    Move: an attempt ends well. The server says that it did not, and proposes the next one, in which it asks everyone
    but the victim. Nobody has anything else to send yet.
    Rule: P-7.5, an update that an answer covered is never sent again.
    Learnt when off: the victim's update and weight, as the difference of two honest sums.
    """
    table = federation.table()
    first = table.finish()
    federation.memories = {name: remember(client.memory) for name, client in table.clients.items()}
    federation.plan = replace(federation.plan, attempt=3)
    return first, play(federation, {VICTIM: m.KEYS})


def test_answered_vectors_off(federation):
    first, second = answered_vectors(federation, forget)
    assert_exposed(federation, VICTIM, first.total - second.total)


def test_answered_vectors_on(federation):
    with pytest.raises(MisuseError, match=r"already unmasked \(P-7\.5\)"):
        answered_vectors(federation, lambda memory: memory)


def overtaken_attempt(federation: Federation, remembers: bool) -> tuple[RingSum, RingSum]:
    """The same with the two attempts side by side.

    Move: the first attempt is left when all that is missing are the answers; the second, without the victim, ends well.
    Then the first goes on, with clients that come back from a crash.
    Rule: P-7.5, a session comes back only if nothing has been begun since.
    Learnt when off: the victim's update and weight.
    """
    first: Table = federation.table().play_until(m.UNMASK)
    saved = {name: client.to_bytes() for name, client in first.clients.items()}
    federation.memories = {name: client.memory for name, client in first.clients.items()}
    federation.plan = replace(federation.plan, attempt=3)
    second = federation.table()
    sum_without_victim = second.play_until("done", {VICTIM: m.KEYS}).server.aggregate()
    for name, client in second.clients.items():
        memory = client.memory if remembers else None
        party, update = federation.party(name), federation.updates[name]
        first.clients[name] = PairwiseClient.from_bytes(saved[name], party, update, memory)
    return first.finish(), sum_without_victim


def test_overtaken_attempt_off(federation):
    first, second = overtaken_attempt(federation, remembers=False)
    assert_exposed(federation, VICTIM, first.total - second.total)


def test_overtaken_attempt_on(federation):
    with pytest.raises(MisuseError, match=r"overtaken by a later attempt \(P-7\.5\)"):
        overtaken_attempt(federation, remembers=True)
