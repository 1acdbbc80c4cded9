"""A real network whose hospitals keep copies of their updates, and whether its sums are those updates' sums."""

import json
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil

from fedvlm_secure.encoding.codec import Update
from fedvlm_secure.engines.flower.network import SERVER, Network
from fedvlm_secure.primitives.schema import unpack
from fedvlm_secure.primitives.wire import STATE_LIMITS
from fedvlm_secure.secagg.plan import Plan
from fedvlm_secure.secagg.transcript import Transcript

APP = Path(__file__).parent / "sum_app"
SITES = ("site-a", "site-b", "site-c", "site-d")


def weight(name: str) -> int:
    """A hospital's weight, as ``sum_app`` has it."""
    return 3 + zlib.crc32(name.encode()) % 97


def learnt(network: Network) -> list[dict]:
    """What the server has noted, round by round."""
    path = network.party(SERVER) / "learnt.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def begin(network: Network, rounds: int, **config: object) -> str:
    """Ask for so many more rounds; Flower's number of the run."""
    whole = {"folder": str(network.party(SERVER)), "rounds": len(learnt(network)) + rounds, **config}
    return network.run(APP, whole)


def kill_server(network: Network) -> None:
    """End the server's process, which Flower has started, at once."""
    with suppress(OSError, ValueError, psutil.NoSuchProcess):
        process = psutil.Process(int((network.party(SERVER) / "pid").read_text()))
        if "flwr-serverapp" in " ".join(process.cmdline()):  # and not another that has got its number
            process.kill()


def kept(network: Network, name: str, round_index: int) -> np.ndarray:
    """The update that the hospital has kept a copy of; of several attempts the last."""
    return np.load(max((network.party(name) / "kept").glob(f"round-{round_index:04d}-*.npy")))


def assert_exact(network: Network, round_index: int) -> list[str]:
    """The sum is of the survivors' updates, to the last bit; return the survivors."""
    server, line = network.party(SERVER), learnt(network)[round_index - 1]
    attempts = (server / "transcript").glob(f"round-{round_index:04d}-*.cbor")
    record = max(attempts, key=lambda path: int(path.stem.rsplit("-", 1)[1]))
    codec = unpack(Plan, Transcript.from_bytes(record.read_bytes()).plan, STATE_LIMITS).codec
    updates = [Update(kept(network, name, round_index), {"weight": weight(name)}) for name in line["survivors"]]
    mean = codec.decode(np.sum([codec.encode(update).integers for update in updates], axis=0)).mean
    after = np.load(server / f"after-{round_index:04d}.npy")
    assert after.tobytes() == (np.float64(round_index) + mean).astype(np.float32).tobytes(), round_index
    assert line["weight"] == sum(map(weight, line["survivors"]))
    return list(line["survivors"])
