"""Processes that are killed, keys that are not the right ones, a network that changes bytes: over real SuperNodes."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from network_kit import APP, SITES, assert_exact, begin, kill_server, learnt

from fedvlm_secure.engines.flower.network import Network
from fedvlm_secure.engines.flower.node import KEY, ROSTER
from fedvlm_secure.federation import keyfile
from fedvlm_secure.files import write
from fedvlm_secure.primitives.signing import Identity
from fedvlm_secure.secagg.roster import NEVER, Roster, read_roster, sign_roster

EXAMPLE = Path(__file__).parents[2] / "examples/numpy_model"
PATIENCE = 400.0  # seconds for a run to end
DONE = "finished:completed"

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]


class Seen(Exception):  # noqa: N818  # nothing is wrong
    """The server's log has come to a line."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Network(tmp_path_factory.mktemp("network"), SITES) as network:
        yield network


def until(network: Network, number: str, what: str) -> None:
    """Return as soon as the server logs ``what``."""

    def look(line: str) -> None:
        if re.search(what, line):
            raise Seen

    with pytest.raises(Seen):
        network.wait(number, PATIENCE, look)


def test_supernodes_that_are_killed_in_a_round_and_come_back(network: Network) -> None:
    """In four rounds: one killed after its keys, one after its upload, one before it trains, none."""
    killed: list[str] = []
    events: dict[str, Callable[[], None]] = {
        "1.1 keys": lambda: network.kill("site-a"),
        "1.1 unmask": lambda: network.start("site-a"),
        "2.1 masked-input": lambda: network.kill("site-b"),
        "2.1 unmask": lambda: (network.start("site-b"), network.kill("site-c")),  # type: ignore[dict-item]
        "3.1 unmask": lambda: network.start("site-c"),
    }

    def act(line: str) -> None:
        for event in [event for event in events if f"round {event}:" in line]:
            events.pop(event)()
            killed.append(event)

    assert network.wait(begin(network, 4), 2 * PATIENCE, act) == DONE
    assert len(killed) == 5
    survivors = [assert_exact(network, round_index) for round_index in (1, 2, 3, 4)]
    assert "site-a" not in survivors[0]
    assert "site-b" in survivors[1]  # it had uploaded
    assert "site-c" not in survivors[2]
    assert survivors[3] == list(SITES)


def test_a_server_that_is_killed_in_every_phase_ends_with_one_exact_sum(network: Network) -> None:
    done = len(learnt(network))
    for phase in (r"node \d+ is site-", " keys: ", " shares: ", " masked-input: ", " consistency: "):
        until(network, begin(network, 1), phase)
        kill_server(network)
    assert network.wait(begin(network, 1), PATIENCE) == DONE
    assert assert_exact(network, done + 1) == list(SITES)
    # Killed before anybody was asked, and in four phases after that: everybody trained once.
    assert [len(list((network.party(name) / "kept").glob(f"round-{done + 1:04d}-*"))) for name in SITES] == [1] * 4


def test_a_superlink_that_is_killed_goes_on_with_its_database(network: Network) -> None:
    done = len(learnt(network))
    until(network, begin(network, 1), " keys: ")
    network.kill("superlink")
    network.start_superlink()
    assert network.wait(begin(network, 1), PATIENCE) == DONE
    assert assert_exact(network, done + 1) == list(SITES)


@pytest.mark.parametrize("phase", ["keys", "shares", "unmask"])
def test_who_is_sent_changed_bytes_refuses_and_the_others_go_on(network: Network, phase: str) -> None:
    done, log = len(learnt(network)), network.log("site-b")
    said = len(log.read_text())
    assert network.wait(begin(network, 1, tamper=f"site-b:{phase}"), PATIENCE) == DONE
    survivors = assert_exact(network, done + 1)
    assert {"site-a", "site-c", "site-d"} <= set(survivors)
    assert ("site-b" in survivors) == (phase == "unmask")
    assert re.search(r"refused: .*violates P-", log.read_text()[said:])


def test_a_hospital_whose_key_is_not_on_the_roster_is_left_out(network: Network) -> None:
    done, own = len(learnt(network)), network.party("site-d") / KEY
    right = own.read_bytes()
    own.unlink()
    keyfile.create(own)
    try:
        assert network.wait(begin(network, 1), PATIENCE) == DONE
    finally:
        own.unlink()
        write(own, right, 0o600)
    assert assert_exact(network, done + 1) == ["site-a", "site-b", "site-c"]
    assert "does not list this hospital's key" in network.log("site-d").read_text()


def test_a_supernode_whose_connection_key_is_not_registered_is_not_let_in(network: Network) -> None:
    stranger = network.party("stranger")
    shutil.copytree(network.party("site-d"), stranger)
    (stranger / "supernode.key").unlink()
    network.make_supernode_key("stranger")
    network.start("stranger")
    try:
        assert network.processes["stranger"].wait(60) != 0
    finally:
        network.kill("stranger")
    assert "Failed to activate SuperNode" in network.log("stranger").read_text()


def test_a_server_with_another_key_gets_nothing(network: Network) -> None:
    """Not even with a roster of its own making that names all the hospitals."""
    impostor, before = network.party("impostor"), updates_kept(network)
    own, consortium = keyfile.create(impostor / KEY), Identity.generate()
    members = read_roster((network.party("server") / ROSTER).read_bytes()).members
    write(impostor / ROSTER, sign_roster(Roster(consortium.public, 1, NEVER, own.public, members), consortium))
    said: list[str] = []
    number = network.run(APP, {"folder": str(impostor), "rounds": 1, "seconds": 60})
    assert network.wait(number, PATIENCE, said.append) == "finished:failed"
    assert not (impostor / "learnt.jsonl").exists()
    assert updates_kept(network) == before  # nobody has trained for it
    for name in SITES:
        assert any(re.search(f"{name} refuses in keys: .*violates P-", line) for line in said), name


def updates_kept(network: Network) -> int:
    """By all hospitals together."""
    return len(list(network.folder.glob("parties/*/kept/*.npy")))


def test_ten_million_numbers_pass(network: Network) -> None:
    """Flower carries them in pieces below the limits of its transport."""
    done = len(learnt(network))
    assert network.wait(begin(network, 1, size=10_000_000, seconds=240), 2 * PATIENCE) == DONE
    assert assert_exact(network, done + 1) == list(SITES)


def test_the_numpy_example_runs_as_it_is(network: Network) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3))
    for name in SITES:
        target = rows @ np.array([1.0, -2.0, 0.5])
        np.savetxt(network.party(name) / "rows.csv", np.column_stack([rows, target]), delimiter=",")
    folder = network.party("server").with_name("numpy-server")
    for name in (KEY, ROSTER):
        write(folder / name, (network.party("server") / name).read_bytes(), 0o600)
    said: list[str] = []
    assert network.wait(network.run(EXAMPLE, {"folder": str(folder), "rounds": 2}), PATIENCE, said.append) == DONE
    told = next(line for line in said if re.match(r"\[ ?0\.", line))
    weights = np.zeros(3)
    for _ in range(2):
        weights -= 0.1 * rows.T @ (rows @ weights - target) / len(rows)
    assert np.allclose([float(number) for number in re.findall(r"-?\d+\.\d+", told)[:3]], weights, atol=2e-3)
