"""Real processes on loopback: a SuperLink and SuperNodes, TLS and node authentication on."""

import os
import re
from pathlib import Path

import pytest
import safetensors.numpy

from fedvlm_secure.engines import local
from fedvlm_secure.engines.flower.network import Network
from fedvlm_secure.engines.flower.node import Node
from fedvlm_secure.federation.rundir import RunDirectory
from fedvlm_secure.federation.settings import Settings

APP = Path(__file__).parents[2] / "examples/hospitals"
SITES = ("site-a", "site-b", "site-c", "site-d")
ROUNDS = 3

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]


def test_three_rounds_over_four_supernodes_end_where_the_local_engine_does(
    tmp_path: Path, model_folder: Path, data_folder: Path
) -> None:
    quick = [f"model={model_folder}", f"data={data_folder}", f"rounds={ROUNDS}", "threads=1", "name=t"]
    small = ["training.steps=2", "training.batch-size=8", "adapter.rank=2", "aggregation.rounding=nearest"]
    settings = Settings.from_tables({}, [*quick, *small])
    network = Network(tmp_path / "net", SITES, {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"})
    network.make_keys()
    for name in ("server", *SITES):
        (network.party(name) / "settings.toml").write_text(settings.to_toml())
    for name in SITES:
        (network.party(name) / "hospital.toml").write_text(f'data = "{data_folder}"\nsites = ["{name}"]\n')
    with network:
        server = network.party("server")
        number = network.run(APP, {"folder": str(server), "arrival-seconds": 60, "reply-seconds": 60})
        assert network.wait(number, 600) == "finished:completed", network.log("superlink").read_text()[-4000:]
    run = server / "runs/t"
    RunDirectory(run).verify_manifest()
    local.run(settings, tmp_path / "local")
    after = safetensors.numpy.load_file(run / f"coordinator/global/round-{ROUNDS:04d}.safetensors")
    expected = safetensors.numpy.load_file(tmp_path / f"local/coordinator/global/round-{ROUNDS:04d}.safetensors")
    assert {name: value.tobytes() for name, value in after.items()} == {n: v.tobytes() for n, v in expected.items()}
    assert_nothing_of_a_hospital_is_at_the_server(network)


def assert_nothing_of_a_hospital_is_at_the_server(network: Network) -> None:
    """Byte by byte: the SuperLink's database and logs, Flower's folder, the run directory."""
    places = [network.folder / "superlink.sqlite", *network.folder.glob("superlink.sqlite-*")]
    places += [path for place in ("logs", "flwr") for path in (network.folder / place).rglob("*") if path.is_file()]
    places += [path for path in network.party("server").rglob("*") if path.is_file()]
    kept = b"".join(path.read_bytes() for path in places if not re.search("superlink.sqlite-shm", path.name))
    for name in SITES:
        folder, node = network.party(name), Node(network.party(name))
        secrets = [node.identity.seed.reveal()]
        adapter = safetensors.numpy.load_file(folder / "runs/t/adapter/adapter_model.safetensors")
        secrets += [value.tobytes()[:64] for tensor, value in adapter.items() if "lora_A" in tensor]
        assert not any(secret in kept for secret in secrets), name
