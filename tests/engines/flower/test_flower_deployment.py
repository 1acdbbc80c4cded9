"""What ``run --engine flower`` hands to the parties, and what it says of the server's log."""

import tomllib
from pathlib import Path

import pytest
from flower_kit import NAMES, found

from fedvlm_secure.engines.flower import deployment
from fedvlm_secure.engines.flower.network import Network, free_ports
from fedvlm_secure.engines.flower.node import SIMULATED_VARIABLE, Node
from fedvlm_secure.engines.observer import Observer
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.floors import policy_of
from fedvlm_secure.federation.settings import Settings


class Heard(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def logged(self, what: str) -> None:
        self.lines.append(what)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    monkeypatch.chdir(tmp_path)
    made = Network(tmp_path / "net", NAMES)
    made.make_keys()
    return made


@pytest.mark.parametrize("protocol", ["pairwise", "bfv", "ckks"])
def test_hospitals_accept_what_the_settings_propose(network: Network, protocol: str) -> None:
    settings = Settings.from_tables({}, [f"aggregation.protocol={protocol}"])
    deployment.outfit(network, settings)
    for name in NAMES:
        policy, wanted = Node(network.party(name)).policy, policy_of(settings)
        assert (policy.protocols, policy.max_corrupt) == (wanted.protocols, wanted.max_corrupt)


def test_a_name_of_ours_is_not_a_folder_and_a_folder_holds_from_everywhere(network: Network, tmp_path: Path) -> None:
    for name in ("hospitals", "embedded", "rows"):
        (tmp_path / name).mkdir()
    deployment.outfit(network, Settings())
    own = tomllib.loads((network.party(NAMES[0]) / "hospital.toml").read_text())
    assert (own["data"], own["sites"]) == ("hospitals", [NAMES[0]])
    assert Settings.from_toml(network.party("server") / "settings.toml").model == "embedded"
    deployment.outfit(network, Settings.from_tables({"data": dict.fromkeys(NAMES, "rows")}))
    own = tomllib.loads((network.party(NAMES[0]) / "hospital.toml").read_text())
    assert own["data"] == {NAMES[0]: str(tmp_path / "rows")}


def test_keys_that_were_made_halfway_are_completed(network: Network) -> None:
    identity = (network.party("server") / "identity.key").read_bytes()
    (network.party(NAMES[-1]) / "roster.cbor").unlink()
    (network.party(NAMES[-1]) / "supernode.key").unlink()
    network.make_keys()
    assert (network.party("server") / "identity.key").read_bytes() == identity
    assert {Node(network.party(name)).roster.hash for name in NAMES} == {Node(network.party(NAMES[0])).roster.hash}
    assert (network.party(NAMES[-1]) / "supernode.key").exists()
    assert network.folder.stat().st_mode & 0o077 == 0


def test_of_the_servers_log_a_person_sees_what_is_about_the_run() -> None:
    heard = Heard()
    log = deployment.Log(heard)
    for line in (
        "\x1b[92mINFO \x1b[0m:      round 1.1 keys: 2.0 s",
        "\x1b[92mINFO \x1b[0m:      Starting Flower ServerApp",
        "\x1b[93mWARNING \x1b[0m:   site-a refuses in keys: no",
        "\x1b[92mINFO \x1b[0m:      3 of 3 hospitals have taken over the result",
        "Traceback (most recent call last):",
        '  File "/a/b.py", line 3, in main',
    ):
        log.line(line)
    assert heard.lines == [
        "round 1.1 keys: 2.0 s",
        "site-a refuses in keys: no",
        "3 of 3 hospitals have taken over the result",
    ]
    assert log.reason.endswith('(most recent call last): | File "/a/b.py", line 3, in main')


def test_simulated_nodes_are_the_folders_that_the_machine_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found(tmp_path)
    with pytest.raises(MisuseError, match="--node-config"):
        Node.of({"partition-id": 1, "num-partitions": len(NAMES)})
    monkeypatch.setenv(SIMULATED_VARIABLE, str(tmp_path))
    for number, name in enumerate(NAMES):
        assert Node.of({"partition-id": number, "num-partitions": len(NAMES)}).name == name
    with pytest.raises(MisuseError, match="simulate as many"):
        Node.of({"partition-id": 0, "num-partitions": 3})
    assert Node.of({"folder": str(tmp_path / NAMES[2]), "partition-id": 0}).name == NAMES[2]


@pytest.mark.enable_socket
def test_free_ports_are_different_and_out_of_the_way() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert all(1024 < port < 32768 for port in ports)
