"""A server that notes what it learns, and goes on where it stopped."""

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedvlm_secure.engines.flower import SecureAggregator
from fedvlm_secure.engines.flower.wire import BYTES, take
from fedvlm_secure.federation.settings import AggregationTable

app = ServerApp()
SITES = 4


@app.main()
def main(grid: Grid, context: Context) -> None:
    """As many more rounds as the run config says."""
    config = context.run_config
    folder = Path(str(config["folder"]))
    (folder / "pid").write_text(str(os.getpid()))
    relay = _Relay(grid, str(config["tamper"]))
    settings = AggregationTable(rounding="nearest", attempts=2)
    aggregator = SecureAggregator(relay, folder, settings, deadline=float(config["seconds"]))
    learnt = folder / "learnt.jsonl"
    first = len(learnt.read_text().splitlines()) + 1 if learnt.exists() else 1
    for number in range(first, int(config["rounds"]) + 1):
        arrays = ArrayRecord([np.full(int(config["size"]), number, np.float32)])
        relay.names = _all_of(aggregator)
        contents = {
            node: RecordDict({"arrays": arrays, "config": ConfigRecord({"round": number})}) for node in relay.names
        }
        told = aggregator.aggregate(arrays, contents, timeout=float(config["seconds"]))
        (after,) = told.arrays.to_numpy_ndarrays()
        np.save(folder / f"after-{number:04d}.npy", after)
        line = {"round": number, "survivors": told.survivors, "dropped": told.dropped, "weight": told.weight}
        with learnt.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _all_of(aggregator: SecureAggregator) -> dict[int, str]:
    # A SuperNode that has a message of a run whose server was killed may be busy with it for a minute.
    ends = time.monotonic() + 150
    while len(present := aggregator.hospitals()) < SITES and time.monotonic() < ends:
        time.sleep(0.5)
    return present


class _Relay:
    """A network that changes one byte of what one hospital is sent in one phase."""

    def __init__(self, grid: Grid, where: str) -> None:
        self._grid, self._where = grid, where
        self.names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send, one of them changed."""
        return self._grid.push_messages([self._changed(message) for message in messages])

    def _changed(self, message: Message) -> Message:
        header, body = take(message.content)
        if f"{self.names.get(message.metadata.dst_node_id)}:{header.phase}" == self._where:
            body = body[:-40] + bytes([body[-40] ^ 1]) + body[-39:]
            message.content[BYTES]["body"] = Array(dtype="uint8", shape=(len(body),), stype="fedvlm-secure", data=body)
        return message
