"""Real processes on loopback: a SuperLink and SuperNodes, TLS and node authentication on."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fedvlm_secure.audit.run import audit_run
from fedvlm_secure.engines import local
from fedvlm_secure.engines.flower import deployment
from fedvlm_secure.engines.flower.network import Network
from fedvlm_secure.engines.flower.node import Node, Prepared
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.rundir import DEPLOYMENT
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.transcript import Transcript

SITES = ("site-a", "site-b", "site-c", "site-d")
ROUNDS = 3
PAGE = 4096  # bytes, of SQLite

pytestmark = [pytest.mark.slow, pytest.mark.enable_socket]

Updates = dict[tuple[int, str], Prepared]  # by round and hospital


def test_three_rounds_over_four_supernodes_end_where_the_local_engine_does(
    tmp_path: Path, model_folder: Path, data_folder: Path
) -> None:
    quick = [f"model={model_folder}", f"data={data_folder}", f"rounds={ROUNDS}", "threads=1", "name=t"]
    small = ["training.steps=2", "training.batch-size=8", "adapter.rank=2", "aggregation.rounding=nearest"]
    settings = Settings.from_tables({}, [*quick, *small])
    network = Network(tmp_path / "run" / DEPLOYMENT, SITES)
    with watched(network) as (updates, pages):
        result = deployment.run(settings, tmp_path / "run")
    verdict = audit_run(result.folder, sorted(result.folder.glob("sites/*/log.cbor")))
    assert (verdict.failed, verdict.covered) == (False, SITES)
    assert [row.site for row in result.sites] == list(SITES)
    expected = local.run(settings, tmp_path / "local")
    assert [row.final for row in result.sites] == [row.final for row in expected.sites]
    for round_index in range(ROUNDS + 1):
        mine, other = (shared_after(folder, round_index) for folder in (result.folder, expected.folder))
        assert mine.tobytes() == other.tobytes()
    for round_index in range(1, ROUNDS + 1):
        assert_the_sum_is_of_what_hospitals_logged(result.folder, round_index, updates)
    assert_nothing_of_a_hospital_is_at_the_server(network, updates, b"".join(pages))


@contextmanager
def watched(network: Network) -> Iterator[tuple[Updates, set[bytes]]]:
    """What appears meanwhile: updates as hospitals keep them, sealed in their own folders; the SuperLink's database.

    The database as pages: Flower deletes what has been answered, so that one look in the end would not do.
    """
    updates, pages, over = Updates(), set[bytes](), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            for name, first, length in (("superlink.sqlite", 0, PAGE), ("superlink.sqlite-wal", 32, 24 + PAGE)):
                with suppress(OSError):
                    content = (network.folder / name).read_bytes()
                    pages.update(content[at : at + length][-PAGE:] for at in range(first, len(content), length))
            for name in network.names:
                try:
                    prepared = Node(network.party(name)).prepared()
                except (MisuseError, OSError):
                    continue  # not yet
                if prepared is not None:
                    updates[prepared.place[0], name] = prepared

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield updates, pages
    finally:
        over.set()
        thread.join()


def assert_the_sum_is_of_what_hospitals_logged(run: Path, round_index: int, updates: Updates) -> None:
    """As integers: their encodings' sum, decoded, is what the shared state moved by."""
    record = run / f"coordinator/transcript/round-{round_index:04d}-attempt-1.cbor"
    codec = unpack(Plan, Transcript.from_bytes(record.read_bytes()).plan, STATE_LIMITS).codec
    encoded = [codec.encode(updates[round_index, name].update).integers for name in SITES]
    decoded = codec.decode(np.sum(encoded, axis=0))
    moved = shared_after(run, round_index) - shared_after(run, round_index - 1)
    np.testing.assert_allclose(moved, decoded.mean, rtol=0, atol=1e-6)
    assert np.abs(decoded.mean).max() > 1e-4


def assert_nothing_of_a_hospital_is_at_the_server(network: Network, updates: Updates, database: bytes) -> None:
    """Byte by byte: the SuperLink's database and logs, Flower's folder, all that the server's folder holds."""
    places = list[Path]()
    for place in (network.folder / "logs", network.folder / "flwr", network.party("server")):
        places += [path for path in place.rglob("*") if path.is_file()]
    shared = shared_after(network.party("server") / "runs/t", 1).tobytes()
    assert any(shared[at : at + 16] in database for at in range(0, len(shared), 256))  # this search finds what is there
    kept = database + b"".join(path.read_bytes() for path in places)
    for name in SITES:
        folder = network.party(name)
        secrets = [Node(folder).identity.seed.reveal()]
        adapter = safetensors.numpy.load_file(folder / "runs/t/adapter/adapter_model.safetensors")
        secrets += [value.tobytes()[:32] for tensor, value in adapter.items() if "lora_A" in tensor]
        secrets += re.findall(rb"\d+\.\d{9,}", (folder / "runs/t/metrics.jsonl").read_bytes())
        for round_index in range(1, ROUNDS + 1):
            values = updates[round_index, name].values
            secrets += [values[at : at + 16] for at in range(0, len(values) - 16, 256)]
        assert not any(secret in kept for secret in secrets if any(secret)), name


def shared_after(run: Path, round_index: int) -> np.ndarray:
    tensors = safetensors.numpy.load_file(run / f"coordinator/global/round-{round_index:04d}.safetensors")
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])
