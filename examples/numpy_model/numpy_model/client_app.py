"""A node: one least-squares fit on its own rows."""

from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedvlm_secure.engines.flower import secure_aggregation

app = ClientApp(mods=[secure_aggregation(metrics={"error": 100.0})])


@app.train()
def train(message: Message, context: Context) -> Message:
    """A gradient step, as without secure aggregation."""
    rows = np.loadtxt(Path(str(context.node_config["folder"])) / "rows.csv", delimiter=",")
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    x, y = rows[:, :-1], rows[:, -1]
    weights = weights - 0.1 * x.T @ (x @ weights - y) / len(rows)
    metrics = MetricRecord({"num-examples": len(rows), "error": float(np.mean((x @ weights - y) ** 2))})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=message)
